"""Writes valid traces, byte for byte as ``guests/include/trace.h`` lays them out."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator import hosttrace

VCPU_TID, STORM_TID = 25, 22


@dataclass(frozen=True)
class Event:
    """One event; see ``trace_event`` in the header for ``a`` and ``b``."""

    tsc: int
    kind: int
    a: int = 0
    b: int = 0
    tid: int = VCPU_TID
    cpu: int = 0


def trace_bytes(
    events: Sequence[Event],
    *,
    lost: Mapping[int, int] | None = None,
    missed: int = 0,
    version: int = hosttrace.VERSION,
    start_tsc: int = 0,
    end_tsc: int = 1 << 40,
) -> bytes:
    """A trace of CPUs 0 to the highest that is named; ``lost`` is how many events a CPU lost."""
    lost = lost or {}
    cpus = np.zeros(max([0, *lost, *(event.cpu for event in events)]) + 1, hosttrace.CPU)
    rows = np.zeros(len(events), hosttrace.EVENT)
    for row, event in zip(rows, sorted(events, key=lambda event: event.cpu), strict=True):
        for name in ("tsc", "kind", "a", "b", "tid", "cpu"):
            row[name] = getattr(event, name)
    for number, cpu in enumerate(cpus):
        cpu["cpu"], cpu["nr_events"], cpu["nr_lost"] = number, (rows["cpu"] == number).sum(), lost.get(number, 0)
    header = np.zeros(1, hosttrace.HEADER)
    header["magic"], header["version"] = hosttrace.MAGIC, version
    header["header_bytes"], header["buffer_bytes"] = hosttrace.HEADER_BYTES, 64 << 20
    header["start_tsc"], header["end_tsc"] = start_tsc, end_tsc
    header["nr_missed"] = missed
    trailer = np.zeros(1, hosttrace.TRAILER)
    trailer["magic"], trailer["nr_events"], trailer["nr_cpus"] = hosttrace.TRAILER_MAGIC, len(rows), len(cpus)
    data = header.tobytes() + rows.tobytes() + cpus.tobytes() + trailer.tobytes()[:-4]
    return data + zlib.crc32(data).to_bytes(4, "little")
