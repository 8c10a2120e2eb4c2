"""Intervals of a traced boot, each against its definition spelled out."""

from __future__ import annotations

import numpy as np
import pytest
import simulate
from hypothesis import given, settings
from hypothesis import strategies as st
from tracefile import STORM_TID, VCPU_TID, Event, trace_bytes

from orchestrator import hosttrace
from orchestrator import recording as rec
from orchestrator.analysis.spans import Invalidations, OffCpu

END = 10_000
TIMES = st.lists(st.integers(1, 400), min_size=0, max_size=12)
INTERVALS = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 900)), max_size=8)


def trace(events: list[Event]) -> hosttrace.Trace:
    return hosttrace.parse(trace_bytes(events, end_tsc=END), "x")


def ends(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    start = np.array([start for start, _ in pairs], np.int64)
    return start, start + np.array([length for _, length in pairs], np.int64)


@settings(max_examples=150, deadline=None)
@given(TIMES, st.lists(st.sampled_from([0, 1, 2, 0x100]), min_size=12, max_size=12), INTERVALS)
def test_time_off_the_cpu_is_counted_tick_by_tick(
    steps: list[int], states: list[int], asked: list[tuple[int, int]]
) -> None:
    """The thread leaves and comes back in turn; what is off is checked for every tick on its own."""
    events, now, off = [], 0, {}
    for number, step in enumerate(steps):
        until = now + step
        if number % 2:
            events.append(Event(until, hosttrace.SWITCH, VCPU_TID, 1, tid=STORM_TID))
            off.update(dict.fromkeys(range(now, until), states[number - 1]))
        else:
            events.append(Event(until, hosttrace.SWITCH, STORM_TID, states[number]))
        now = until
    if len(steps) % 2:
        off.update(dict.fromkeys(range(now, END), states[len(steps) - 1]))
    noise = [Event(5, hosttrace.SWITCH, 3, 0, tid=4), Event(6, hosttrace.SWITCH, 4, 0, tid=3)]
    start, end = ends(asked)
    pushed, slept = OffCpu.of(trace([*events, *noise]), VCPU_TID).within(start, end)
    for nr, (first, last) in enumerate(zip(start, end, strict=True)):
        found = [off[tick] for tick in range(first, last) if tick in off]
        assert pushed[nr] == sum(state in (0, 0x100) for state in found)
        assert slept[nr] == sum(state in (1, 2) for state in found)


@settings(max_examples=150, deadline=None)
@given(INTERVALS, INTERVALS)
def test_every_pair_that_overlaps_and_no_other(
    intervals: list[tuple[int, int]], invalidations: list[tuple[int, int]]
) -> None:
    events = []
    for tid, (start, length) in enumerate(invalidations):
        events.append(Event(start, hosttrace.INVALIDATE, 0x1000 * tid, 0x1000 * (tid + 1), tid=tid))
        events.append(Event(start + length, hosttrace.INVALIDATED, tid=tid))
    events.sort(key=lambda event: (event.tsc, event.kind))
    found = Invalidations.of(trace(events))
    start, end = ends(intervals)
    pairs = list(zip(*(column.tolist() for column in found.meeting(start, end)), strict=True))
    expected = {
        (i, j)
        for i in range(len(start))
        for j in range(len(found.start))
        if found.start[j] <= end[i] and found.end[j] >= start[i]
    }
    assert set(pairs) == expected and len(pairs) == len(expected) and pairs == sorted(pairs)


def test_ends_belong_to_the_latest_open_beginning_of_their_thread() -> None:
    found = Invalidations.of(
        trace(
            [
                Event(10, hosttrace.INVALIDATED, tid=8),  # began before the tracing
                Event(20, hosttrace.INVALIDATE, 0x0, 0x9000, tid=7),
                Event(30, hosttrace.INVALIDATE, 0x2000, 0x4000, tid=7),  # inside the first, as a split huge page is
                Event(35, hosttrace.INVALIDATE, 0x5000, 0x6000, tid=8),
                Event(40, hosttrace.INVALIDATED, tid=7),
                Event(60, hosttrace.INVALIDATED, tid=7),
            ]
        )
    )
    rows = zip(*(column.tolist() for column in (found.start, found.end, found.hva, found.behind)), strict=True)
    assert list(rows) == [(20, 60, 0x0, 0x9000), (30, 40, 0x2000, 0x4000), (35, END, 0x5000, 0x6000)]


def shown(thread: int, *times: int) -> list[Event]:
    """A thread comes to its CPU, and leaves it, at these times."""
    ways = [(3, thread), (thread, 3)]
    return [Event(time, hosttrace.SWITCH, ways[nr % 2][1], 1, tid=ways[nr % 2][0]) for nr, time in enumerate(times)]


def begun(tsc: int, tid: int = 7) -> Event:
    return Event(tsc, hosttrace.INVALIDATE, 0x2000, 0x3000, tid=tid)


def over(tsc: int, tid: int = 7) -> Event:
    return Event(tsc, hosttrace.INVALIDATED, tid=tid)


def missing(events: list[Event]) -> tuple[int, int, int]:
    found = Invalidations.of(trace(events))
    return found.unended, found.unbegun, found.whole_until_tsc


def test_half_a_pair_is_explained_by_the_traces_borders_only() -> None:
    assert missing([over(20), begun(30), over(40), *shown(7, 45)]) == (0, 0, END), "inside one when it began"
    assert missing([*shown(7, 5), begun(30), over(40), begun(50)]) == (0, 0, END), "and when it ended"
    assert missing([*shown(7, 5), over(20), begun(30), over(40)]) == (0, 1, 0), "its thread was not inside one at 5"
    assert missing([begun(30), over(40), begun(50), *shown(7, 5, 60)]) == (1, 0, 50), "nor is it at 60"
    assert missing([begun(30), over(40), over(60)]) == (0, 1, 0), "the other may have been inside it"
    assert missing([begun(30), begun(50), over(60)]) == (1, 0, 30), "the end of the first or of the second"
    assert missing([begun(30), over(40, tid=8), *shown(8, 1)]) == (0, 1, 0), "another thread's end ends nothing"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.data())
