"""The stage for the traced boots: their recordings and traces in, what the report says of them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator import hosttrace, recording
from orchestrator.analysis import latency
from orchestrator.analysis.attribution import SLOWEST
from orchestrator.analysis.causes import CAUSES, CauseShare, SlowFault, TraceCost, TracedBoot
from orchestrator.analysis.correctness import CheckStatus
from orchestrator.analysis.model import BootSummary, CellSummary, CheckResult, Latency
from orchestrator.analysis.spans import Ints
from orchestrator.analysis.tally import Tally, passes, tally
from orchestrator.analysis.traced import NEEDED, OTHER, TAKEN, UNRELATED, Explained, explain
from orchestrator.analysis.why import lacks
from orchestrator.analysis.wording import tenths
from orchestrator.errors import RecordingError
from orchestrator.experiment import Check, Experiment, TracedCell
from orchestrator.hosttrace import Trace
from orchestrator.recording import Recording
from orchestrator.results import Outcome, TrialResult

CHECK: Check = "attribution"
STORM_CHECK: Check = "storm_in_vmm"
RECORDING_FILE = "recording.bin"
# The share of spurious retries that must lie in a storm window.
IN_WINDOW_SHARE = 0.95
# The share of a storm's retries that may have met no invalidation at all: another vCPU was quicker, or a hole in the
# VMM's mapping. More, and the trace lacks invalidations.
OTHER_SHARE = 0.05


@dataclass(frozen=True)
class Verdict:
    """What :func:`judge` comes to; ``boots`` by cell, then by arm, ``storm`` the checks of whose memory it hit."""

    boots: tuple[TracedBoot, ...]
    checks: tuple[CheckResult, ...]
    storm: tuple[CheckResult, ...]


def judge(
    experiment: Experiment, results: Sequence[TrialResult], trials: Path, summaries: Sequence[CellSummary]
) -> Verdict:
    """Every traced boot that ended well, and the checks on each that was planned.

    ``trials`` is the folder with one folder a trial. Raises :class:`RecordingError` for a recording or trace that is
    damaged, of another arm or cell, or of two different boots.
    """
    boots, checks, storm = [], [], []
    for cell in experiment.traced_cells:
        for arm in experiment.arms:
            result = next((item for item in results if (item.cell, item.arm) == (cell.name, arm.name)), None)
            if result is None or result.outcome is not Outcome.OK:
                why = "the traced boot did not run" if result is None else f"the traced boot: {result.outcome}"
                checks.append(CheckResult(CHECK, arm.name, cell.cell.name, "not covered", why))
                if cell.cell.storm is not None:
                    storm.append(CheckResult(STORM_CHECK, arm.name, cell.cell.name, "not covered", why))
                continue
            found, trace = load(result, cell, trials)
            untraced = _untraced(summaries, cell.cell.name, arm.name, result.seed)
            boot = _boot(result, cell, found, trace, untraced)
            boots.append(boot)
            checks.append(_check(boot))
            if boot.placement:
                storm.append(_storm_check(boot))
    return Verdict(tuple(boots), tuple(checks), tuple(storm))


def load(result: TrialResult, cell: TracedCell, trials: Path) -> tuple[Recording, Trace]:
    """A traced trial's recording and trace, both checked; :class:`RecordingError` as :func:`judge` says."""
    folder = trials / result.id
    found = recording.read(folder / RECORDING_FILE)
    if (found.header.arm, found.header.cell) != (result.arm, cell.cell.name):
        raise RecordingError(
            f"{folder / RECORDING_FILE} is of arm {found.header.arm!r}, cell {found.header.cell!r}; the trial was of"
            f" {result.arm!r}, {cell.cell.name!r}",
            hint=result.rerun,
        )
    return found, hosttrace.read(folder / hosttrace.PACKED)


