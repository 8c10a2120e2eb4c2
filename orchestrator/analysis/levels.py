"""A night against the nights before it, where time is noisy: the night is the unit. Values in, calls out; pure.

All boots of a night share what the machine was like in that night, so they say nothing of how far nights differ. What
does is one value for each night: here those of the nights since the last change of level are the reference, and a
night is held against their mean by Student's test for a new observation, with the spread *between nights*.

* So that a shift is found that is smaller than what one night could show, the mean of the last 1, 2, 4 and 8 nights is
  held against the nights before these; each p-value counts four times for it.
* p-values are one-sided, and Holm's correction keeps the rate over all series: in a world without a change a shift to
  the worse begins in at most :data:`ALPHA` of the nights, if the logarithms of a night's values are normal.
* A call also needs the 95 % interval of the shift beyond the margin, and the last night itself beyond it: what was one
  night's is not held against the next one. A shift that stands is called again by each night beyond the margin that
  lies nearer to it than to the reference.
* Which nights are the reference does not depend on whether they were fast or slow: all are. Only those since a call
  wait outside. If :data:`PATIENCE` nights in a row are not called any more it was the machine's, and they count, in
  mean and spread. A shift to the worse ends when somebody accepts it; one to the better is a new level after
  :data:`CONFIRM` calls. A new level has the spread of the one before as well: it needs no second wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from orchestrator.analysis import statistics
from orchestrator.analysis.compare import RETRIES_MARGIN

ALPHA = 0.01
INTERVAL = 0.975  # two-sided 95 %
# Below, Student's test of the many comparisons of an experiment calls nothing short of a disaster.
MIN_NIGHTS = 6
LAST_NIGHTS = 30
WINDOWS = np.array([1, 2, 4, 8])
PATIENCE = 3
CONFIRM = 3

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Series:
    """``values`` of shape (nights, series), oldest first, nan where a night has none. Lower is better.

    ``relative`` ones are logarithms, whose margin is a ratio; the margin of the others is :data:`RETRIES_MARGIN` or a
    share of their level.
    """

    values: Floats
    relative: Flags
    margin: float

    def allowed(self, level: Floats, sign: int) -> Floats:
        """The margin on the scale of each series, to the worse (``sign`` 1) or the better (-1)."""
        ratio = np.log1p(self.margin) if sign > 0 else -np.log1p(-self.margin)
        return np.where(self.relative, ratio, np.maximum(RETRIES_MARGIN, self.margin * np.abs(level)))


@dataclass(frozen=True)
class Call:
    """What a night came to: an entry for each series.

    ``called``: 1 worse, -1 better, 0 neither. ``since``: the night at which the shift began that is called, or that
    stands; -1 if there is none. ``shift``: of the mean since then (without one: of the night) from ``level``, the mean
    of the reference, on the series' scale. ``nights`` is how many stand behind that and the spread between nights; 0 if
    they are not enough. ``error`` is the standard error of one night's shift, with ``free`` degrees of freedom.
    """

    called: Ints
    since: Ints
    shift: Floats
    level: Floats
    nights: Ints
    error: Floats
    free: Floats


def replay(series: Series, accepted: Sequence[bool]) -> tuple[Call, ...]:
    """Every night as it was judged by those before it; ``accepted`` says of each if its level is the new normal."""
    sums = _Sums(series.values)
    state = _State(series.values.shape[1])
    calls = []
    for night, accept in enumerate(accepted):
        call = _judge(series, sums, state, night)
        state.follow(call, night, accept)
        calls.append(call)
    return tuple(calls)


def least(series: Series, call: Call) -> Floats:
    """The smallest shift to the worse that would have been called of this night alone; nan where nothing could be.

    By the first step of Holm's procedure, the hardest.
    """
    comparisons = max(1, int((call.nights > 0).sum())) * len(WINDOWS)
    needed = special.stdtrit(call.free, 1 - ALPHA / comparisons) * call.error
    reach = special.stdtrit(call.free, INTERVAL) * call.error
    found = np.maximum(needed, series.allowed(call.level, 1) + reach)
    return np.where(call.nights > 0, found, np.nan)


class _Sums:
    """Count, mean and sum of squares of any span of nights of each series, by running sums."""

    def __init__(self, values: Floats) -> None:
        known = ~np.isnan(values)
        # Around one of their own values: what is left of equal ones is exactly 0.
        first = known.argmax(axis=0)
        self._around = np.nan_to_num(values[first, np.arange(values.shape[1])])
        inner = np.where(known, values - self._around, 0.0)
        zero = np.zeros((1, values.shape[1]))
        parts = (known.astype(np.float64), inner, inner**2)
        self._sums = tuple(np.vstack([zero, part.cumsum(axis=0)]) for part in parts)

    def of(self, start: Ints, end: Ints) -> tuple[Floats, Floats, Floats]:
        """Of the nights from ``start`` up to ``end`` (last axis: the series); a span that is empty has count 0."""
        start = np.maximum(start, 0)
        end = np.maximum(start, end)
        at = np.arange(start.shape[-1])
        count, total, squares = (item[end, at] - item[start, at] for item in self._sums)
        mean = total / np.maximum(count, 1)
        inner = squares - count * mean**2
        # What is left by rounding of the running sums is nothing.
        return count, mean + self._around, np.where(inner < 1e-12 * self._sums[2][-1], 0.0, inner)


class _State:
    """Of each series: where its level begins, the one before, and the shift that stands (``start`` -1: none)."""

    def __init__(self, series: int) -> None:
        self.before = np.zeros(series, np.int64)
        self.level = np.zeros(series, np.int64)
        self.start = np.full(series, -1)
        self.sign = np.zeros(series, np.int64)
        self.size = np.zeros(series)
        self.calls = np.zeros(series, np.int64)
        self.last = np.zeros(series, np.int64)

    def stands(self, sign: int) -> Flags:
        """The series with a shift in this direction that is neither over nor accepted."""
        return np.asarray((self.start >= 0) & (self.sign == sign), np.bool_)

    def follow(self, call: Call, night: int, accept: bool) -> None:
        """What a night's call changes for the nights after it."""
        hit = call.called != 0
        new = hit & ((self.start < 0) | (self.sign != call.called))
        self.start = np.where(new, call.since, self.start)
        self.sign = np.where(hit, call.called, self.sign)
        self.size = np.where(hit, np.abs(call.shift), self.size)
        self.calls = np.where(new, 0, self.calls) + hit
        self.last = np.where(hit, night, self.last)
        self.start[(self.start >= 0) & (night - self.last >= PATIENCE)] = -1
        stays = (self.start >= 0) & (accept | ((self.sign < 0) & (self.calls >= CONFIRM)))
        self.before = np.where(stays, self.level, self.before)
        self.level = np.where(stays, self.start, self.level)
        self.start[stays] = -1


