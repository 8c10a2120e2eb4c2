"""Writes valid results of stale_check, byte for byte as ``guests/include/stale.h`` lays them out."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator import stale
from orchestrator.experiment import StaleCase, StaleOp
from orchestrator.stale import Ending

TSC_HZ = 2_000_000_000
POST_TSC = 50_000_000
KINDS = {case: kind for kind, case in stale.CASES.items()}
OPS = {op: number for number, op in stale.OPS.items()}
FLAGS = {ending: flags for flags, ending in stale.ENDINGS.items()}


@dataclass(frozen=True)
class Planted:
    """One round. Times in ns after the post; ``found`` are the contents of the checked pages."""

    case: StaleCase
    enter_ns: int
    ending: Ending = "passed"
    found: Sequence[int] = (0, 0, 0, 0, 0)
    op: StaleOp = "madvise"
    round: int = 0
    start_ns: int = 60_000
    end_ns: int | None = None
    second: tuple[int, int] = (0, 0)
    exits: int = 0
    fixed: int = 1
    wake_ns: int = 60_000
    checked_page: int = field(default=1032)

    def row(self) -> np.void:
        row = np.zeros(1, stale.ROUND)[0]
        leave_ns = self.enter_ns + (2_000_000 if self.ending == "blocked" else 8_000)
        row["round"], row["kind"], row["op"] = self.round, KINDS[self.case], OPS[self.op]
        row["flags"], row["fault_page"], row["range_page"], row["range_pages"] = FLAGS[self.ending], 1037, 11, 1026
        row["checked_page"], row["nr_checked"], row["wake_ns"] = self.checked_page, len(self.found), self.wake_ns
        row["post_tsc"] = POST_TSC
        end_ns = leave_ns + 500_000 if self.end_ns is None else self.end_ns
        for name, at_ns in (
            ("start_tsc", self.start_ns), ("end_tsc", end_ns), ("enter_tsc", self.enter_ns), ("leave_tsc", leave_ns),
        ):  # fmt: skip
            row[name] = tsc(at_ns)
        if self.second != (0, 0):
            row["second_ns"] = self.second[0]
            row["second_start_tsc"], row["second_end_tsc"] = tsc(self.second[0]), tsc(self.second[1])
        row["exits"], row["fixed"] = self.exits, self.fixed
        row["found"][: len(self.found)] = self.found
        return row


def tsc(at_ns: int) -> int:
    return POST_TSC + at_ns * TSC_HZ // 1_000_000_000


def result_bytes(
    rounds: Sequence[Planted], *, arm: str = "base", cell: str = "stale-mapping,tdp=on,page=4k", tdp: bool = True,
    page: str = "4k", version: int = stale.VERSION,
) -> bytes:  # fmt: skip
    """A whole file of these rounds."""
    header = np.zeros(1, stale.HEADER)[0]
    header["magic"], header["version"], header["header_bytes"] = stale.MAGIC, version, stale.HEADER_BYTES
    header["flags"] = (stale.FLAG_TDP if tdp else 0) | (stale.FLAG_HUGE if page == "2m" else 0)
    header["nr_rounds"], header["tsc_hz"], header["seed"] = len(rounds), TSC_HZ, 7
    header["range_pages"], header["kick_us"] = 1026, 2000
    header["arm"], header["cell"] = arm.encode(), cell.encode()
    trailer = np.zeros(1, stale.TRAILER)[0]
    trailer["magic"], trailer["nr_rounds"] = stale.TRAILER_MAGIC, len(rounds)
    body = header.tobytes() + b"".join(item.row().tobytes() for item in rounds) + trailer.tobytes()[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")
