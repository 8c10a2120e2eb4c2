"""Every key of an experiment file with its values and its meaning, for help texts and the documentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from orchestrator.experiment.guests import Guest, LinuxGuest, LinuxGuestSpec
from orchestrator.experiment.selftests import Selftest, SelftestSpec
from orchestrator.experiment.traces import TraceSpec
from orchestrator.experiment.types import (
    DebianSource,
    GitSource,
    KernelSpec,
    ReportSpec,
    Schedule,
    StaleSpec,
    Storm,
    TarballSource,
    TargetSpec,
    TreeSource,
)


@dataclass(frozen=True)
class FieldDoc:
    """One key: dotted, with NAME for a name that the user chooses. ``default`` is empty where the key is required."""

    key: str
    values: str
    default: str
    doc: str


SECTIONS: tuple[tuple[str, Any], ...] = (
    ("kernel", KernelSpec),
    ("kernel.sources[].debian", DebianSource),
    ("kernel.sources[].tree", TreeSource),
    ("kernel.sources[].tarball", TarballSource),
    ("kernel.sources[].git", GitSource),
    ("target", TargetSpec),
    ("cells.NAME.guest", Guest),
    ("cells.NAME.guest", LinuxGuest),
    ("cells.NAME.storm", Storm),
    ("schedule", Schedule),
    ("stale", StaleSpec),
    ("selftests", SelftestSpec),
    ("selftests.tests[]", Selftest),
    ("trace", TraceSpec),
    ("linux_guest", LinuxGuestSpec),
    ("report", ReportSpec),
)


def describe() -> tuple[FieldDoc, ...]:
    """All keys of the sections, in the order of the file."""
    found: dict[str, FieldDoc] = {}
    for prefix, cls in SECTIONS:
        for item in _of(prefix, cls):
            first = found.setdefault(item.key, item)
            if item.values != first.values:  # The kinds of guests share a prefix, and most keys.
                found[item.key] = dataclasses.replace(first, values=f"{first.values}, {item.values}")
    return tuple(found.values())


def _of(prefix: str, cls: Any) -> Iterator[FieldDoc]:
    for item in dataclasses.fields(cls):
        info = cls.__pydantic_fields__[item.name]
        default = "" if info.default is PydanticUndefined else _word(info.default)
        yield FieldDoc(f"{prefix}.{item.name}", _values(info.annotation), default, info.description or "")


def _values(annotation: Any) -> str:
    annotation = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    if get_origin(annotation) is tuple:
        inner = _values(get_args(annotation)[0])
        return f"a list of: {inner}" if inner else "a list"
    if get_origin(annotation) in (Union, UnionType):
        return ", or ".join(_values(kind) for kind in get_args(annotation) if kind is not type(None))
    words: dict[object, str] = {
        bool: "true, false",
        int: "a whole number",
        float: "a number",
        str: "text",
        Path: "a path",
    }
    return words.get(annotation, "")


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_word(item) for item in value) or "[]"
    if isinstance(value, Selftest):
        return value.label
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "none" if value is None else str(value)
