"""Whether two runs can be compared: what must be the same, what may differ, and what is being compared.

Must be the same: whatever changes a latency and is not the kernel's source. Where time is counted in instructions
(icount) the machine below does not matter; otherwise it does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StoreError, printable
from orchestrator.experiment import Cell
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.keep import config_name
from orchestrator.linuxguest import PACKED
from orchestrator.manifest import MITIGATION, SWAP, FileId
from orchestrator.nights.catalogue import Run
from orchestrator.store import file_sha256, load_json
from orchestrator.target.ssh import MACHINE, MachineRecord
from orchestrator.target.target import COMMAND
from orchestrator.vmm import Packed

NOT_RECORDED, NOT_GIVEN = "not recorded", "not given"
# The kernel itself, and what is measured again before each boot and differs in the last digit.
OWN_ARGUMENTS = {"-kernel"}
MEASURED = re.compile(r"\btsc_early_khz=\d+\s?")
SHOWN_OPTIONS = 6


@dataclass(frozen=True)
class Difference:
    """A field with both values."""

    field: str
    left: str
    right: str

    def render(self) -> str:
        return f"{self.field}: {printable(self.left) or '(empty)'} | {printable(self.right) or '(empty)'}"


@dataclass(frozen=True)
class Sameness:
    """``refused``: why the two cannot be compared. ``compared``: what differs and may. ``notes``: to keep in mind."""

    refused: tuple[Difference, ...]
    compared: tuple[Difference, ...]
    notes: tuple[str, ...]


def examine(left: Run, right: Run) -> Sameness:
    """Hold the manifests of two runs, and what belongs to them, against each other."""
    config, added = _kernel_config(left, right)
    refused = [*_machine(left, right), *_programs(left, right), *_cells(left, right), *config]
    notes = [*added, *_notes(left, right)]
    # A machine that differs is named once, by its field, and not again by every argument that follows from it.
    if not refused:
        refused += _qemu_arguments(left, right)
    return Sameness(tuple(refused), tuple(_compared(left, right)), tuple(notes))


def same_seeds(left: Run, right: Run) -> bool:
    """Whether boot by boot the two had the same seeds, as far as both go."""
    pairs = list(zip(left.manifest.seeds, right.manifest.seeds, strict=False))
    return bool(pairs) and all(one == other for one, other in pairs)


def _machine(left: Run, right: Run) -> Iterator[Difference]:
    one, other = left.experiment.target, right.experiment.target
    yield from _differ("experiment", left.manifest.experiment, right.manifest.experiment)
    yield from _differ("target.kind", one.kind, other.kind)
    yield from _differ("accelerator", left.manifest.accel, right.manifest.accel)
    for field in ("machine", "cpus", "mem_mib"):
        yield from _differ(f"target.{field}", getattr(one, field), getattr(other, field))
    yield from _differ("QEMU", left.manifest.qemu_version, right.manifest.qemu_version)
    if one.kind == other.kind == "ssh":  # This machine only gives the orders.
        yield from _lab(left, right)
        return
    if left.manifest.accel == "icount" and right.manifest.accel == "icount":
        return
    host, its = left.manifest.host, right.manifest.host
    for field, what in (("cpu", "host's CPU"), ("cores", "host's CPUs"), ("machine", "host's architecture")):
        yield from _differ(what, getattr(host, field), getattr(its, field))
    if left.manifest.accel == "kvm":  # The kernel below is half of what a nested exit costs.
        yield from _differ("host's kernel", host.kernel, its.kernel)
    yield from _settings(left, right)


def _settings(left: Run, right: Run) -> Iterator[Difference]:
    """How this machine was set, if both say so: governor, turbo, SMT, huge pages, microcode, mitigations …"""
    for name, one, other in _both_settings(left, right):
        if not _is_noted(name, one, other):
            yield from _differ(f"host's {name}", one, other)


def _settings_notes(left: Run, right: Run) -> Iterator[str]:
    silent = [run.name for run in (left, right) if run.manifest.host_settings is None]
    if silent and len(silent) < 2:
        yield f"{silent[0]} does not say how the host was set (governor, turbo, SMT …)"
    for name, one, other in _both_settings(left, right):
        if one != other and _is_noted(name, one, other):
            yield Difference(f"host's {name}", one, other).render()


def _both_settings(left: Run, right: Run) -> Iterator[tuple[str, str, str]]:
    known = left.manifest.host_settings, right.manifest.host_settings
    if known[0] is not None and known[1] is not None:
        ours, theirs = ({item.name: item.value for item in settings} for settings in known if settings is not None)
        for name in dict.fromkeys([*ours, *theirs]):
            yield name, ours.get(name, NOT_GIVEN), theirs.get(name, NOT_GIVEN)


def _is_noted(name: str, one: str, other: str) -> bool:
    """Swap that nothing need have used; a vulnerability that just one of two host kernels knows of."""
    return name.startswith(SWAP) or (name.startswith(MITIGATION) and NOT_GIVEN in (one, other))


# --- the machines of a lab --------------------------------------------------------------------------------------------


def _lab(left: Run, right: Run) -> Iterator[Difference]:
    """Which machines they are, what of their description decides what is measured, and the settings that they had."""
    ours, theirs = (dict(map(_described, run.manifest.machines)) for run in (left, right))
    if ours.keys() != theirs.keys():
        yield Difference("machines of the lab", ", ".join(ours), ", ".join(theirs))
    conditions = _conditions(left), _conditions(right)
    for name in (name for name in ours if name in theirs):
        yield from _differ_parts(f"{name}'s", ours[name], theirs[name])
        if all(name in found for found in conditions):
            yield from _differ_parts(f"{name}'s", conditions[0][name], conditions[1][name])


def _described(identity: str) -> tuple[str, dict[str, str]]:
    """A machine's name, and the rest of :attr:`orchestrator.lab.types.LabHost.identity` by its keys in the lab file."""
    name, _, rest = identity.partition(" (")
    address, _, described = rest.partition("), ")
    parts = (part.partition(" ") for part in described.split("; "))
    return name, {"address": address} | {key: value for key, _, value in parts}


