"""Boot summaries of two arms in, a verdict for each metric out.

Latencies are compared as ratios (the mean of the log ratios of the pairs: the ratio of geometric means), retries per
fault as differences, since their base is often 0 (so their verdict; what is shown of them is the ratio of the means,
with an interval of its own). Three cases:

* One pair on a target whose time is not deterministic: nothing can be said, ``inconclusive``.
* icount, fewer than six seeds: each pair is exact for its seed, so the verdict is what all pairs agree on. It says
  nothing about other seeds.
* Six pairs or more: the 95 % interval against the margin, and the permutation test after Holm's correction. In a run
  ``until: decided`` both at the level of the look (``sequential.py``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from orchestrator.analysis import power, statistics
from orchestrator.analysis.model import METRICS, Latency, Metric, MetricComparison, Verdict
from orchestrator.analysis.sequential import FIXED, Stage
from orchestrator.analysis.statistics import ALPHA, Estimate

# A change of retries per fault below this is none, whatever its ratio: 65 of 65,536 faults, about what the exits
# without a counter of their own amount to.
RETRIES_MARGIN = 0.001


class Boot(Protocol):
    """What is compared of a boot; ``model.BootSummary`` has it."""

    @property
    def trial(self) -> str: ...
    @property
    def boot(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def faults(self) -> int: ...
    @property
    def latency(self) -> Latency: ...
    @property
    def retries(self) -> int | None: ...


AnyBoot = TypeVar("AnyBoot", bound=Boot)


@dataclass(frozen=True)
class Family:
    """The comparisons that share one error rate with those that are being judged, from cells that have stopped.

    ``called`` were significant there: Holm's procedure need not count them any more. ``others`` were not, and count.
    """

    called: int = 0
    others: int = 0


@dataclass(frozen=True)
class Context:
    """What a verdict depends on beside the figures: how time is counted, which look it is, what else is tested."""

    deterministic: bool
    stage: Stage = FIXED
    family: Family = Family()


@dataclass(frozen=True)
class Effect:
    """One metric of paired boots, before the verdict.

    ``steps`` has the pairs' effects (log ratios of latencies, differences of retries); ``bounds`` the margin on that
    scale. ``missing`` says why there are no values, or is empty.
    """

    cell: str
    arm: str
    metric: Metric
    base_values: tuple[float, ...]
    values: tuple[float, ...]
    steps: tuple[float, ...]
    bounds: tuple[float, float]
    missing: str

    @property
    def relative(self) -> bool:
        return self.metric != "retries_per_fault"


def value_of(boot: Boot, metric: Metric) -> float | None:
    """One boot's value of a metric; None for retries where KVM's counters are missing."""
    if metric == "retries_per_fault":
        return None if boot.retries is None else boot.retries / boot.faults
    return float(getattr(boot.latency, metric))


def pair(base: Sequence[AnyBoot], arm: Sequence[AnyBoot]) -> tuple[tuple[AnyBoot, AnyBoot], ...]:
    """Boots of two arms of one cell paired within their blocks, the k-th of one with the k-th of the other.

    A boot whose partner failed has no pair and is left out.
    """
    blocks: dict[int, list[AnyBoot]] = defaultdict(list)
    for boot in sorted(arm, key=lambda item: (item.block, item.boot)):
        blocks[boot.block].append(boot)
    pairs = []
    for boot in sorted(base, key=lambda item: (item.block, item.boot)):
        if blocks[boot.block]:
            pairs.append((boot, blocks[boot.block].pop(0)))
    return tuple(pairs)


def effect(
    cell: str, arm: str, metric: Metric, pairs: Sequence[tuple[Boot, Boot]], margin: float, missing: str
) -> Effect:
    """The pairs' effects on one metric; ``missing`` is the reason to give where there is no pair."""
    nothing = Effect(cell, arm, metric, (), (), (), (0.0, 0.0), missing or "no pair of boots")
    found = [(value_of(left, metric), value_of(right, metric)) for left, right in pairs]
    known = [(left, right) for left, right in found if left is not None and right is not None]
    if not known:
        return replace(nothing, missing="KVM's counters could not be read") if found else nothing
    base_values, values = (tuple(side) for side in zip(*known, strict=True))
    if metric == "retries_per_fault":
        allowed = max(RETRIES_MARGIN, margin * float(np.mean(base_values)))
        steps = tuple(right - left for left, right in known)
        return Effect(cell, arm, metric, base_values, values, steps, (-allowed, allowed), "")
    return effect_of_times(cell, arm, metric, known, margin)


