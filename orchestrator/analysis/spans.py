"""Intervals of a traced boot on the host's clock: faults, time off the CPU, invalidations; and how they overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.hosttrace import INVALIDATE, INVALIDATED, SWITCH, Trace
from orchestrator.recording import Recording

Ints = NDArray[np.int64]
# __trace_sched_switch_state() (include/trace/events/sched.h): TASK_REPORT_MAX, 0x100, for a preempted task; the low
# bits are the state of one that sleeps; 0 gave way by itself and can go on.
SLEEPS = 0xFF
# Of hvas: ULONG_MAX, where the range of a whole process ends (/proc/PID/clear_refs), does not fit int64.
_TOP = 2**63 - 1


@dataclass(frozen=True)
class Faults:
    """A boot's faults, vCPU by vCPU in order; arrays of shape (faults,), cycles of the host's TSC."""

    start: Ints
    end: Ints
    page: Ints
    vcpu: Ints

    @staticmethod
    def of(recording: Recording) -> Faults:
        """All faults of a recording: a traced boot is small enough to be held whole."""
        pieces = list(recording.chunks())
        start = np.concatenate([piece.start_tsc.astype(np.int64) for piece in pieces])
        cycles = np.concatenate([piece.latency_cycles.astype(np.int64) for piece in pieces])
        return Faults(
            start,
            start + cycles,
            np.concatenate([piece.page.astype(np.int64) for piece in pieces]),
            np.concatenate([np.full(len(piece), piece.vcpu, np.int64) for piece in pieces]),
        )


@dataclass(frozen=True)
class OffCpu:
    """When one thread was off the CPU: ``out`` to ``back``, ascending, shape (times,); ``slept`` or pushed off it."""

    out: Ints
    back: Ints
    slept: NDArray[np.bool_]

    @staticmethod
    def of(trace: Trace, tid: int) -> OffCpu:
        """From the scheduler's switches. A thread that never comes back is off the CPU until the end."""
        switches = trace.of(SWITCH)
        leaves = switches["tid"] == tid
        mine = switches[leaves | (switches["a"] == tid)]
        leaves = mine["tid"] == tid
        # It comes back by the next switch that is not a departure.
        out = np.flatnonzero(leaves)
        times = np.append(mine["tsc"].astype(np.int64), trace.end_tsc)
        return OffCpu(times[out], times[out + 1], (mine["b"][out] & SLEEPS) != 0)

    def within(self, start: Ints, end: Ints) -> tuple[Ints, Ints]:
        """Cycles off the CPU in each interval: pushed off it, asleep; shape (intervals,) each."""
        pushed, slept = (
            _before(self.out, self.back, kind, end) - _before(self.out, self.back, kind, start)
            for kind in (~self.slept, self.slept)
        )
        return pushed, slept


def _before(out: Ints, back: Ints, counts: NDArray[np.bool_], time: Ints) -> Ints:
    """How much of the intervals that count lies before each time."""
    if not len(out):
        return np.zeros(len(time), np.int64)
    length = np.where(counts, back - out, 0)
    whole = np.concatenate(([0], np.cumsum(length)))
    last = np.searchsorted(out, time, side="right") - 1
    held = np.maximum(last, 0)
    part = np.where(counts[held], np.minimum(time, back[held]) - out[held], 0)
    return np.where(last >= 0, whole[held] + part, 0)


