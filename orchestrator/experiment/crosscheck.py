"""What no single field can know: whether the parts of an experiment fit each other.

Everything here would otherwise fail an hour later, in a built and booted kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.experiment.cells import PlacedCell
from orchestrator.experiment.guests import QEMU_ARGUMENTS, LinuxGuest, LinuxGuestSpec
from orchestrator.experiment.memory import KERNEL_MIB, SAMPLE_BYTES, needed_mib, parts_mib, reserve_bytes
from orchestrator.experiment.selftests import CELL_NAME, SelftestSpec
from orchestrator.experiment.traces import NEEDED_LINE, TRACED_PREFIX, TraceSpec, can_trace
from orchestrator.experiment.types import (
    MAX_PAGES,
    Arm,
    Check,
    KernelSpec,
    Schedule,
    StaleSpec,
    TargetSpec,
)
from orchestrator.experiment.yamltext import Document, Location, Shown

MAX_TRIALS = 1_000_000
MAX_CELL_NAME = 95  # char cell[96] of guests/include/recording.h
MIN_BOOTS_TO_LOOK = 6
OWN_TRIALS: frozenset[Check] = frozenset(("stale_mapping", "kvm_selftests"))  # checks that need no cell
MAX_SAMPLES_MIB = 2900  # SYS_LIMIT of guests/fault_vmm/fault_vmm.h, 3 GiB, less the guest's page tables
FAULT_AROUND_PAGES = 16  # fault_around_bytes of mm/memory.c, 64 KiB
HUGE_PAGES = 512
MAX_RESERVE_MIB = 2900  # What a PC's memory has in one piece, below the hole for devices that ends at 4 GiB.
# The machines of a lab say themselves how many CPUs and how much memory they have.
KEYS_WITHOUT_EFFECT = {
    "qemu": ("lab", "hosts"),
    "ssh": ("accel", "machine", "cpus", "mem_mib"),
    "local": ("accel", "machine", "cpus", "mem_mib", "guest_deadline_s", "panic_on_warn", "lab", "hosts"),
}


@dataclass(frozen=True)
class Parts:
    """What could be read; ``None`` or empty where a section had errors of its own."""

    target: TargetSpec | None
    kernel: KernelSpec | None
    arms: tuple[Arm, ...]
    cells: tuple[PlacedCell, ...]
    schedule: Schedule | None
    checks: tuple[Check, ...]
    stale: StaleSpec | None = None
    selftests: SelftestSpec | None = None
    trace: TraceSpec | None = None
    linux_guest: LinuxGuestSpec | None = None


def run(document: Document, parts: Parts) -> None:
    """Note every contradiction in ``document``."""
    if parts.target is not None:
        _target(document, parts.target)
        if parts.kernel is not None:
            _kernel(document, parts.target, parts.kernel, parts.arms)
    for placed in parts.cells:
        _guest(document, placed)
        _storm(document, placed)
        if isinstance(placed.cell.guest, LinuxGuest):
            _linux_cell(document, placed, placed.cell.guest)
        if parts.target is not None and parts.target.kind == "qemu":
            _cpus(document, placed, parts.target)
            _memory(document, placed, parts.target)
    _checks(document, parts)
    _stale(document, parts)
    _selftests(document, parts)
    _trace(document, parts)
    _linux_guest(document, parts)
    if parts.schedule is not None:
        _schedule(document, parts, parts.schedule)


def _schedule(document: Document, parts: Parts, schedule: Schedule) -> None:
    boots = len(parts.stale.pages) * len(parts.stale.tdp) if parts.stale is not None else 0
    trials = (len(parts.arms) + schedule.aa) * len(parts.cells) * schedule.most
    trials += len(parts.arms) * boots * schedule.boots
    trials += len(parts.arms) * len(parts.trace.cells) if parts.trace is not None else 0
    if trials > MAX_TRIALS:
        key = "boots" if schedule.until == "boots" else "at_most"
        document.problem(("schedule", key), f"at most {MAX_TRIALS} trials in all", trials)
    if schedule.aa and not parts.cells:
        document.problem(("schedule", "aa"), "cells with aa: true, which compares the base in each", Shown("none"))
    if schedule.until == "boots":
        for key in ("at_most", "looks"):
            if ("schedule", key) in document.lines:
                document.problem(("schedule", key), "until: decided with this key", Shown("until: boots"))
        return
    _until_decided(document, parts, schedule)


def _until_decided(document: Document, parts: Parts, schedule: Schedule) -> None:
    at: Location = ("schedule", "until")
    if len(parts.arms) == 1 or not parts.cells:
        document.problem(at, "two arms and a cell with until: decided", Shown("nothing to decide"))
    if schedule.at_most is None:
        document.problem(at, "the key 'at_most' with until: decided", None)
        return
    # Fewer pairs cannot reach 5 % (analysis.statistics.MIN_PAIRS); and only whole A B B A cancel drift.
    if schedule.boots < MIN_BOOTS_TO_LOOK or schedule.boots % 2:
        document.problem(
            ("schedule", "boots"), f"an even number of at least {MIN_BOOTS_TO_LOOK} with until: decided", schedule.boots
        )
    if schedule.at_most % 2 or schedule.at_most <= schedule.boots:
        document.problem(("schedule", "at_most"), f"an even number above boots, {schedule.boots}", schedule.at_most)
    elif schedule.boots % 2 == 0 and schedule.looks > (schedule.at_most - schedule.boots) // 2 + 1:
        document.problem(
            ("schedule", "looks"), "at least two boots from one look to the next",
            Shown(f"{schedule.looks} looks from {schedule.boots} to {schedule.at_most} boots"),
        )  # fmt: skip


def _target(document: Document, target: TargetSpec) -> None:
    if target.kind == "qemu" and target.accel == "icount" and target.cpus > 1:
        # QEMU 7.2 hangs at the bring-up of the second CPU under -icount, in every variant that was tried.
        document.problem(("target", "cpus"), "1 with accel: icount", target.cpus)
    if target.kind == "ssh" and target.lab is None:
        document.problem(("target",), "the key 'lab' with kind: ssh", None)
    if target.kind == "ssh" and target.lab is not None and not target.lab.is_file():
        document.problem(("target", "lab"), "an existing file", Shown(f"nothing at {target.lab}"))
    for key in KEYS_WITHOUT_EFFECT[target.kind]:
        if ("target", key) in document.lines:
            document.problem(
                ("target", key), f"no such key with kind: {target.kind}", Shown("one, which would do nothing")
            )


def _kernel(document: Document, target: TargetSpec, kernel: KernelSpec, arms: tuple[Arm, ...]) -> None:
    built = target.kind == "qemu" or (target.kind == "ssh" and (kernel.sources or kernel.fragments))
    if built:
        if not kernel.sources:
            document.problem(("kernel", "sources"), "at least one source", Shown("none"))
        if not kernel.fragments:
            document.problem(("kernel", "fragments"), "at least one fragment", Shown("none"))
        return
    if kernel.sources or kernel.fragments:
        document.problem(("kernel",), "no kernel with target.kind: local", Shown("one, which would not be built"))
    if len(arms) > 1 or any(arm.patches for arm in arms):
        what = "with target.kind: local" if target.kind == "local" else "without a kernel to build"
        document.problem(("arms",), f"one arm without patches {what}", Shown("more"))


def _guest(document: Document, placed: PlacedCell) -> None:
    guest = placed.cell.guest
    if not isinstance(guest, LinuxGuest) and guest.page == "2m" and guest.mem_mib % 2:
        document.problem(placed.key("mem_mib"), "a multiple of 2 with page: 2m", guest.mem_mib)
    if guest.pages >= MAX_PAGES:
        document.problem(
            placed.key("mem_mib"),
            f"fewer than {MAX_PAGES} pages (the recording keeps 24 bits)",
            Shown(f"{guest.pages} pages"),
        )
    samples_mib = guest.nr_faults * SAMPLE_BYTES / 2**20
    if samples_mib > MAX_SAMPLES_MIB:
        document.problem(
            placed.key("rounds"),
            f"at most {MAX_SAMPLES_MIB} MiB of samples (the guest keeps them below 3 GiB)",
            Shown(f"{samples_mib:.0f} MiB ({guest.nr_faults} faults × {SAMPLE_BYTES} bytes)"),
        )
    if guest.pages < guest.vcpus:
        document.problem(
            placed.key("vcpus"), f"at most one vCPU for each of the {guest.pages} faulting pages", guest.vcpus
        )


def _storm(document: Document, placed: PlacedCell) -> None:
    storm, guest = placed.cell.storm, placed.cell.guest
    if storm is None:
        return
    if storm.preempted and storm.cpu != "same" and not storm.hogs:
        document.problem(
            placed.key("preempted"), "cpu: same, or hogs, with preempted: true", Shown(f"cpu: {storm.cpu}, no hogs")
        )
    if storm.cpu == "same" and not storm.preempted and not storm.period_us:
        document.problem(
            placed.key("period_us"),
            "more than 0 with cpu: same and preempted: false (at real-time priority the storm would starve the vCPU)",
            storm.period_us,
        )
    if storm.placement == "overlap" and storm.size_kib * storm.threads > guest.mem_mib * 1024:
        document.problem(
            placed.key("size_kib"), f"at most the {guest.mem_mib * 1024} KiB that fault, with placement: overlap",
            Shown(f"{storm.size_kib} in each of {storm.threads} threads"),
        )  # fmt: skip


def _cpus(document: Document, placed: PlacedCell, target: TargetSpec) -> None:
    storm, vcpus = placed.cell.storm, placed.cell.guest.vcpus
    if vcpus > target.cpus:
        # Two vCPUs on one CPU would time each other's slices instead of faults.
        document.problem(placed.key("vcpus"), f"at most target.cpus, {target.cpus}", vcpus)
    if storm is not None and storm.cpu == "other" and target.cpus <= vcpus:
        document.problem(
            placed.key("cpu"), f"target.cpus of at least {vcpus + 1} with cpu: other and vcpus: {vcpus}",
            Shown(f"target.cpus: {target.cpus}"),
        )  # fmt: skip


def _memory(document: Document, placed: PlacedCell, target: TargetSpec) -> None:
    if (need := needed_mib(placed.cell)) > target.mem_mib:
        parts = " + ".join(f"{amount:.0f} {what}" for amount, what in parts_mib(placed.cell))
        document.problem(
            placed.key("mem_mib"),
            f"what fits target.mem_mib, {target.mem_mib}",
            Shown(f"{math.ceil(need)} MiB in cell {placed.cell.name}: {parts}"),
        )


def _linux_cell(document: Document, placed: PlacedCell, guest: LinuxGuest) -> None:
    storm = placed.cell.storm
    if guest.faults != "host" and storm is not None and storm.placement in ("overlap", "adjacent"):
        # The guest's pages move when it discards them, and with them what "beside" and "over" would mean.
        document.problem(placed.key("placement"), "faults: host with this placement", Shown(f"faults: {guest.faults}"))
    _one_fault_a_sample(document, placed, guest)
    inside = storm is not None and storm.placement in ("disjoint", "adjacent", "overlap")
    if storm is not None and inside and storm.op in ("munmap", "mremap"):
        # For a moment the VMM's memory has a hole there, and any other thread of it may be given that by mmap().
        document.problem(
            placed.key("op"), f"an op that leaves no hole in the VMM's memory, with placement: {storm.placement}",
            Shown(storm.op),
        )  # fmt: skip
    own = "jitter_period_us" in placed.keys and placed.key("jitter_period_us")[0] == "cells"
    if not guest.jitter_wakeups and own:  # A default is for those that measure it.
        document.problem(
            placed.key("jitter_period_us"), "jitter_wakeups above 0 with this key", Shown("a period of nothing")
        )
    if guest.memory == "thp" and guest.mem_mib % 2:
        document.problem(placed.key("mem_mib"), "a multiple of 2 with memory: thp", guest.mem_mib)
    reserved = reserve_bytes(placed.cell) / 2**20
    if reserved > MAX_RESERVE_MIB:
        document.problem(
            placed.key("mem_mib"), f"at most {MAX_RESERVE_MIB} MiB for what the benchmark reserves in one piece",
            Shown(f"{reserved:.0f} MiB in cell {placed.cell.name}"),
        )  # fmt: skip
    elif guest.ram_mib is not None and guest.ram_mib < reserved:
        document.problem(
            placed.key("ram_mib"), f"more than the {reserved:.0f} MiB that the benchmark reserves", guest.ram_mib
        )


def _one_fault_a_sample(document: Document, placed: PlacedCell, guest: LinuxGuest) -> None:
    """Where the guest's own faults are measured, each access must be one: its kernel maps more than a page at once."""
    if guest.faults == "host":
        return
    if guest.access == "read" and guest.memory != "file":
        # A read maps the page of zeros, which the whole guest shares: no page of its own to take away.
        document.problem(placed.key("access"), f"write, or memory: file, with faults: {guest.faults}", Shown("read"))
    faults, at = f"and faults: {guest.faults} (a fault of the guest's maps", placed.key("stride_pages")
    if guest.access == "read" and guest.memory == "file" and guest.stride_pages < FAULT_AROUND_PAGES:
        wanted = f"stride_pages of at least {FAULT_AROUND_PAGES} with access: read {faults} 64 KiB of a file)"
        document.problem(at, wanted, guest.stride_pages)
    if guest.memory == "thp" and guest.stride_pages % HUGE_PAGES:
        wanted = f"stride_pages in units of {HUGE_PAGES} with memory: thp {faults} 2 MiB)"
        document.problem(at, wanted, guest.stride_pages)