def _conditions(run: Run) -> dict[str, dict[str, str]]:
    """What each machine was like when the first trial began there, by what is set or seen."""
    found: dict[str, dict[str, str]] = {}
    for record in _records(sorted(run.folder.glob(f"trials/*/{MACHINE}"))):
        if record.machine not in found:
            now = record.conditions
            seen = {"online CPUs": now.online_cpus, "isolated CPUs": now.isolated_cpus, "clocksource": now.clocksource}
            found[record.machine] = {setting.path: setting.value for setting in now.settings} | seen
        if len(found) == len(run.manifest.machines):
            break
    return found


def _records(paths: Iterable[Path]) -> Iterator[MachineRecord]:
    for path in paths:
        with contextlib.suppress(StoreError):  # A trial that did not come so far, or of another version of the tool.
            yield load_json(path, MachineRecord)


def _ran_on(run: Run, cell: str) -> str:
    """The machines that ran the base in a cell."""
    boots = run.comparison.summary(cell, run.comparison.base).per_boot
    paths = (run.folder / "trials" / boot.trial / MACHINE for boot in boots)
    return ", ".join(sorted({record.machine for record in _records(paths)}))


def _both(left: Run, right: Run, cell: str) -> tuple[str, str] | None:
    """Where a cell ran, if both say so and it was not the same."""
    on = _ran_on(left, cell), _ran_on(right, cell)
    return on if all(on) and on[0] != on[1] else None


def _running(run: Run) -> str:
    """The kernels that lab machines ran and that were measured: those of ``boot: none``."""
    records = _records(sorted(run.folder.glob(f"trials/*/{MACHINE}")))
    return ", ".join(sorted({f"{item.machine}: {item.known_good}" for item in records if item.booted is None}))


def _differ_parts(whose: str, left: Mapping[str, str], right: Mapping[str, str]) -> Iterator[Difference]:
    for part in dict.fromkeys([*left, *right]):
        yield from _differ(f"{whose} {part}", left.get(part, NOT_GIVEN), right.get(part, NOT_GIVEN))


# --- programs and cells -----------------------------------------------------------------------------------------------


def _programs(left: Run, right: Run) -> Iterator[Difference]:
    yield from _differ("guest programs", _short(left.manifest.guests_id), _short(right.manifest.guests_id))
    yield from _differ_files("kernel config fragments", left.manifest.fragments, right.manifest.fragments)
    yield from _vmm(left, right)


