"""Where a series of runs changes its level: values in, first runs of new levels out. Pure, and seeded where it draws.

The search is PELT (R. Killick, P. Fearnhead and I. Eckley, "Optimal Detection of Changepoints With a Linear
Computational Cost", 2012) from the library ``ruptures``: the exact segmentation of least squared error plus a penalty
for each change. What is ours is the scale of the values and the penalty, since these decide what counts as a change:

* Time that is not deterministic: values are replaced by the normal scores of their ranks, so one outlier is no more
  than the largest value and no shape of noise is assumed. The penalty is the level that the best single split of the
  same scores *in random order* exceeds with the probability ``rate``. In a series without a change, runs in any order
  are equally likely, so ``rate`` is the false-alarm rate, whatever the noise. (Splitting off a segment in the middle
  takes two changes and so twice the penalty; random orders reach that far more rarely.) Where exactly the changes that
  were found lie, the values themselves say.
* Deterministic (icount): there is no noise, and any difference is the kernel's. Values are measured in margins, and
  the penalty is such that one run that differs by more than the margin is a change by itself; a smaller difference is
  one only if it lasts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import ruptures
from numpy.typing import NDArray
from scipy import stats

# Two runs that differ from the rest may be one event of the machine; three in a row are a level.
MIN_RUNS = 3
# A change that lasts one run costs two changes; see the module.
EXACT_PENALTY = 0.5
BATCH = 20_000
# How many random orders must lie beyond the penalty, so that it is known to about a fifth.
BEYOND = 20


def find_exact(values: Sequence[float]) -> tuple[int, ...]:
    """Indices at which a new level begins, of values without noise on a scale on which the margin is 1."""
    if len(values) < 2 or len(set(values)) == 1:
        return ()
    return _search(np.asarray(values, np.float64), EXACT_PENALTY, 1)


def find_noisy(values: Sequence[float], rate: float) -> tuple[int, ...]:
    """Indices at which a new level begins; ``rate`` is the probability of any in a series without a change."""
    count = len(values)
    if count < 2 * MIN_RUNS or len(set(values)) == 1:
        return ()
    raw = np.asarray(values, np.float64)
    found = _search(normal_scores(raw), penalty(count, rate), MIN_RUNS)
    return _settle(raw, found) if found else ()


def normal_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value's rank as the normal quantile that is expected there (Blom's positions); ties share their rank."""
    ranks = stats.rankdata(values)
    return np.asarray(stats.norm.ppf((ranks - 0.375) / (len(values) + 0.25)), np.float64)


@functools.lru_cache(maxsize=256)
def penalty(count: int, rate: float) -> float:
    """What the best split of ``count`` normal scores in random order gains with the probability ``rate`` or less.

    By simulation of at least ``BEYOND / rate`` random orders; the same in every process.
    """
    generator = np.random.default_rng(count)
    scores = normal_scores(np.arange(count, dtype=np.float64))
    batches = math.ceil(BEYOND / rate / BATCH)
    keep = max(1, math.floor(rate * batches * BATCH))
    best = np.empty(0)
    for _ in range(batches):
        orders = generator.permuted(np.tile(scores, (BATCH, 1)), axis=1)
        best = np.sort(np.concatenate([best, _best_gains(orders)]))[-keep:]
    return float(best[0])


def fewest_runs(rate: float) -> int:
    """The fewest runs among which a change can be found at all: below, even the clearest order is not rare enough."""
    count = 2 * MIN_RUNS
    while 2 / math.comb(count, count // 2) > rate:
        count += 1
    return count


def _best_gains(orders: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each row, by how much the best single split lowers the sum of squares. Rows have mean 0."""
    count = orders.shape[1]
    places = np.arange(MIN_RUNS, count - MIN_RUNS + 1)
    sums = np.cumsum(orders, axis=1)[:, places - 1]
    return np.asarray((sums**2 * (count / (places * (count - places)))).max(axis=1), np.float64)


def _settle(values: NDArray[np.float64], found: tuple[int, ...]) -> tuple[int, ...]:
    """As many changes as ``found``, where they fit the values themselves best.

    Ranks say that there is a change; near the ends of a series they are a few runs off about where, since there the
    scores of one level spread wider than the step. Values are cut at the lowest and the highest level, so that a wild
    run says no more than that it belongs to one of them.
    """
    levels = [float(np.median(part)) for part in np.split(values, found)]
    cut = np.clip(values, min(levels), max(levels))
    spread = float(cut.std())
    if spread == 0:
        return found
    detector = ruptures.KernelCPD(kernel="linear", min_size=MIN_RUNS).fit((cut / spread).reshape(-1, 1))
    return tuple(int(place) for place in detector.predict(n_bkps=len(found))[:-1])


def _search(values: NDArray[np.float64], cost: float, shortest: int) -> tuple[int, ...]:
    """PELT with the cost of squared error. ``ruptures`` returns the ends of all segments, the last one included.

    The linear kernel's cost is the squared error; this form of PELT is compiled, the one named Pelt takes a hundred
    times as long.
    """
    detector = ruptures.KernelCPD(kernel="linear", min_size=shortest).fit(values.reshape(-1, 1))
    # A hair more than the penalty: rounding must not decide about what just reaches it.
    return tuple(int(place) for place in detector.predict(pen=cost * (1 + 1e-9))[:-1])