def _linux_guest(document: Document, parts: Parts) -> None:
    spec = parts.linux_guest
    if spec is None:
        return
    if parts.target is not None and parts.target.kind == "local":
        document.problem(
            ("target", "kind"), "qemu or ssh for cells with guest.kind: linux, whose VMM gets a root of its own",
            Shown(parts.target.kind),
        )  # fmt: skip
    elif parts.target is not None and parts.target.kind == "ssh" and parts.kernel == KernelSpec((), ()):
        # Of sources without fragments, or the other way round, _kernel() speaks.
        document.problem(("kernel", "sources"), "at least one source, for the kernel of the guests", Shown("none"))
    if not spec.is_qemu and spec.arguments == QEMU_ARGUMENTS:
        document.problem(("linux_guest",), f"the key 'arguments' with vmm: {spec.vmm}", None)
    if spec.kernel == ():
        document.problem(("linux_guest", "kernel"), "at least one fragment", Shown("none"))


def _checks(document: Document, parts: Parts) -> None:
    placements = {placed.cell.storm.placement for placed in parts.cells if placed.cell.storm is not None}
    quiet = any(placed.cell.storm is None for placed in parts.cells)
    if not parts.cells:
        _no_cells(document, parts)
        return
    for index, check in enumerate(parts.checks):
        if check == "needed_retries" and "overlap" not in placements:
            document.problem(("checks", index), "a cell with placement: overlap to check", Shown("none"))
        if check == "controls" and not quiet and "other-process" not in placements:
            document.problem(("checks", index), "a cell with storm: none or placement: other-process", Shown("none"))