def _vmm(left: Run, right: Run) -> Iterator[Difference]:
    """The VMM of Linux guests with all that it opens, how it is called, and whose kernel the guests run."""
    one, other = left.experiment.linux_guest, right.experiment.linux_guest
    if one is None or other is None:  # Then no cell with such guests is in both.
        return
    for field in ("vmm", "arguments"):
        yield from _differ(f"linux_guest.{field}", getattr(one, field), getattr(other, field))
    whose = (spec.kernel if isinstance(spec.kernel, str) else "its own" for spec in (one, other))
    yield from _differ("linux_guest.kernel", *whose)
    ids = [run.manifest.linux_guest.id if run.manifest.linux_guest else "" for run in (left, right)]
    if ids[0] == ids[1]:
        return
    ours, theirs = (_packages(run) for run in (left, right))
    named = list(_differ_parts("the Linux guests' VMM:", ours, theirs)) if ours and theirs else []
    yield from named or [Difference("the Linux guests' VMM", *map(_short, ids))]


def _packages(run: Run) -> dict[str, str]:
    """What was packed: Debian's packages with their versions, and files of no package with their hashes."""
    try:
        files = load_json(run.folder / PACKED, Packed).files
    except StoreError:
        return {}
    return {file.package or f"/{file.path}": file.version or _short(file.sha256) for file in files}


def _cells(left: Run, right: Run) -> Iterator[Difference]:
    ours, theirs = _by_name(left.experiment.cells), _by_name(right.experiment.cells)
    common = [name for name in ours if name in theirs]
    if not common:  # A cell more or less changes nothing in the others, but something must be left to compare.
        yield from _differ("cells", ", ".join(ours) or "none", ", ".join(theirs) or "none")
    for name in common:
        one, other = _flat(ours[name]), _flat(theirs[name])
        for field in dict.fromkeys([*one, *other]):
            yield from _differ(f"cells.{name}.{field}", one.get(field, "none"), other.get(field, "none"))


def _by_name(cells: Sequence[Cell]) -> dict[str, Cell]:
    return {cell.name: cell for cell in cells}


def _flat(cell: Cell) -> dict[str, object]:
    """A cell's fields by the keys of the config: ``guest.mem_mib`` …"""
    parts = {"guest": cell.guest, "storm": cell.storm}
    return {
        f"{part}.{field.name}": getattr(value, field.name)
        for part, value in parts.items()
        if value is not None
        for field in dataclasses.fields(value)
    }


# --- the kernel's configuration ---------------------------------------------------------------------------------------


def _kernel_config(left: Run, right: Run) -> tuple[list[Difference], list[str]]:
    """Options that both arms have with different values (the compiler is among them), and a note on what one lacks.

    Another version of the tree brings and drops options of its own: these belong to what is compared.
    """
    refused: dict[str, Difference] = {}
    notes: dict[str, None] = {}
    theirs = {kernel.arm: kernel for kernel in right.kernels}
    for kernel in left.kernels:
        other = theirs.get(kernel.arm)
        if other is None or kernel.config_sha256 == other.config_sha256 or "failed" in (kernel.build, other.build):
            continue
        one, its = _options(left, kernel), _options(right, other)
        if one is None or its is None:
            hashes = [_short(item.config_sha256) for item in (kernel, other)]
            refused["config"] = Difference(f"kernel config of {kernel.arm} (the files are gone)", hashes[0], hashes[1])
            continue
        for name in sorted(one.keys() & its.keys()):
            if one[name] != its[name]:
                refused.setdefault(name, Difference(f"kernel config {name}", one[name], its[name]))
        for said, names in (("gone", one.keys() - its.keys()), ("new", its.keys() - one.keys())):
            if names:
                more = f" and {len(names) - SHOWN_OPTIONS} more" if len(names) > SHOWN_OPTIONS else ""
                notes[f"kernel options {said}: {', '.join(sorted(names)[:SHOWN_OPTIONS])}{more}"] = None
    return list(refused.values()), list(notes)


def _options(run: Run, kernel: BuiltKernel) -> Mapping[str, str] | None:
    """Every option of an arm's configuration, ``n`` included; None if the file is gone or another one."""
    for path in (run.folder / config_name(kernel.arm), kernel.config):
        if path is not None and path.is_file() and file_sha256(path) == kernel.config_sha256:
            text = path.read_text("utf-8", "replace")
            given = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE))
            return given | dict.fromkeys(re.findall(r"^# (CONFIG_\w+) is not set$", text, re.MULTILINE), "n")
    return None


# --- QEMU's arguments -------------------------------------------------------------------------------------------------


def _qemu_arguments(left: Run, right: Run) -> Iterator[Difference]:
    """The CPU model, the devices, the kernel's command line: as QEMU was really called for the same cell."""
    if left.experiment.target.kind != "qemu":
        return
    for cell in left.experiment.cells:
        one, other = _called(left, cell.name), _called(right, cell.name)
        if one is None or other is None:
            continue
        for option in dict.fromkeys([*one, *other]):
            yield from _differ(f"QEMU's {option}", one.get(option, NOT_GIVEN), other.get(option, NOT_GIVEN))
        return


