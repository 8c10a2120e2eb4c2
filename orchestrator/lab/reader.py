"""The YAML of a lab to the types of ``types.py``: every problem with file, line and key, all at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast, get_args

from pydantic import TypeAdapter

from orchestrator.experiment import yamltext
from orchestrator.experiment.values import ADAPTERS, HINTS, a_list, a_path, mapping, paths, record, validated
from orchestrator.experiment.yamltext import Document, Location, Shown
from orchestrator.lab.types import Deadlines, Lab, LabHost

SECTIONS = ("fragments", "defaults", "hosts")
PATHS = ("key", "known_hosts", "initrd")  # on this machine, relative to the lab file
TUPLES = ("append", "console", "power", "cpus", "may_change")
NOT_IN_DEFAULTS = ("name", "address")
SECRETS = ("password", "passwd", "pass", "passphrase", "secret")


def load(path: Path) -> Lab:
    """Read and check a lab file. Raises :class:`~orchestrator.errors.ConfigError` with *all* problems."""
    return _finish(yamltext.read(Path(os.path.realpath(path))))


def parse(raw: bytes, path: Path) -> Lab:
    """:func:`load` on bytes that need not be on disk; relative paths start at ``path``'s folder."""
    return _finish(yamltext.parse(raw, path))


def _finish(document: Document) -> Lab:
    lab = _lab(document)
    document.raise_problems()
    return cast(Lab, lab)


def _lab(document: Document) -> Lab | None:
    top = mapping(document, document.data, (), SECTIONS)
    if top is None:
        return None
    fragments = paths(document, top.get("fragments", []), ("fragments",))
    defaults = _values(document, top.get("defaults", {}), ("defaults",))
    for key in NOT_IN_DEFAULTS:
        if key in defaults:
            document.problem(("defaults", key), "a key that hosts can share", Shown(f"{key}, of which each has one"))
    section = mapping(document, top.get("hosts"), ("hosts",), None)
    if section is not None and not section:
        document.problem(("hosts",), "at least one host", Shown("none"))
    before = len(document.problems)
    hosts = [_host(document, name, raw, defaults) for name, raw in (section or {}).items()]
    whole = tuple(host for host in hosts if host is not None)
    if len(document.problems) == before:
        _same_machine(document, whole)
    return Lab(document.file, fragments, whole) if len(whole) == len(hosts) and not document.problems else None


def _host(document: Document, name: str, raw: object, defaults: dict[str, object]) -> LabHost | None:
    at: Location = ("hosts", name)
    own = _values(document, raw, at)
    if "name" in own:
        document.problem((*at, "name"), "no such key: the host's name is the key above", own["name"])
    values = {**{key: value for key, value in defaults.items() if key not in own}, **own, "name": name}
    deadlines = {**_deadlines(defaults), **_deadlines(own)}
    if deadlines:
        checked = record(document, Deadlines, deadlines, (*at, "deadlines"))
        values["deadlines"] = checked if checked is not None else Deadlines()
    return record(document, LabHost, values, at)


def _deadlines(values: dict[str, object]) -> dict[str, object]:
    found = values.get("deadlines")
    return {
        key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in (found if isinstance(found, dict) else {}).items()
        if key in ADAPTERS[Deadlines]  # Another one was noted where it stands.
    }


def _values(document: Document, raw: object, at: Location) -> dict[str, object]:
    """A mapping of host keys in the form that :class:`LabHost` takes: paths absolute, lists as tuples."""
    section = raw
    if isinstance(raw, dict):
        for key in raw:
            if key.lower() in SECRETS:
                # A file is copied, backed up and shown to colleagues; a log is, too.
                document.problem(
                    (*at, key), "key: FILE or agent: true (no password is ever read, kept or sent)", Shown("a secret")
                )
        section = {key: value for key, value in raw.items() if key.lower() not in SECRETS}
    known = mapping(document, section, at, ADAPTERS[LabHost]) or {}
    values: dict[str, object] = {}
    for key, value in known.items():
        values[key] = _value(document, key, value, (*at, key))
    return values


def _value(document: Document, key: str, value: object, at: Location) -> object:
    if key in PATHS and value is not None:
        path = a_path(document, value, at)
        if path is not None and not path.is_file():
            document.problem(at, "an existing file", Shown(f"nothing at {path}"))
        return path
    if key in TUPLES:
        return _items(document, key, value, at)
    if key == "deadlines":
        return mapping(document, value, at, ADAPTERS[Deadlines])
    return float(value) if key == "max_load" and isinstance(value, int) and not isinstance(value, bool) else value


def _items(document: Document, key: str, raw: object, at: Location) -> tuple[object, ...]:
    """A list, each item of which is checked on its own."""
    kind = get_args(get_args(HINTS[LabHost][key])[0])[0]
    described = (
        get_args(kind)[-1].description if get_args(kind) and hasattr(get_args(kind)[-1], "description") else None
    )
    found = (
        validated(document, TypeAdapter(kind), item, (*at, index), described)
        for index, item in enumerate(a_list(document, raw, at))
    )
    return tuple(item for item in found if item is not None)


def _same_machine(document: Document, hosts: tuple[LabHost, ...]) -> None:
    """Two names for one machine would measure it twice at once."""
    seen: dict[tuple[str, int], str] = {}
    for host in hosts:
        other = seen.setdefault((host.address, host.port), host.name)
        if other != host.name:
            document.problem(("hosts", host.name), "a machine of its own", Shown(f"the address and port of {other}"))
