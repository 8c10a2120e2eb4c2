"""What the plots draw, computed here so that a plot computes nothing: CCDF, percentiles, latency over time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.attribution import merged_windows
from orchestrator.analysis.plotted import Line, Timeline
from orchestrator.analysis.slowest import Slowest
from orchestrator.recording import Faults, Recording

# Points kept one by one at the slow end of a curve, and points spread evenly (in log rank) over the rest: beyond
# that a plot of a thousand pixels shows no difference.
EXACT_TAIL, SPREAD = 60, 160
BUCKETS = 240
SLOW_POINTS = 150
# Gaps narrower than this share of the time axis cannot be seen; windows across them are drawn as one.
VISIBLE_SHARE = 1 / 800


def ranks(count: int) -> NDArray[np.int64]:
    """Which of ``count`` latencies in ascending order a curve shows: the slowest one by one, the rest evenly, both in
    rank and in log(rank)."""
    tail = np.arange(max(0, count - EXACT_TAIL), count)
    spread = count - np.unique(np.geomspace(1, count, SPREAD).astype(np.int64))
    even = np.linspace(0, count - 1, SPREAD).astype(np.int64)
    return np.unique(np.concatenate((tail, spread, even)))


def ccdf(count: int, at_ranks_ns: NDArray[np.float64]) -> Line:
    """Share of ``count`` faults that took at least x, from the latencies at :func:`ranks`; exact at each of them."""
    return _line(at_ranks_ns, (count - ranks(count)) / count)


def percentiles(count: int, at_ranks_ns: NDArray[np.float64]) -> Line:
    """Latency at each quantile, x in nines: 1 is p90, 3 is p99.9. Ends at the slowest fault's own rank."""
    return _line(-np.log10((count - ranks(count)) / count), at_ranks_ns)


class TimelineMaker:
    """One boot over time, from its faults piece by piece: :data:`BUCKETS` equal buckets of the measured time with the
    slowest fault of each, and the :data:`SLOW_POINTS` slowest faults one by one."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        header = recording.header
        length = max(header.end_tsc - header.start_tsc, 1)
        self._seconds = length / header.tsc_hz
        # Where each bucket but the first begins.
        self._edges = np.array([header.start_tsc - (-k * length // BUCKETS) for k in range(1, BUCKETS)], np.uint64)
        self._maxima = np.full(BUCKETS, -1, np.int64)
        self._slow = Slowest(SLOW_POINTS, np.uint64)

    def add(self, faults: Faults) -> None:
        """The next piece of the recording's faults."""
        start, cycles = faults.start_tsc, faults.latency_cycles.view(np.int64)
        self._slow.add(faults.latency_cycles, start)
        if not (start[1:] >= start[:-1]).all():
            # Not so in a recording of one machine, where a vCPU takes one fault after another.
            order = np.argsort(start)
            start, cycles = start[order], cycles[order]
        bounds = np.concatenate(([0], np.searchsorted(start, self._edges), [len(start)]))
        used = np.flatnonzero(bounds[1:] > bounds[:-1])
        self._maxima[used] = np.maximum(self._maxima[used], np.maximum.reduceat(cycles, bounds[used]))

    def result(self, trial: str) -> Timeline:
        """The timeline of all pieces so far."""
        used = np.flatnonzero(self._maxima >= 0)
        slow = np.argsort(self._slow.notes, kind="stable")
        ns, when = self._recording.ns, self._recording.since_start_ns(self._slow.notes[slow].astype(np.uint64)) * 1e-9
        return Timeline(
            trial=trial,
            seconds=self._seconds,
            maxima=_line((used + 0.5) * self._seconds / BUCKETS, ns(self._maxima[used].astype(np.uint64))),
            slow=_line(when, ns(self._slow.cycles[slow])),
            windows=_visible(merged_windows(self._recording) * 1e-9, self._seconds * VISIBLE_SHARE),
        )


def _visible(windows: NDArray[np.float64], gap: float) -> tuple[tuple[float, float], ...]:
    """Windows, shape (n, 2), with gaps narrower than ``gap`` closed."""
    if len(windows) == 0:
        return ()
    first = np.flatnonzero(np.concatenate(([True], windows[1:, 0] - windows[:-1, 1] > gap)))
    last = np.concatenate((first[1:] - 1, [len(windows) - 1]))
    pairs = zip(windows[first, 0], windows[last, 1], strict=True)
    return tuple((_round(start), _round(end)) for start, end in pairs)


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> Line:
    return Line(tuple(map(_round, x)), tuple(map(_round, y)))


def _round(value: float) -> float:
    """Seven significant digits: far more than a pixel, and a file that does not differ by the last bit."""
    return float(f"{value:.7g}")