@dataclass(frozen=True)
class Invalidations:
    """KVM's invalidations by the time they began; arrays of shape (invalidations,), ranges [hva, behind).

    ``unended`` of them have no end and ``unbegun`` ends no beginning, though the trace ought to hold it: it was missed.
    What was in progress is known up to ``whole_until_tsc``: when one without its end began, and never with one without
    its beginning, which any earlier one of the same thread may have been inside.
    """

    start: Ints
    end: Ints
    hva: Ints
    behind: Ints
    unended: int
    unbegun: int
    whole_until_tsc: int

    @staticmethod
    def of(trace: Trace) -> Invalidations:
        """Pairs each end with its thread's latest beginning that is still open: a huge page that is split in the middle
        of a range (__split_huge_pmd(), mm/huge_memory.c, 5.10) nests. What has no end lasts until the trace's.

        A thread that was inside one as tracing was switched on or off leaves half a pair, and nothing else on that side
        of it. Where it left something there, if only that it got its CPU or lost it, the other half was missed.
        """
        events = trace.events[np.isin(trace.events["kind"], (INVALIDATE, INVALIDATED))]
        events["b"] = np.minimum(events["b"], np.uint64(_TOP))
        rows: list[list[int]] = []
        stacks: dict[int, list[int]] = {}
        unbegun: list[tuple[int, int]] = []  # thread and time
        for tsc, kind, tid, hva, behind in events[["tsc", "kind", "tid", "a", "b"]].tolist():
            stack = stacks.setdefault(tid, [])
            if kind == INVALIDATE:
                stack.append(len(rows))
                rows.append([tsc, trace.end_tsc, hva, behind])
            elif stack:
                rows[stack.pop()][1] = tsc
            else:
                unbegun.append((tid, tsc))
        first, last = _seen(trace) if unbegun or any(stacks.values()) else ({}, {})
        no_beginning = sum(first[tid] < tsc for tid, tsc in unbegun)
        no_end = [rows[row][0] for tid, stack in stacks.items() for row in stack if rows[row][0] < last[tid]]
        start, end, hva, behind = np.array(rows, np.int64).reshape(-1, 4).T
        until = trace.start_tsc if no_beginning else min([trace.end_tsc, *no_end])
        return Invalidations(start, end, hva, behind, len(no_end), no_beginning, until)

    def meeting(self, start: Ints, end: Ints) -> tuple[Ints, Ints]:
        """All pairs (interval, invalidation) that overlap, by interval and then by the invalidation's beginning."""
        if not len(self.start) or not len(start):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        # Those before `first` are all over; those from `behind` on have not begun.
        first = np.searchsorted(np.maximum.accumulate(self.end), start, side="left")
        behind = np.searchsorted(self.start, end, side="right")
        count = np.maximum(behind - first, 0)
        interval = np.repeat(np.arange(len(start)), count)
        offset = np.arange(len(interval)) - np.repeat(np.cumsum(count) - count, count)
        other = first[interval] + offset
        real = self.end[other] >= start[interval]
        return interval[real], other[real]

    def windows(self, recording: Recording) -> Ints:
        """Of each invalidation, the index of the recorded window that it lies in, in time and range; -1 for none."""
        found = np.full(len(self.start), -1, np.int64)
        windows = recording.windows
        for thread in np.unique(windows["thread"]):
            own = np.flatnonzero(windows["thread"] == thread)
            own = own[np.argsort(windows["start_tsc"][own], kind="stable")]
            begun = windows["start_tsc"][own].astype(np.int64)
            place = np.searchsorted(begun, self.start, side="right") - 1
            index = own[np.maximum(place, 0)]
            hva = windows["hva"][index].astype(np.int64)
            behind = hva + windows["bytes"][index].astype(np.int64)
            inside = (place >= 0) & (self.end <= windows["end_tsc"][index].astype(np.int64))
            inside &= (self.hva >= hva) & (self.behind <= behind)
            found[inside] = index[inside]
        return found


def _seen(trace: Trace) -> tuple[dict[int, int], dict[int, int]]:
    """When each thread was on a CPU, or came to one, for the first time and for the last."""
    switches = trace.of(SWITCH)
    tids = np.concatenate((trace.events["tid"].astype(np.int64), switches["a"].astype(np.int64)))
    times = np.concatenate((trace.events["tsc"], switches["tsc"])).astype(np.int64)
    order = np.argsort(times, kind="stable")
    forward, back = tids[order], tids[order[::-1]]
    threads, first = np.unique(forward, return_index=True)
    _, last = np.unique(back, return_index=True)
    return (
        dict(zip(threads.tolist(), times[order][first].tolist(), strict=True)),
        dict(zip(threads.tolist(), times[order[::-1]][last].tolist(), strict=True)),
    )
