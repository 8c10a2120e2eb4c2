"""One trial on one target: start, watch, fetch, classify the outcome.

Whatever happens, a trial ends in a :class:`~orchestrator.results.TrialResult`; only a target that cannot start at all
raises.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import hosttrace, ktap, linuxguest, recording, selftests, stale, store
from orchestrator.errors import RecordingError, printable
from orchestrator.experiment import (
    STALE_CASES,
    Cell,
    LinuxGuest,
    PlannedCell,
    SelftestCell,
    StaleCell,
    Storm,
    TargetSpec,
    TracedCell,
)
from orchestrator.kernel.selftests import BuiltSelftests
from orchestrator.linuxguest import LinuxKit
from orchestrator.plan import Trial
from orchestrator.results import WARNING, Outcome, TrialResult
from orchestrator.target.target import CONSOLE, INITRAMFS, RECORDING, STATUS, TRACE, Ending, Evidence, Job, Target

TRACE_LINES = 24
MAX_WARNINGS = 50
CONSOLE_BYTES = 4 << 20
MAX_WINDOWS_A_THREAD = 1 << 16
MAX_ARM_BYTES = 31  # char arm[32] of guests/include/recording.h

# How the kernel prefixes each line; loglevel and CPU fields are optional (CONFIG_PRINTK_TIME, PRINTK_CALLER).
PREFIX = re.compile(r"^(?:<\d+>)?(?:\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])?\s?)?")
PANIC = re.compile(r"Kernel panic - not syncing: ")
# What panic_on_warn makes a panic of: panic() itself only says that it was told to.
WARNED = re.compile(r"WARNING: CPU: \d+ PID|BUG: KASAN: ")
# arch/x86/kernel/nmi.c: unknown_nmi_error() on q35; pci_serr_error() or io_check_error() on microvm, where port 0x61
# reads 0xff. No device of ours raises an NMI but the watchdog, and the target itself at the wall deadline.
NMI = re.compile(r"Uhhuh\. NMI received for unknown reason|NMI: PCI system error|NMI: IOCK error|NMI: Not continuing")
OOPS = re.compile(r"BUG: unable to handle|BUG: kernel NULL pointer|Oops: |general protection fault|kernel BUG at|"
                  r"stack segment: |invalid opcode: |double fault: ")  # fmt: skip


@dataclass(frozen=True)
class _Status:
    """What init said."""

    pid1: bool
    ended: bool
    exit_code: int | None
    signal: int | None
    deadline: bool
    stderr: tuple[str, ...]


@dataclass(frozen=True)
class _Finding:
    """What came of a trial, in the words of :class:`~orchestrator.results.TrialResult`; ``lines`` are its trace."""

    outcome: Outcome
    reason: str
    lines: tuple[str, ...]
    rerun: str
    recording_sha256: str = ""


def run_trial(
    trial: Trial,
    spec: TargetSpec,
    vmlinux: Path | None,
    target: Target,
    folder: Path,
    rerun: str,
    only: stale.Round | None = None,
    tests: BuiltSelftests | None = None,
    linux: LinuxKit | None = None,
) -> TrialResult:
    """Run ``trial`` in ``folder`` (empty, ours) and say what came of it; of a stale-mapping check, perhaps one round.

    ``tests`` are the arm's selftests, for a trial that runs them, and ``linux`` what Linux guests need.
    Raises :class:`~orchestrator.errors.TargetError` if the target cannot start.
    """
    job = _with_files(make_job(trial, spec, vmlinux, only), trial.cell, folder, tests, linux)
    evidence = target.run(job, folder)
    found = _judge(trial.cell, evidence, folder, rerun)
    if found.outcome is Outcome.OK:
        (folder / INITRAMFS).unlink(missing_ok=True)
    return TrialResult(
        id=trial.id,
        arm=trial.arm,
        cell=trial.cell.name,
        boot=trial.boot,
        block=trial.block,
        seed=trial.seed,
        outcome=found.outcome,
        reason=found.reason,
        trace=found.lines,
        warnings=find_warnings(_console(folder)) if found.outcome in (Outcome.OK, Outcome.STALE) else (),
        boot_seconds=round(evidence.boot_seconds, 3),
        wall_seconds=round(evidence.wall_seconds, 3),
        recording_sha256=found.recording_sha256,
        rerun=found.rerun,
        machine=evidence.machine,
        machine_lost=evidence.machine_lost,
    )


def _with_files(job: Job, cell: PlannedCell, folder: Path, tests: BuiltSelftests | None, linux: LinuxKit | None) -> Job:
    """The job with what its program wants beside it."""
    if isinstance(cell, SelftestCell) and tests is not None:
        return dataclasses.replace(job, files=selftests.guest_files(cell.selftests, tests, folder))
    plain = cell.cell if isinstance(cell, TracedCell) else cell
    if isinstance(plain, Cell) and isinstance(plain.guest, LinuxGuest) and linux is not None:
        return dataclasses.replace(job, files=linuxguest.guest_files(plain, linux, job.vmlinux, folder))
    return job


def _judge(cell: PlannedCell, evidence: Evidence, folder: Path, rerun: str) -> _Finding:
    """What came of a trial, by what the target saw and what the program left."""
    outcome, reason, lines = classify(evidence, folder)
    finding = _Finding(outcome, reason, lines, rerun)
    if outcome is not Outcome.OK:
        return finding
    try:
        if isinstance(cell, StaleCell):
            finding = _judge_stale(stale.read(folder / RECORDING), finding)
        elif isinstance(cell, SelftestCell):
            check_complete(ktap.read(folder / RECORDING))
        else:
            recording.read(folder / RECORDING)
        if isinstance(cell, TracedCell):
            hosttrace.read(folder / TRACE)
            hosttrace.pack(folder / TRACE, folder / hosttrace.PACKED)
        return dataclasses.replace(finding, recording_sha256=store.file_sha256(folder / RECORDING))
    except RecordingError as error:
        reason = f"the program said it was done, but {error.what}"
        return dataclasses.replace(finding, outcome=Outcome.FAILED, reason=reason)


def check_complete(report: ktap.Report) -> None:
    """Raise :class:`RecordingError` for a report of the selftests that does not come to its end."""
    if not report.complete:
        raise RecordingError(f"its report ends after {len(report.tests)} of {report.planned} tests")


def _judge_stale(found: stale.StaleRecording, finding: _Finding) -> _Finding:
    """With a line for each case that was stale, and the command for just the first stale round."""
    bad = [item for item in found.rounds if item.stale]
    if not bad:
        return finding
    firsts = {(item.case, item.op): item for item in reversed(bad)}
    lines = tuple(_describe(item, bad) for item in reversed(firsts.values()))
    again = f"{finding.rerun} --case {bad[0].case} --op {bad[0].op} --round {bad[0].round}"
    reason = f"the guest still read pages that had been taken away: {lines[0]}"
    return _Finding(Outcome.STALE, reason, lines[:TRACE_LINES], again)


def _describe(item: stale.Round, bad: Sequence[stale.Round]) -> str:
    """How often a case was stale, and the page and its content of the first time, in one line."""
    alike = sum((other.case, other.op) == (item.case, item.op) for other in bad)
    page = item.stale[0]
    return f"{item.case}, {item.op}: {alike}x, first in round {item.round}: page {page.page} held {page.content:#x}"


def make_job(trial: Trial, spec: TargetSpec, vmlinux: Path | None, only: stale.Round | None = None) -> Job:
    """What the target is asked to run for a trial; ``only`` repeats one round of a stale-mapping check."""
    cell = trial.cell
    if isinstance(cell, StaleCell):
        return Job(
            vmlinux=vmlinux,
            words=stale_words(trial.arm, cell, trial.seed, only),
            tdp=cell.tdp,
            swap=False,
            cpus=spec.cpus,
            mem_mib=spec.mem_mib,
            deadline_s=spec.deadline_s,
            guest_deadline_s=spec.guest_deadline_s,
            program="stale_check",
            panic_on_warn=spec.panic_on_warn,
        )
    if isinstance(cell, SelftestCell):
        return selftests.make_job(cell, vmlinux)
    if isinstance(cell, TracedCell):
        # The same words, the cell's name included: but for what traces it, the boot is the untraced one.
        plain = make_job(dataclasses.replace(trial, cell=cell.cell), spec, vmlinux)
        return dataclasses.replace(plain, trace_kib=cell.buffer_mib << 10)
    storm = cell.storm
    return Job(
        vmlinux=vmlinux,
        words=program_words(trial.arm, cell, trial.seed),
        tdp=cell.guest.tdp,
        swap=storm is not None and storm.op == "madvise_pageout",
        cpus=spec.cpus,
        mem_mib=spec.mem_mib,
        deadline_s=spec.deadline_s,
        guest_deadline_s=spec.guest_deadline_s,
        program="vmm_run" if isinstance(cell.guest, LinuxGuest) else "fault_vmm",
        panic_on_warn=spec.panic_on_warn,
    )


def stale_words(arm: str, cell: StaleCell, seed: int, only: stale.Round | None = None) -> tuple[str, ...]:
    """Arguments of ``stale_check`` (guests/stale_check/main.c) for one boot, or for one round of it."""
    spec = cell.stale
    options: list[tuple[str, str | int]] = [
        ("arm", padded(arm)), ("cell", cell.name), ("seed", seed), ("page", cell.page), ("rounds", spec.rounds),
        ("range-pages", spec.range_pages),
    ]  # fmt: skip
    if only is None:
        wanted = {case for op in spec.ops for case in spec.rounds_of(op)}
        options += [("op", op) for op in spec.ops]
        options += [("case", case) for case in STALE_CASES if case in wanted]
    else:
        options += [
            ("op", only.op), ("case", only.case), ("only-round", only.round), ("wake-ns", only.wake_ns),
            ("second-ns", only.second_ns),
        ]  # fmt: skip
    return tuple(word for name, value in options for word in (f"--{name}", str(value)))


def program_words(arm: str, cell: Cell, seed: int) -> tuple[str, ...]:
    """Arguments of ``fault_vmm`` (guests/fault_vmm/main.c) or ``vmm_run`` (guests/vmm_run/main.c) for one trial."""
    guest = cell.guest
    options: dict[str, str | int] = {
        "arm": padded(arm),
        "cell": cell.name,
        "seed": seed,
        "vcpus": guest.vcpus,
        "mem-bytes": guest.mem_mib << 20,
        "stride-bytes": guest.stride_pages << 12,
        "rounds": guest.rounds,
        "access": guest.access,
        "order": guest.order,
    }
    if isinstance(guest, LinuxGuest):
        options |= linuxguest.options(guest)
    else:
        options |= {"page": guest.page, "backing": guest.backing}
    if cell.storm is not None:
        options |= _storm_options(cell.storm)
    return tuple(word for name, value in options.items() for word in (f"--{name}", str(value)))


def _storm_options(storm: Storm) -> dict[str, str | int]:
    return {
        "storm": storm.op,
        "placement": storm.placement,
        "storm-bytes": storm.size_kib << 10,
        "storm-threads": storm.threads,
        "storm-period-us": storm.period_us,
        "storm-cpu": storm.cpu,
        "storm-class": "fifo" if storm.cpu == "same" and not storm.preempted else "other",
        "hogs": storm.hogs,
        "max-windows": MAX_WINDOWS_A_THREAD,
    }


def padded(arm: str) -> str:
    """An arm's name at one length for all arms.

    Init, execve() and the program copy and measure it: a letter more moves everything after it by some instructions,
    under icount nanoseconds, and a timer tick strikes another fault. (Measured: arms of one and the same kernel, called
    ``base`` and ``comment``, differed in six of 4,096 latencies.)
    """
    return arm.ljust(MAX_ARM_BYTES)


def classify(evidence: Evidence, folder: Path) -> tuple[Outcome, str, tuple[str, ...]]:
    """Outcome, reason in one line, and the first lines of the trace, from what the target left in ``folder``.

    The kernel's own words come first: a panic explains why init never said how the program ended.
    """
    console = _console(folder)
    crash = _crash(console, evidence.ending)
    if crash is not None:
        return crash
    status = _read_status(folder / STATUS)
    if evidence.ending == "not-run":
        return Outcome.NOT_RUN, evidence.note, _last(console)
    if evidence.ending == "wall-deadline" or status.deadline:
        clock = "its own" if status.deadline else "wall"
        # Of a lab machine that is silent nobody knows how far it came; the note says what was seen.
        where = ", while the program ran" if status.pid1 else "" if evidence.machine else ", before PID 1"
        note = f" ({evidence.note})" if evidence.note else ""
        return Outcome.HANG, f"no end within the deadline ({clock} time){where}{note}", _last(console)
    if evidence.ending == "killed" and evidence.note:
        return Outcome.LOST, evidence.note, _last(console)
    if evidence.ending == "killed":
        return Outcome.LOST, f"the target was killed by signal {-evidence.returncode}", _last(console)
    if evidence.returncode != 0 or not status.ended:
        how = f"the target exited with {evidence.returncode}" if evidence.returncode else "the target ended"
        return Outcome.LOST, f"{how} before init said that it was done", _last(console)
    if status.signal is not None:
        return Outcome.FAILED, f"the program died of signal {status.signal}", status.stderr
    if status.exit_code != 0:
        said = status.stderr[-1] if status.stderr else "it said nothing"
        return Outcome.FAILED, f"the program exited with {status.exit_code}: {said}", status.stderr
    return Outcome.OK, "", ()


def find_warnings(console: Iterable[str]) -> tuple[str, ...]:
    """The kernel's warnings on a console, without time stamps, each once."""
    found = (line for line in console if WARNING.search(line))
    return tuple(dict.fromkeys(found))[:MAX_WARNINGS]


