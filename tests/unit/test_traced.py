"""A trace laid over its recording: every attempt to its fault, every cycle to its cause."""

from __future__ import annotations

import numpy as np
import pytest
import simulate
from hypothesis import given, settings
from hypothesis import strategies as st
from tracefile import STORM_TID, VCPU_TID, Event, trace_bytes

from orchestrator import hosttrace
from orchestrator import recording as rec
from orchestrator.analysis.causes import CAUSES
from orchestrator.analysis.traced import (
    BLOCKED,
    HANDLED,
    NEEDED,
    OTHER,
    PREEMPTED,
    TAKEN,
    UNRELATED,
    Explained,
    explain,
)
from orchestrator.errors import RecordingError

# Ten faults of 1,000 cycles, pages 0 to 9, 400 cycles between them; the memslot begins at gpa 0.
FAULTS, CYCLES, START = 10, 1000, 1_000_000
STEP = CYCLES + simulate.GAP_CYCLES
ELSEWHERE = (0x130000000000, 0x130000010000)


def over(page: int, pages: int = 1) -> tuple[int, int]:
    hva = simulate.MEM_HVA + page * simulate.PAGE
    return hva, hva + pages * simulate.PAGE


def at(fault: int, cycles: int) -> int:
    """A host TSC so many cycles after a fault's beginning."""
    return START + fault * STEP + cycles


def attempt(fault: int, cycles: int, tid: int = VCPU_TID) -> Event:
    return Event(at(fault, cycles), hosttrace.PAGE_FAULT, fault * simulate.PAGE, 6, tid=tid)


def install(fault: int, cycles: int, tid: int = VCPU_TID) -> Event:
    return Event(at(fault, cycles), hosttrace.INSTALL, fault, 1, tid=tid)


def usual(*but: int) -> list[Event]:
    """One attempt that maps its page for every fault but these."""
    return [event for nr in range(FAULTS) if nr not in but for event in (attempt(nr, 300), install(nr, 600))]


def invalidation(begin: int, end: int, place: tuple[int, int], tid: int = STORM_TID) -> list[Event]:
    return [Event(begin, hosttrace.INVALIDATE, *place, tid=tid), Event(end, hosttrace.INVALIDATED, tid=tid)]


def away(begin: int, end: int, state: int = 0x100) -> list[Event]:
    """The vCPU's thread off the CPU."""
    return [
        Event(begin, hosttrace.SWITCH, STORM_TID, state),
        Event(end, hosttrace.SWITCH, VCPU_TID, 1, tid=STORM_TID),
    ]


def recorded(windows: list[tuple[int, int, int, int]] | None = None, vcpus: int = 1) -> rec.Recording:
    cycles = [np.full(FAULTS, CYCLES, np.uint64)] * vcpus
    return rec.parse(simulate.recording_bytes(latencies=cycles, windows=windows or [], pages=FAULTS), "x")


def laid(events: list[Event], windows: list[tuple[int, int, int, int]] | None = None, **options: object) -> Explained:
    events = sorted(events, key=lambda event: event.tsc)
    seen = explain(recorded(windows), hosttrace.parse(trace_bytes(events, **options), "x"))  # type: ignore[arg-type]
    assert (seen.parts.sum(axis=0) == CYCLES).all() and (seen.parts >= 0).all()
    return seen


def parts(seen: Explained, fault: int) -> dict[str, int]:
    return {cause: int(time) for cause, time in zip(CAUSES, seen.parts[:, fault], strict=True) if time}


def test_an_undisturbed_fault_is_one_attempt_and_all_handling() -> None:
    seen = laid(usual())
    assert seen.attempts.tolist() == [1] * FAULTS and len(seen.retries.fault) == 0
    assert (seen.cause == HANDLED).all() and (seen.window == -1).all()
    assert parts(seen, 3) == {"handled": CYCLES}


def test_a_retry_lasts_from_its_attempt_to_the_next_and_knows_what_it_met() -> None:
    spun = [attempt(3, 200), attempt(3, 350), attempt(3, 600), install(3, 800)]
    seen = laid(
        [*usual(3), *spun, *invalidation(at(3, 100), at(3, 580), ELSEWHERE)],
        [(at(0, 0), at(1, 0), *window(ELSEWHERE)), (at(3, 50), at(3, 590), *window(ELSEWHERE))],
    )
    assert seen.attempts[3] == 3
    assert seen.retries.start.tolist() == [at(3, 200), at(3, 350)]
    assert seen.retries.kind.tolist() == [UNRELATED, UNRELATED]
    assert parts(seen, 3) == {"handled": 600, "unrelated": 400}
    assert (seen.cause[3], seen.window[3]) == (UNRELATED, 1)
    assert seen.retry_window.tolist() == [1, 1]


