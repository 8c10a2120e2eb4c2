"""The YAML surface: sections, defaults and matrices, to the types of ``types.py``."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from orchestrator.experiment import crosscheck, yamltext
from orchestrator.experiment.types import (
    Arm,
    Cell,
    Check,
    DebianSource,
    Experiment,
    GitSource,
    Guest,
    KernelSpec,
    ReportSpec,
    Schedule,
    Source,
    Storm,
    TarballSource,
    TargetSpec,
    TreeSource,
)
from orchestrator.experiment.yamltext import Document, Location, Shown

T = TypeVar("T")

SOURCES: Mapping[str, type[Source]] = {
    "debian": DebianSource,
    "tree": TreeSource,
    "tarball": TarballSource,
    "git": GitSource,
}
SECTIONS = ("name", "description", "kernel", "arms", "target", "defaults", "cells", "schedule", "checks", "report")
MAX_CELLS = 1000

GIT_RANGE_PREFIX = "git:"  # kernel/series.py reads the range; here only its folder must exist


def load(path: Path) -> Experiment:
    """Read and check an experiment.

    Everything that can be known before a build is checked here: types, ranges, unknown keys, that patches and
    fragments exist, and that the parts fit each other. Raises :class:`ConfigError` with *all* problems.
    """
    path = Path(os.path.realpath(path))
    document = yamltext.read(path)
    experiment = _experiment(document)
    document.raise_problems()
    return cast(Experiment, experiment)


def parse(raw: bytes, path: Path) -> Experiment:
    """:func:`load` on bytes that need not be on disk; relative paths start at ``path``'s folder."""
    document = yamltext.parse(raw, path)
    experiment = _experiment(document)
    document.raise_problems()
    return cast(Experiment, experiment)


def _experiment(document: Document) -> Experiment | None:
    """Every section on its own, so that an error in one does not hide those of the next."""
    top = _mapping(document, document.data, (), SECTIONS)
    if top is None:
        return None
    name = _field(document, Experiment, "name", top.get("name"), ("name",))
    description = _field(document, Experiment, "description", top.get("description", ""), ("description",))
    target = _record(document, TargetSpec, top.get("target"), ("target",))
    kernel = _kernel(document, top.get("kernel", {} if target and target.kind == "local" else None))
    arms = _arms(document, top.get("arms"))
    cells = _cells(document, top)
    schedule = _record(document, Schedule, top.get("schedule", {}), ("schedule",))
    checks = _checks(document, top.get("checks", []))
    report = _record(document, ReportSpec, top.get("report", {}), ("report",))
    crosscheck.run(document, crosscheck.Parts(target, kernel, arms, cells, schedule, checks))
    if document.problems or not (kernel and target and schedule and report and name):
        return None
    return Experiment(
        name=name,
        description=description or "",
        path=document.file,
        kernel=kernel,
        arms=arms,
        target=target,
        cells=tuple(placed.cell for placed in cells),
        schedule=schedule,
        checks=checks,
        report=report,
    )


# --- sections ---------------------------------------------------------------------------------------------------------


def _kernel(document: Document, raw: object) -> KernelSpec | None:
    at: Location = ("kernel",)
    section = _mapping(document, raw, at, ("sources", "fragments"))
    if section is None:
        return None
    items = _list(document, section.get("sources", []), (*at, "sources"))
    sources = [_source(document, item, (*at, "sources", index)) for index, item in enumerate(items)]
    fragments = _paths(document, section.get("fragments", []), (*at, "fragments"))
    return KernelSpec(tuple(source for source in sources if source is not None), fragments)


def _source(document: Document, raw: object, at: Location) -> Source | None:
    section = _mapping(document, raw, at, SOURCES)
    if section is None:
        return None
    if len(section) != 1:
        document.problem(at, f"exactly one of {', '.join(SOURCES)}", Shown(f"{len(section)} keys"))
        return None
    kind, value = next(iter(section.items()))
    if kind not in SOURCES:
        return None
    at = (*at, kind)
    if kind == "tree":  # The short form: `tree: path`.
        value = {"path": value}
    before = len(document.problems)
    if isinstance(value, dict):
        value = {**value, **_source_paths(document, kind, value, at)}
    if len(document.problems) > before:
        return None
    return cast(Source | None, _record(document, SOURCES[kind], value, at))


def _source_paths(document: Document, kind: str, value: dict[str, object], at: Location) -> dict[str, object]:
    """Paths in a source, made absolute. They may be missing: the next source is tried then."""
    if kind in ("tree", "tarball") and value.get("path") is not None:
        return {"path": _path(document, value["path"], at)}
    repository = value.get("repository")
    if kind == "git" and isinstance(repository, str) and repository.startswith((".", "/", "~")):
        found = _path(document, repository, at)
        return {} if found is None else {"repository": str(found)}
    return {}


def _arms(document: Document, raw: object) -> tuple[Arm, ...]:
    section = _mapping(document, raw, ("arms",), None)
    if section is not None and not section:
        document.problem(("arms",), "at least one arm", Shown("none"))
    arms = []
    for name, patches in (section or {}).items():
        at = ("arms", name)
        checked = _field(document, Arm, "name", name, at)
        found = _patches(document, patches, at)
        if checked is not None:
            arms.append(Arm(checked, found))
    return tuple(arms)