def _crash(console: list[str], ending: Ending) -> tuple[Outcome, str, tuple[str, ...]] | None:
    oops = _first(console, OOPS)
    panic = _first(console, PANIC)
    nmi = _first(console, NMI)
    if nmi is not None and oops is None:
        trace = _trace(console, nmi)
        late = ending == "wall-deadline"
        why = "no end within the deadline (wall time); an" if late else "the kernel hung; the watchdog's"
        return Outcome.HANG, f"{why} NMI found it{_at(trace)}", trace
    if oops is not None:
        trace = _trace(console, oops)
        also = ", then panicked" if panic is not None else ""
        return Outcome.OOPS, f"{_from(OOPS, console[oops])}{_at(trace)}{also}", trace
    if panic is None:
        return None
    warned = _first(console[:panic], WARNED) if "panic_on_warn" in console[panic] else None
    if warned is not None:
        return Outcome.PANIC, f"{_from(WARNED, console[warned])} (panic_on_warn)", _trace(console, warned)
    return Outcome.PANIC, _from(PANIC, console[panic]), _trace(console, panic)


def _from(pattern: re.Pattern[str], line: str) -> str:
    """``line`` from where the pattern begins: another CPU's unfinished message may stand before it."""
    found = pattern.search(line)
    return line[found.start() :] if found else line


