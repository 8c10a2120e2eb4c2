"""The reader against the C header, and against every kind of damage."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import simulate
from cheader import constants, layout_expected, layout_said
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import recording as rec
from orchestrator.errors import RecordingError

HEADER = Path(__file__).parents[2] / "guests" / "include" / "recording.h"
STRUCTS = {
    "rec_header": rec.HEADER, "rec_vcpu": rec.VCPU, "rec_fault": rec.FAULT, "rec_window": rec.WINDOW,
    "rec_counter": rec.COUNTER, "rec_trailer": rec.TRAILER,
}  # fmt: skip
CONSTANTS = {
    "REC_MAGIC": rec.MAGIC, "REC_TRAILER_MAGIC": rec.TRAILER_MAGIC, "REC_VERSION": rec.VERSION,
    "REC_HEADER_BYTES": rec.HEADER_BYTES, "REC_LATENCY_BITS": rec.LATENCY_BITS, "REC_PAGE_BITS": 64 - rec.LATENCY_BITS,
    "REC_FLAG_TDP": rec.FLAG_TDP, "REC_FLAG_WRITE": rec.FLAG_WRITE, "REC_FLAG_RANDOM": rec.FLAG_RANDOM,
    "REC_FLAG_COUNTERS": rec.FLAG_COUNTERS,
    **{f"REC_ARCH_{name.upper()}": number for number, name in rec.ARCHES.items()},
    **{f"REC_OP_{name.upper()}": number for number, name in rec.OPS.items()},
}  # fmt: skip


def small() -> bytes:
    return simulate.recording_bytes(
        latencies=[np.array([9000, 10_000], np.uint64), np.array([11_000], np.uint64)],
        windows=[(1_000_100, 1_002_000, simulate.MEM_HVA, 4096)],
        counters={"exits": 5, "pf_fixed": 3},
    )


def test_every_constant_of_the_header_is_the_readers() -> None:
    assert constants(HEADER, "REC_") == CONSTANTS


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_every_offset_and_size_is_what_the_compiler_says(tmp_path: Path) -> None:
    assert layout_said(HEADER, STRUCTS, tmp_path) == layout_expected(STRUCTS)


def test_the_header_has_no_struct_or_field_that_the_reader_misses() -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    structs = dict(re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.DOTALL | re.MULTILINE))
    fields = {name: tuple(re.findall(r"(\w+)(?:\[\d+\])?;", body)) for name, body in structs.items()}
    assert fields == {name: dtype.names for name, dtype in STRUCTS.items()}


def test_reads_back_what_was_written() -> None:
    found = rec.parse(small(), "x")
    assert (found.header.arm, found.header.cell, found.header.nr_vcpus) == ("base", "quiet", 2)
    assert found.header.has_counters and found.header.tdp and found.header.write and not found.header.random
    first, second = found.chunks()
    assert (first.latency_cycles.tolist(), second.latency_cycles.tolist()) == ([9000, 10_000], [11_000])
    assert found.ns(first.latency_cycles).tolist() == [4500.0, 5000.0]
    assert (first.vcpu, first.first, second.vcpu, second.first, found.nr_faults) == (0, 0, 1, 0, 3)
    assert (first.page.tolist(), second.page.tolist()) == ([0, 1], [0])
    assert (first.start_tsc.tolist(), second.start_tsc.tolist()) == ([1_000_000, 1_009_400], [1_000_000])
    assert found.since_start_ns(first.start_tsc).tolist() == [0.0, 4700.0]
    assert found.windows["end_tsc"].tolist() == [1_002_000]
    assert (found.counter("exits"), found.counter("pf_fixed"), found.counter("pf_taken")) == (5, 3, None)


def test_no_fault_and_no_vcpu_are_complete_recordings() -> None:
    for latencies in ([], [np.empty(0, np.uint64)]):
        found = rec.parse(simulate.recording_bytes(latencies=latencies), "x")
        assert found.nr_faults == 0 and list(found.chunks()) == []


COUNTS = st.lists(st.integers(0, 40), max_size=4)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(1, 45), st.integers(-(1 << 40), 1 << 40))
def test_pieces_of_any_size_are_the_whole(counts: list[int], size: int, tsc_offset: int) -> None:
    rng = np.random.default_rng([7, *counts])
    latencies = [rng.integers(0, 1 << rec.LATENCY_BITS, count, np.uint64) for count in counts]
    data = simulate.recording_bytes(latencies=latencies, pages=7, tsc_offset=tsc_offset, windows=[(1, 2, 3, 4)] * 50)
    found = rec.parse(data, "x")
    pieces = list(found.chunks(size))
    assert all(0 < len(piece) <= size for piece in pieces)
    for vcpu, cycles in enumerate(latencies):
        own = [piece for piece in pieces if piece.vcpu == vcpu]
        assert [piece.first for piece in own] == list(range(0, len(cycles), size))
        joined = [value for piece in own for value in piece.latency_cycles.tolist()]
        assert joined == cycles.tolist()
        begun = [value for piece in own for value in piece.start_tsc.tolist()]
        assert begun == [1_000_000 + sum(cycles[:at].tolist()) + at * simulate.GAP_CYCLES for at in range(len(cycles))]
        assert [value for piece in own for value in piece.page.tolist()] == [at % 7 for at in range(len(cycles))]


def test_a_pass_over_the_faults_ends_in_the_crc(tmp_path: Path) -> None:
    """Skimmed, a damaged latency is not noticed, and its piece is given out; but the pass does not end well."""
    path = tmp_path / "recording.bin"
    broken = bytearray(small())
    broken[rec.HEADER_BYTES + rec.VCPU.itemsize + 8] ^= 1
    path.write_bytes(broken)
    seen = []
    with pytest.raises(RecordingError, match=r"recording\.bin is damaged: CRC-32 0x"):
        for faults in rec.skim(path).chunks():
            seen += faults.latency_cycles.tolist()
    assert seen == [9001, 10_000, 11_000]
    with pytest.raises(RecordingError, match="CRC-32"):
        rec.read(path)


def test_a_file_that_shrinks_between_two_passes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recording.bin"
    path.write_bytes(small())
    found = rec.read(path)
    path.write_bytes(small()[:-60])
    with pytest.raises(RecordingError, match=r"recording\.bin was truncated while it was read, at offset \d+"):
        list(found.chunks())
    path.unlink()
    with pytest.raises(RecordingError, match=r"cannot read the recording .*No such file"):
        list(found.chunks())


def test_a_pass_given_up_half_way_leaves_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "recording.bin"
    path.write_bytes(simulate.recording_bytes(latencies=[np.full(1000, 5, np.uint64)]))
    before = threading.enumerate()
    pieces = rec.read(path).chunks(10)
    assert len(next(pieces)) == 10
    (reader,) = (thread for thread in threading.enumerate() if thread not in before)
    pieces.close()  # type: ignore[attr-defined]
    assert not reader.is_alive()


def test_cut_at_every_byte_is_an_error_that_says_so() -> None:
    data = small()
    for length in range(len(data)):
        with pytest.raises(RecordingError, match=r"truncated|damaged"):
            rec.parse(data[:length], "x")


def test_every_flipped_byte_is_an_error() -> None:
    data = small()
    for place in range(len(data)):
        for bit in (0x01, 0x80, 0xFF):
            broken = bytearray(data)
            broken[place] ^= bit
            with pytest.raises(RecordingError):
                rec.parse(bytes(broken), "x")


def test_bytes_after_the_trailer_are_an_error() -> None:
    with pytest.raises(RecordingError, match="1 bytes after the trailer"):
        rec.parse(small() + b"\0", "x")


def test_an_unknown_version_is_named() -> None:
    with pytest.raises(RecordingError, match=r"version 2 .* reads version 1"):
        rec.parse(simulate.recording_bytes(version=2), "x")


def test_another_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="not a recording"):
        rec.parse(b"\x7fELF" + bytes(400), "x")
    with pytest.raises(RecordingError, match=r"cannot read .*nothing\.bin: No such file"):
        rec.read(tmp_path / "nothing.bin")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=700))
def test_noise_is_never_anything_but_a_recording_error(noise: bytes) -> None:
    with pytest.raises(RecordingError):
        rec.parse(noise, "x")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_behind_a_good_magic_is_never_anything_but_a_recording_error(data: st.DataObject) -> None:
    broken = bytearray(small())
    # Counts and sizes are where a reader would run off: overwrite a few bytes anywhere after the magic.
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(8, len(broken) - 8))
        piece = data.draw(st.binary(min_size=1, max_size=8))
        broken[place : place + len(piece)] = piece
    if bytes(broken) != small():
        with pytest.raises(RecordingError):
            rec.parse(bytes(broken), "x")
