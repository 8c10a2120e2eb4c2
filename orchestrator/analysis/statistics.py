"""Boots in, intervals and p-values out. The boot is the unit: samples of one boot are correlated, boots are not.

Arms are paired by block (same machine, same seed, next to each other in time), so drift of the machine cancels in
each pair. Everything here works on one number a boot, and takes many metrics at once: the thousands of experiments
behind ``docs/statistics.md`` go through this very code. ``scipy.stats.bootstrap`` and ``permutation_test`` give the
same figures one metric at a time (``test_statistics.py`` holds the two together).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

ALPHA = 0.05
RESAMPLES = 9999
# Below six pairs even the most extreme outcome of a paired permutation test has p = 2 / 2**5 > 5 %, and a percentile
# bootstrap of so few values is too narrow to call anything equivalent.
MIN_PAIRS = 6
# Up to here all 2**pairs sign flips are counted, as sums of two halves (2**15 values to sort); beyond, random ones.
EXACT_PAIRS = 30
RANDOM_FLIPS = 99_999
FLIPS_AT_ONCE = 9_091  # an eleventh: a thousand pairs take 70 MB
SEED = 1  # A report made again must say the same.

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A paired difference: its mean, interval and permutation p-value, and the standard deviation of the pairs."""

    value: float
    low: float
    high: float
    p_value: float
    spread: float
    pairs: int


def paired(differences: Floats, alpha: float = ALPHA) -> Estimate:
    """:func:`paired_rows` of one metric, shape (pairs,)."""
    return paired_rows(differences[np.newaxis, :], alpha)[0]


def paired_rows(rows: Floats, alpha: float = ALPHA) -> tuple[Estimate, ...]:
    """Means of paired differences, shape (metrics, pairs), with at least two pairs.

    The interval of level ``1 - alpha`` is the percentile bootstrap, with the level expanded so that at few pairs it is
    as wide as Student's interval would be (T. Hesterberg, "What Teachers Should Know About the Bootstrap", 2014,
    section 5.3.1); and at either end Student's, where that is wider: of 12 pairs with heavy tails the bootstrap alone
    covers 92 to 93 %, since it cannot know values that it has not seen. The p-value is the two-sided sign-flip
    permutation test (:func:`sign_flip_p`).
    """
    count = rows.shape[1]
    values, spreads = rows.mean(axis=1), rows.std(axis=1, ddof=1)
    student, tail = _levels(count, alpha)
    means = np.sort(rows @ _resamples(count), axis=1)
    reach = student * spreads / math.sqrt(count)
    lows = np.minimum(_quantile(means, tail), values - reach)
    highs = np.maximum(_quantile(means, 1 - tail), values + reach)
    # Equal differences have no spread, but for rounding errors of the sums.
    flat = np.ptp(rows, axis=1) == 0
    values[flat] = lows[flat] = highs[flat] = rows[flat, 0]
    spreads[flat] = 0.0
    return tuple(
        Estimate(float(value), float(low), float(high), p_value, float(spread), count)
        for value, low, high, p_value, spread in zip(values, lows, highs, sign_flip_p(rows), spreads, strict=True)
    )


def ratio_interval(base: Floats, values: Floats, alpha: float = ALPHA) -> tuple[float, float]:
    """The interval of level ``1 - alpha`` of the ratio of means of two paired samples, neither below 0.

    The base's mean is as uncertain as the other: taking what was seen of it for the truth makes the interval of a small
    ratio far too wide, and that of a large one too narrow. A ratio ``r`` belongs to the interval if the interval of
    :func:`paired_rows` of ``values - r * base`` holds 0. By Student's these are the ratios between E. Fieller's limits
    ("Some problems in interval estimation", J. Royal Statistical Society B 16, 1954), by the bootstrap those between
    the percentiles of the resamples' ratios; at either end the wider counts. The upper end is infinite where the
    base's own mean cannot be told from 0, and in the resamples without any. The base's mean must be above 0.
    """
    means = float(base.mean()), float(values.mean())
    ratio = means[1] / means[0]
    if float(np.abs(values - ratio * base).max()) <= 1e-12 * max(float(values.max()), ratio * float(base.max())):
        return ratio, ratio  # the same in every pair
    student, tail = _levels(len(base), alpha)
    low, high = _fieller(means, np.cov(base, values), student**2 / len(base))
    left, right = (side @ _resamples(len(base)) for side in (base, values))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = right / left
    # A resample of nothing but zeros says nothing: no ratio contradicts it.
    for place, empty in ((tail, 0.0), (1 - tail, np.inf)):
        end = float(_quantile(np.sort(np.nan_to_num(ratios, nan=empty, posinf=np.inf))[np.newaxis], place)[0])
        low, high = min(low, end), max(high, end)
    return low, high


