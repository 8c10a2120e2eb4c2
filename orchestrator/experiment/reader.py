"""The YAML surface: sections, defaults and matrices, to the types of ``types.py``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

from pydantic import TypeAdapter

from orchestrator.experiment import crosscheck, yamltext
from orchestrator.experiment.cells import PlacedCell, read_cells
from orchestrator.experiment.guests import LinuxGuest, LinuxGuestSpec
from orchestrator.experiment.selftests import ARGUMENT_WORDS, Argument, Selftest, SelftestSpec
from orchestrator.experiment.traces import TraceSpec
from orchestrator.experiment.types import (
    Arm,
    Check,
    DebianSource,
    Experiment,
    GitSource,
    KernelSpec,
    ReportSpec,
    Schedule,
    Source,
    StaleSpec,
    TarballSource,
    TargetSpec,
    TreeSource,
)
from orchestrator.experiment.values import (
    ADAPTERS,
    CHECK,
    HINTS,
    a_list,
    a_path,
    field,
    mapping,
    patch_paths,
    paths,
    record,
    validated,
)
from orchestrator.experiment.yamltext import Document, Location, Shown

SOURCES: Mapping[str, type[Source]] = {
    "debian": DebianSource,
    "tree": TreeSource,
    "tarball": TarballSource,
    "git": GitSource,
}
SECTIONS = (
    "name", "description", "kernel", "arms", "target", "defaults", "cells", "schedule", "checks", "stale", "selftests",
    "trace", "linux_guest", "report",
)  # fmt: skip
ARGUMENT = TypeAdapter[str](Argument)


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
    top = mapping(document, document.data, (), SECTIONS)
    if top is None:
        return None
    name = field(document, Experiment, "name", top.get("name"), ("name",))
    description = field(document, Experiment, "description", top.get("description", ""), ("description",))
    target = _target(document, top.get("target"))
    # `local` never builds a kernel, and `ssh` need not: the machines of the lab may bench what they run.
    kernel = _kernel(document, top.get("kernel", {} if target and target.kind != "qemu" else None))
    arms = _arms(document, top.get("arms"))
    cells = read_cells(document, top)
    schedule = record(document, Schedule, top.get("schedule", {}), ("schedule",))
    checks = _checks(document, top.get("checks", []))
    stale = _stale(document, top, checks)
    selftests = _selftests(document, top, checks)
    trace = _trace(document, top, cells)
    linux_guest = _linux_guest(document, top, cells)
    report = record(document, ReportSpec, top.get("report", {}), ("report",))
    crosscheck.run(
        document,
        crosscheck.Parts(target, kernel, arms, cells, schedule, checks, stale, selftests, trace, linux_guest),
    )
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
        stale=stale,
        selftests=selftests,
        trace=trace,
        linux_guest=linux_guest,
    )


# --- sections ---------------------------------------------------------------------------------------------------------


def _target(document: Document, raw: object) -> TargetSpec | None:
    at: Location = ("target",)
    if not isinstance(raw, dict):
        return record(document, TargetSpec, raw, at)
    before = len(document.problems)
    value = dict(raw)
    if value.get("lab") is not None:
        value["lab"] = a_path(document, value["lab"], (*at, "lab"))
    if "hosts" in value:
        items = a_list(document, value["hosts"], (*at, "hosts"))
        value["hosts"] = tuple(str(item) for item in items)
        for index, item in enumerate(items):
            field(document, Arm, "name", item, (*at, "hosts", index))
            if item in items[:index]:
                document.problem((*at, "hosts", index), "each host once", item)
    return record(document, TargetSpec, value, at) if len(document.problems) == before else None


def _kernel(document: Document, raw: object) -> KernelSpec | None:
    at: Location = ("kernel",)
    section = mapping(document, raw, at, ("sources", "fragments"))
    if section is None:
        return None
    items = a_list(document, section.get("sources", []), (*at, "sources"))
    sources = [_source(document, item, (*at, "sources", index)) for index, item in enumerate(items)]
    fragments = paths(document, section.get("fragments", []), (*at, "fragments"))
    return KernelSpec(tuple(source for source in sources if source is not None), fragments)


def _source(document: Document, raw: object, at: Location) -> Source | None:
    section = mapping(document, raw, at, SOURCES)
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
    return cast(Source | None, record(document, SOURCES[kind], value, at))


def _source_paths(document: Document, kind: str, value: dict[str, object], at: Location) -> dict[str, object]:
    """Paths in a source, made absolute. They may be missing: the next source is tried then."""
    if kind in ("tree", "tarball") and value.get("path") is not None:
        return {"path": a_path(document, value["path"], at)}
    repository = value.get("repository")
    if kind == "git" and isinstance(repository, str) and repository.startswith((".", "/", "~")):
        found = a_path(document, repository, at)
        return {} if found is None else {"repository": str(found)}
    return {}


def _arms(document: Document, raw: object) -> tuple[Arm, ...]:
    section = mapping(document, raw, ("arms",), None)
    if section is not None and not section:
        document.problem(("arms",), "at least one arm", Shown("none"))
    arms = []
    for name, patches in (section or {}).items():
        at = ("arms", name)
        checked = field(document, Arm, "name", name, at)
        found = patch_paths(document, patches, at)
        if checked is not None:
            arms.append(Arm(checked, found))
    return tuple(arms)


def _checks(document: Document, raw: object) -> tuple[Check, ...]:
    items = a_list(document, raw, ("checks",))
    checks: list[Check] = []
    for index, item in enumerate(items):
        at = ("checks", index)
        value = validated(document, CHECK, item, at)
        if value is not None and value in checks:
            document.problem(at, "each check once", value)
        elif value is not None:
            checks.append(value)
    return tuple(checks)


def _stale(document: Document, top: dict[str, object], checks: tuple[Check, ...]) -> StaleSpec | None:
    """The section of the stale-mapping check; its defaults, if the check is asked for without one."""
    at: Location = ("stale",)
    if "stale_mapping" not in checks:
        if "stale" in top:
            document.problem(at, "the check stale_mapping, which this section is for", Shown("a section without it"))
        return None
    section = mapping(document, top.get("stale", {}), at, ADAPTERS[StaleSpec])
    if section is None:
        return None
    before = len(document.problems)
    values = {
        key: _several(document, key, value, (*at, key)) if key in ADAPTERS[StaleSpec] else value
        for key, value in section.items()
    }
    return record(document, StaleSpec, values, at) if len(document.problems) == before else None


def _selftests(document: Document, top: dict[str, object], checks: tuple[Check, ...]) -> SelftestSpec | None:
    """The section of the kernel's own KVM selftests; its defaults, if the check is asked for without one."""
    at: Location = ("selftests",)
    if "kvm_selftests" not in checks:
        if "selftests" in top:
            document.problem(at, "the check kvm_selftests, which this section is for", Shown("a section without it"))
        return None
    section = mapping(document, top.get("selftests", {}), at, ADAPTERS[SelftestSpec])
    if section is None:
        return None
    before = len(document.problems)
    values = dict(section)
    if "tests" in values:
        values["tests"] = _tests(document, values["tests"], (*at, "tests"))
    return record(document, SelftestSpec, values, at) if len(document.problems) == before else None


