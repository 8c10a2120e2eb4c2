"""What faults: a flat guest of ours, or a real Linux guest under a real VMM, and what the latter's cells share."""

from __future__ import annotations

import shlex
import string
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from orchestrator.experiment.strict import STRICT

PAGE_BYTES = 4096
MIB = 1 << 20
QEMU_PREFIX = "qemu-system-"
# A microvm without disk, display or network. `-bios qboot.rom` enters the uncompressed kernel (PVH).
QEMU_ARGUMENTS = (
    "-machine microvm,pic=on,pit=on,rtc=on,accel=kvm -bios qboot.rom -cpu host -smp {cpus} -m {mem_mib}"
    " -nodefaults -no-user-config -display none -serial stdio -no-reboot"
    " -kernel {kernel} -initrd {initrd} -append {cmdline}"
)
PLACEHOLDERS = ("kernel", "initrd", "mem_mib", "cpus", "cmdline")


@dataclass(frozen=True, config=STRICT)
class Faulting:
    """What the two kinds of guest share: a range of memory that vCPUs touch page by page, round by round."""

    vcpus: Annotated[int, Field(ge=1, le=64, description="vCPUs, each on a CPU of its own")] = 1
    mem_mib: Annotated[int, Field(ge=1, le=65536, description="size of the faulting range, MiB")] = 64
    access: Annotated[Literal["write", "read"], Field(description="the guest's access")] = "write"
    order: Annotated[Literal["sequential", "random"], Field(description="page order; random is seeded")] = "sequential"
    rounds: Annotated[int, Field(ge=1, le=1_000_000, description="measured rounds over the range")] = 4
    stride_pages: Annotated[int, Field(ge=1, le=4096, description="touch every Nth 4 KiB page only")] = 1
    tdp: Annotated[bool, Field(description="on: NPT/EPT; off: shadow paging (npt=0)")] = True

    @property
    def pages(self) -> int:
        """Pages that fault in one round, of all vCPUs together: host pages, whatever the guest maps them with."""
        return self.mem_mib * MIB // (PAGE_BYTES * self.stride_pages)

    @property
    def nr_faults(self) -> int:
        """Samples that one trial takes."""
        return self.pages * self.rounds


@dataclass(frozen=True, config=STRICT)
class Guest(Faulting):
    """A flat guest without an operating system: nothing but its faults happens in it."""

    kind: Annotated[
        Literal["flat"], Field(description="flat: a few instructions of ours; linux: Linux under a VMM (linux_guest)")
    ] = "flat"
    page: Annotated[Literal["4k", "2m"], Field(description="page size of the guest's mappings")] = "4k"
    backing: Annotated[
        Literal["absent", "present"],
        Field(description="absent: host pages are discarded between rounds; present: only the SPTEs are dropped"),
    ] = "absent"


@dataclass(frozen=True, config=STRICT)
class LinuxGuest(Faulting):
    """A Linux guest, in which ``guests/fault_bench`` touches its memory and measures its timer."""

    kind: Annotated[Literal["linux"], Field(description="see the flat guest's")] = "linux"
    faults: Annotated[
        Literal["host", "guest", "both"],
        Field(
            description="who has discarded the page before it is touched: the host (the guest still maps it), the "
            "guest (the host still backs it), or both"
        ),
    ] = "host"
    memory: Annotated[
        Literal["anonymous", "thp", "file"],
        Field(description="how the guest maps the range: anonymous pages, transparent huge ones, a file in tmpfs"),
    ] = "anonymous"
    ram_mib: Annotated[
        int | None, Field(ge=32, le=65536, description="the guest's memory, MiB; none: what the cell needs")
    ] = None
    jitter_wakeups: Annotated[
        int,
        Field(
            ge=0, le=1_000_000, description="timer wakeups of which the guest measures the lateness after the rounds, "
            "the storm still on; 0: none",
        ),
    ] = 500  # fmt: skip
    jitter_period_us: Annotated[
        int, Field(ge=50, le=1_000_000, description="time from one of these wakeups to the next, µs")
    ] = 1000


AnyGuest = Guest | LinuxGuest


@dataclass(frozen=True, config=STRICT)
class LinuxGuestSpec:
    """What all cells with ``kind: linux`` share: the VMM and the guest's kernel. Paths are absolute.

    ``vmm`` is a name to be looked up in PATH, or a path.
    """

    vmm: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_/.~][A-Za-z0-9_/.+~-]*$",
            description="the VMM: a program of this machine, by name or by path relative to the config file; it is "
            "packed with its libraries (and QEMU with its firmware)",
        ),
    ] = "qemu-system-x86_64"
    arguments: Annotated[
        str,
        Field(
            max_length=1500,
            description="the VMM's arguments in one line, with {kernel}, {initrd}, {mem_mib}, {cpus} and {cmdline} "
            "(the kernel's command line, one word) in their places; the guest's first serial port must be the VMM's "
            "standard output. The default is for QEMU",
        ),
    ] = QEMU_ARGUMENTS
    files: Annotated[
        tuple[Path, ...], Field(description="more files that the VMM opens (firmware, plug-ins), packed at their paths")
    ] = ()
    kernel: Annotated[
        Literal["base", "arm"] | tuple[Path, ...],
        Field(
            description="the guests' kernel: base: the base arm's, so that arms differ in the host only; arm: the "
            "kernel under test itself; or a list of config fragments: one of its own from the base's sources"
        ),
    ] = "base"

    def __post_init__(self) -> None:
        check_arguments(self.arguments)

    @property
    def is_qemu(self) -> bool:
        return Path(self.vmm).name.startswith(QEMU_PREFIX)

    @property
    def fragments(self) -> tuple[Path, ...]:
        """The config fragments of the guests' own kernel; none where they run an arm's."""
        return self.kernel if isinstance(self.kernel, tuple) else ()

    def words(self, **values: str | int) -> tuple[str, ...]:
        """The VMM's arguments; ``values`` are those of all :data:`PLACEHOLDERS`, each of which stays one word."""
        return tuple(word.format(**values) for word in shlex.split(self.arguments))


def check_arguments(line: str) -> None:
    """Raise :class:`ValueError` for a line of VMM arguments that is no such, or lacks one of its placeholders."""
    try:
        parts = [part for word in shlex.split(line) for part in string.Formatter().parse(word)]
    except ValueError as error:
        raise ValueError(f"arguments with their quotes and braces closed ({error})") from error
    named = [field for _, field, _, _ in parts if field is not None]
    if any(field not in PLACEHOLDERS or form or change for _, field, form, change in parts if field is not None):
        raise ValueError(f"arguments with no placeholders but {', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}")
    for name in PLACEHOLDERS:
        if name not in named:
            raise ValueError(f"arguments with the placeholder {{{name}}}")
