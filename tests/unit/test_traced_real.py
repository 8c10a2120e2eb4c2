"""Two real traced boots (tests/data/traced): what the trace says and what KVM counted, each without the other."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from orchestrator import hosttrace
from orchestrator import recording as rec
from orchestrator.analysis import latency
from orchestrator.analysis.traced import NEEDED, OTHER, TAKEN, UNRELATED, Explained, explain

DATA = Path(__file__).parents[1] / "data" / "traced"
NAMES = ("outside", "munmap")


def recording(name: str) -> rec.Recording:
    return rec.parse(gzip.decompress((DATA / f"{name}.recording.bin.gz").read_bytes()), name)


@pytest.fixture(scope="module")
def seen() -> dict[str, Explained]:
    return {name: explain(recording(name), hosttrace.read(DATA / f"{name}.trace.bin.gz")) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_retries_and_exits_by_trace_are_those_that_kvm_counted(seen: dict[str, Explained], name: str) -> None:
    found = seen[name]
    retries = sum(int(found.retries_of(kind).sum()) for kind in (UNRELATED, NEEDED, OTHER))
    assert retries == latency.retries(recording(name)) != 0
    assert found.exits == latency.exits(recording(name))
    assert found.covered.all() and (found.attempts >= 1).all()
    assert found.attempts.sum() == 4096 + retries + found.retries_of(TAKEN).sum()


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_are_the_latencies(seen: dict[str, Explained], name: str) -> None:
    found = seen[name]
    assert (found.parts >= 0).all()
    assert (found.parts.sum(axis=0) == found.faults.end - found.faults.start).all()


def test_outside_the_memslots_every_retry_is_spurious_and_met_the_storm(seen: dict[str, Explained]) -> None:
    found = seen["outside"]
    assert set(found.retries.kind) == {UNRELATED} and len(found.retries.fault) > 1000
    assert (found.retry_window >= 0).all()
    (spun,) = set(found.retries.fault)
    assert found.parts[UNRELATED][spun] > 0.9 * found.parts[UNRELATED].sum()


def test_over_the_faulting_pages_none_is(seen: dict[str, Explained]) -> None:
    found = seen["munmap"]
    assert not found.retries_of(UNRELATED).any() and found.retries_of(NEEDED).any() and found.retries_of(TAKEN).any()
    assert (found.retry_window >= 0).all()


def test_the_clocks_are_one(seen: dict[str, Explained]) -> None:
    """Every storm window contains an invalidation, and the first attempt comes within the exit's cost of the access."""
    for name in NAMES:
        found, held = seen[name], recording(name)
        assert set(found.windows) >= set(range(len(held.windows)))
        events = hosttrace.read(DATA / f"{name}.trace.bin.gz")
        assert events.lost == 0 and events.start_tsc < held.header.start_tsc < held.header.end_tsc < events.end_tsc