def _untraced(summaries: Sequence[CellSummary], cell: str, arm: str, seed: int) -> BootSummary | None:
    """The measured boot with the same kernel, cell and seed; None if it did not end well."""
    boots = (boot for item in summaries if (item.cell, item.arm) == (cell, arm) for boot in item.per_boot)
    return next((boot for boot in boots if boot.seed == seed), None)


def _boot(
    result: TrialResult, cell: TracedCell, found: Recording, trace: Trace, untraced: BootSummary | None
) -> TracedBoot:
    seen = explain(found, trace)
    cycles, covered = seen.faults.end - seen.faults.start, seen.covered
    retry_covered = covered[seen.retries.fault]
    kinds = [int((retry_covered & (seen.retries.kind == kind)).sum()) for kind in (UNRELATED, NEEDED, OTHER, TAKEN)]
    in_window = retry_covered & (seen.retries.kind == UNRELATED) & (seen.retry_window >= 0)
    slowest = np.flatnonzero(covered)
    slowest = slowest[np.lexsort((slowest, -cycles[slowest]))][:SLOWEST]
    return TracedBoot(
        trial=result.id,
        cell=cell.cell.name,
        arm=result.arm,
        events=len(trace.events),
        lost=trace.lost,
        faults=len(covered),
        covered=int(covered.sum()),
        attempts=int(seen.attempts[covered].sum()),
        faulting=int((seen.attempts[covered] > 0).sum()),
        retries=sum(kinds[:3]),
        taken=kinds[3],
        spurious=kinds[0],
        needed=kinds[1],
        other=kinds[2],
        in_window=int(in_window.sum()),
        counted=latency.retries(found),
        exits=seen.exits,
        exits_counted=latency.exits(found),
        total_ns=float(cycles[covered].sum()) * found.header.ns_per_cycle,
        shares=_shares(seen, slowest, found.header.ns_per_cycle),
        slowest=tuple(_slow(seen, int(fault), found) for fault in slowest),
        cost=None if untraced is None else _cost(found, untraced),
        placement=cell.cell.storm.placement if cell.cell.storm is not None else "",
        storm_calls=len(found.windows),
        storm_met=len(np.unique(seen.windows[seen.windows >= 0])),
        storm_invalidations=int((seen.windows >= 0).sum()),
        missed=trace.missed,
        unended=seen.invalidations.unended,
        unbegun=seen.invalidations.unbegun,
    )


def _shares(seen: Explained, slowest: Ints, to_ns: float) -> tuple[CauseShare, ...]:
    shares = []
    for number, cause in enumerate(CAUSES):
        happened = seen.cause == number
        retries = seen.retries_of(number)
        shares.append(
            CauseShare(
                cause=cause,
                faults=int((happened & seen.covered).sum()),
                retries=int(retries[seen.covered].sum()),
                time_ns=float(seen.parts[number][seen.covered].sum()) * to_ns,
                slowest=int(happened[slowest].sum()),
                slowest_retries=int(retries[slowest].sum()),
                slowest_ns=float(seen.parts[number][slowest].sum()) * to_ns,
            )
        )
    return tuple(shares)


def _slow(seen: Explained, fault: int, found: Recording) -> SlowFault:
    to_ns = found.header.ns_per_cycle
    faults, last = seen.faults, int(seen.last_retry[fault])
    met = int(seen.retries.invalidation[last]) if last >= 0 else -1
    window = int(seen.windows[met]) if met >= 0 else -1
    hva = int(seen.invalidations.hva[met]) if met >= 0 else None
    return SlowFault(
        start_ns=float(faults.start[fault] - found.header.start_tsc) * to_ns,
        latency_ns=float(faults.end[fault] - faults.start[fault]) * to_ns,
        vcpu=int(faults.vcpu[fault]),
        page=int(faults.page[fault]),
        cause=CAUSES[int(seen.cause[fault])],
        parts_ns=tuple(float(part) * to_ns for part in seen.parts[:, fault]),
        attempts=int(seen.attempts[fault]),
        hva=hva,
        size_bytes=int(seen.invalidations.behind[met]) - hva if hva is not None else None,
        window=window if window >= 0 else None,
    )


