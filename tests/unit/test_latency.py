"""Summaries, retries and curves of one recording."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import recording as rec
from orchestrator.analysis import curves, latency
from orchestrator.analysis.model import Latency
from orchestrator.analysis.tally import Tally

FAULTS = 1000


def counted(counters: Mapping[str, int] | None) -> rec.Recording:
    cycles = np.full(FAULTS, 10_000, np.uint64)
    return rec.parse(simulate.recording_bytes(latencies=[cycles], counters=counters), "x")


def summarised(cycles: np.ndarray) -> Latency:
    counted = Tally()
    counted.add(cycles)
    return latency.summarise([counted.counts()], len(cycles), counted.cycles, 1e9 / simulate.TSC_HZ)


def test_quantiles_are_latencies_that_occurred() -> None:
    cycles = np.arange(1, 1001, dtype=np.uint64) * 2
    found = summarised(cycles)
    assert (found.p50, found.p90, found.p99, found.p99_9, found.max) == (500.0, 900.0, 990.0, 999.0, 1000.0)
    assert found.mean == pytest.approx(500.5)


def test_one_fault_is_its_own_every_quantile() -> None:
    found = summarised(np.array([4000], np.uint64))
    assert {found.mean, found.p50, found.p99_9, found.max} == {2000.0}


def test_retries_are_the_exits_that_nothing_else_explains() -> None:
    counters = {
        "exits": FAULTS + 250 + 10 + 7 + 3 + 2 + 5, "pf_fixed": FAULTS, "irq_exits": 10, "io_exits": 7,
        "halt_exits": 3, "insn_emulation": 2, "mmio_exits": 2, "pf_guest": 5, "request_irq": 99, "signal_exits": 99,
    }  # fmt: skip
    assert latency.retries(counted(counters)) == 250
    assert latency.exits(counted(counters)) == counters["exits"]


def test_mmio_exits_stand_in_where_emulations_are_not_counted() -> None:
    assert latency.retries(counted({"exits": FAULTS + 9, "pf_fixed": FAULTS, "mmio_exits": 4})) == 5


def test_newer_kernels_count_faults_themselves() -> None:
    counters = {"exits": 10 * FAULTS, "pf_taken": FAULTS + 40, "pf_fixed": FAULTS, "pf_spurious": 6, "pf_emulate": 4}
    assert latency.retries(counted(counters)) == 30


@pytest.mark.parametrize("counters", [None, {}, {"exits": 5}, {"pf_fixed": 5}])
def test_without_counters_there_is_no_number(counters: Mapping[str, int] | None) -> None:
    assert latency.retries(counted(counters)) is None


def test_counters_that_do_not_see_the_faults_give_no_number() -> None:
    """As kvm_pvm's on some machines: pf_fixed stays 0 while the guest faults, and 0 retries would be a lie."""
    blind = {"exits": 12, "pf_fixed": 0, "pf_taken": 0}
    assert latency.retries(counted(blind)) is None
    assert latency.exits(counted(blind)) is None
    prefetched = {"exits": FAULTS // 8, "pf_fixed": FAULTS // 8}
    assert latency.retries(counted(prefetched)) == 0


def test_slightly_below_zero_is_none_and_far_below_is_unknown() -> None:
    assert latency.retries(counted({"exits": FAULTS - 16, "pf_fixed": FAULTS})) == 0
    assert latency.retries(counted({"exits": FAULTS - 17, "pf_fixed": FAULTS})) is None


def test_ccdf_is_exact_at_the_tail_and_falls() -> None:
    ordered = np.sort(np.random.default_rng(1).pareto(1.5, 50_000) * 1000 + 5000)
    line = curves.ccdf(len(ordered), ordered[curves.ranks(len(ordered))])
    assert line.x[-1] == pytest.approx(ordered[-1], rel=1e-6)
    assert line.y[-1] == pytest.approx(1 / 50_000)
    assert line.y[0] == 1.0
    assert all(a >= b for a, b in zip(line.y, line.y[1:], strict=False))
    assert line.x[-10:] == pytest.approx(tuple(ordered[-10:]), rel=1e-6)
    assert len(line.x) < 600
    for x, y in zip(line.x[::40], line.y[::40], strict=True):
        assert y == pytest.approx((ordered >= x * (1 - 1e-6)).mean(), rel=1e-3)


def test_percentiles_are_in_nines() -> None:
    ordered = np.arange(1, 10_001, dtype=np.float64)
    line = curves.percentiles(len(ordered), ordered[curves.ranks(len(ordered))])
    assert line.x[-1] == pytest.approx(4.0)
    at_p99 = np.interp(2.0, line.x, line.y)
    assert at_p99 == pytest.approx(9900, rel=0.01)


def test_timeline_keeps_the_slowest_and_joins_windows_that_touch() -> None:
    cycles = np.full(2000, 10_000, np.uint64)
    cycles[1234] = 9_000_000
    step = 10_400
    windows = [
        (1_000_000 + 10 * step, 1_000_000 + 20 * step, 0, 4096),
        (1_000_000 + 15 * step, 1_000_000 + 30 * step, 0, 1),
    ]
    recording = rec.parse(simulate.recording_bytes(latencies=[cycles], windows=windows), "x")
    maker = curves.TimelineMaker(recording)
    for faults in recording.chunks(600):
        maker.add(faults)
    found = maker.result("007")
    assert max(found.maxima.y) == max(found.slow.y) == 4_500_000.0
    assert len(found.windows) == 1
    assert found.windows[0] == pytest.approx((10 * step / 2e9, 30 * step / 2e9))
    assert found.trial == "007"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3_000_000), min_size=1, max_size=80), st.integers(1, 90), st.booleans())
def test_each_bucket_of_the_timeline_has_its_slowest_fault(cycles: list[int], size: int, ascending: bool) -> None:
    recording = rec.parse(simulate.recording_bytes(latencies=[np.array(cycles, np.uint64)]), "x")
    maker = curves.TimelineMaker(recording)
    slowest: dict[int, int] = {}
    header = recording.header
    for faults in recording.chunks(size):
        if not ascending:  # No vCPU does so, but nothing in the file forbids it.
            faults = rec.Faults(0, 0, faults.tsc_offset, faults.raw[::-1])
        maker.add(faults)
        for start, latency_cycles in zip(faults.start_tsc.tolist(), faults.latency_cycles.tolist(), strict=True):
            into = (start - header.start_tsc) * curves.BUCKETS // (header.end_tsc - header.start_tsc)
            slowest[min(into, curves.BUCKETS - 1)] = max(slowest.get(into, 0), latency_cycles)
    found = maker.result("x")
    width = (header.end_tsc - header.start_tsc) / header.tsc_hz / curves.BUCKETS
    assert found.maxima.x == pytest.approx([(bucket + 0.5) * width for bucket in sorted(slowest)], rel=1e-6)
    assert found.maxima.y == pytest.approx([slowest[bucket] / 2 for bucket in sorted(slowest)], rel=1e-6)
    assert sorted(found.slow.y) == pytest.approx(sorted(value / 2 for value in cycles), rel=1e-6)