def _fieller(means: tuple[float, float], covariance: Floats, reach: float) -> tuple[float, float]:
    """The ratios ``r`` of which ``(y - r * x)**2`` is at most ``reach`` times its variance, x and y the means."""
    x, y = means
    square = x * x - reach * float(covariance[0, 0])
    middle = x * y - reach * float(covariance[0, 1])
    free = y * y - reach * float(covariance[1, 1])
    root = math.sqrt(max(0.0, middle * middle - square * free))
    low = free / (middle + root) if free > 0 else 0.0
    return low, (middle + root) / square if square > 0 else math.inf


def _levels(count: int, alpha: float) -> tuple[float, float]:
    """How many standard errors Student's interval reaches, and the share of the bootstrap beyond each end."""
    student = float(special.stdtrit(count - 1, 1 - alpha / 2))
    return student, max(float(special.ndtr(-math.sqrt(count / (count - 1)) * student)), 0.5e-6)


def _quantile(ordered: Floats, share: float) -> Floats:
    """``np.quantile`` of rows that are sorted already; infinite beside an infinite value."""
    place = share * (ordered.shape[1] - 1)
    at = min(int(place), ordered.shape[1] - 2)
    below, above = ordered[:, at], ordered[:, at + 1]
    with np.errstate(invalid="ignore"):
        found = below + (above - below) * (place - at)
    return np.asarray(np.where(np.isinf(above), above, found), np.float64)


def sign_flip_p(rows: Floats) -> tuple[float, ...]:
    """Two-sided p-values of the paired permutation test: how often flipped signs give as large a sum as was seen.

    ``rows`` as in :func:`paired_rows`. Under the hypothesis of no difference each pair could as well have come the
    other way round. Exact for up to :data:`EXACT_PAIRS` pairs, of :data:`RANDOM_FLIPS` seeded random flips beyond.
    """
    # Sums that differ by rounding only are equal.
    least = np.abs(rows.sum(axis=1)) - 1e-12 * np.abs(rows).sum(axis=1)
    if rows.shape[1] > EXACT_PAIRS:
        return _random_p(rows, least)
    return tuple(_exact_p(row, float(size)) for row, size in zip(rows, least, strict=True))


def _exact_p(differences: Floats, least: float) -> float:
    count = len(differences)
    # A flip of all signs gives the same size of sum: the first sign stays.
    half = (count - 1) // 2
    left = differences[0] + _signs(half) @ differences[1 : 1 + half]
    right = np.sort(_signs(count - 1 - half) @ differences[1 + half :])
    above = len(right) * len(left) - int(np.searchsorted(right, least - left, side="left").sum())
    below = int(np.searchsorted(right, -least - left, side="right").sum())
    return min(1.0, (above + below) / (len(left) * len(right)))


def _random_p(rows: Floats, least: Floats) -> tuple[float, ...]:
    rng = np.random.default_rng(SEED)
    reached = np.ones(len(rows))  # the flip that was seen is one of them
    for _ in range(RANDOM_FLIPS // FLIPS_AT_ONCE):
        signs = rng.integers(0, 2, (FLIPS_AT_ONCE, rows.shape[1]), np.int8) * 2.0 - 1.0
        reached += np.count_nonzero(np.abs(signs @ rows.T) >= least, axis=0)
    return tuple(float(count) / (RANDOM_FLIPS + 1) for count in reached)


@lru_cache(maxsize=32)
def _signs(count: int) -> Floats:
    """All rows of ±1 of a length, shape (2**count, count)."""
    bits = np.arange(2**count)[:, np.newaxis] >> np.arange(count)
    return np.asarray(1.0 - 2.0 * (bits & 1), np.float64)


@lru_cache(maxsize=8)
def _resamples(count: int) -> Floats:
    """Weights of the bootstrap, shape (count, RESAMPLES): how often each value is drawn, over their number."""
    drawn = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, count))
    flat = np.bincount((drawn + np.arange(RESAMPLES)[:, np.newaxis] * count).ravel(), minlength=RESAMPLES * count)
    return np.ascontiguousarray(flat.reshape(RESAMPLES, count).T / count)


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p-value that a paired permutation test of ``pairs`` pairs can reach."""
    return 2.0 ** (1 - pairs) if pairs <= EXACT_PAIRS else 1 / (RANDOM_FLIPS + 1)


def pairs_for(level: float) -> int:
    """How many pairs it takes before the smallest p-value is at most ``level``."""
    return max(1, math.ceil(1 - math.log2(level)))


def holm(p_values: Sequence[float | None], others: int = 0) -> tuple[float | None, ...]:
    """Holm's step-down correction; None (not computed) stays None and does not count as a comparison.

    ``others`` is the number of comparisons beside these that have not been called and still count (of cells that have
    stopped).
    """
    known = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for rank, (value, index) in enumerate(known):
        reached = max(reached, min(1.0, value * (len(known) - rank + others)))
        adjusted[index] = reached
    return tuple(adjusted)
