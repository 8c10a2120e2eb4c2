"""Looks at a run while it grows, at a price that keeps the error rate: group-sequential testing by alpha spending.

A run ``until: decided`` is looked at after fixed numbers of boots. Whoever looks four times at 5 % errs more than one
time in twenty; so each look gets a level of its own, and all levels together keep 5 %. The share of the error spent up
to a look is the share of the boots done, squared (K. Kim, D. DeMets, "Design and analysis of group sequential tests
based on the type I error spending rate function", Biometrika 74, 1987): early looks may find only what is large, and
most is left for the last. Levels follow from the shares by the joint normal distribution of the looks' statistics
(K. Lan, D. DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70, 1983), integrated by the
recursion of P. Armitage, C. McPherson, B. Rowe (J. Royal Statistical Society A 132, 1969).

Intervals at a look's level are repeated confidence intervals (C. Jennison, B. Turnbull, "Interim analyses: the
repeated confidence interval approach", J. Royal Statistical Society B 51, 1989): all looks' intervals together cover
the truth with 95 %, so a cell may stop at any of them, whatever the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from orchestrator.analysis.statistics import ALPHA, Floats

SPENDING = 2.0
POINTS = 201  # of Simpson's rule; twice as many change no level by more than 1e-6 of itself
OVERALL = np.geomspace(1e-9, 0.5, 80)


@dataclass(frozen=True)
class Stage:
    """Look ``number`` (from 1) of those after ``looks`` pairs. A run of fixed size is one look."""

    looks: tuple[int, ...] = (1,)
    number: int = 1

    @property
    def alpha(self) -> float:
        """The level of this look's intervals."""
        return self.level(ALPHA)

    @property
    def last(self) -> Stage:
        """The stage of the last look."""
        return Stage(self.looks, len(self.looks))

    @property
    def left(self) -> int:
        """Pairs that would still come up to the last look."""
        return self.looks[-1] - self.looks[self.number - 1]

    def level(self, overall: float) -> float:
        """What a p-value of this look must not exceed, for an error rate of ``overall`` over all looks."""
        return overall if len(self.looks) == 1 else levels(overall, self.looks)[self.number - 1]

    def overall(self, p_value: float) -> float:
        """The error rate over all looks at which a p-value of this look is just significant; at least ``p_value``.

        This is what is corrected for the number of comparisons (Q. Liu, K. Anderson, "On adaptive extensions of group
        sequential trials", J. American Statistical Association 103, 2008: the sequential p-value; it may be used in
        Holm's procedure: Y. Ye et al., "A group sequential Holm procedure", Statistics in Medicine 32, 2013).
        """
        if len(self.looks) == 1:
            return p_value
        reached = _levels_at(self.looks, self.number)
        if p_value > reached[-1]:
            return 1.0
        if p_value < reached[0]:
            return float(OVERALL[0])
        return float(np.exp(np.interp(np.log(p_value), np.log(reached), np.log(OVERALL))))


FIXED = Stage()


@lru_cache(maxsize=64)
def _levels_at(looks: tuple[int, ...], number: int) -> Floats:
    return np.array([levels(float(overall), looks)[number - 1] for overall in OVERALL])


@lru_cache(maxsize=4096)
def levels(overall: float, looks: tuple[int, ...]) -> tuple[float, ...]:
    """The two-sided level of each look after so many pairs (ascending), for an error rate of ``overall`` in all."""
    times = np.array(looks) / looks[-1]
    return tuple(2 * float(special.ndtr(-bound)) for bound in boundaries(overall * times**SPENDING, times))


def boundaries(spent: Sequence[float] | Floats, times: Sequence[float] | Floats) -> tuple[float, ...]:
    """Bounds on ``|Z|`` of standard normal statistics at ``times`` (shares of the information, ascending to 1).

    ``spent`` is the probability, without any effect, to have crossed one of the bounds up to each time.
    """
    found: list[float] = []
    # The density of the sum so far, on ``points``, of paths that crossed no bound; ``weights`` include Simpson's.
    points, weights, before, used = np.zeros(1), np.ones(1), 0.0, 0.0
    for spent_now, time in zip(spent, times, strict=True):
        step = float(np.sqrt(time - before))

        def excess(
            bound: float,
            points: Floats = points,
            weights: Floats = weights,
            step: float = step,
            wanted: float = float(spent_now) - used,
        ) -> float:
            outside = special.ndtr((points - bound) / step) + special.ndtr((-bound - points) / step)
            return float(weights @ outside) - wanted

        bound = float(optimize.brentq(excess, 0.0, 14 * np.sqrt(time), xtol=1e-10))
        found.append(bound / float(np.sqrt(time)))
        grid = np.linspace(-bound, bound, POINTS)
        density = np.exp(-(((grid[:, np.newaxis] - points) / step) ** 2) / 2) @ weights / (step * np.sqrt(2 * np.pi))
        points, weights, before, used = grid, density * _simpson(grid), float(time), float(spent_now)
    return tuple(found)


def _simpson(grid: Floats) -> Floats:
    rule = np.full(len(grid), 2.0)
    rule[1::2] = 4.0
    rule[[0, -1]] = 1.0
    return np.asarray(rule * (grid[1] - grid[0]) / 3, np.float64)
