"""Boots that fall in two groups: noticed and named, since a mean between two groups describes neither.

A kernel that comes up in one of two states (a page table in another place, a timer on the other CPU) gives boots with
two typical values. J. and P. Hartigan's dip test ("The dip test of unimodality", Annals of Statistics 13, 1985; the
``diptest`` package) asks whether the boots' values can come from a distribution with one peak; a heavy tail has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import diptest
import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis import compare, statistics
from orchestrator.analysis.model import METRICS, Bimodal, BootGroup, Metric

MIN_BOOTS = 8
# Groups nearer than this are no finding: nobody would act on it. Of retries: per fault.
NEAR, NEAR_RETRIES = 0.01, compare.RETRIES_MARGIN


@dataclass(frozen=True)
class _Series:
    """The boots' values of one metric, ascending, and the trials that they come from."""

    cell: str
    arm: str
    metric: Metric
    values: NDArray[np.float64]
    trials: tuple[str, ...]


def find(sides: Sequence[tuple[str, str, Sequence[compare.Boot]]]) -> tuple[Bimodal, ...]:
    """The metrics of (cell, arm, boots) whose boots fall in two groups.

    Looked at are those of at least :data:`MIN_BOOTS` boots; all together are wrong in at most 5 % of runs without
    groups. The split is at the widest gap.
    """
    series = [item for cell, arm, boots in sides for metric in METRICS if (item := _series(cell, arm, metric, boots))]
    p_values = [float(diptest.diptest(item.values)[1]) for item in series]
    adjusted = statistics.holm(p_values)
    found = []
    for item, p_value in zip(series, adjusted, strict=True):
        if p_value is not None and p_value <= statistics.ALPHA:
            found.append(_split(item, p_value))
    return tuple(item for item in found if _apart(item))


def _series(cell: str, arm: str, metric: Metric, boots: Sequence[compare.Boot]) -> _Series | None:
    known = sorted((value, boot.trial) for boot in boots if (value := compare.value_of(boot, metric)) is not None)
    if len(known) < MIN_BOOTS:
        return None
    values, trials = zip(*known, strict=True)
    raw = np.array(values)
    # Latencies are compared by their ratios, so groups are looked for there too.
    return _Series(cell, arm, metric, raw if metric == "retries_per_fault" or raw[0] <= 0 else np.log(raw), trials)


def _split(item: _Series, p_value: float) -> Bimodal:
    at = int(np.diff(item.values).argmax()) + 1
    plain = item.metric == "retries_per_fault"
    groups = []
    for values, trials in ((item.values[:at], item.trials[:at]), (item.values[at:], item.trials[at:])):
        middle = float(values.mean())
        groups.append(BootGroup(middle if plain else float(np.exp(middle)), tuple(sorted(trials))))
    return Bimodal(item.cell, item.arm, item.metric, groups[0], groups[1], p_value)


def _apart(item: Bimodal) -> bool:
    if item.metric == "retries_per_fault":
        return item.high.value - item.low.value > NEAR_RETRIES
    return item.high.value > item.low.value * (1 + NEAR)
