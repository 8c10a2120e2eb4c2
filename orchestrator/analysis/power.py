"""What a number of boots can see, and how many boots it takes to see something.

A change is called where the interval leaves the margin *and* the permutation test is significant after correction; it
is called equivalent where the interval lies within the margin. Both depend on the spread of the pairs, estimated from
the run itself; noise is taken to be normal here (``docs/statistics.md`` has what comes of it under other noise).
"""

from __future__ import annotations

import bisect
import math
from functools import lru_cache

import numpy as np
from scipy import special

from orchestrator.analysis.sequential import Stage
from orchestrator.analysis.statistics import ALPHA, EXACT_PAIRS, Estimate, Floats, pairs_for, smallest_p

# What is stated is 80 %. That both conditions must hold at once, and that the spread is known from few boots only,
# costs a few percent, so a little more is aimed at; docs/statistics.md has what comes of it.
POWER = 0.85
# Less than this chance to be decided within the boots that are left: not worth their time.
HOPELESS = 0.2
MOST_BOOTS = 1000  # More than anybody would run.
# Numbers of boots to name: each one at first, then in steps that nobody's noise is known better than.
CANDIDATES = (*range(2, 40), *range(40, 100, 2), *range(100, 200, 5), *range(200, MOST_BOOTS + 1, 20))
# With more sign flips than these below the level, the permutation test finds what Student's test finds.
MANY_FLIPS = 64
DRAWS = 400


@lru_cache(maxsize=4096)
def interval_reach(pairs: int, alpha: float, power: float) -> float:
    """How far from a bound, in spreads of the pairs, the mean must lie so that the interval keeps clear of it.

    The interval is about as wide as Student's: this is the noncentrality of his test over the root of the pairs.
    """
    critical = float(special.stdtrit(pairs - 1, 1 - alpha / 2))
    shift = float(special.nctdtrinc(pairs - 1, 1 - power, critical))
    return shift / math.sqrt(pairs) * _unbiased(pairs)


@lru_cache(maxsize=4096)
def test_reach(pairs: int, level: float, power: float) -> float:
    """The mean, in spreads of the pairs, that the permutation test finds at a level; infinite if it can find none.

    At few pairs the test is coarser than Student's: if only one of its 2**pairs sign flips is below the level, then
    *all* pairs must agree in sign, however far their mean is from zero.
    """
    if smallest_p(pairs) > level:
        return math.inf
    student = interval_reach(pairs, level, power)
    flips = int(level / smallest_p(pairs) * (1 + 1e-9))
    if flips >= MANY_FLIPS or pairs > EXACT_PAIRS:
        return student
    return max(student, _coarse_reach(pairs, flips, power) * _unbiased(pairs))


def smallest_effect(found: Estimate, margin: float, stage: Stage, tests: int, power: float = POWER) -> float | None:
    """The smallest change that would have been called with ``power``, beside ``tests`` - 1 other comparisons.

    On the scale of the estimate, beyond ``margin``. None if no change can be: too few pairs. Of a look before the last
    it is what the last would have called: a cell where there is something to see does not end as if there were not.
    """
    size = _callable(found.spread, found.pairs + stage.left, margin, stage.last, tests, power)
    return None if math.isinf(size) else size


def boots_needed(
    found: Estimate, bounds: tuple[float, float], stage: Stage, tests: int, power: float = POWER
) -> int | None:
    """Boots of each arm that would decide with ``power``, were the change and the spread what they seem to be.

    None if that is more than :data:`MOST_BOOTS`: a change so near to the margin is neither in nor out.
    """
    low, high = bounds
    inside = min(high - found.value, found.value - low)
    nearer = high if found.value > high else -low

    def enough(pairs: int) -> bool:
        if inside > 0:
            return interval_reach(pairs, stage.alpha, power) * found.spread <= inside
        return _callable(found.spread, pairs, nearer, stage, tests, power) <= abs(found.value)

    first = bisect.bisect_right(CANDIDATES, found.pairs)
    at = bisect.bisect_left(CANDIDATES, True, lo=first, key=enough)
    return CANDIDATES[at] if at < len(CANDIDATES) else None


def _callable(spread: float, pairs: int, margin: float, stage: Stage, tests: int, power: float) -> float:
    """The smallest mean that is called: beyond the margin by its interval, and found by the test."""
    tested = test_reach(pairs, stage.level(ALPHA / max(1, tests)), power)
    if math.isinf(tested):
        return tested
    return max(margin + interval_reach(pairs, stage.alpha, power) * spread, tested * spread)


def _unbiased(pairs: int) -> float:
    """What makes the standard deviation of so few values, taken for the true one, right on average (normal noise)."""
    return 1 + 1 / (4 * (pairs - 1))


@lru_cache(maxsize=1024)
def _coarse_reach(pairs: int, flips: int, power: float) -> float:
    """The mean at which a share of ``power`` of normal samples of spread 1 have at most ``flips`` flips as extreme.

    Each seeded sample is moved up until it does: the flips of a part of the signs give a sum as large as the sample's
    exactly if that part adds up to 0 or less, which becomes rarer the further all values move up.
    """
    rng = np.random.default_rng(pairs)
    needed = [_shift_needed(rng.standard_normal(pairs), flips) for _ in range(DRAWS)]
    return float(np.quantile(needed, power))


def _shift_needed(values: Floats, flips: int) -> float:
    half = len(values) // 2
    left, right = _subsets(values[:half]), _subsets(values[half:])
    low, high = -1.0 - float(np.abs(values).max()), 1.0 + float(np.abs(values).max())
    for _ in range(24):
        middle = (low + high) / 2
        sums = np.sort(right[0] + middle * right[1])
        count = int(np.searchsorted(sums, -(left[0] + middle * left[1]), side="right").sum())
        low, high = (low, middle) if count <= flips else (middle, high)
    return high


def _subsets(values: Floats) -> tuple[Floats, Floats]:
    """Sum and size of every subset, 2**len(values) of each."""
    chosen = (np.arange(2 ** len(values))[:, np.newaxis] >> np.arange(len(values))) & 1
    return np.asarray(chosen @ values, np.float64), np.asarray(chosen.sum(axis=1), np.float64)


def pairs_that_can(stage: Stage, tests: int) -> int:
    """How many pairs a look like this one takes before the smallest p-value is significant after correction."""
    return pairs_for(stage.level(ALPHA / max(1, tests)))
