"""What a Linux guest sees besides the fault: how late its timers are, and the time that others had its vCPU.

The benchmark in the guest (guests/fault_bench) puts these into the recording's counters: the lateness of a thread of
real-time priority that sleeps until absolute times (``jitter_*``, measured after the rounds while the storm goes on),
and of the measured rounds the steal time (``guest_steal_ns``, /proc/stat, which the guest's kernel counts in ticks)
and the benchmark's own minor faults (``guest_minflt``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from orchestrator.analysis import compare, stopping
from orchestrator.analysis.compare import Effect
from orchestrator.analysis.latency import LINUX_GUEST
from orchestrator.analysis.model import BootSummary, CellStop, CellSummary, MetricComparison
from orchestrator.analysis.symptoms import SYMPTOMS, Symptom, Symptoms
from orchestrator.experiment import Experiment
from orchestrator.recording import Recording

# What a boot's metric of lateness rests on, where that is too little for a verdict on one pair of boots.
FEW_WAKEUPS = {"jitter_p99": "the latest few wakeups", "jitter_max": "a single wakeup"}
STEAL_TICK_NS = 10_000_000  # USER_HZ is 100 on x86, and /proc/stat counts in it.


def read(recording: Recording) -> Symptoms | None:
    """One boot's symptoms; None where no Linux guest ran."""
    minor = recording.counter(LINUX_GUEST)
    if minor is None:
        return None
    wakeups = recording.counter("jitter_wakeups") or 0
    p50, p99, worst, mean = (
        float(value) if wakeups and (value := recording.counter(f"jitter_{name}_ns")) is not None else None
        for name in ("p50", "p99", "max", "mean")
    )
    steal, missed = recording.counter("guest_steal_ns"), recording.counter("jitter_missed")
    return Symptoms(p50, p99, worst, mean, wakeups, None if steal is None else float(steal), minor, missed)


def merge(boots: Sequence[Symptoms]) -> Symptoms | None:
    """Over boots: lateness as geometric means, as latencies are; wakeups and missed ones as sums, the others as
    arithmetic means."""
    if not boots:
        return None
    p50, p99, worst, mean = (
        _mean([getattr(boot, name) for boot in boots], geometric=True)
        for name in ("jitter_p50", "jitter_p99", "jitter_max", "jitter_mean")
    )
    wakeups = sum(boot.wakeups for boot in boots)
    steal = _mean([boot.steal for boot in boots], geometric=False)
    minor = round(float(np.mean([boot.minor_faults for boot in boots])))
    missed = [boot.missed for boot in boots if boot.missed is not None]
    return Symptoms(p50, p99, worst, mean, wakeups, steal, minor, sum(missed) if missed else None)


def _mean(values: Sequence[float | None], *, geometric: bool) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return compare.average(known, "max") if geometric else float(np.mean(known))


def judge(
    experiment: Experiment, summaries: Sequence[CellSummary], stops: Sequence[CellStop], deterministic: bool
) -> tuple[MetricComparison, ...]:
    """Every symptom of every arm against the base, in cells with Linux guests.

    The comparisons are a family of their own: corrected among themselves, and they decide no cell's verdict, for they
    are another question than the faults'. In a run ``until: decided`` they are judged once, at the level of the look at
    which the faults ended their cell; before its next look a cell has no verdict of these either.
    """
    found = {(item.cell, item.arm): item.per_boot for item in summaries}
    effects = [
        effect
        for cell in experiment.linux_cells
        for arm in experiment.arms[1:]
        for name in SYMPTOMS
        if (effect := _effect(cell.name, arm.name, name, experiment, found)) is not None
    ]
    judged = stopping.judge_beside(effects, experiment.base.name, stopping.stages(experiment, stops), deterministic)
    open_ = {item.cell for item in stops if item.why == "not reached"}
    return tuple(_plain(replace(item, decides=False), item.cell in open_) for item in judged)


def _plain(item: MetricComparison, open_: bool) -> MetricComparison:
    """Without a verdict before the next look, and where it would be one on a few events: the latest wakeups of one pair
    of boots. One stall of the host moves them, and the control in another process meets stalls as well."""
    if open_:
        return replace(item, verdict="inconclusive", reason="before the next look", boots_needed=None)
    if item.metric not in FEW_WAKEUPS or item.pairs > 1:
        return item
    return replace(item, verdict="inconclusive", reason=f"one boot: {FEW_WAKEUPS[item.metric]}")


def _effect(
    cell: str, arm: str, name: Symptom, experiment: Experiment, found: Mapping[tuple[str, str], Sequence[BootSummary]]
) -> Effect | None:
    """The pairs' change of one symptom; None where it was not measured."""
    pairs = [
        (getattr(left.symptoms, name), getattr(right.symptoms, name))
        for left, right in compare.pair(found[cell, experiment.base.name], found[cell, arm])
    ]
    known = [(left, right) for left, right in pairs if left is not None and right is not None]
    if not known:
        return None
    if name == "steal":  # A difference of one tick is what counting in ticks makes of none.
        known = [(left, left) if abs(right - left) <= STEAL_TICK_NS else (left, right) for left, right in known]
    return compare.effect_of_times(cell, arm, name, known, experiment.report.margin)
