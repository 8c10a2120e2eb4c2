"""Why a fault was slow: which of the storm's system calls it overlapped, and whether they were over its page.

Both are on the host's clock (the reader takes the vCPU's TSC offset off), so overlap is a comparison of numbers. A
window is the whole system call as its thread saw it, time off the CPU included; KVM's own interval between
invalidate_range_start() and _end() lies inside it. Overlap is therefore necessary for a retry, not sufficient: the
share of time that windows cover is reported beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.model import Attribution
from orchestrator.analysis.slowest import Slowest
from orchestrator.recording import Faults, Recording

SLOWEST = 100

NONE, UNRELATED, NEEDED = 0, 1, 2
KINDS = ("none", "unrelated", "needed")


@dataclass(frozen=True)
class Attributed:
    """One boot's sums, and its slowest faults for merging with those of other boots.

    ``slowest_ns`` and ``slowest_kind`` (values :data:`NONE`, :data:`UNRELATED`, :data:`NEEDED`) have shape
    (min(100, faults),), slowest first.
    """

    sums: Attribution
    slowest_ns: NDArray[np.float64]
    slowest_kind: NDArray[np.uint8]


@dataclass(frozen=True)
class Windows:
    """When windows began and when they ended, each sorted by itself: all that counting overlaps takes."""

    starts: NDArray[np.uint64]
    ends: NDArray[np.uint64]

    @staticmethod
    def of(windows: NDArray[np.void]) -> Windows:
        return Windows(np.sort(windows["start_tsc"]), np.sort(windows["end_tsc"]))

    def overlapping(self, start: NDArray[np.uint64], end: NDArray[np.uint64]) -> NDArray[np.int64]:
        """How many windows overlap each interval [start, end], shape (faults,).

        Those that began before the interval's end, less those that were over by its start: exact for windows that
        overlap one another as well (several threads), in O(faults log windows). Intervals that ascend, as those of one
        vCPU do, which takes one fault after another, are counted in O(faults + windows log faults): the number
        changes only at the faults where a window begins to count, or ceases to.
        """
        if not (_ascend(start) and _ascend(end)):
            begun = np.searchsorted(self.starts, end, side="left")
            return (begun - np.searchsorted(self.ends, start, side="right")).astype(np.int64)
        before = np.searchsorted(self.starts, end[:1], "left") - np.searchsorted(self.ends, start[:1], "right")
        first = np.searchsorted(end, self.starts[_within(self.starts, end, "left")], "right")
        last = np.searchsorted(start, self.ends[_within(self.ends, start, "right")], "left")
        steps = np.concatenate((first, last))
        order = np.argsort(steps, kind="stable")
        change = np.repeat([1, -1], [len(first), len(last)])[order]
        number = np.cumsum(np.concatenate((before, change)))
        return np.repeat(number, np.diff(steps[order], prepend=0, append=len(start)))


def _ascend(values: NDArray[np.uint64]) -> bool:
    return len(values) > 0 and bool((values[1:] >= values[:-1]).all())


def _within(keys: NDArray[np.uint64], at: NDArray[np.uint64], side: Literal["left", "right"]) -> slice:
    """Which ``keys`` are not before all of ``at`` or behind all of it, so that counting them up to each differs."""
    return slice(*np.searchsorted(keys, at[[0, -1]], side).tolist())


@dataclass(frozen=True)
class Met:
    """What the storm did during each fault; both arrays have shape (faults,).

    ``kind`` is :data:`NONE`, :data:`UNRELATED` or :data:`NEEDED`, ``count`` how many windows overlap the fault.
    """

    kind: NDArray[np.uint8]
    count: NDArray[np.int64]


class Sorter:
    """Sorts the faults of one boot by kind, piece by piece. ``placement`` is the storm's.

    One of ``other-process`` is never over a page: its addresses are of another mm, and after fork() they may well be
    the same numbers.
    """

    def __init__(self, recording: Recording, placement: str) -> None:
        header, windows = recording.header, recording.windows
        self._header = header
        self._threads = Thread.each(windows, np.arange(len(windows)))
        self._all = Windows.of(windows)
        touches = (windows["hva"] < header.mem_hva + header.mem_bytes) & (
            windows["hva"] + windows["bytes"] > header.mem_hva
        )
        if placement == "other-process":
            touches[:] = False
        self._ranges = []
        for hva, size in np.unique(windows[touches][["hva", "bytes"]]):
            own = np.flatnonzero(touches & (windows["hva"] == hva) & (windows["bytes"] == size))
            self._ranges.append((hva, hva + size, Windows.of(windows[own]), Thread.each(windows, own)))

    def meet(self, faults: Faults) -> Met:
        """Each fault's kind, and how many windows it overlaps.

        A window is over a fault's page if its range shares a byte with [page, page + page_bytes) in the VMM's address
        space, which is how mmu_notifier_retry_hva() sees it. Ranges that do not touch guest memory are never looked
        at page by page, so the loop below runs once for each distinct range of an overlap or adjacent storm.
        """
        start = faults.start_tsc
        end = start + faults.latency_cycles
        count = self._all.overlapping(start, end)
        busy = count > 0
        kind = np.where(busy, np.uint8(UNRELATED), np.uint8(NONE))
        for inside, windows, _ in self._inside(faults, busy):
            kind[inside[windows.overlapping(start[inside], end[inside]) > 0]] = NEEDED
        return Met(kind, count)

    def windows(self, faults: Faults, met: Met) -> NDArray[np.int32]:
        """Which window each fault met, an index in the recording, -1 for none; shape (faults,).

        One over the page if there is one, else the one that began last.
        """
        found = np.full(len(faults), -1, np.int32)
        start = faults.start_tsc
        end = start + faults.latency_cycles
        busy = np.flatnonzero(met.count > 0)
        found[busy] = latest(start[busy], end[busy], self._threads)
        for inside, _, threads in self._inside(faults, met.kind == NEEDED):
            index = latest(start[inside], end[inside], threads)
            found[inside[index >= 0]] = index[index >= 0]
        return found

    def _inside(
        self, faults: Faults, wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.intp], Windows, tuple[Thread, ...]]]:
        """Of each range that touches guest memory: which wanted faults are on its pages; its windows, in both forms."""
        if not self._ranges:
            return
        page_bytes = np.uint64(self._header.page_bytes)
        page_hva = np.uint64(self._header.mem_hva) + faults.page.astype(np.uint64) * page_bytes
        for hva, behind, windows, threads in self._ranges:
            yield np.flatnonzero(wanted & (page_hva < behind) & (page_hva + page_bytes > hva)), windows, threads


@dataclass(frozen=True)
class Thread:
    """One storm thread's windows in the order in which they began; ``index`` is where each is in the recording."""

    index: NDArray[np.intp]
    starts: NDArray[np.uint64]
    ends: NDArray[np.uint64]

    @staticmethod
    def each(windows: NDArray[np.void], own: NDArray[np.intp]) -> tuple[Thread, ...]:
        """The threads of those ``windows`` (dtype :data:`~orchestrator.recording.WINDOW`) that ``own`` points at."""
        own = own[np.argsort(windows["start_tsc"][own], kind="stable")]
        threads = windows["thread"][own]
        mine = [own[threads == thread] for thread in np.unique(threads)]
        return tuple(Thread(index, windows["start_tsc"][index], windows["end_tsc"][index]) for index in mine)


