"""Boots in, intervals and p-values out. The boot is the unit: samples of one boot are correlated, boots are not.

Arms are paired by block (same machine, same seed, next to each other in time), so drift of the machine cancels in
each pair. Everything here works on one number a boot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 9999
# Below six pairs even the most extreme outcome of a paired permutation test has p = 2 / 2**5 > 5 %, and a percentile
# bootstrap of so few values is too narrow to call anything equivalent.
MIN_PAIRS = 6


@dataclass(frozen=True)
class Estimate:
    """A paired difference: its mean, 95 % interval, permutation p-value, and the smallest one that could be seen."""

    value: float
    low: float
    high: float
    p_value: float
    resolution: float


def paired(differences: NDArray[np.float64], seed: int = 1) -> Estimate:
    """Mean of paired differences, shape (pairs,) with at least two.

    The interval is the percentile bootstrap, with the level expanded so that at few pairs it is as wide as Student's
    interval would be (T. Hesterberg, "What Teachers Should Know About the Bootstrap", 2014, section 5.3.1). The
    p-value is the two-sided sign-flip permutation test, exact up to 13 pairs. ``resolution`` is the difference that
    an interval as wide as this one excludes with 80 % power. Seeded, so that a report made again says the same.
    """
    count = len(differences)
    spread = float(differences.std(ddof=1))
    student = float(stats.t.ppf(1 - ALPHA / 2, count - 1))
    level = 1 - 2 * float(stats.norm.sf(math.sqrt(count / (count - 1)) * student))
    if spread == 0.0:
        low = high = float(differences.mean())
    else:
        interval = stats.bootstrap(
            (differences,), np.mean, confidence_level=min(level, 1 - 1e-6), n_resamples=RESAMPLES,
            method="percentile", random_state=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        low, high = float(interval.low), float(interval.high)
    tested = stats.permutation_test(
        (differences, np.zeros(count)), _mean_difference, permutation_type="samples", vectorized=True,
        n_resamples=RESAMPLES, random_state=np.random.default_rng(seed),
    )  # fmt: skip
    reach = student + float(stats.t.ppf(POWER, count - 1))
    return Estimate(float(differences.mean()), low, high, float(tested.pvalue), reach * spread / math.sqrt(count))


def _mean_difference(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray((x - y).mean(axis=axis), np.float64)


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p-value that a paired permutation test of ``pairs`` pairs can reach."""
    return max(2.0 ** (1 - pairs), 1 / (RESAMPLES + 1))


def pairs_needed(comparisons: int) -> int:
    """How many pairs it takes before the smallest p-value, Holm-corrected for ``comparisons``, is at most 5 %."""
    return math.ceil(1 + math.log2(max(1, comparisons) / ALPHA))


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Holm's step-down correction; None (not computed) stays None and does not count as a comparison."""
    known = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for rank, (value, index) in enumerate(known):
        reached = max(reached, min(1.0, value * (len(known) - rank)))
        adjusted[index] = reached
    return tuple(adjusted)
