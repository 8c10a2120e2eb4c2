"""The trace's reader against the C header, and against every kind of damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cheader import constants, layout_expected, layout_said
from hypothesis import given, settings
from hypothesis import strategies as st
from tracefile import Event, trace_bytes

from orchestrator import hosttrace
from orchestrator.errors import RecordingError

HEADER = Path(__file__).parents[2] / "guests" / "include" / "trace.h"
STRUCTS = {
    "trace_header": hosttrace.HEADER, "trace_event": hosttrace.EVENT, "trace_cpu": hosttrace.CPU,
    "trace_trailer": hosttrace.TRAILER,
}  # fmt: skip
CONSTANTS = {
    "TRACE_MAGIC": hosttrace.MAGIC, "TRACE_TRAILER_MAGIC": hosttrace.TRAILER_MAGIC, "TRACE_VERSION": hosttrace.VERSION,
    "TRACE_HEADER_BYTES": hosttrace.HEADER_BYTES, "TRACE_PAGE_FAULT": hosttrace.PAGE_FAULT,
    "TRACE_EXIT": hosttrace.EXIT, "TRACE_SWITCH": hosttrace.SWITCH, "TRACE_INVALIDATE": hosttrace.INVALIDATE,
    "TRACE_INVALIDATED": hosttrace.INVALIDATED, "TRACE_INSTALL": hosttrace.INSTALL,
}  # fmt: skip
EVENTS = [
    Event(300, hosttrace.SWITCH, 25, 256, tid=22),
    Event(500, hosttrace.PAGE_FAULT, 0x1000),
    Event(400, hosttrace.INVALIDATE, 0x2000, 0x3000, tid=22, cpu=1),
]


def test_every_constant_of_the_header_is_the_readers() -> None:
    assert constants(HEADER, "TRACE_") == CONSTANTS


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_every_offset_and_size_is_what_the_compiler_says(tmp_path: Path) -> None:
    assert layout_said(HEADER, STRUCTS, tmp_path) == layout_expected(STRUCTS)


def test_events_come_by_time_whatever_cpu_they_are_of() -> None:
    found = hosttrace.parse(trace_bytes(EVENTS), "x")
    assert found.events["tsc"].tolist() == [300, 400, 500]
    assert found.of(hosttrace.INVALIDATE)[["a", "b", "tid", "cpu"]].tolist() == [(0x2000, 0x3000, 22, 1)]
    assert (found.lost, found.whole_until_tsc) == (0, 1 << 40)


def test_after_a_loss_a_trace_is_whole_until_that_cpus_last_event() -> None:
    found = hosttrace.parse(trace_bytes(EVENTS, lost={1: 7}), "x")
    assert (found.lost, found.whole_until_tsc) == (7, 400)
    nothing = hosttrace.parse(trace_bytes(EVENTS, lost={2: 1}), "x")
    assert (nothing.lost, nothing.whole_until_tsc) == (1, 0)


def test_what_the_probes_missed_could_be_anywhere() -> None:
    found = hosttrace.parse(trace_bytes(EVENTS, missed=2, start_tsc=100), "x")
    assert (found.lost, found.missed, found.whole_until_tsc) == (0, 2, 100)
    whole = hosttrace.parse(trace_bytes(EVENTS), "x")
    assert (whole.missed, whole.whole_until_tsc) == (0, 1 << 40)


def test_a_trace_from_before_misses_were_counted_is_read_and_claims_nothing() -> None:
    found = hosttrace.parse(trace_bytes(EVENTS, version=1), "x")
    assert found.missed is None and found.whole_until_tsc == 1 << 40 and len(found.events) == 3
    with pytest.raises(RecordingError, match="x is of version 3; this tool reads versions 1 and 2"):
        hosttrace.parse(trace_bytes(EVENTS, version=3), "x")


def test_no_events_at_all_is_a_trace() -> None:
    assert len(hosttrace.parse(trace_bytes([]), "x").events) == 0


def test_packed_it_is_the_same_bytes_each_time_and_reads_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(trace_bytes(EVENTS))
        hosttrace.pack(tmp_path / name, tmp_path / f"{name}.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gz", "b.gz"]
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert hosttrace.read(tmp_path / "a.gz").events["tsc"].tolist() == [300, 400, 500]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_is_found(data: st.DataObject) -> None:
    whole = trace_bytes(EVENTS)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(RecordingError):
        hosttrace.parse(whole[:cut], "cut")
    place, flip = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    damaged = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
    with pytest.raises(RecordingError):
        hosttrace.parse(damaged, "damaged")


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="is truncated: it has no trailer"):
        hosttrace.parse(trace_bytes(EVENTS)[:-24], "x")
    with pytest.raises(RecordingError, match="kind that is not known"):
        hosttrace.parse(trace_bytes([Event(1, 9)]), "x")
    with pytest.raises(RecordingError, match="is not a trace"):
        hosttrace.parse(b"ORCHREC1" + trace_bytes(EVENTS)[8:], "x")
    (tmp_path / "x.gz").write_bytes(b"no gzip at all")
    with pytest.raises(RecordingError, match="cannot read the trace"):
        hosttrace.read(tmp_path / "x.gz")
    (tmp_path / "a").write_bytes(trace_bytes(EVENTS))
    hosttrace.pack(tmp_path / "a", tmp_path / "a.gz")
    (tmp_path / "a.gz").write_bytes((tmp_path / "a.gz").read_bytes()[:-9])
    with pytest.raises(RecordingError, match="is damaged"):
        hosttrace.read(tmp_path / "a.gz")