def latest(start: NDArray[np.uint64], end: NDArray[np.uint64], threads: Sequence[Thread]) -> NDArray[np.int32]:
    """Which of the threads' windows overlaps each interval, shape (intervals,).

    The index of the one that began last, -1 for none. One thread's windows follow one another: if the last that began
    before an interval's end was over by its start, so were all before it.
    """
    found = np.full(len(start), -1, np.int32)
    begun = np.zeros(len(start), np.uint64)
    for thread in threads:
        place = np.searchsorted(thread.starts, end, side="left") - 1
        met = np.maximum(place, 0)
        since = thread.starts[met]
        better = (place >= 0) & (thread.ends[met] > start) & (since >= begun)
        found[better] = thread.index[met[better]]
        begun[better] = since[better]
    return found


class Attributor:
    """Adds up one boot's faults by kind, piece by piece. Sums are of whole cycles: pieces of any size give the same."""

    def __init__(self, recording: Recording, placement: str) -> None:
        self._recording = recording
        self._sorter = Sorter(recording, placement)
        self._slowest = Slowest(SLOWEST, np.uint8)
        self._faults, self._cycles = {UNRELATED: 0, NEEDED: 0}, {UNRELATED: 0, NEEDED: 0}
        self._all_faults = self._all_cycles = self._several = 0

    def add(self, faults: Faults) -> None:
        """The next piece of the recording's faults."""
        met, cycles = self._sorter.meet(faults), faults.latency_cycles
        kind = met.kind
        for value in (UNRELATED, NEEDED):
            mine = cycles[kind == value]
            self._faults[value] += len(mine)
            self._cycles[value] += int(mine.sum())
        self._all_faults += len(cycles)
        self._several += int((met.count > 1).sum())
        self._all_cycles += int(cycles.sum())
        self._slowest.add(cycles, kind)

    def result(self) -> Attributed:
        """The sums over all pieces so far."""
        to_ns = self._recording.header.ns_per_cycle
        kind = self._slowest.notes.astype(np.uint8)
        sums = Attribution(
            faults=self._all_faults,
            unrelated=self._faults[UNRELATED],
            needed=self._faults[NEEDED],
            total_ns=self._all_cycles * to_ns,
            unrelated_ns=self._cycles[UNRELATED] * to_ns,
            needed_ns=self._cycles[NEEDED] * to_ns,
            slowest=len(kind),
            slowest_unrelated=int((kind == UNRELATED).sum()),
            slowest_needed=int((kind == NEEDED).sum()),
            windows=len(self._recording.windows),
            window_share=_window_share(self._recording),
            several=self._several,
        )
        return Attributed(sums, self._recording.ns(self._slowest.cycles), kind)


