"""The stale-mapping check: rounds in, counts and verdicts out.

A round counts (it is *covered*) only if the fault provably met the invalidation it was aimed at:

- the kernel blocked it: it burnt the CPU with retries until it was kicked; or
- a page was stale: there is no other way to that; or
- it passed, but at a moment of the system call between two at which the fault *inside* the range was blocked.

The moment is the invalidator's own progress: the time it had run when it was preempted. Inside and beside the range the
same call, of the same length, over as many pages, is preempted in the same way, so it has come as far.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import stale
from orchestrator.analysis.checks import same_line
from orchestrator.analysis.correctness import StaleCount
from orchestrator.analysis.model import CheckResult
from orchestrator.errors import RecordingError
from orchestrator.experiment import Experiment, StaleCase, StaleCell, StaleOp
from orchestrator.results import Outcome, TrialResult
from orchestrator.stale import Round, StaleRecording

CHECK = "stale_mapping"
RECORDING_FILE = "recording.bin"
SHOWN_KINDS = 3
_PFN = re.compile(r"\s+pfn:[0-9a-f]+")
LIMITS = (
    "A round is covered if its fault provably met the invalidation it was aimed at; the others say nothing. The check"
    " preempts an invalidation on one CPU; races of two CPUs inside one function of KVM are beyond it."
)


@dataclass(frozen=True)
class _Boot:
    """One boot with what its calibrating rounds say."""

    result: TrialResult
    found: StaleRecording


@dataclass(frozen=True)
class Verdict:
    """What :func:`judge` comes to."""

    counts: tuple[StaleCount, ...]
    checks: tuple[CheckResult, ...]
    notes: tuple[str, ...]


def judge(experiment: Experiment, results: Sequence[TrialResult], trials: Path) -> Verdict:
    """Every arm × paging × guest page × operation × case of the check, and a kernel log for each boot.

    ``trials`` is the folder with one folder a trial. Raises :class:`RecordingError` for a result that is damaged or of
    another arm or cell.
    """
    counts: list[StaleCount] = []
    logs: list[CheckResult] = []
    base = experiment.arms[0].name
    for cell in experiment.stale_cells:
        ours = [item for item in results if item.cell == cell.name]
        known = {_PFN.sub("", same_line(line)) for item in ours if item.arm == base for line in item.warnings}
        for arm in experiment.arms:
            mine = [item for item in ours if item.arm == arm.name]
            boots = [_boot(item, trials) for item in mine if item.outcome in (Outcome.OK, Outcome.STALE)]
            counts += [
                _count(arm.name, cell, case, op, boots) for op in cell.stale.ops for case in cell.stale.rounds_of(op)
            ]
            logs += _kernel_log(arm.name, cell, mine, set() if arm.name == base else known)
    notes = (_far_note(arm.name, counts) for arm in experiment.arms)
    checks = (*(_check(count) for count in counts), *logs)
    return Verdict(tuple(counts), checks, (*(note for note in notes if note), *([LIMITS] if counts else [])))


def covered(item: Round, rounds: Sequence[Round]) -> bool:
    """Whether the round's fault met the invalidation; ``rounds`` are those of its boot, calibrating ones included."""
    if item.stale:
        return True
    if item.case == "straddle":
        return _straddled(item)
    if not _in_place(item):
        return False
    if item.ending == "blocked":
        return True
    if item.ending == "late":
        return False
    first, second = _progress(item)
    reference = _reference(item, rounds)
    return _between(first, reference) and (second is None or _between(second, reference))


def _straddled(item: Round) -> bool:
    """The whole call fell into the fault, and the kernel threw its work away for it.

    A fault that is taken again because its finished mapping was invalidated does not count: the retry is not asked.
    """
    return item.enter_ns < item.start_ns and item.end_ns < item.leave_ns and bool(item.retries)


def _in_place(item: Round) -> bool:
    """Whether the system calls stood as the case wants them when the guest was entered."""
    if not item.start_ns < item.enter_ns or not item.end_ns > item.leave_ns:
        return False
    if item.second is None:
        return True
    began, ended = item.second
    if item.case == "completed":
        return item.start_ns < began and ended < item.enter_ns
    return item.start_ns < began < item.enter_ns and ended > item.leave_ns


def _progress(item: Round) -> tuple[float, float | None]:
    """How long the first and the second invalidator had run when the guest was entered, ns.

    The second, of higher priority, stops the first as long as it runs.
    """
    if item.second is None:
        return item.enter_ns - item.start_ns, None
    began, ended = item.second
    if item.case == "completed":
        return item.enter_ns - item.start_ns - (ended - began), None
    return began - item.start_ns, item.enter_ns - began