def _tests(document: Document, raw: object, at: Location) -> tuple[Selftest, ...]:
    """The list of tests: names, or mappings of a test with its arguments, time and needs."""
    tests: list[Selftest] = []
    items = a_list(document, raw, at)
    for index, item in enumerate(items):
        value: dict[str, object] = item if isinstance(item, dict) else {"test": item}
        args = value.get("args")
        if isinstance(args, list):
            place: Location = (*at, index, "args")
            checked = [validated(document, ARGUMENT, arg, (*place, nr), ARGUMENT_WORDS) for nr, arg in enumerate(args)]
            value = {**value, "args": tuple(arg for arg in checked if arg is not None)}
        test = record(document, Selftest, value, (*at, index))
        if test is not None and test.label in [other.label for other in tests]:
            document.problem((*at, index), "each test with the same arguments once", test.label)
        elif test is not None:
            tests.append(test)
    if not items:
        document.problem(at, "at least one test", Shown("none"))
    return tuple(tests)


def _trace(document: Document, top: dict[str, object], cells: tuple[PlacedCell, ...]) -> TraceSpec | None:
    """The section of the traced boots, its cells by the names that they have after expansion."""
    at: Location = ("trace",)
    if "trace" not in top:
        return None
    section = mapping(document, top["trace"], at, ADAPTERS[TraceSpec])
    if section is None:
        return None
    wanted: set[object] = set()
    every = list(dict.fromkeys(placed.at[-1] for placed in cells))
    items = a_list(document, section.get("cells", every), (*at, "cells"))
    for index, item in enumerate(items):
        if not isinstance(item, str) or not any(item in (placed.cell.name, placed.at[-1]) for placed in cells):
            document.problem((*at, "cells", index), "a name of cells, or of one that a list there expands to", item)
        elif item in items[:index]:
            document.problem((*at, "cells", index), "each cell once", item)
        else:
            wanted.add(item)
    if section.get("cells") == []:
        document.problem((*at, "cells"), "at least one cell", Shown("none"))
    names = tuple(placed.cell.name for placed in cells if wanted & {placed.cell.name, placed.at[-1]})
    return record(document, TraceSpec, {**section, "cells": names}, at)


def _linux_guest(document: Document, top: dict[str, object], cells: tuple[PlacedCell, ...]) -> LinuxGuestSpec | None:
    """The section of the VMM and kernel that the cells with Linux guests share; its defaults, if there are such."""
    at: Location = ("linux_guest",)
    if not any(isinstance(placed.cell.guest, LinuxGuest) for placed in cells):
        if "linux_guest" in top and not document.problems:
            document.problem(at, "a cell with guest.kind: linux, which this section is for", Shown("none"))
        return None
    section = mapping(document, top.get("linux_guest", {}), at, ADAPTERS[LinuxGuestSpec])
    if section is None:
        return None
    before = len(document.problems)
    values = dict(section)
    if isinstance(values.get("vmm"), str) and "/" in str(values["vmm"]):
        values["vmm"] = str(a_path(document, values["vmm"], (*at, "vmm")))
    if "files" in values:
        values["files"] = paths(document, values["files"], (*at, "files"))
    if isinstance(values.get("kernel"), list):
        values["kernel"] = paths(document, values["kernel"], (*at, "kernel"))
    return record(document, LinuxGuestSpec, values, at) if len(document.problems) == before else None


def _several(document: Document, key: str, raw: object, at: Location) -> object:
    """The value of a key of ``stale:``; of one that holds several, each is checked on its own."""
    args = get_args(get_args(HINTS[StaleSpec][key])[0])
    if not args:
        return raw
    items = a_list(document, raw, at)
    for index, item in enumerate(items):
        if validated(document, TypeAdapter(args[0]), item, (*at, index)) is not None and item in items[:index]:
            document.problem((*at, index), "each value once", item)
    if raw == []:
        document.problem(at, "at least one value", Shown("none"))
    return tuple(items)
