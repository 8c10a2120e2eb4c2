"""The trace that a traced boot leaves: the one reader.

The format is defined by ``guests/include/trace.h``; ``tests/unit/test_hosttrace.py`` parses that header and holds every
constant, offset and size here against it. What the events mean for a fault is worked out in
:mod:`orchestrator.analysis.traced`.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import RecordingError

PACKED = "trace.bin.gz"  # how a trace is kept with its trial: about a seventh of what the target brought back

MAGIC = 0x314352544843524F
TRAILER_MAGIC = 0x31444E4543525454
VERSION = 2
WITHOUT_MISSED = 1  # the version that does not say what the probes missed
HEADER_BYTES = 64
PAGE_FAULT, EXIT, SWITCH, INVALIDATE, INVALIDATED, INSTALL = 1, 2, 3, 4, 5, 6

HEADER = np.dtype(
    [
        ("magic", "<u8"), ("version", "<u4"), ("header_bytes", "<u4"), ("buffer_bytes", "<u8"), ("start_tsc", "<u8"),
        ("end_tsc", "<u8"), ("nr_missed", "<u8"), ("reserved", "S16"),
    ]
)  # fmt: skip
EVENT = np.dtype([("tsc", "<u8"), ("a", "<u8"), ("b", "<u8"), ("tid", "<u4"), ("cpu", "<u2"), ("kind", "<u2")])
CPU = np.dtype([("cpu", "<u4"), ("reserved", "<u4"), ("nr_events", "<u8"), ("nr_lost", "<u8")])
TRAILER = np.dtype([("magic", "<u8"), ("nr_events", "<u8"), ("nr_cpus", "<u4"), ("crc32", "<u4")])


@dataclass(frozen=True)
class Trace:
    """A whole file, checked. Times are TSC cycles of the host, the recording's clock.

    ``events`` is a structured array of dtype :data:`EVENT`, by time; what ``a`` and ``b`` are depends on ``kind``.
    ``lost`` events did not fit a CPU's buffer of ``buffer_bytes``: what is here is then all that happened before
    ``whole_until_tsc``, and not all that happened after. Without losses that is the end. ``missed`` invalidations began
    or ended without their probe, at a time that nobody knows: with any, nothing is whole. None in a trace that does not
    say (version 1).
    """

    buffer_bytes: int
    start_tsc: int
    end_tsc: int
    events: NDArray[np.void]
    lost: int
    missed: int | None
    whole_until_tsc: int

    def of(self, kind: int) -> NDArray[np.void]:
        """The events of one kind, by time."""
        found: NDArray[np.void] = self.events[self.events["kind"] == kind]
        return found


def pack(raw: Path, packed: Path) -> None:
    """Compress what the target brought back; the same bytes make the same file. ``raw`` is gone afterwards."""
    with packed.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as out:
        out.write(raw.read_bytes())
    raw.unlink()


def read(path: Path) -> Trace:
    """Read and check one trace, compressed (``.gz``) or as the target brought it back.

    Raises :class:`RecordingError` for a file that is truncated, damaged (CRC), of an unknown version, or no trace.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except OSError as error:
        raise RecordingError(f"cannot read the trace {path}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise RecordingError(f"the trace {path} is damaged: {error}") from error
    return parse(data, str(path))


def parse(data: bytes, name: str) -> Trace:
    """:func:`read` on bytes; ``name`` stands for the file in messages."""
    header = _header(data, name)
    cpus, events = _body(data, name)
    counted = {int(cpu["cpu"]): int(cpu["nr_events"]) for cpu in cpus}
    found = {int(cpu): int((events["cpu"] == cpu).sum()) for cpu in np.unique(events["cpu"])}
    if {cpu: count for cpu, count in counted.items() if count} != found:
        raise RecordingError(f"{name} is damaged: events by CPU {found}, the file says {counted}")
    if not np.isin(events["kind"], range(PAGE_FAULT, INSTALL + 1)).all():
        raise RecordingError(f"{name} holds an event of a kind that is not known")
    missed = int(header["nr_missed"]) if header["version"] != WITHOUT_MISSED else None
    until = int(header["start_tsc" if missed else "end_tsc"])
    for cpu in cpus[cpus["nr_lost"] > 0]:
        own = events["tsc"][events["cpu"] == cpu["cpu"]]
        until = min(until, int(own.max()) if len(own) else 0)
    return Trace(
        buffer_bytes=int(header["buffer_bytes"]),
        start_tsc=int(header["start_tsc"]),
        end_tsc=int(header["end_tsc"]),
        events=events[np.argsort(events["tsc"], kind="stable")],
        lost=int(cpus["nr_lost"].sum()),
        missed=missed,
        whole_until_tsc=until,
    )


def _header(data: bytes, name: str) -> np.void:
    if len(data) < HEADER_BYTES + TRAILER.itemsize:
        raise RecordingError(f"{name} is truncated: {len(data)} bytes")
    header: np.void = np.frombuffer(data, HEADER, 1)[0]
    if header["magic"] != MAGIC:
        raise RecordingError(f"{name} is not a trace: magic {int(header['magic']):#018x}")
    if header["version"] not in (WITHOUT_MISSED, VERSION) or header["header_bytes"] != HEADER_BYTES:
        read = f"{WITHOUT_MISSED} and {VERSION}"
        raise RecordingError(f"{name} is of version {int(header['version'])}; this tool reads versions {read}")
    return header


def _body(data: bytes, name: str) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """CPUs and events, after length, counts and CRC were found right."""
    trailer = np.frombuffer(data, TRAILER, 1, len(data) - TRAILER.itemsize)[0]
    if trailer["magic"] != TRAILER_MAGIC:
        raise RecordingError(f"{name} is truncated: it has no trailer")
    nr_events, nr_cpus = int(trailer["nr_events"]), int(trailer["nr_cpus"])
    expected = HEADER_BYTES + nr_events * EVENT.itemsize + nr_cpus * CPU.itemsize + TRAILER.itemsize
    if len(data) != expected:
        raise RecordingError(f"{name} is damaged: {nr_events} events make {expected} bytes, found {len(data)}")
    crc = zlib.crc32(memoryview(data)[:-4])
    if int(trailer["crc32"]) != crc:
        raise RecordingError(f"{name} is damaged: CRC-32 {crc:#010x}, the trailer says {int(trailer['crc32']):#010x}")
    events = np.frombuffer(data, EVENT, nr_events, HEADER_BYTES)
    return np.frombuffer(data, CPU, nr_cpus, HEADER_BYTES + nr_events * EVENT.itemsize), events
