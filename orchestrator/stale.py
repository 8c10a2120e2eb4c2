"""What one boot of ``stale_check`` leaves: the one reader.

The format is defined by ``guests/include/stale.h``; ``tests/unit/test_stale.py`` parses that header and holds every
constant, offset and size here against it. What the rounds mean is judged in :mod:`orchestrator.analysis.stale`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator.errors import RecordingError
from orchestrator.experiment import StaleCase, StaleOp

MAGIC = 0x314C54534843524F
TRAILER_MAGIC = 0x31444E45454C5453
VERSION = 1
HEADER_BYTES = 256
MAX_CHECKED = 8
FLAG_TDP, FLAG_HUGE = 1, 2
PASSED, BLOCKED, LATE, FAULT_HOLE = 1, 2, 4, 8
HOLE = 0xFFFFFFFFFFFFFFFF
TAG, TAG_MASK, TAG_ROUND_SHIFT = 0x5441470000000000, 0xFFFFFF0000000000, 24

CASES: Mapping[int, StaleCase] = {
    1: "inside", 2: "inside-first", 3: "end-edge", 4: "start-edge", 5: "far", 6: "two", 7: "completed",
    8: "short-inside", 9: "short-end", 10: "short-start", 11: "straddle",
    12: "two-second",
}  # fmt: skip
OPS: Mapping[int, StaleOp] = {1: "madvise", 2: "munmap", 3: "mremap", 4: "mprotect"}

HEADER = np.dtype(
    [
        ("magic", "<u8"), ("version", "<u4"), ("header_bytes", "<u4"), ("flags", "<u4"), ("nr_rounds", "<u4"),
        ("tsc_hz", "<u8"), ("seed", "<u8"), ("range_pages", "<u4"), ("kick_us", "<u4"), ("mem_gpa", "<u8"),
        ("mem_hva", "<u8"), ("arm", "S32"), ("cell", "S96"), ("reserved", "S64"),
    ]
)  # fmt: skip
ROUND = np.dtype(
    [
        ("round", "<u4"), ("kind", "<u2"), ("op", "<u2"), ("flags", "<u4"), ("fault_page", "<u4"),
        ("range_page", "<u4"), ("range_pages", "<u4"), ("checked_page", "<u4"), ("nr_checked", "<u4"),
        ("wake_ns", "<u8"), ("second_ns", "<u8"), ("post_tsc", "<u8"), ("start_tsc", "<u8"), ("end_tsc", "<u8"),
        ("second_start_tsc", "<u8"), ("second_end_tsc", "<u8"), ("enter_tsc", "<u8"), ("leave_tsc", "<u8"),
        ("exits", "<u8"), ("fixed", "<u8"), ("found", "<u8", (MAX_CHECKED,)),
    ]
)  # fmt: skip
TRAILER = np.dtype([("magic", "<u8"), ("nr_rounds", "<u4"), ("crc32", "<u4")])

Ending = Literal["passed", "hole", "blocked", "late"]
ENDINGS: Mapping[int, Ending] = {PASSED: "passed", PASSED | FAULT_HOLE: "hole", BLOCKED: "blocked", LATE: "late"}


@dataclass(frozen=True)
class StalePage:
    """A page that the guest could still read after its invalidation had returned. ``page`` counts in the memslot."""

    page: int
    content: int


@dataclass(frozen=True)
class Round:
    """One round's facts. Times are ns after the invalidator was told to start; ``second`` is (start, end) or None.

    ``ending`` is how the guest's access ended while the invalidation was to be in progress: it ``passed``; it ended
    in a ``hole`` (EFAULT); the kernel retried until the kick (``blocked``); or it slept and says nothing (``late``).
    ``retries`` are faults meanwhile that installed no mapping and were taken again, None if they were not counted.
    """

    case: StaleCase
    op: StaleOp
    round: int
    ending: Ending
    fault_page: int
    range_page: int
    range_pages: int
    wake_ns: int
    second_ns: int
    start_ns: float
    end_ns: float
    second: tuple[float, float] | None
    enter_ns: float
    leave_ns: float
    retries: int | None
    stale: tuple[StalePage, ...]


@dataclass(frozen=True)
class StaleRecording:
    """A complete, checked result of one boot."""

    arm: str
    cell: str
    seed: int
    tdp: bool
    page: Literal["4k", "2m"]
    range_pages: int
    kick_us: int
    rounds: tuple[Round, ...]

    def find(self, case: StaleCase, op: StaleOp, number: int) -> Round | None:
        """One round, or None if there is none such."""
        wanted = (case, op, number)
        return next((item for item in self.rounds if (item.case, item.op, item.round) == wanted), None)


def read(path: Path) -> StaleRecording:
    """Read and check one result.

    Raises :class:`RecordingError` for a file that is truncated, damaged (CRC), of an unknown version, or of another
    kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"cannot read the result {path}: {error.strerror}") from error
    return parse(data, str(path))