def _no_cells(document: Document, parts: Parts) -> None:
    """Without cells there must be something else to do, and nothing that needs a cell."""
    if any(location[0] == "cells" for location in document.lines if len(location) > 1):
        return  # There are some, with errors of their own.
    if not OWN_TRIALS.intersection(parts.checks):
        document.problem(("cells",), "at least one cell (or the check stale_mapping or kvm_selftests)", Shown("none"))
        return
    for index, check in enumerate(parts.checks):
        if check not in OWN_TRIALS:
            document.problem(("checks", index), "cells for this check", Shown("none"))


def _stale(document: Document, parts: Parts) -> None:
    if parts.stale is None or parts.target is None:
        return
    if parts.target.kind == "local" and len(parts.stale.tdp) > 1:
        document.problem(("stale", "tdp"), "one kind of paging with kind: local", Shown("both"))
    for index, op in enumerate(parts.stale.ops):
        if not parts.stale.rounds_of(op):
            document.problem(("stale", "ops", index), f"a case that {op} applies to", Shown("none among stale.cases"))
    # The range, a second one of the same size, and 2 MiB of page-table page around each.
    need = 2 * parts.stale.range_kib / 1024 + 8 + KERNEL_MIB
    if parts.target.kind == "qemu" and need > parts.target.mem_mib:
        document.problem(
            ("stale", "range_kib"), f"what fits target.mem_mib, {parts.target.mem_mib}", Shown(f"{need:.0f} MiB")
        )
    names = {placed.cell.name: placed for placed in parts.cells if placed.cell.name.startswith("stale-mapping,")}
    for placed in names.values():
        document.problem(placed.at, "another name (this one is the stale-mapping check's)", placed.cell.name)


