"""What a trial came to: the types that the trial writes and the analysis reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

# What the kernel's log says of a trial that goes on all the same.
WARNING = re.compile(r"WARNING: CPU: \d+ PID|WARNING: possible|WARNING: suspicious|BUG: |INFO: rcu\S* |INFO: task |"
                     r"Bad page state|Bad rss-counter|watchdog: ")  # fmt: skip


class Outcome(StrEnum):
    """How a trial ended. Anything but ``OK`` is a result as well, kept with its console."""

    OK = "ok"
    PANIC = "panic"
    OOPS = "oops"
    HANG = "hang"
    LOST = "lost"
    FAILED = "failed"
    STALE = "stale"
    NOT_RUN = "not-run"  # The machine could not be brought to run it: kexec refused, wrong kernel, not quiet …


@dataclass(frozen=True)
class TrialResult:
    """One boot of one arm for one cell.

    ``reason`` is one line for people, ``trace`` the decoded first lines of a panic or oops, ``warnings`` the
    ``WARNING:``/``BUG:`` lines of a kernel log whose trial went on to its end. ``recording_sha256`` is empty unless
    the outcome is ``ok`` or ``stale``. ``boot_seconds`` is wall time from the start of the target to its first process,
    0 if it was not reached; ``wall_seconds`` is the whole trial. ``rerun`` is the command that repeats just this trial,
    or of a stale-mapping check just its first stale round. ``machine`` is the lab's name of the machine that ran it,
    and ``machine_lost`` why that could not be used any more after it; both are empty outside a lab.
    """

    id: str
    arm: str
    cell: str
    boot: int
    block: int
    seed: int
    outcome: Outcome
    reason: str
    trace: tuple[str, ...]
    warnings: tuple[str, ...]
    boot_seconds: float
    wall_seconds: float
    recording_sha256: str
    rerun: str
    machine: str = ""
    machine_lost: str = ""


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to repeat a run, taken from its manifest: the command, and facts as (label, value)."""

    command: str
    rows: tuple[tuple[str, str], ...]
