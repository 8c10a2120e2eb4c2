"""Quantiles by counting in pieces and passes, against sorting everything at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import recording as rec
from orchestrator.analysis import tally as counting
from orchestrator.analysis.samples import write_samples
from orchestrator.analysis.slowest import Slowest
from orchestrator.analysis.tally import Counts, Pool, Tally, merged, passes, pick, tally

# Around the counters' end and the latency field's, and few enough to repeat.
CYCLES = st.one_of(
    st.integers(0, 40),
    st.integers(counting.DENSE - 3, counting.DENSE + 3),
    st.integers((1 << rec.LATENCY_BITS) - 3, (1 << rec.LATENCY_BITS) - 1),
    st.integers(0, (1 << rec.LATENCY_BITS) - 1),
)
MANY = st.lists(CYCLES, min_size=1, max_size=60)


def count(cycles: list[int], low: float, *, size: int, most: int) -> Counts:
    found = Tally(low, most)
    for place in range(0, len(cycles), size):
        found.add(np.array(cycles[place : place + size], np.uint64))
    return found.counts()


@settings(max_examples=60, deadline=None)
@given(MANY, st.integers(1, 70), st.integers(1, 9))
def test_every_rank_is_where_sorting_puts_it(cycles: list[int], size: int, most: int) -> None:
    again = partial(count, cycles, size=size, most=most)
    parts = list(passes(again(0), again))
    assert pick(np.arange(len(cycles)), parts).tolist() == sorted(cycles)
    assert all((part.values >= counting.DENSE).sum() <= most for part in parts)
    assert sum(part.counts.sum() for part in parts) == len(cycles)


@settings(max_examples=100, deadline=None)
@given(MANY, st.data())
def test_some_ranks_are_picked_without_a_pass_that_none_of_them_needs(cycles: list[int], data: st.DataObject) -> None:
    ranks = sorted(data.draw(st.sets(st.integers(0, len(cycles) - 1), min_size=1)))
    looked = 0

    def pieces():  # type: ignore[no-untyped-def]
        nonlocal looked
        for value, often in zip(*np.unique(cycles, return_counts=True), strict=True):
            looked += int(often)
            yield Counts(np.array([float(value)]), np.array([often]))

    assert pick(np.array(ranks), pieces()).tolist() == [sorted(cycles)[rank] for rank in ranks]
    assert looked == np.searchsorted(np.sort(cycles), sorted(cycles)[ranks[-1]], side="right")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(MANY, st.sampled_from([1e9 / 2_893_437_000, 0.5, 1e9 / 2_893_438_000])), max_size=3),
       st.integers(1, 9))  # fmt: skip
def test_boots_with_clocks_of_their_own_are_pooled_in_nanoseconds(
    boots: list[tuple[list[int], float]], most: int
) -> None:
    pool = Pool(most)
    for cycles, to_ns in boots:
        again = partial(count, cycles, size=7, most=most)
        pool.add(again(0), to_ns, again)
    expected = sorted(float(value) * to_ns for cycles, to_ns in boots for value in cycles)
    assert pick(np.arange(len(expected)), pool.passes()).tolist() == expected


def test_what_a_part_does_not_know_nobody_knows() -> None:
    left = Counts(np.array([1.0, 3.0]), np.array([5, 1]), below=4.0)
    right = Counts(np.array([1.0, 2.0, 7.0]), np.array([1, 1, 1]))
    both = merged([left, right])
    assert (both.values.tolist(), both.counts.tolist(), both.below) == ([1.0, 2.0, 3.0], [6, 1, 1], 4.0)
    few = merged([left, right], most=2)
    assert (few.values.tolist(), few.counts.tolist(), few.below) == ([1.0, 2.0], [6, 1], 3.0)


def test_a_recording_with_more_slow_latencies_than_are_kept_takes_more_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycles = np.random.default_rng(3).integers(0, 1 << rec.LATENCY_BITS, 5000, np.uint64)
    path = tmp_path / "recording.bin"
    path.write_bytes(simulate.recording_bytes(latencies=[cycles[:3000], cycles[3000:]]))
    monkeypatch.setattr(counting.Tally.__init__, "__defaults__", (0, 1700))
    found = rec.skim(path)
    parts = list(passes(tally(found), partial(tally, found)))
    assert len(parts) == 3
    assert pick(np.arange(5000), parts).tolist() == np.sort(cycles).tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=80), st.integers(1, 30), st.integers(1, 9))
def test_the_slowest_are_kept_and_of_equals_the_first(cycles: list[int], size: int, keep: int) -> None:
    slowest = Slowest(keep, np.int64)
    for place in range(0, len(cycles), size):
        piece = np.array(cycles[place : place + size], np.uint64)
        slowest.add(piece, np.arange(place, place + len(piece)))
    expected = sorted(range(len(cycles)), key=lambda index: (-cycles[index], index))[:keep]
    assert slowest.notes.tolist() == expected
    assert slowest.cycles.tolist() == [cycles[index] for index in expected]


def test_an_analysis_in_pieces_is_the_analysis_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: every table, curve, timeline and sample."""
    plant = simulate.Plant(
        cells=(simulate.cell("quiet"), simulate.cell("overlap", "overlap")),
        boots=2,
        faults=3000,
        effects={("overlap", "base"): simulate.Effect(stall_cycles=24_000_000)},
    )
    whole = simulate.run(plant, tmp_path)
    experiment, results = simulate.experiment(plant), simulate.simulate(plant, tmp_path / "again")
    first = write_samples(experiment, results, tmp_path, tmp_path / "whole.parquet")
    chunks = rec.Recording.chunks
    monkeypatch.setattr(rec.Recording, "chunks", lambda self: chunks(self, 257))
    monkeypatch.setattr(counting.Tally.__init__, "__defaults__", (0, 5))
    assert simulate.run(plant, tmp_path / "pieces") == whole
    second = write_samples(experiment, results, tmp_path, tmp_path / "pieces.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(first), pd.read_parquet(second))


def test_a_large_trial_has_several_row_groups_and_a_small_one_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = simulate.Plant(cells=(simulate.cell("quiet"),), faults=1000)
    results = simulate.simulate(plant, tmp_path)
    chunks = rec.Recording.chunks
    monkeypatch.setattr(rec.Recording, "chunks", lambda self: chunks(self, 300))
    monkeypatch.setattr("orchestrator.analysis.samples.GROUP_ROWS", 700)
    path = write_samples(simulate.experiment(plant), results, tmp_path, tmp_path / "samples.parquet")
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(index).num_rows for index in range(groups.num_row_groups)] == [600, 400] * 2