def _checks(document: Document, raw: object) -> tuple[Check, ...]:
    items = _list(document, raw, ("checks",))
    checks: list[Check] = []
    for index, item in enumerate(items):
        at = ("checks", index)
        value = _validated(document, CHECK, item, at)
        if value is not None and value in checks:
            document.problem(at, "each check once", value)
        elif value is not None:
            checks.append(value)
    return tuple(checks)


# --- cells ------------------------------------------------------------------------------------------------------------


def _cells(document: Document, top: dict[str, object]) -> tuple[crosscheck.PlacedCell, ...]:
    defaults = _mapping(document, top.get("defaults", {}), ("defaults",), ("guest", "storm")) or {}
    guest = _block(document, Guest, defaults.get("guest", {}), ("defaults", "guest"))
    storm = _block(document, Storm, defaults.get("storm", {}), ("defaults", "storm"))
    section = _mapping(document, top.get("cells"), ("cells",), None)
    if section is not None and not section:
        document.problem(("cells",), "at least one cell", Shown("none"))
    placed: list[crosscheck.PlacedCell] = []
    names: set[str] = set()
    for name, raw in (section or {}).items():
        for cell in _expand(document, name, raw, guest, storm):
            if cell.cell.name in names:
                document.problem(("cells", name), "cells with different names", Shown(f"two {cell.cell.name!r}"))
            names.add(cell.cell.name)
            placed.append(cell)
        if len(placed) > MAX_CELLS:
            document.problem(("cells",), f"at most {MAX_CELLS} cells", Shown("more"))
            break
    return tuple(placed)


@dataclass(frozen=True)
class _Value:
    """A raw field and where it was written (in the cell, or in ``defaults``)."""

    raw: object
    at: Location


def _expand(
    document: Document, name: str, raw: object, guest: dict[str, _Value], storm: dict[str, _Value]
) -> Iterator[crosscheck.PlacedCell]:
    """All cells of one entry: the product of its lists, in the order in which the lists are written."""
    at: Location = ("cells", name)
    section = _mapping(document, raw, at, ("guest", "storm"))
    if section is None:
        return
    if "storm" not in section:
        document.problem(at, "the key 'storm' (none, or a mapping)", None)
        return
    own_guest = {**guest, **_block(document, Guest, section.get("guest", {}), (*at, "guest"))}
    quiet = section["storm"] in (None, "none")
    own_storm = {} if quiet else {**storm, **_block(document, Storm, section["storm"], (*at, "storm"))}
    before = len(document.problems)
    _required(document, Guest, own_guest, (*at, "guest"))
    if not quiet:
        _required(document, Storm, own_storm, (*at, "storm"))
    if _field(document, Cell, "name", name, at) is None or len(document.problems) > before:
        return
    for suffix, values in _matrix(document, {**own_guest, **own_storm}, at):
        cell_name = _field(document, Cell, "name", name + suffix, at)
        parts = [
            _make(cls, {key: values[key].raw for key in own}) for cls, own in ((Guest, own_guest), (Storm, own_storm))
        ]
        if cell_name is None or parts[0] is None or (parts[1] is None and not quiet):
            continue  # The values were found wrong, and reported, when their block was read.
        cell = Cell(cell_name, parts[0], None if quiet else parts[1])
        yield crosscheck.PlacedCell(cell, at, {key: value.at for key, value in values.items()})


def _matrix(document: Document, block: dict[str, _Value], at: Location) -> Iterator[tuple[str, dict[str, _Value]]]:
    """``(suffix, values)`` for each combination; guest and storm share no key, so one product serves both."""
    axes = {key: value.raw for key, value in block.items() if isinstance(value.raw, list)}
    if math.prod(len(axis) for axis in axes.values()) > MAX_CELLS:
        document.problem(at, f"at most {MAX_CELLS} cells", Shown("lists that expand to more"))
        return
    for chosen in itertools.product(*axes.values()):
        suffix = "".join(f",{key}={_suffix(value)}" for key, value in zip(axes, chosen, strict=True))
        yield suffix, {**block, **{key: _Value(value, block[key].at) for key, value in zip(axes, chosen, strict=True)}}