def _selftests(document: Document, parts: Parts) -> None:
    spec = parts.selftests
    if spec is None:
        return
    target, kernel = parts.target, parts.kernel
    if target is not None and (target.kind == "local" or (kernel is not None and not kernel.sources)):
        document.problem(("checks",), "kernels to build for kvm_selftests, which boots each arm in QEMU", Shown("none"))
    if spec.accel == "icount" and spec.cpus > 1:
        # As for the target itself: QEMU 7.2 hangs at the bring-up of the second CPU.
        document.problem(("selftests", "cpus"), "1 with accel: icount", spec.cpus)
    if not any(spec.enough_cpus(test) for test in spec.tests):
        document.problem(("selftests", "cpus"), "what at least one of the tests needs", spec.cpus)
    for placed in parts.cells:
        if placed.cell.name == CELL_NAME:
            document.problem(placed.at, "another name (this one is the selftests')", CELL_NAME)


def _trace(document: Document, parts: Parts) -> None:
    spec = parts.trace
    if spec is None:
        _no_trace(document, parts)
        return
    if not parts.cells and not any(location[0] == "cells" for location in document.lines if len(location) > 1):
        document.problem(("trace",), "cells to trace", Shown("none"))
    if parts.target is None or parts.target.kind != "qemu":
        if parts.target is not None:
            document.problem(("trace",), "target.kind: qemu, whose kernel is ours to trace", Shown(parts.target.kind))
        return
    kernel = parts.kernel
    if kernel is not None and kernel.fragments and not can_trace(kernel.fragments):
        document.problem(
            ("kernel", "fragments"),
            f"a fragment with the line {NEEDED_LINE} (and CONFIG_FTRACE=y, CONFIG_KPROBES=y, on which it depends), for"
            " the section trace",
            Shown("none"),
        )
    for placed in parts.cells:
        if placed.cell.name.startswith(TRACED_PREFIX):
            document.problem(placed.at, "another name (this one is a traced boot's)", placed.cell.name)
        if placed.cell.name in spec.cells:
            _traced_cell(document, placed, parts.target, spec)