def attribute(recording: Recording, placement: str) -> Attributed:
    """One boot's faults, sorted by kind and added up."""
    sums = Attributor(recording, placement)
    for faults in recording.chunks():
        sums.add(faults)
    return sums.result()


def merge(boots: list[Attributed]) -> Attribution:
    """The sums over several boots; the slowest faults are those of all boots together."""
    latency = np.concatenate([boot.slowest_ns for boot in boots])
    kind = np.concatenate([boot.slowest_kind for boot in boots])
    kind = kind[np.argsort(-latency, kind="stable")][:SLOWEST]
    sums = [boot.sums for boot in boots]
    return Attribution(
        faults=sum(item.faults for item in sums),
        unrelated=sum(item.unrelated for item in sums),
        needed=sum(item.needed for item in sums),
        total_ns=sum(item.total_ns for item in sums),
        unrelated_ns=sum(item.unrelated_ns for item in sums),
        needed_ns=sum(item.needed_ns for item in sums),
        slowest=len(kind),
        slowest_unrelated=int((kind == UNRELATED).sum()),
        slowest_needed=int((kind == NEEDED).sum()),
        windows=sum(item.windows for item in sums),
        window_share=sum(item.window_share for item in sums) / len(sums),
        several=sum(item.several for item in sums),
    )


def merged_windows(recording: Recording) -> NDArray[np.float64]:
    """The storm's windows with overlapping ones joined, clipped to the measured time: shape (n, 2), ns since start."""
    windows = np.sort(recording.windows, order="start_tsc")
    if len(windows) == 0:
        return np.empty((0, 2))
    start = recording.since_start_ns(windows["start_tsc"])
    reach = np.maximum.accumulate(recording.since_start_ns(windows["end_tsc"]))
    first = np.flatnonzero(np.concatenate(([True], start[1:] > reach[:-1])))
    last = np.concatenate((first[1:] - 1, [len(start) - 1]))
    length = (recording.header.end_tsc - recording.header.start_tsc) * 1e9 / recording.header.tsc_hz
    joined = np.clip(np.column_stack((start[first], reach[last])), 0.0, max(length, 0.0))
    kept: NDArray[np.float64] = joined[joined[:, 1] > joined[:, 0]]
    return kept


def _window_share(recording: Recording) -> float:
    header = recording.header
    length = (header.end_tsc - header.start_tsc) * 1e9 / header.tsc_hz
    joined = merged_windows(recording)
    return float((joined[:, 1] - joined[:, 0]).sum() / length) if length > 0 else 0.0