def _reference(item: Round, rounds: Sequence[Round]) -> list[tuple[float, bool]]:
    """(progress, blocked) of the calibrating rounds of the same length and operation, by progress."""
    case = "short-inside" if item.case.startswith("short") else "inside"
    ours = [other for other in rounds if (other.case, other.op) == (case, item.op) and other.ending != "late"]
    return sorted((_progress(other)[0], other.ending == "blocked") for other in ours)


def _between(progress: float, reference: Sequence[tuple[float, bool]]) -> bool:
    """Whether both neighbours in time were blocked."""
    place = bisect.bisect_left(reference, (progress, False))
    if place < len(reference) and reference[place][0] == progress:
        return reference[place][1]
    return 0 < place < len(reference) and reference[place - 1][1] and reference[place][1]


def _boot(result: TrialResult, trials: Path) -> _Boot:
    path = trials / result.id / RECORDING_FILE
    found = stale.read(path)
    if (found.arm, found.cell) != (result.arm, result.cell):
        raise RecordingError(
            f"{path} is of arm {found.arm!r}, cell {found.cell!r}; the trial was of arm {result.arm!r}, cell"
            f" {result.cell!r}",
            hint=result.rerun,
        )
    return _Boot(result, found)


def _count(arm: str, cell: StaleCell, case: StaleCase, op: StaleOp, boots: Sequence[_Boot]) -> StaleCount:
    ours = [(boot, item) for boot in boots for item in boot.found.rounds if (item.case, item.op) == (case, op)]
    met = [(boot, item) for boot, item in ours if covered(item, boot.found.rounds)]
    bad = [(boot, item) for boot, item in met if item.stale]
    first = rerun = ""
    if bad:
        boot, item = bad[0]
        page = item.stale[0]
        first = f"round {item.round}, page {page.page}: {page.content:#x}"
        # The trial's own command names its first stale round; each case has its own.
        trial_command = boot.result.rerun.partition(" --case ")[0]
        rerun = f"{trial_command} --case {case} --op {op} --round {item.round}"
    return StaleCount(
        arm=arm,
        case=case,
        op=op,
        tdp=cell.tdp,
        page=cell.page,
        rounds=len(ours),
        covered=len(met),
        blocked=sum(item.ending == "blocked" for _, item in met),
        passed=sum(item.ending in ("passed", "hole") for _, item in met),
        stale=len(bad),
        status="failed" if bad else "held" if met else "not covered",
        first=first,
        rerun=rerun,
        cell=cell.name,
    )


def _check(count: StaleCount) -> CheckResult:
    return CheckResult(CHECK, count.arm, count.label, count.status, _why(count))


def _why(count: StaleCount) -> str:
    if not count.rounds:
        return "no round has run"
    if count.status == "failed":
        return (
            f"{count.stale} stale of {count.covered} covered rounds; the guest read a page that had been taken away in"
            f" {count.first}; again: {count.rerun}"
        )
    if count.status == "not covered":
        return f"in none of {count.rounds} rounds did the fault provably meet the invalidation"
    return (
        f"0 stale in {count.covered} covered rounds of {count.rounds}; {count.blocked} blocked, {count.passed} passed"
    )


def _kernel_log(arm: str, cell: StaleCell, results: Sequence[TrialResult], known: set[str]) -> list[CheckResult]:
    """What the kernel itself said during the check: bad page states, KASAN's reports, warnings that base has not."""
    if not results:
        return []
    lines = {_PFN.sub("", same_line(line)): line for item in results for line in item.warnings}
    new = [line for kind, line in lines.items() if kind not in known]
    if new:
        more = f" (and {len(new) - SHOWN_KINDS} other kinds)" if len(new) > SHOWN_KINDS else ""
        return [CheckResult(CHECK, arm, cell.name, "failed", f"the kernel's log: {'; '.join(new[:SHOWN_KINDS])}{more}")]
    ended = any(item.outcome in (Outcome.OK, Outcome.STALE) for item in results)
    if not ended:
        return [CheckResult(CHECK, arm, cell.name, "not covered", f"the trial ended otherwise: {results[0].reason}")]
    return [CheckResult(CHECK, arm, cell.name, "held", "the kernel's log: no warning that base has not")]


def _far_note(arm: str, counts: Sequence[StaleCount]) -> str:
    """Whether an arm looks at ranges: whether faults far from the one that is invalidated pass. Empty if untested."""
    ours = [item for item in counts if (item.arm, item.case) == (arm, "far") and item.covered]
    if not ours:
        return ""
    passed, met = sum(item.passed for item in ours), sum(item.covered for item in ours)
    if passed == 0:
        return f"{arm} retries far from the range as well ({met} of {met} covered rounds): it does not look at ranges"
    return f"{arm} lets faults far from the range pass in {passed} of {met} covered rounds"