def _cost(found: Recording, untraced: BootSummary) -> TraceCost:
    traced = _latency(found)
    both = {name: (getattr(untraced.latency, name), getattr(traced, name)) for name in ("mean", "p50", "p99_9", "max")}
    return TraceCost(
        untraced=untraced.trial,
        mean_ns=both["mean"],
        p50_ns=both["p50"],
        p99_9_ns=both["p99_9"],
        max_ns=both["max"],
        retries=(untraced.retries, latency.retries(found)),
    )


def _latency(found: Recording) -> Latency:
    counted = Tally()
    for faults in found.chunks():
        counted.add(faults.latency_cycles)
    steps = passes(counted.counts(), lambda low: tally(found, low))
    return latency.summarise(steps, found.nr_faults, counted.cycles, found.header.ns_per_cycle)


def _storm_check(boot: TracedBoot) -> CheckResult:
    """Every call of a storm in the VMM made KVM's notifier run, which is registered for the VMM's mm; of one in another
    process, none did."""
    elsewhere = boot.placement == "other-process"
    held = boot.storm_met == (0 if elsewhere else boot.storm_calls)
    process = "another process" if elsewhere else "the VMM"
    why = (
        f"{boot.storm_met} of {boot.storm_calls} calls of the storm in {process} invalidated the VMM's memory"
        f" ({boot.storm_invalidations} events of its mm in their ranges)"
    )
    if not boot.storm_calls:
        return CheckResult(STORM_CHECK, boot.arm, boot.cell, "not covered", "the storm made no call")
    # What is missing can only hide calls: those of another process, which must not be seen, as well.
    if not boot.whole and held == elsewhere:
        return CheckResult(STORM_CHECK, boot.arm, boot.cell, "not covered", f"{why}; the trace is incomplete")
    return CheckResult(STORM_CHECK, boot.arm, boot.cell, "held" if held else "failed", why)


def _check(boot: TracedBoot) -> CheckResult:
    """Nothing missing, every retry accounted for, next to none without an invalidation where there is a storm, and the
    spurious ones in its windows."""

    def made(status: CheckStatus, why: str) -> CheckResult:
        return CheckResult(CHECK, boot.arm, boot.cell, status, why)

    if not boot.whole:
        covered = f"{boot.covered} of {boot.faults} faults are covered"
        raise_it = "; raise trace.buffer_mib" if boot.lost else ""
        return made("failed", f"the trace is incomplete: {'; '.join(lacks(boot))}; {covered}{raise_it}")
    if boot.counted is None:
        return made("not covered", "KVM's counters could not be read")
    sums = f"{boot.retries} retries by trace, {boot.counted} by KVM's counters"
    slack = max(latency.SLACK_FAULTS, int(boot.faults * latency.SLACK_SHARE))
    if abs(boot.retries - boot.counted) > slack:
        return made("failed", sums)
    if boot.placement and boot.other > OTHER_SHARE * boot.retries:
        why = f"{sums}; {boot.other} of them ({tenths(boot.other, boot.retries, up=True)}%) met no invalidation"
        few = boot.other <= latency.SLACK_FAULTS
        return made("not covered" if few else "failed", f"{why} (at most {OTHER_SHARE:.0%} allowed)")
    said = "none spurious"
    if boot.spurious:
        said = (
            f"{boot.in_window} of the {boot.spurious} spurious ones ({tenths(boot.in_window, boot.spurious)}%) met a"
            f" storm window (at least {IN_WINDOW_SHARE:.0%} asked)"
        )
        if boot.in_window < IN_WINDOW_SHARE * boot.spurious:
            return made("failed", f"{sums}; {said}")
    if boot.missed is None:
        return made("not covered", f"{sums}; {said}; the trace does not say what its probes missed")
    return made("held", f"{sums}; {said}")