def window(place: tuple[int, int]) -> tuple[int, int]:
    return place[0], place[1] - place[0]


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        (over(3), NEEDED),
        (over(2, 3), NEEDED),
        (over(4), UNRELATED),  # begins where the page ends
        (over(2), UNRELATED),  # ends where it begins
        (ELSEWHERE, UNRELATED),
        (None, OTHER),
    ],
)
def test_a_retry_is_needed_if_a_range_over_its_page_was_in_progress(place: tuple[int, int] | None, kind: int) -> None:
    storm = [] if place is None else invalidation(at(3, 100), at(3, 400), place)
    seen = laid([*usual(3), attempt(3, 200), attempt(3, 500), install(3, 700), *storm])
    assert seen.retries.kind.tolist() == [kind] and seen.cause[3] == kind
    assert parts(seen, 3) == {"handled": 700, CAUSES[kind]: 300}


def test_of_two_invalidations_the_one_over_the_page_counts() -> None:
    storms = invalidation(at(3, 100), at(3, 400), over(3)) + invalidation(at(3, 150), at(3, 450), ELSEWHERE, tid=9)
    windows = [(at(3, 90), at(3, 460), *window(ELSEWHERE)), (at(3, 90), at(3, 460), *window(over(3)))]
    data = recorded(windows)
    events = sorted([*usual(3), attempt(3, 200), attempt(3, 500), install(3, 700), *storms], key=lambda e: e.tsc)
    seen = explain(data, hosttrace.parse(trace_bytes(events), "x"))
    assert seen.retries.kind.tolist() == [NEEDED]
    assert seen.invalidations.hva[seen.retries.invalidation].tolist() == [over(3)[0]]


def test_an_invalidation_that_is_over_before_the_attempt_begins_is_none() -> None:
    storm = invalidation(at(3, 100), at(3, 199), ELSEWHERE) + invalidation(at(3, 501), at(3, 600), ELSEWHERE)
    seen = laid([*usual(3), attempt(3, 200), attempt(3, 500), install(3, 700), *storm])
    assert seen.retries.kind.tolist() == [OTHER] and seen.retries.invalidation.tolist() == [-1]


def test_a_mapping_that_was_taken_away_again_is_no_retry() -> None:
    storm = invalidation(at(3, 350), at(3, 400), over(3))
    seen = laid([*usual(3), attempt(3, 200), install(3, 300), attempt(3, 500), install(3, 700), *storm])
    assert seen.retries.kind.tolist() == [TAKEN] and seen.cause[3] == TAKEN
    assert parts(seen, 3) == {"handled": 700, "taken": 300}


def test_a_mapping_of_another_page_says_nothing_of_this_one() -> None:
    seen = laid([*usual(3), attempt(3, 200), install(4, 300), attempt(3, 500), install(3, 700)])
    assert seen.retries.kind.tolist() == [OTHER]


def test_time_off_the_cpu_is_counted_once_wherever_it_falls() -> None:
    storm = invalidation(at(3, 100), at(3, 600), ELSEWHERE)
    spun = [attempt(3, 200), attempt(3, 700), install(3, 900)]
    seen = laid([*usual(3), *spun, *storm, *away(at(3, 300), at(3, 400)), *away(at(3, 750), at(3, 780))])
    assert parts(seen, 3) == {"handled": 470, "unrelated": 400, "preempted": 130}
    assert seen.cause[3] == UNRELATED, "it was retried, whatever took longer"


@pytest.mark.parametrize(
    ("state", "cause"), [(0x100, "preempted"), (0, "preempted"), (1, "blocked"), (2, "blocked"), (0x80, "blocked")]
)
def test_who_sleeps_has_not_lost_the_cpu(state: int, cause: str) -> None:
    seen = laid([*usual(), *away(at(3, 310), at(3, 950), state)])
    assert parts(seen, 3) == {"handled": 360, cause: 640}
    assert CAUSES[seen.cause[3]] == cause


def test_a_short_loss_of_the_cpu_is_not_what_happened_to_a_fault() -> None:
    seen = laid([*usual(), *away(at(3, 310), at(3, 500)), *away(at(5, 310), at(5, 900), 2)])
    assert (seen.cause[3], seen.cause[5]) == (HANDLED, BLOCKED)
    assert parts(seen, 3) == {"handled": 810, "preempted": 190}


def test_time_off_the_cpu_between_two_faults_is_neithers() -> None:
    seen = laid([*usual(), *away(at(3, 990), at(4, 20))])
    assert parts(seen, 3) == {"handled": 990, "preempted": 10}
    assert parts(seen, 4) == {"handled": 980, "preempted": 20}