@dataclass(frozen=True)
class _Held:
    """The mean of the last nights against the reference before them: arrays of shape (windows, series).

    ``p_up`` is the one-sided p-value of a shift to the worse, ``p_down`` to the better; 1 if not known.
    """

    nights: Ints
    level: Floats
    shift: Floats
    error: Floats
    free: Floats
    p_up: Floats
    p_down: Floats


def _hold(sums: _Sums, state: _State, night: int) -> _Held:
    first = np.broadcast_to(night + 1 - WINDOWS[:, np.newaxis], (len(WINDOWS), len(state.level)))
    end = np.where(state.start >= 0, np.minimum(first, state.start), first)
    recent, mean, _ = sums.of(first, np.full(first.shape, night + 1))
    count, level, inner = sums.of(np.maximum(state.level, end - LAST_NIGHTS), end)
    earlier, _, outer = sums.of(np.maximum(state.before, state.level - LAST_NIGHTS), state.level)
    tonight = recent[0] > 0  # The first window is the night itself.
    known = tonight & (count > 0) & (count + earlier >= MIN_NIGHTS)
    free = np.where(known, count + earlier - 1 - (earlier > 0), 1.0)
    error = np.sqrt((inner + outer) / free * (1 / np.maximum(recent, 1) + 1 / np.maximum(count, 1)))
    shift = mean - level
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(shift == 0, 0.0, shift / error)
    up, down = (np.where(known, special.stdtr(free, sign * size), 1.0) for sign in (-1, 1))
    return _Held(np.where(known, count + earlier, 0).astype(np.int64), level, shift, error, free, up, down)


def _judge(series: Series, sums: _Sums, state: _State, night: int) -> Call:
    held, tonight = _hold(sums, state, night), series.values[night]
    level, nights = held.level[0], held.nights[0]
    called = np.zeros(len(tonight), np.int64)
    since = state.start.copy()
    for sign in (1, -1):
        nearer = sign * (tonight - level) > np.maximum(series.allowed(level, sign), state.size / 2)
        called[state.stands(sign) & (nights > 0) & nearer] = sign
        hit, best = _rare(series, held, tonight, sign)
        called[hit] = sign
        new = hit & ~state.stands(sign)
        since = np.where(new, night + 1 - WINDOWS[best], since)
        level = np.where(new, held.level[best, np.arange(len(best))], level)
    _, mean, _ = sums.of(np.where(since >= 0, since, night), np.full(len(since), night + 1))
    return Call(called, since, mean - level, level, nights, held.error[0], held.free[0])


def _rare(series: Series, held: _Held, tonight: Floats, sign: int) -> tuple[Flags, Ints]:
    """The series that are called by one of the windows, and by which: its place in :data:`WINDOWS`."""
    p_values = held.p_up if sign > 0 else held.p_down
    best, at = p_values.argmin(axis=0), np.arange(p_values.shape[1])
    corrected = np.minimum(1.0, p_values[best, at] * len(WINDOWS))
    known: Flags = np.asarray((held.nights > 0).any(axis=0))
    if not known.any() or corrected.min() * known.sum() > ALPHA:  # Holm's first step, at which most nights end.
        return np.zeros(len(best), np.bool_), best
    adjusted = statistics.holm([float(p) if ours else None for p, ours in zip(corrected, known, strict=True)])
    rare = np.array([p is not None and p <= ALPHA for p in adjusted])
    level, shift, error, free = (item[best, at] for item in (held.level, held.shift, held.error, held.free))
    allowed = series.allowed(level, sign)
    surely = sign * shift - special.stdtrit(free, INTERVAL) * error > allowed
    return np.asarray(rare & surely & (sign * (tonight - level) > allowed), np.bool_), best