def effect_of_times(cell: str, arm: str, metric: Metric, known: Sequence[tuple[float, float]], margin: float) -> Effect:
    """The effect on a time, in ns, of which every pair (base, arm) is known; there is at least one."""
    base_values, values = (tuple(side) for side in zip(*known, strict=True))
    bounds = (math.log1p(-margin), math.log1p(margin))
    if min(*base_values, *values) > 0:
        steps = tuple(math.log(right / left) for left, right in known)
    elif not any((*base_values, *values)):
        steps = tuple(0.0 for _ in known)
    else:
        return Effect(cell, arm, metric, (), (), (), (0.0, 0.0), "a time of 0 ns has no ratio")
    return Effect(cell, arm, metric, base_values, values, steps, bounds, "")


def judge(effects: Sequence[Effect], base: str, context: Context) -> tuple[MetricComparison, ...]:
    """A verdict for each effect; p-values are corrected over all of them, and over ``context.family``, together."""
    estimates = _estimates(effects, context)
    overall = [None if found is None else context.stage.overall(found.p_value) for found in estimates]
    adjusted = statistics.holm(overall, context.family.others)
    family = context.family
    tests = sum(value is not None for value in adjusted) + family.others + family.called
    return tuple(
        _judge_one(item, base, found, p_adjusted, tests, context)
        for item, found, p_adjusted in zip(effects, estimates, adjusted, strict=True)
    )


def _estimates(effects: Sequence[Effect], context: Context) -> list[Estimate | None]:
    """Estimates where they say something; those of as many pairs in one go."""
    found: list[Estimate | None] = [None] * len(effects)
    alike: dict[int, list[int]] = defaultdict(list)
    for index, item in enumerate(effects):
        if len(item.steps) >= 2 and not _exact(item, context):
            alike[len(item.steps)].append(index)
    for indices in alike.values():
        rows = np.array([effects[index].steps for index in indices])
        for index, estimate in zip(indices, statistics.paired_rows(rows, context.stage.alpha), strict=True):
            found[index] = estimate
    return found


def _exact(item: Effect, context: Context) -> bool:
    return context.deterministic and 0 < len(item.steps) < statistics.MIN_PAIRS


def _judge_one(
    item: Effect, base: str, found: Estimate | None, p_adjusted: float | None, tests: int, context: Context
) -> MetricComparison:
    base_value, value, ratio = _values(item)
    verdict: Verdict
    ci: tuple[float | None, float | None] = (None, None)
    smallest: float | None = None
    needed = None
    if item.missing:
        verdict, reason = "inconclusive", item.missing
    elif _exact(item, context):
        verdict, reason = _exact_verdict(item)
        ci = _range(item)
        smallest = _as_change(item, item.bounds[1], base_value)
    elif found is None:
        verdict, reason = "inconclusive", "one boot: its noise is not known"
    else:
        verdict, reason = _interval_verdict(item, found, p_adjusted, tests, context.stage)
        ci = _interval(item, found, context.stage.alpha)
        size = power.smallest_effect(found, item.bounds[1], context.stage, tests)
        smallest = None if size is None else _as_change(item, size, base_value)
        if verdict == "inconclusive":
            needed = power.boots_needed(found, item.bounds, context.stage, tests)
    return MetricComparison(
        cell=item.cell,
        base=base,
        arm=item.arm,
        metric=item.metric,
        base_value=base_value,
        value=value,
        ratio=ratio,
        ci=ci,
        p_value=None if found is None else found.p_value,
        p_adjusted=p_adjusted,
        pairs=len(item.steps),
        smallest_effect=smallest,
        verdict=verdict,
        reason=reason,
        # The slowest fault of a single pair is one event: shown, but a verdict on a cell needs more than one.
        decides=not item.missing and not (item.metric == "max" and len(item.steps) < 2),
        boots_needed=needed,
    )


def hopeless(item: Effect, last: Stage, tests: int) -> bool:
    """Whether not even the last look is likely to decide, were change and spread what they seem to be."""
    if item.missing or len(item.steps) < 2:
        return True
    found = Estimate(float(np.mean(item.steps)), 0.0, 0.0, 1.0, float(np.std(item.steps, ddof=1)), len(item.steps))
    needed = power.boots_needed(found, item.bounds, last, tests, power.HOPELESS)
    return needed is None or needed > last.looks[-1]