def test_attempts_outside_any_fault_are_nobodys() -> None:
    strays = [
        Event(START - 500, hosttrace.PAGE_FAULT, 0),  # before the rounds
        Event(at(3, 500), hosttrace.PAGE_FAULT, 7 * simulate.PAGE),  # another page
        Event(at(3, CYCLES + 100), hosttrace.PAGE_FAULT, 3 * simulate.PAGE),  # after its fault
        Event(at(3, 400), hosttrace.PAGE_FAULT, 0xFFFFFFFF000),  # no page of the slot
    ]
    seen = laid([*usual(), *strays])
    assert seen.attempts.tolist() == [1] * FAULTS


def test_a_page_that_was_mapped_already_has_no_attempt() -> None:
    seen = laid(usual(4, 5))
    assert seen.attempts.tolist() == [1, 1, 1, 1, 0, 0, 1, 1, 1, 1]
    assert parts(seen, 4) == {"handled": CYCLES}


def test_exits_are_those_of_the_vcpus_in_the_measured_time() -> None:
    exits = [
        Event(START - 1, hosttrace.EXIT, 0x400, 2), Event(at(1, 0), hosttrace.EXIT, 0x400, 2),
        Event(at(2, 0), hosttrace.EXIT, 0x60, 2), Event(at(2, 0), hosttrace.EXIT, 0x60, 2, tid=99),
        Event(at(FAULTS, 5), hosttrace.EXIT, 0x400, 2),
    ]  # fmt: skip
    assert laid([*usual(), *exits]).exits == 2


def test_two_vcpus_are_told_apart_by_their_faults() -> None:
    """Both vCPUs of the simulated recording fault on the same pages at the same times; the threads differ."""
    later = [
        Event(event.tsc, event.kind, event.a, event.b, tid=VCPU_TID, cpu=1) for event in (*usual(6), attempt(6, 100))
    ]
    data = simulate.recording_bytes(
        latencies=[np.full(5, CYCLES, np.uint64), np.full(FAULTS, CYCLES, np.uint64)], pages=FAULTS
    )
    first = [Event(event.tsc, event.kind, event.a, event.b, tid=77) for event in usual(5, 6, 7, 8, 9)]
    events = sorted([*first, *later, attempt(6, 500), install(6, 900)], key=lambda event: event.tsc)
    seen = explain(rec.parse(data, "x"), hosttrace.parse(trace_bytes(events), "x"))
    assert seen.attempts.tolist() == [1] * 5 + [1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    assert seen.retries.fault.tolist() == [5 + 6]


def test_a_trace_of_another_boot_is_an_error() -> None:
    foreign = [Event(event.tsc + 50 * STEP, event.kind, event.a) for event in usual()]
    with pytest.raises(RecordingError, match="not of one boot"):
        explain(recorded(), hosttrace.parse(trace_bytes(foreign), "x"))


def test_after_a_loss_only_the_faults_before_it_are_covered() -> None:
    events = [event for event in usual() if event.tsc < at(6, 0)]
    seen = laid(events, lost={0: 1000})
    assert seen.covered.tolist() == [True] * 5 + [False] * 5, "the last event is inside fault 5"


def test_an_empty_trace_covers_nothing_that_was_lost() -> None:
    assert not laid([], lost={0: 5}).covered.any()
    assert laid([]).attempts.sum() == 0


CUTS = st.lists(st.integers(1, CYCLES - 1), min_size=1, max_size=8, unique=True)


@settings(max_examples=100, deadline=None)
@given(CUTS, st.lists(st.tuples(st.integers(0, 8000), st.integers(1, 900), st.integers(0, 3)), max_size=6), st.data())
def test_causes_partition_time_and_faults_whatever_happens(
    cuts: list[int], storms: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Any attempts, invalidations and switches: parts are never negative, add up, and retries are attempts less one."""
    events = [*usual(3), *(attempt(3, cut) for cut in cuts)]
    for tid, (begin, length, place) in enumerate(storms, 100):
        events += invalidation(
            START + begin, START + begin + length, (ELSEWHERE, over(3), over(0, 9), over(4))[place], tid
        )
    times = sorted(data.draw(st.lists(st.integers(0, 9000), max_size=8, unique=True)))
    for begin, end in zip(times[::2], times[1::2], strict=False):
        events += away(START + begin, START + end, data.draw(st.sampled_from([0, 1, 0x100])))
    seen = laid(events)
    assert seen.attempts[3] == len(cuts) and len(seen.retries.fault) == len(cuts) - 1
    assert sum(seen.retries_of(kind)[3] for kind in (UNRELATED, NEEDED, OTHER, TAKEN)) == len(cuts) - 1
    assert set(np.unique(seen.cause)) <= set(range(len(CAUSES)))
    assert (seen.parts[[UNRELATED, NEEDED, OTHER, TAKEN, PREEMPTED, BLOCKED]].sum(axis=0) <= CYCLES).all()
