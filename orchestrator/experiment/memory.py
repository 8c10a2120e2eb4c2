"""How much memory a cell takes: of the host under test, and in a Linux guest."""

from __future__ import annotations

from orchestrator.experiment.guests import MIB, PAGE_BYTES, LinuxGuest
from orchestrator.experiment.types import Cell, Storm

SAMPLE_BYTES = 16  # struct rec_fault
FRAME_BYTES = 8  # struct mailbox_areas: frames_gpa
KERNEL_MIB = 128  # kernel, initramfs, page tables of host and guest, and air; a small 5.10 host takes about 60 MiB.
# What a VMM takes besides its guest's memory: Debian 12's QEMU is 76 MiB with its libraries, which stay in the host's
# memory as its initramfs, and maps 40 MiB of its own. The packed bytes are counted again when they are known (vmm.py).
VMM_MIB = 128
# The guest's kernel, its page structures, its initramfs and the benchmark's own pages: guests of the default
# experiment's kernel boot in 64 MiB, and find 40 MiB less than they have in one piece.
GUEST_KERNEL_MIB = 96
RAM_STEP_MIB = 32
RESERVE_ALIGN = 2 * MIB
GAPS = 4  # of 2 MiB each, between the reserved areas and for their alignment


def storm_bytes(storm: Storm | None) -> int:
    """Memory that a storm populates, bytes; an overlapping one uses the guest's."""
    if storm is None or storm.placement == "overlap":
        return 0
    return storm.size_kib * 1024 * storm.threads


def sample_bytes(cell: Cell) -> int:
    """What a trial's samples take, bytes; of a Linux guest, in its own memory as well."""
    return cell.guest.nr_faults * SAMPLE_BYTES


def reserve_bytes(cell: Cell) -> int:
    """What the benchmark in a Linux guest reserves, in one physically contiguous piece: samples, the list of frames,
    the faulting range, and the range of a storm that lies in guest memory."""
    inside = cell.storm is not None and cell.storm.placement in ("adjacent", "disjoint")
    mem = cell.guest.mem_mib * MIB
    areas = (sample_bytes(cell), mem // PAGE_BYTES * FRAME_BYTES, mem, storm_bytes(cell.storm) if inside else 0)
    return sum(-(-area // RESERVE_ALIGN) * RESERVE_ALIGN for area in areas) + GAPS * RESERVE_ALIGN


def ram_mib(cell: Cell) -> int:
    """The memory of a cell's Linux guest, MiB: what the config says, or what it needs."""
    assert isinstance(cell.guest, LinuxGuest)
    needed = reserve_bytes(cell) // MIB + GUEST_KERNEL_MIB
    return cell.guest.ram_mib or -(-needed // RAM_STEP_MIB) * RAM_STEP_MIB


def needed_mib(cell: Cell) -> float:
    """Memory of the host under test that a cell takes, MiB."""
    return sum(amount for amount, _ in parts_mib(cell))


def parts_mib(cell: Cell) -> tuple[tuple[float, str], ...]:
    """The same by what takes it."""
    samples = sample_bytes(cell) / MIB
    how = f"samples ({cell.guest.nr_faults} faults × {SAMPLE_BYTES} bytes)"
    storm = storm_bytes(cell.storm) / MIB
    if not isinstance(cell.guest, LinuxGuest):
        return (cell.guest.mem_mib, "guest"), (storm, "storm"), (samples, how), (KERNEL_MIB, "kernel")
    if cell.storm is not None and cell.storm.placement in ("adjacent", "disjoint"):
        storm = 0.0  # It is in the guest's memory.
    return (ram_mib(cell), "guest"), (storm, "storm"), (samples, how), (VMM_MIB, "VMM"), (KERNEL_MIB, "kernel")
