"""What every target offers: run one program beside the kernel under test, and bring back what it left.

A target decides nothing about outcomes: it says what it saw, and :mod:`orchestrator.trial` classifies.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from orchestrator.image import GuestFile
from orchestrator.plan import Plan
from orchestrator.results import TrialResult

CONSOLE = "console.log"  # of the kernel under test
STATUS = "status.log"  # lines of guests/init/init.c
RECORDING = "recording.bin"
TRACE = "trace.bin"  # of a job with trace_kib
COMMAND = "command.txt"  # how the target was started, to paste into a shell
COMMAND_NOTE = "# In a copy of this folder, since it writes the console, the status and the recording again:\n"
INITRAMFS = "initramfs.cpio"  # what QEMU boots; kept with a trial that did not end well, so that COMMAND repeats it

BOOT_SHARE = 0.9  # of a Linux guest's deadline, until its benchmark has to have spoken

Program = Literal["fault_vmm", "vmm_run", "stale_check", "ktest_runner"]
Ending = Literal["ended", "wall-deadline", "killed", "not-run"]


@dataclass(frozen=True)
class Job:
    """One program of ``guests/``: ``words`` are its arguments without ``--out``; ``swap`` wants swap space first.

    ``files`` are put beside it. ``tdp`` asks for NPT/EPT on or off. ``vmlinux`` is the kernel to boot, None for the one
    that runs. With ``trace_kib`` above 0 the kernel traces what the program does to it (``guests/tracer``), each CPU
    into a buffer of that size, and the target leaves :data:`TRACE` as well.
    ``panic_on_warn``: the kernel's first warning is its last.
    """

    vmlinux: Path | None
    words: tuple[str, ...]
    tdp: bool
    swap: bool
    cpus: int
    mem_mib: int
    deadline_s: float
    guest_deadline_s: float
    program: Program = "fault_vmm"
    files: tuple[GuestFile, ...] = ()
    panic_on_warn: bool = False
    trace_kib: int = 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """``words``, and what only the job can tell the program: how long a Linux guest may take to boot.

        So ``vmm_run`` gives up, with the guest's last lines, before the deadline ends everything without a word.
        """
        if self.program != "vmm_run":
            return self.words
        return (*self.words, "--boot-seconds", str(max(1, int(BOOT_SHARE * self.guest_deadline_s))))


@dataclass(frozen=True)
class Evidence:
    """What a target saw. ``returncode`` is of the target's own process (QEMU), negative for a signal.

    ``ending``: it came to its end; its wall-time deadline passed; something outside killed it; or the machine could not
    be brought to run it. ``boot_seconds`` is wall time from start to PID 1, 0 if that was not reached or nothing
    booted.
    ``note`` says in words what else the target knows of the ending. ``machine`` is the lab's name of the machine, and
    ``machine_lost`` why it cannot be used any more; both are empty where this machine did all.
    """

    ending: Ending
    returncode: int
    boot_seconds: float
    wall_seconds: float
    note: str = ""
    machine: str = ""
    machine_lost: str = ""


class Target(Protocol):
    """Runs jobs, each in a folder of its own, from several threads at once if asked to."""

    def run(self, job: Job, folder: Path) -> Evidence:
        """Run ``job`` and leave :data:`CONSOLE`, :data:`STATUS` and, if it came to that, :data:`RECORDING`.

        Raises :class:`~orchestrator.errors.TargetError` only if it could not even start.
        """


@runtime_checkable
class Pool(Target, Protocol):
    """Several machines, each of which runs one block at a time."""

    def block(self, index: int) -> AbstractContextManager[None]:
        """Hold one machine for a block of the plan: every ``run`` of this thread goes there meanwhile.

        Waits for one that is free. Raises :class:`~orchestrator.errors.TargetError` if none is left.
        """

    def resume(self, plan: Plan, done: Sequence[TrialResult], skipped: Collection[str]) -> tuple[TrialResult, ...]:
        """Which results of an earlier part of the run stand; the rest of their blocks goes to the same machines.

        Trials of ``skipped`` will never run. The results left out are of blocks that must run again as a whole.
        """

    def close(self) -> None:
        """Give the machines back to others."""