def _suffix(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _block(document: Document, cls: type[Any], raw: object, at: Location) -> dict[str, _Value]:
    """A ``guest:`` or ``storm:`` block whose every value, or every item of a list of them, is checked on its own."""
    section = _mapping(document, raw, at, ADAPTERS[cls]) or {}
    block = {}
    for key, value in section.items():
        if key not in ADAPTERS[cls]:
            continue
        block[key] = _Value(value, (*at, key))
        if isinstance(value, list) and not value:
            document.problem((*at, key), "at least one value", Shown("an empty list"))
        for index, item in enumerate(value if isinstance(value, list) else []):
            _field(document, cls, key, item, (*at, key, index))
        if not isinstance(value, list):
            _field(document, cls, key, value, (*at, key))
    return block


# --- values -----------------------------------------------------------------------------------------------------------


def _adapters_of(cls: type[Any]) -> dict[str, TypeAdapter[Any]]:
    """One validator for each field of a dataclass that YAML can hold as it is."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: TypeAdapter(hint) for name, hint in hints.items()}


ADAPTERS: Mapping[type[Any], Mapping[str, TypeAdapter[Any]]] = {
    cls: _adapters_of(cls)
    for cls in (*SOURCES.values(), TargetSpec, Guest, Storm, Schedule, ReportSpec, Arm, Cell, Experiment)
}
CHECK = TypeAdapter[Check](Check)


def _required(document: Document, cls: type[Any], given: Mapping[str, object], at: Location) -> None:
    for item in fields(cls):
        has_default = item.default is not MISSING and item.default is not PydanticUndefined
        if item.name not in given and not has_default:
            document.problem(at, f"the key {item.name!r}", None)


def _record(document: Document, cls: type[T], raw: object, at: Location) -> T | None:
    """A dataclass from a mapping with exactly its keys; ``None`` after noting what is wrong."""
    section = _mapping(document, raw, at, ADAPTERS[cls])
    if section is None:
        return None
    before = len(document.problems)
    _required(document, cls, section, at)
    known = {key: value for key, value in section.items() if key in ADAPTERS[cls]}
    values = {key: _field(document, cls, key, value, (*at, key)) for key, value in known.items()}
    if len(document.problems) > before or len(known) < len(section):
        return None
    try:
        return cls(**values)
    except ValidationError as error:
        for detail in error.errors():
            document.problem(at, _expected(detail), section)
        return None


def _make(cls: type[Any], raw: Mapping[str, object]) -> Any | None:
    """An instance of values that were checked before, or ``None`` if one of them was wrong."""
    try:
        return cls(**raw) if raw or cls is Guest else None
    except ValidationError:
        return None


def _field(document: Document, cls: type[Any], key: str, raw: object, at: Location) -> Any | None:
    return _validated(document, ADAPTERS[cls][key], raw, at, cls.__pydantic_fields__[key].description)


def _validated(
    document: Document, adapter: TypeAdapter[T], raw: object, at: Location, description: str | None = None
) -> T | None:
    """``raw`` checked; a mismatched pattern is explained by the field's description, not by the pattern."""
    try:
        return adapter.validate_python(raw, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        words = description if first["type"] == "string_pattern_mismatch" else None
        document.problem(at, words or _expected(first), raw)
        return None


def _mapping(
    document: Document, raw: object, at: Location, keys: Mapping[str, object] | tuple[str, ...] | None
) -> dict[str, object] | None:
    """``raw`` as a mapping; unknown keys are noted. ``keys`` of ``None`` allows any (names that the user chooses)."""
    if not isinstance(raw, dict):
        document.problem(at, "a mapping", raw)
        return None
    for key in raw:
        if keys is not None and key not in keys:
            document.unknown_key(at, key, keys)
    return raw


def _list(document: Document, raw: object, at: Location) -> list[object]:
    if isinstance(raw, list):
        return raw
    document.problem(at, "a list ([] for none)", raw)
    return []


def _patches(document: Document, raw: object, at: Location) -> tuple[Path, ...]:
    """Files, folders, or ``git:REPOSITORY#BASE..TIP``, whose repository must be a folder; all made absolute."""
    found: list[Path] = []
    for index, item in enumerate(_list(document, raw, at)):
        if not (isinstance(item, str) and item.startswith(GIT_RANGE_PREFIX)):
            found += _existing(document, item, (*at, index))
            continue
        repository, _, span = item.removeprefix(GIT_RANGE_PREFIX).partition("#")
        found += [Path(f"{GIT_RANGE_PREFIX}{path}#{span}") for path in _existing(document, repository, (*at, index))]
    return tuple(found)


def _paths(document: Document, raw: object, at: Location) -> tuple[Path, ...]:
    """A list of files or folders that must exist, made absolute."""
    return tuple(
        path for index, item in enumerate(_list(document, raw, at)) for path in _existing(document, item, (*at, index))
    )


def _existing(document: Document, raw: object, at: Location) -> tuple[Path, ...]:
    """The absolute path, or nothing and a problem noted."""
    path = _path(document, raw, at)
    if path is not None and not path.exists():
        document.problem(at, "an existing file or folder", Shown(f"nothing at {path}"))
        return ()
    return () if path is None else (path,)


def _path(document: Document, raw: object, at: Location) -> Path | None:
    """An absolute path; relative ones start at the config file's folder, ``~`` is the home folder."""
    if not isinstance(raw, str) or not raw or not raw.isprintable():
        document.problem(at, "a path", raw)
        return None
    return Path(os.path.realpath(document.file.parent / Path(raw).expanduser()))


EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text of the form {pattern}",
    "literal_error": "{expected}",
    "value_error": "{error}",
}


def _expected(detail: ErrorDetails) -> str:
    """Pydantic's error in the words of our messages."""
    template = EXPECTED.get(detail["type"])
    if template is None:
        return detail["msg"].removeprefix("Input should be ")
    return template.format(**{key: value for key, value in detail.get("ctx", {}).items()})
