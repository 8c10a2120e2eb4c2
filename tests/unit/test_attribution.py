"""Faults against windows on one clock, checked against the definition, fault by fault."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import recording as rec
from orchestrator.analysis import attribution as att

INTERVALS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=12)


def intervals(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    start = np.array([start for start, _ in pairs], np.uint64)
    return start, start + np.array([length for _, length in pairs], np.uint64)


@settings(max_examples=200, deadline=None)
@given(INTERVALS, INTERVALS, st.booleans())
def test_overlap_counts_agree_with_the_definition(
    faults: list[tuple[int, int]], windows: list[tuple[int, int]], ascending: bool
) -> None:
    windows = [(start, length + 1) for start, length in windows]
    start, end = intervals([(s, length + 1) for s, length in faults])
    if ascending:  # As a vCPU's faults are.
        start, end = np.sort(start), np.sort(end)
    window_start, window_end = intervals(windows)
    expected = [
        sum(ws < e and we > s for ws, we in zip(window_start, window_end, strict=True))
        for s, e in zip(start, end, strict=True)
    ]
    windows_sorted = att.Windows(np.sort(window_start), np.sort(window_end))
    assert windows_sorted.overlapping(start, end).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(INTERVALS, st.lists(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=6), max_size=3))
def test_the_latest_window_agrees_with_the_definition(
    faults: list[tuple[int, int]], threads: list[list[tuple[int, int]]]
) -> None:
    start, end = intervals([(s, length + 1) for s, length in faults])
    windows = np.zeros(sum(map(len, threads)), rec.WINDOW)
    rows = iter(windows)
    for number, pauses in enumerate(threads):
        now = 0
        for pause, length in pauses:  # One thread's windows follow one another.
            row = next(rows)
            row["thread"], row["start_tsc"], row["end_tsc"] = number, now + pause, now + pause + length
            now += pause + length
    found = att.latest(start, end, att.Thread.each(windows, np.arange(len(windows))))
    for s, e, index in zip(start, end, found, strict=True):
        met = [row["start_tsc"] for row in windows if row["start_tsc"] < e and row["end_tsc"] > s]
        assert (index >= 0) == bool(met)
        if met:
            assert windows["start_tsc"][index] == max(met)
            assert windows["start_tsc"][index] < e and windows["end_tsc"][index] > s


def recorded(windows: list[tuple[int, int, int, int]], cycles: list[int] | None = None) -> rec.Recording:
    data = simulate.recording_bytes(latencies=[np.array(cycles or [1000] * 10, np.uint64)], windows=windows, pages=10)
    return rec.parse(data, "x")


def classify(recording: rec.Recording, placement: str) -> np.ndarray:
    return att.Sorter(recording, placement).meet(simulate.whole(recording)).kind


def at(fault: int) -> int:
    """Host TSC inside the fault of this index."""
    return 1_000_000 + fault * 1400 + 500


def test_a_window_over_the_page_is_needed_one_elsewhere_is_not() -> None:
    page = simulate.MEM_HVA + 3 * simulate.PAGE
    over_page_3 = (at(3), at(4), page, simulate.PAGE)
    outside = (at(7), at(8), simulate.MEM_HVA + (1 << 40), simulate.PAGE)
    kind = classify(recorded([over_page_3, outside]), "overlap")
    # Fault 4 overlaps the window over page 3 in time, but is on page 4.
    assert kind.tolist() == [0, 0, 0, att.NEEDED, att.UNRELATED, 0, 0, att.UNRELATED, att.UNRELATED, 0]


def test_a_fault_in_two_windows_names_the_one_over_its_page() -> None:
    over = (at(3), at(4) - 10, simulate.MEM_HVA + 3 * simulate.PAGE, simulate.PAGE)
    later = (at(3) + 20, at(4), simulate.MEM_HVA + (1 << 40), simulate.PAGE)
    plain = recorded([over, later])
    windows = plain.windows.copy()
    windows["thread"] = [0, 1]
    found = dataclasses.replace(plain, windows=windows)
    sorter, faults = att.Sorter(found, "overlap"), simulate.whole(found)
    met = sorter.meet(faults)
    window = sorter.windows(faults, met)
    assert (met.kind[3], window[3], met.count[3]) == (att.NEEDED, 0, 2)
    assert (met.kind[4], window[4], met.count[4]) == (att.UNRELATED, 1, 2)
    assert (met.kind[5], window[5], met.count[5]) == (att.NONE, -1, 0)
    assert att.attribute(found, "overlap").sums.several == 2


def test_a_range_that_ends_where_the_page_begins_is_not_over_it() -> None:
    page = simulate.MEM_HVA + 3 * simulate.PAGE
    assert classify(recorded([(at(3), at(3) + 10, page - 4096, 4096)]), "adjacent")[3] == att.UNRELATED
    assert classify(recorded([(at(3), at(3) + 10, page - 4096, 4097)]), "adjacent")[3] == att.NEEDED
    assert classify(recorded([(at(3), at(3) + 10, page + 4096, 4096)]), "adjacent")[3] == att.UNRELATED


def test_another_process_has_addresses_of_its_own() -> None:
    window = (at(3), at(3) + 10, simulate.MEM_HVA, 10 * simulate.PAGE)
    assert classify(recorded([window]), "overlap")[3] == att.NEEDED
    assert classify(recorded([window]), "other-process")[3] == att.UNRELATED


def test_sums_add_up_and_the_slowest_are_sorted_by_cause() -> None:
    cycles = [1000] * 10
    cycles[3] = 5000
    found = att.attribute(recorded([(at(3), at(3) + 10, 0, 4096)], cycles), "outside")
    sums = found.sums
    assert (sums.faults, sums.unrelated, sums.needed, sums.windows) == (10, 1, 0, 1)
    assert sums.total_ns == 9 * 500 + 2500
    assert sums.unrelated_ns == 2500
    assert (sums.slowest, sums.slowest_unrelated, sums.slowest_needed) == (10, 1, 0)
    assert found.slowest_ns[0] == 2500
    assert found.slowest_kind[0] == att.UNRELATED


def test_merging_boots_keeps_the_slowest_of_all() -> None:
    quick = att.attribute(recorded([], [1000] * 150), "outside")
    slow = att.attribute(recorded([(900_000, 9_000_000, 0, 4096)], [9000] * 150), "outside")
    both = att.merge([quick, slow])
    assert (both.faults, both.unrelated, both.slowest, both.slowest_unrelated) == (300, 150, 100, 100)
    assert both.window_share == pytest.approx((0 + 1) / 2)


def test_no_window_means_no_cause() -> None:
    found = att.attribute(recorded([]), "")
    assert (found.sums.unrelated, found.sums.needed, found.sums.window_share) == (0, 0, 0.0)
    assert not found.slowest_kind.any()