def _exact_verdict(item: Effect) -> tuple[Verdict, str]:
    low, high = item.bounds
    seeds = "this seed" if len(item.steps) == 1 else f"these {len(item.steps)} seeds"
    if all(step == 0 for step in item.steps):
        return "equivalent", f"identical, exact for {seeds}"
    if all(low <= step <= high for step in item.steps):
        return "equivalent", f"within the margin, exact for {seeds}"
    if all(step < low for step in item.steps):
        return "improved", f"exact for {seeds}"
    if all(step > high for step in item.steps):
        return "regressed", f"exact for {seeds}"
    return "inconclusive", f"{seeds} disagree"


def _interval_verdict(
    item: Effect, found: Estimate, p_adjusted: float | None, tests: int, stage: Stage
) -> tuple[Verdict, str]:
    low, high = item.bounds
    pairs = len(item.steps)
    if pairs < statistics.MIN_PAIRS:
        least = statistics.smallest_p(pairs)
        return "inconclusive", f"{pairs} boots cannot decide at 5 %, the smallest p is {least:.2g}"
    if low <= found.low and found.high <= high:
        return "equivalent", "the interval lies within the margin"
    if not (found.high < low or found.low > high):
        return "inconclusive", "the interval crosses the margin"
    looks = len(stage.looks)
    over = f"over {tests} comparisons" + (f" and {looks} looks" if looks > 1 else "")
    if p_adjusted is None or p_adjusted > ALPHA:
        return "inconclusive", f"{pairs} boots do not decide at 5 % {over}"
    return ("improved" if found.high < low else "regressed"), f"p {p_adjusted:.2g} {over}"


def _values(item: Effect) -> tuple[float | None, float | None, float | None]:
    """Base value, value, ratio of the pairs: geometric means of latencies, arithmetic means of retries."""
    if item.missing:
        return None, None, None
    base_value, value = (average(side, item.metric) for side in (item.base_values, item.values))
    if base_value == value:
        return base_value, value, 1.0
    return base_value, value, value / base_value if base_value else None


def average(values: Sequence[float], metric: Metric) -> float:
    """One value for several boots: the geometric mean of latencies, the arithmetic mean of retries per fault."""
    if len(set(values)) == 1:
        return values[0]
    if metric == "retries_per_fault" or min(values) <= 0:
        return float(np.mean(values))
    return math.exp(float(np.mean(np.log(values))))


def _range(item: Effect) -> tuple[float | None, float | None]:
    """The smallest and the largest ratio of a pair; None above a pair whose base has no retries, and the arm some."""
    if item.relative:
        return math.exp(min(item.steps)), math.exp(max(item.steps))
    if not any(item.base_values):
        return (None, None) if any(item.values) else (1.0, 1.0)
    # Two zeros have no ratio; the ratio of the means lies between those of the others.
    pairs = [both for both in zip(item.base_values, item.values, strict=True) if any(both)]
    return _finite(*(end(value / base if base else math.inf for base, value in pairs) for end in (min, max)))


def _interval(item: Effect, found: Estimate, alpha: float) -> tuple[float | None, float | None]:
    """The interval of the ratio. Of retries it has one of its own, for the base's mean is not known any better.

    So it may differ a little from that of the differences, which alone decides the verdict.
    """
    if item.relative:
        return math.exp(found.low), math.exp(found.high)
    if not any(item.base_values):
        return (None, None) if any(item.values) else (1.0, 1.0)
    return _finite(*statistics.ratio_interval(np.array(item.base_values), np.array(item.values), alpha))


def _finite(low: float, high: float) -> tuple[float, float | None]:
    return low, None if math.isinf(high) else high


def _as_change(item: Effect, size: float, base_value: float | None) -> float:
    """An effect's size as a fraction of the base; of retries over a base of 0, per fault."""
    if item.relative:
        return math.expm1(size)
    return size / base_value if base_value else size


def effects_of(
    cell: str, arm: str, base_boots: Sequence[Boot], arm_boots: Sequence[Boot], margin: float, missing: str
) -> tuple[Effect, ...]:
    """All metrics of one arm against the base in one cell."""
    pairs = pair(base_boots, arm_boots)
    return tuple(effect(cell, arm, metric, pairs, margin, missing) for metric in METRICS)