def _no_trace(document: Document, parts: Parts) -> None:
    for index, check in enumerate(parts.checks):
        if check in ("attribution", "storm_in_vmm"):
            document.problem(("checks", index), "a section trace, whose boots this check looks at", Shown("none"))


def _traced_cell(document: Document, placed: PlacedCell, target: TargetSpec, spec: TraceSpec) -> None:
    guest = placed.cell.guest
    if isinstance(guest, LinuxGuest) and (guest.faults != "host" or not guest.tdp):
        # KVM's faults are matched with the guest's by address: pages must stay where they are, and gpas be seen.
        key = "faults" if guest.faults != "host" else "tdp"
        document.problem(placed.key(key), "faults: host and tdp: true, to trace a Linux guest", getattr(guest, key))
    if len(TRACED_PREFIX + placed.cell.name) > MAX_CELL_NAME:
        longest = MAX_CELL_NAME - len(TRACED_PREFIX)
        document.problem(placed.at, f"a name of at most {longest} characters, to trace it", placed.cell.name)
    buffers = spec.buffer_mib * target.cpus
    need = needed_mib(placed.cell) + buffers
    if needed_mib(placed.cell) <= target.mem_mib < need:
        at: Location = ("trace", "buffer_mib") if ("trace", "buffer_mib") in document.lines else ("trace",)
        document.problem(
            at,
            f"what fits target.mem_mib, {target.mem_mib}",
            Shown(f"{need:.0f} MiB in cell {placed.cell.name}, {buffers} of them for events"),
        )