def _called(run: Run, cell: str) -> dict[str, str] | None:
    """The first boot of the base in a cell: QEMU's options with all their values."""
    boots = run.comparison.summary(cell, run.comparison.base).per_boot
    try:
        text = (run.folder / "trials" / boots[0].trial / COMMAND).read_text("utf-8") if boots else ""
        words = shlex.split(text.splitlines()[-1]) if text else []
    except (OSError, ValueError):
        return None
    options: dict[str, str] = {}
    for name, value in zip(words[1:], [*words[2:], ""], strict=True):
        if name.startswith("-") and name not in OWN_ARGUMENTS:
            given = "given" if value.startswith("-") or not value else MEASURED.sub("", value)
            options[name] = f"{options[name]} {given}" if name in options else given
    return options or None


# --- what is compared -------------------------------------------------------------------------------------------------


def _compared(left: Run, right: Run) -> Iterator[Difference]:
    yield from _differ("kernel tree", left.tree_text, right.tree_text)
    if left.tree is not None and right.tree is not None and left.tree_text == right.tree_text:
        yield from _differ("kernel tree's content", _short(left.tree.content_id), _short(right.tree.content_id))
    ours, theirs = ({arm.arm: arm.patches for arm in run.manifest.arms} for run in (left, right))
    for arm in dict.fromkeys([*ours, *theirs]):
        yield from _differ_files(f"patches of {arm}", ours.get(arm), theirs.get(arm))
    if left.manifest.accel == "local":
        yield from _differ("running kernel", left.manifest.host.kernel, right.manifest.host.kernel)
    if left.manifest.accel == "ssh" and not left.experiment.builds_kernels:
        yield from _differ("running kernels", _running(left), _running(right))


def _notes(left: Run, right: Run) -> Iterator[str]:
    ours, theirs = _by_name(left.experiment.cells), _by_name(right.experiment.cells)
    if not same_seeds(left, right):
        more = "; under icount their figures differ for that alone" if left.manifest.accel == "icount" else ""
        yield f"the two had different seeds{more}"
    if len(left.manifest.seeds) != len(right.manifest.seeds):
        yield f"{len(left.manifest.seeds)} boots against {len(right.manifest.seeds)}: the first of each are compared"
    for run, cells, others in ((left, ours, theirs), (right, theirs, ours)):
        if only := [name for name in cells if name not in others]:
            yield f"only {run.name} has {'cells' if len(only) > 1 else 'cell'} {', '.join(only)}"
    yield from _host_notes(left, right)
    one, other = (f"{run.manifest.tool_version} {run.manifest.tool_commit}".strip() for run in (left, right))
    if one != other:
        yield f"made by orch {one} and {other}"
    if left.experiment.report.margin != right.experiment.report.margin:
        yield f"the margin is the second run's, {right.experiment.report.margin:g}"


def _host_notes(left: Run, right: Run) -> Iterator[str]:
    ours, theirs = (_by_name(run.experiment.cells) for run in (left, right))
    hosts = [run.manifest.host.node for run in (left, right)]
    if left.manifest.accel == "ssh":
        moved = [f"{name} ({on[0]} | {on[1]})" for name in ours if name in theirs if (on := _both(left, right, name))]
        if moved:
            yield f"measured on other machines of the lab: {', '.join(moved)}"
    elif hosts[0] != hosts[1] and left.manifest.accel != "icount":
        yield f"the hosts are {hosts[0]} and {hosts[1]}, of one CPU model"
    if left.manifest.accel not in ("ssh", "icount"):
        yield from _settings_notes(left, right)


def _differ(field: str, left: object, right: object) -> Iterator[Difference]:
    if left != right:
        yield Difference(field, str(left), str(right))


def _differ_files(field: str, left: Sequence[FileId] | None, right: Sequence[FileId] | None) -> Iterator[Difference]:
    """Files are the same if their contents are, wherever they lie; None: there is no such arm."""
    hashes = [None if files is None else [item.sha256 for item in files] for files in (left, right)]
    if hashes[0] != hashes[1]:
        yield Difference(field, _files(left), _files(right))


def _files(files: Sequence[FileId] | None) -> str:
    if files is None:
        return "no such arm"
    return ", ".join(f"{Path(item.path).name} {_short(item.sha256)}" for item in files) or "none"


def _short(digest: str) -> str:
    return digest[:16] or NOT_RECORDED