def _at(trace: tuple[str, ...]) -> str:
    """Where it happened: the first RIP line of a trace (CONFIG_KALLSYMS has decoded it to symbol+offset)."""
    for line in trace:
        found = re.search(r"RIP: \S+?:(\S+)", line)
        if found:
            return f" in {found.group(1)}"
    return ""


def _console(folder: Path) -> list[str]:
    try:
        with (folder / CONSOLE).open("rb") as stream:
            text = stream.read(CONSOLE_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return [PREFIX.sub("", printable(line)).rstrip() for line in text.splitlines()]


def _first(console: list[str], pattern: re.Pattern[str]) -> int | None:
    return next((index for index, line in enumerate(console) if pattern.search(line)), None)


def _trace(console: list[str], start: int) -> tuple[str, ...]:
    return tuple(console[start : start + TRACE_LINES])


def _last(console: list[str]) -> tuple[str, ...]:
    return tuple(console[-TRACE_LINES:])


def _read_status(path: Path) -> _Status:
    words: dict[str, str] = {}
    stderr = []
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "stderr":
            stderr.append(printable(value))
        else:
            words[key] = value
    return _Status(
        pid1="pid1" in words,
        ended="end" in words,
        exit_code=_number(words.get("exit")),
        signal=_number(words.get("signal")),
        deadline="deadline" in words,
        stderr=tuple(stderr[-TRACE_LINES:]),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None
