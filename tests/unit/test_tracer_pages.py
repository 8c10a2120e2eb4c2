"""guests/tracer/pages.c: pages of the kernel's ring buffer, built by hand, good and damaged."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator import hosttrace

GUESTS = Path(__file__).parents[2] / "guests"
PADDING, EXTEND, STAMP = 29, 30, 31
PAGE = 4096
# The harness knows one event of id 7 (page fault: u64 at 8, signed 32 bits at 16), and the INVALIDATE of id 9.
HARNESS = """
#include <unistd.h>
#include "common.h"
#include "tracer.h"
int main(void)
{
    static uint8_t page[4096];
    static struct trace_event events[MAX_PAGE_EVENTS];
    struct event_type types[NR_KINDS] = {
        [TRACE_PAGE_FAULT] = { .id = 7, .tid = { 4, 4, true }, .a = { 8, 8, false }, .b = { 16, 4, true } },
        [TRACE_INVALIDATE] = { .id = 9, .tid = { 4, 4, true }, .word = { 8, 8, false }, .a = { 16, 8, false },
                               .b = { 24, 8, false } },
    };
    ssize_t bytes = read(0, page, sizeof(page));
    size_t count = page_decode(page, bytes, 3, types, events);

    return fwrite(events, sizeof(events[0]), count, stdout) != count;
}
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("harness")
    (folder / "harness.c").write_text(HARNESS)
    sources = [folder / "harness.c", GUESTS / "tracer/pages.c"]
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    include = [f"-I{GUESTS / name}" for name in ("include", "tracer")]
    subprocess.run(["gcc", *flags, *include, "-o", folder / "harness", *sources], check=True)
    return folder / "harness"


@dataclass(frozen=True)
class Decoded:
    events: list[tuple[int, ...]]
    error: str


def decode(harness: Path, data: bytes, *, stamp: int = 1 << 40, commit: int | None = None) -> Decoded:
    page = struct.pack("<QQ", stamp, len(data) if commit is None else commit) + data
    done = subprocess.run([harness], input=page.ljust(PAGE, b"\0"), capture_output=True, check=False)
    if done.returncode:
        return Decoded([], done.stderr.decode())
    return Decoded([event[:6] for event in struct.iter_unpack("<QQQIHH", done.stdout)], "")


def record(payload: bytes, delta: int, *, long: bool = False) -> bytes:
    """An event with its header; a long one has its length in a word of its own."""
    assert len(payload) % 4 == 0
    if long:
        return struct.pack("<II", delta << 5, len(payload) + 4) + payload
    return struct.pack("<I", len(payload) // 4 | delta << 5) + payload


def fault(address: int, code: int, tid: int = 25) -> bytes:
    return struct.pack("<HBBiQiI", 7, 0, 0, tid, address, code, 0)


def invalidate(*words: int) -> bytes:
    return struct.pack("<HBBi3Q", 9, 0, 0, 22, *words)


def test_times_add_up_from_the_pages_own(harness: Path) -> None:
    found = decode(harness, record(fault(0x1000, 6), 0) + record(fault(0x2000, -2), 500, long=True))
    start = 1 << 40
    assert found.events == [
        (start, 0x1000, 6, 25, 3, hosttrace.PAGE_FAULT),
        (start + 500, 0x2000, 2**64 - 2, 25, 3, hosttrace.PAGE_FAULT),
    ]


def test_a_long_pause_is_a_time_of_its_own(harness: Path) -> None:
    pause = 3 << 27 | 99
    words = struct.pack("<II", EXTEND | (pause & (1 << 27) - 1) << 5, pause >> 27)
    found = decode(harness, record(fault(1, 1), 10) + words + record(fault(2, 2), 0))
    assert [event[0] - (1 << 40) for event in found.events] == [10, 10 + pause]


def test_an_absolute_time_lacks_its_upper_bits(harness: Path) -> None:
    """59 bits: the 5 above are those of the page (the kernel's rb_fix_abs_ts())."""
    stamp, absolute = 5 << 59 | 1000, 123456789012345
    words = struct.pack("<II", STAMP | (absolute & (1 << 27) - 1) << 5, absolute >> 27)
    found = decode(harness, words + record(fault(1, 1), 7), stamp=stamp)
    assert found.events[0][0] == (5 << 59 | absolute) + 7


def test_other_events_and_discarded_ones_are_passed_over_but_their_time_counts(harness: Path) -> None:
    unknown = record(struct.pack("<HBBi", 1234, 0, 0, 1) + bytes(16), 100)
    discarded = struct.pack("<II", PADDING | 40 << 5, 12) + bytes(8)
    found = decode(harness, unknown + discarded + record(fault(1, 1), 2))
    assert [(event[0] - (1 << 40), event[1]) for event in found.events] == [(142, 1)]


def test_the_rest_of_a_page_may_be_empty(harness: Path) -> None:
    found = decode(harness, record(fault(1, 1), 1) + struct.pack("<II", PADDING, 0) + b"\xff" * 40)
    assert len(found.events) == 1


def test_bits_above_the_length_are_not_length(harness: Path) -> None:
    data = record(fault(1, 1), 1)
    assert len(decode(harness, data, commit=len(data) | 3 << 30).events) == 1


def test_the_range_is_behind_two_pointers_or_one(harness: Path) -> None:
    """struct mmu_notifier_range of 5.10 (vma, mm, start, end) and of 6.3 (mm, start, end, flags)."""
    old = decode(harness, record(invalidate(0xFFFF888000000000, 0x1000, 0x3000), 0))
    new = decode(harness, record(invalidate(0x1000, 0x3000, 5), 0))
    assert old.events[0][1:4] == new.events[0][1:4] == (0x1000, 0x3000, 22)


@pytest.mark.parametrize(
    ("data", "commit", "said"),
    [
        (record(fault(1, 1), 1), 5000, "a page of the ring buffer holds 5016 bytes, 4096 were read"),
        (struct.pack("<II", 0, 4000), None, "an event of 4000 bytes leads out of its page"),
        (struct.pack("<I", 28), None, "an event of 112 bytes leads out of its page"),
        (record(struct.pack("<HBBi", 7, 0, 0, 1), 1), None, "a field at 8, 8 bytes, in an event of 8"),
    ],
)
def test_damage_is_an_error_and_reads_nothing_outside(
    harness: Path, data: bytes, commit: int | None, said: str
) -> None:
    found = decode(harness, data, commit=commit)
    assert said in found.error and "AddressSanitizer" not in found.error


def test_a_page_full_of_the_smallest_events_fits(harness: Path) -> None:
    smallest = record(struct.pack("<HBBi", 1234, 0, 0, 1), 1)
    assert decode(harness, smallest * ((PAGE - 16) // len(smallest))) == Decoded([], "")
