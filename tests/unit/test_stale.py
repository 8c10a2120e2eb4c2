"""The reader of stale_check's results against the C header, and against every kind of damage."""

from __future__ import annotations

import re
import shutil
import zlib
from pathlib import Path

import pytest
from cheader import constants, layout_expected, layout_said
from hypothesis import given, settings
from hypothesis import strategies as st
from stalefile import Planted, result_bytes

from orchestrator import stale
from orchestrator.errors import RecordingError
from orchestrator.stale import StalePage

GUESTS = Path(__file__).parents[2] / "guests"
HEADER = GUESTS / "include" / "stale.h"
STRUCTS = {"stale_header": stale.HEADER, "stale_round": stale.ROUND, "stale_trailer": stale.TRAILER}
CONSTANTS = {
    "STALE_MAGIC": stale.MAGIC, "STALE_TRAILER_MAGIC": stale.TRAILER_MAGIC, "STALE_VERSION": stale.VERSION,
    "STALE_HEADER_BYTES": stale.HEADER_BYTES, "STALE_MAX_CHECKED": stale.MAX_CHECKED,
    "STALE_FLAG_TDP": stale.FLAG_TDP, "STALE_FLAG_HUGE": stale.FLAG_HUGE, "STALE_PASSED": stale.PASSED,
    "STALE_BLOCKED": stale.BLOCKED, "STALE_LATE": stale.LATE, "STALE_FAULT_HOLE": stale.FAULT_HOLE,
    "STALE_HOLE": stale.HOLE, "STALE_TAG": stale.TAG, "STALE_TAG_MASK": stale.TAG_MASK,
    "STALE_TAG_ROUND_SHIFT": stale.TAG_ROUND_SHIFT,
    **{f"STALE_CASE_{name.upper().replace('-', '_')}": number for number, name in stale.CASES.items()},
    **{f"STALE_OP_{name.upper()}": number for number, name in stale.OPS.items()},
}  # fmt: skip
TAG = stale.TAG | 0x13 << 32 | 1032


def small() -> bytes:
    return result_bytes(
        [
            Planted("inside", 100_000, "blocked"),
            Planted("end-edge", 101_000, "passed", (TAG, 0, stale.HOLE, 0, TAG + 4), round=3),
            Planted("two", 300_000, "hole", (), second=(120_000, 900_000), op="munmap"),
        ]
    )


def test_every_constant_of_the_header_is_the_readers() -> None:
    assert constants(HEADER, "STALE_") == CONSTANTS


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_every_offset_and_size_is_what_the_compiler_says(tmp_path: Path) -> None:
    assert layout_said(HEADER, STRUCTS, tmp_path) == layout_expected(STRUCTS)


def test_the_guest_program_knows_the_cases_and_operations_by_the_same_names() -> None:
    text = (GUESTS / "stale_check" / "cases.c").read_text()
    cases = re.findall(r'\.name = "([\w-]+)", \.kind = STALE_CASE_(\w+)', text)
    ops = re.findall(r'\.name = "(\w+)", \.op = STALE_OP_(\w+)', text)
    assert [name for name, _ in cases] == list(stale.CASES.values())
    assert [name for name, _ in ops] == list(stale.OPS.values())
    assert all(constant == name.upper().replace("-", "_") for name, constant in [*cases, *ops])


def test_reads_back_what_was_written() -> None:
    found = stale.parse(small(), "x")
    assert (found.arm, found.cell, found.tdp, found.page) == ("base", "stale-mapping,tdp=on,page=4k", True, "4k")
    assert (found.range_pages, found.kick_us, found.seed) == (1026, 2000, 7)
    inside, edge, two = found.rounds
    assert (inside.case, inside.ending, inside.stale, inside.second, inside.retries) == (
        "inside",
        "blocked",
        (),
        None,
        None,
    )
    assert (inside.start_ns, inside.enter_ns, inside.leave_ns) == (60_000, 100_000, 2_100_000)
    assert edge.stale == (StalePage(1032, TAG), StalePage(1036, TAG + 4))  # A zero and a hole are what must be there.
    assert (two.ending, two.op, two.second, two.second_ns) == ("hole", "munmap", (120_000, 900_000), 120_000)


def test_finds_one_round() -> None:
    found = stale.parse(small(), "x")
    assert found.find("end-edge", "madvise", 3) is found.rounds[1]
    assert found.find("end-edge", "madvise", 0) is None and found.find("end-edge", "munmap", 3) is None


def test_no_cut_is_taken_for_a_result() -> None:
    whole = small()
    for length in range(len(whole)):
        with pytest.raises(RecordingError, match="truncated"):
            stale.parse(whole[:length], "x")
    with pytest.raises(RecordingError, match="too long"):
        stale.parse(whole + b"\0", "x")


def test_no_flipped_byte_goes_unseen() -> None:
    whole = small()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        with pytest.raises(RecordingError):
            stale.parse(bytes(damaged), "x")


@settings(max_examples=200)
@given(st.binary(max_size=800))
def test_any_bytes_are_an_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(RecordingError):
        stale.parse(data, "x")


@pytest.mark.parametrize("field, value", [("kind", 13), ("op", 0), ("flags", 3), ("nr_checked", 9)])
def test_a_round_that_nobody_can_have_written_is_refused(field: str, value: int) -> None:
    """Its CRC is right: a guest program of another version, not damage."""
    data = bytearray(small())
    offset = stale.HEADER_BYTES + stale.ROUND.fields[field][1]
    size = stale.ROUND.fields[field][0].itemsize
    data[offset : offset + size] = value.to_bytes(size, "little")
    data[-4:] = zlib.crc32(bytes(data[:-4])).to_bytes(4, "little")
    with pytest.raises(RecordingError, match="a round of case"):
        stale.parse(bytes(data), "x")


def test_another_version_is_refused() -> None:
    with pytest.raises(RecordingError, match="of version 2"):
        stale.parse(result_bytes([], version=2), "x")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="cannot read"):
        stale.read(tmp_path / "none")
