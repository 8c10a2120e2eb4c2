"""Exact quantiles of any number of latencies, in bounded memory and, as a rule, in one pass over them.

A quantile here is a latency that did occur (nearest rank), so nothing may be rounded into buckets, as HdrHistogram and
t-digest do. Latencies are whole cycles and repeat, so they are counted and not sorted: each value below :data:`DENSE`
has a counter of its own in an array, and the few slower ones are kept as ascending values with a count each. That is
the multiset itself; every rank can be read off it.

There may be more different slow values than memory should hold. Then the lowest :data:`MOST` of them are kept, the
others given up, and the ranks that lie there are found by further passes, each of which begins where the one before
ended. So memory is bounded whatever the latencies are, and only the number of passes depends on them: one for every
recording of real faults seen so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.recording import Recording

DENSE = 1 << 20  # cycles: a third of a millisecond at 3 GHz; 8 MiB of counters
MOST = 1 << 22  # different values: 64 MiB, and three times that while two such lists are merged
WAITING = 1 << 20  # slow latencies that are put by before they are sorted into the list


@dataclass(frozen=True)
class Counts:
    """How often each latency occurs, of all below ``below`` (None: of all).

    ``values`` ascend without repeats: cycles, of which a float64 holds 40 bits exactly, or nanoseconds. ``counts``
    has the same shape.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.int64]
    below: float | None = None

    def scaled(self, factor: float) -> Counts:
        """The same in another unit."""
        return Counts(self.values * factor, self.counts, None if self.below is None else self.below * factor)


class Tally:
    """Counts the latencies of one recording that are at least ``low`` cycles, piece by piece.

    ``cycles`` is the sum of them all, whether kept or not.
    """

    def __init__(self, low: float = 0, most: int = MOST) -> None:
        self._low, self._most = np.uint64(low), most
        self._dense = np.zeros(DENSE + 1, np.int64)
        self._slow = Counts(np.empty(0), np.empty(0, np.int64))
        self._waiting: list[NDArray[np.uint64]] = []
        self._nr_waiting = 0
        self.cycles = 0

    def add(self, cycles: NDArray[np.uint64]) -> None:
        """The next latencies, shape (faults,)."""
        if self._low > 0:
            cycles = cycles[cycles >= self._low]
        self.cycles += int(cycles.sum())
        # The slow ones share the last counter, which nobody reads.
        np.add.at(self._dense, np.minimum(cycles, np.uint64(DENSE)).view(np.int64), 1)
        slow = cycles[cycles >= np.uint64(DENSE)]
        if self._slow.below is not None:
            slow = slow[slow < np.uint64(self._slow.below)]
        if len(slow):
            self._waiting.append(slow)
            self._nr_waiting += len(slow)
        if self._nr_waiting > WAITING:
            self._fold()

    def counts(self) -> Counts:
        """Of all latencies so far; ``below`` is set if not all could be kept."""
        self._fold()
        used = np.flatnonzero(self._dense[:DENSE])
        return Counts(
            np.concatenate((used.astype(np.float64), self._slow.values)),
            np.concatenate((self._dense[used], self._slow.counts)),
            self._slow.below,
        )

    def _fold(self) -> None:
        values, counts = np.unique(np.concatenate([*self._waiting, np.empty(0, np.uint64)]), return_counts=True)
        self._waiting, self._nr_waiting = [], 0
        self._slow = merged([self._slow, Counts(values.astype(np.float64), counts.astype(np.int64))], self._most)


def tally(recording: Recording, low: float = 0) -> Counts:
    """One pass over a recording's latencies; raises :class:`RecordingError` as :meth:`Recording.chunks` does."""
    found = Tally(low)
    for faults in recording.chunks():
        found.add(faults.latency_cycles)
    return found.counts()


def merged(parts: Sequence[Counts], most: int = MOST) -> Counts:
    """The sum of several counts, of what all of them know and of at most ``most`` values."""
    values = np.concatenate([part.values for part in parts])
    counts = np.concatenate([part.counts for part in parts])
    below = min((part.below for part in parts if part.below is not None), default=None)
    # Each part ascends already, which this sort makes use of.
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    first = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1]))[: len(values)])
    values, counts = values[first], np.add.reduceat(counts, first) if len(first) else counts
    if below is not None:
        known = int(np.searchsorted(values, below))
        values, counts = values[:known], counts[:known]
    if len(values) > most:
        values, counts, below = values[:most], counts[:most], float(values[most])
    return Counts(values, counts, below)


def passes(first: Counts, again: Callable[[float], Counts]) -> Iterator[Counts]:
    """``first``, and after it what ``again(low)`` counts from where the counts before ended, up to the last value."""
    yield first
    while first.below is not None:
        first = again(first.below)
        yield first


def pick(ranks: NDArray[np.int64], parts: Iterable[Counts]) -> NDArray[np.float64]:
    """The latencies at ``ranks`` (ascending, from 0), shape (ranks,), of counts that follow one another."""
    found: list[NDArray[np.float64]] = []
    done = before = 0
    for part in parts:
        reach = before + np.cumsum(part.counts)
        before = int(reach[-1]) if len(reach) else before
        here = ranks[done : int(np.searchsorted(ranks, before))]
        found.append(part.values[np.searchsorted(reach, here, side="right")])
        done += len(here)
        if done == len(ranks):
            break
    return np.concatenate([*found, np.empty(0)])


class Pool:
    """The latencies of several boots together, in nanoseconds: their clocks may differ."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._first = Counts(np.empty(0), np.empty(0, np.int64))
        self._boots: list[tuple[float, Callable[[float], Counts]]] = []

    def add(self, counts: Counts, to_ns: float, again: Callable[[float], Counts]) -> None:
        """One boot: its counts in cycles, and how to count it once more from so many cycles on."""
        self._first = merged([self._first, counts.scaled(to_ns)], self._most)
        self._boots.append((to_ns, again))

    def passes(self) -> Iterator[Counts]:
        """For :func:`pick`."""
        return passes(self._first, self._again)

    def _again(self, low_ns: float) -> Counts:
        found = Counts(np.empty(0), np.empty(0, np.int64))
        for to_ns, again in self._boots:
            found = merged([found, again(_least_cycles(low_ns, to_ns)).scaled(to_ns)], self._most)
        return found


def _least_cycles(low_ns: float, to_ns: float) -> int:
    """The fewest cycles that are no less than ``low_ns``, by the same multiplication as everywhere."""
    cycles = int(low_ns / to_ns)
    while cycles > 0 and (cycles - 1) * to_ns >= low_ns:
        cycles -= 1
    while cycles * to_ns < low_ns:
        cycles += 1
    return cycles