def parse(data: bytes, name: str) -> StaleRecording:
    """:func:`read` on bytes; ``name`` stands for the file in messages."""
    header = _header(data, name)
    count = int(header["nr_rounds"])
    expected = HEADER_BYTES + count * ROUND.itemsize + TRAILER.itemsize
    if len(data) != expected:
        how = "is truncated" if len(data) < expected else "is too long"
        raise RecordingError(f"{name} {how}: {count} rounds make {expected} bytes, found {len(data)}")
    trailer = np.frombuffer(data, TRAILER, 1, expected - TRAILER.itemsize)[0]
    crc = zlib.crc32(data[:-4])
    if trailer["magic"] != TRAILER_MAGIC or int(trailer["crc32"]) != crc or int(trailer["nr_rounds"]) != count:
        raise RecordingError(f"{name} is damaged: its trailer does not fit its {count} rounds (CRC-32 {crc:#010x})")
    rows = np.frombuffer(data, ROUND, count, HEADER_BYTES)
    flags = int(header["flags"])
    return StaleRecording(
        arm=_text(header["arm"]),
        cell=_text(header["cell"]),
        seed=int(header["seed"]),
        tdp=bool(flags & FLAG_TDP),
        page="2m" if flags & FLAG_HUGE else "4k",
        range_pages=int(header["range_pages"]),
        kick_us=int(header["kick_us"]),
        rounds=tuple(_round(row, int(header["tsc_hz"]), name) for row in rows),
    )


def _header(data: bytes, name: str) -> np.void:
    if len(data) < HEADER_BYTES:
        raise RecordingError(f"{name} is truncated: {len(data)} bytes, the header alone has {HEADER_BYTES}")
    header: np.void = np.frombuffer(data, HEADER, 1)[0]
    if header["magic"] != MAGIC:
        raise RecordingError(f"{name} is no result of stale_check: magic {int(header['magic']):#018x}")
    if header["version"] != VERSION or header["header_bytes"] != HEADER_BYTES or header["tsc_hz"] == 0:
        raise RecordingError(
            f"{name} is of version {int(header['version'])}, TSC at {int(header['tsc_hz'])} Hz; this tool reads version"
            f" {VERSION}"
        )
    return header


def _round(row: np.void, tsc_hz: int, name: str) -> Round:
    number = {field: int(row[field]) for field in ROUND.names or () if field != "found"}
    known = number["kind"] in CASES and number["op"] in OPS and number["flags"] in ENDINGS
    if not known or number["nr_checked"] > MAX_CHECKED:
        raise RecordingError(f"{name}: a round of case {number['kind']}, op {number['op']}, flags {number['flags']}")

    def after_post(field: str) -> float:
        return (number[field] - number["post_tsc"]) * 1e9 / tsc_hz

    found = [int(content) for content in row["found"][: number["nr_checked"]]]
    return Round(
        case=CASES[number["kind"]],
        op=OPS[number["op"]],
        round=number["round"],
        ending=ENDINGS[number["flags"]],
        fault_page=number["fault_page"],
        range_page=number["range_page"],
        range_pages=number["range_pages"],
        wake_ns=number["wake_ns"],
        second_ns=number["second_ns"],
        start_ns=after_post("start_tsc"),
        end_ns=after_post("end_tsc"),
        second=(after_post("second_start_tsc"), after_post("second_end_tsc")) if number["second_start_tsc"] else None,
        enter_ns=after_post("enter_tsc"),
        leave_ns=after_post("leave_tsc"),
        # One exit is neither: the guest's OUT or, into a hole, the fault that failed for good.
        retries=number["exits"] - number["fixed"] - 1 if number["exits"] else None,
        stale=tuple(
            StalePage(number["checked_page"] + index, content)
            for index, content in enumerate(found)
            if content not in (0, HOLE)
        ),
    )


def _text(raw: bytes) -> str:
    return bytes(raw).rstrip(b"\0").decode("utf-8", "replace")