def test_no_event_goes_unnoticed(depths: list[int], data: st.DataObject) -> None:
    """Calls that nest up to three deep, one after another: without any one event of theirs a half is missing."""
    events: list[Event] = []
    for number, depth in enumerate(depths):
        first = 100 * number + 10
        events += [begun(first + nr) for nr in range(depth)] + [over(first + 20 + nr) for nr in range(depth)]
    around = shown(7, 1, 100 * len(depths) + 50)
    assert missing([*events, *around]) == (0, 0, END)
    gone = data.draw(st.integers(0, len(events) - 1))
    unended, unbegun, until = missing([*events[:gone], *events[gone + 1 :], *around])
    assert (unended, unbegun) == ((0, 1) if events[gone].kind == hosttrace.INVALIDATE else (1, 0))
    assert until <= events[gone].tsc


def test_all_memory_of_a_process_is_a_range() -> None:
    found = Invalidations.of(trace([Event(20, hosttrace.INVALIDATE, 0, 2**64 - 1, tid=7), over(30)]))
    assert found.hva.tolist() == [0] and found.behind[0] > 1 << 62


def windowed(windows: list[tuple[int, int, int, int]]) -> rec.Recording:
    return rec.parse(simulate.recording_bytes(windows=windows), "x")


@pytest.mark.parametrize(
    ("start", "end", "hva", "behind", "expected"),
    [
        (120, 180, 0x2000, 0x4000, 0),  # all of the window's range
        (120, 180, 0x2000, 0x3000, 0),  # a part: one page-table page of an mprotect
        (120, 180, 0x1000, 0x4000, -1),  # more than its range: somebody else's
        (120, 220, 0x2000, 0x4000, -1),  # over before the invalidation is
        (90, 180, 0x2000, 0x4000, -1),  # begun after it
        (320, 380, 0x2000, 0x4000, 1),
    ],
)
def test_an_invalidation_is_a_windows_if_it_lies_in_it(
    start: int, end: int, hva: int, behind: int, expected: int
) -> None:
    events = [Event(start, hosttrace.INVALIDATE, hva, behind, tid=7), Event(end, hosttrace.INVALIDATED, tid=7)]
    found = Invalidations.of(trace(events)).windows(windowed([(100, 200, 0x2000, 0x2000), (300, 400, 0x2000, 0x2000)]))
    assert found.tolist() == [expected]


def test_without_invalidations_nothing_meets() -> None:
    found = Invalidations.of(trace([]))
    interval, other = found.meeting(*ends([(0, 10)]))
    assert len(interval) == len(other) == len(found.windows(windowed([]))) == 0
