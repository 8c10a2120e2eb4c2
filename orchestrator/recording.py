"""The binary recording that a trial leaves: the one reader.

The format is defined by ``guests/include/recording.h``; ``tests/unit/test_recording.py`` parses that header and holds
every constant, offset and size here against it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import RecordingError

MAGIC = 0x314345524843524F
TRAILER_MAGIC = 0x31444E454843524F
VERSION = 1
HEADER_BYTES = 256
LATENCY_BITS = 40
FLAG_TDP, FLAG_WRITE, FLAG_RANDOM, FLAG_COUNTERS = 1, 2, 4, 8
ARCHES = {62: "x86_64"}
OPS = {1: "madv_dontneed", 2: "madv_free", 3: "madv_pageout", 4: "munmap", 5: "mprotect", 6: "mremap"}

HEADER = np.dtype(
    [
        ("magic", "<u8"), ("version", "<u4"), ("header_bytes", "<u4"), ("arch", "<u4"), ("flags", "<u4"),
        ("tsc_hz", "<u8"), ("seed", "<u8"), ("mem_bytes", "<u8"), ("mem_hva", "<u8"), ("mem_gpa", "<u8"),
        ("page_bytes", "<u4"), ("rounds", "<u4"), ("nr_vcpus", "<u4"), ("nr_counters", "<u4"),
        ("nr_windows", "<u8"), ("start_tsc", "<u8"), ("end_tsc", "<u8"),
        ("arm", "S32"), ("cell", "S96"), ("reserved", "S24"),
    ]
)  # fmt: skip
VCPU = np.dtype([("vcpu", "<u4"), ("reserved", "<u4"), ("tsc_offset", "<i8"), ("nr_faults", "<u8")])
FAULT = np.dtype([("start_tsc", "<u8"), ("latency_page", "<u8")])
WINDOW = np.dtype(
    [("start_tsc", "<u8"), ("end_tsc", "<u8"), ("hva", "<u8"), ("bytes", "<u8"), ("op", "<u4"), ("thread", "<u4")]
)
COUNTER = np.dtype([("name", "S24"), ("before", "<u8"), ("after", "<u8")])
TRAILER = np.dtype(
    [("magic", "<u8"), ("nr_faults", "<u8"), ("nr_windows", "<u8"), ("nr_counters", "<u4"), ("crc32", "<u4")]
)


@dataclass(frozen=True)
class Header:
    """What the trial was; times in TSC cycles of the host (the kernel under test), sizes in bytes."""

    version: int
    arch: str
    arm: str
    cell: str
    seed: int
    tsc_hz: int
    tdp: bool
    write: bool
    random: bool
    has_counters: bool
    mem_bytes: int
    mem_hva: int
    mem_gpa: int
    page_bytes: int
    rounds: int
    nr_vcpus: int
    start_tsc: int
    end_tsc: int


@dataclass(frozen=True)
class Counter:
    """One of KVM's statistics (``pf_fixed``, ``exits`` …) before and after the measured rounds."""

    name: str
    before: int
    after: int

    @property
    def delta(self) -> int:
        return self.after - self.before


@dataclass(frozen=True)
class Recording:
    """A complete, checked recording.

    Arrays over faults have one entry a fault, vCPU by vCPU, in the order in which they happened:
    ``start_tsc`` (u64, *host* clock: the vCPU's TSC offset is taken off), ``latency_cycles`` (u64), ``page`` (u32,
    index in units of ``page_bytes``), ``vcpu`` (u32). ``windows`` is a structured array of dtype :data:`WINDOW`.
    """

    header: Header
    start_tsc: NDArray[np.uint64]
    latency_cycles: NDArray[np.uint64]
    page: NDArray[np.uint32]
    vcpu: NDArray[np.uint32]
    windows: NDArray[np.void]
    counters: tuple[Counter, ...]

    def latency_ns(self) -> NDArray[np.float64]:
        """Latency of every fault in nanoseconds."""
        return self.latency_cycles.astype(np.float64) * (1e9 / self.header.tsc_hz)

    def since_start_ns(self, tsc: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Host TSC values as nanoseconds since the measured rounds began (negative before)."""
        return (tsc.astype(np.int64) - self.header.start_tsc).astype(np.float64) * (1e9 / self.header.tsc_hz)

    def counter(self, name: str) -> int | None:
        """How far a KVM statistic moved, or None where the kernel does not offer it."""
        return next((counter.delta for counter in self.counters if counter.name == name), None)


def read(path: Path) -> Recording:
    """Read and check one recording.

    Raises :class:`RecordingError` for a file that is truncated, damaged (CRC), of an unknown version, or not a
    recording at all.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"cannot read the recording {path}: {error.strerror}") from error
    return parse(data, str(path))


def parse(data: bytes, name: str) -> Recording:
    """:func:`read` on bytes; ``name`` stands for the file in messages."""
    header, raw = _header(data, name)
    cursor = _Cursor(data, HEADER_BYTES, name)
    tscs, latencies, pages, vcpus = [], [], [], []
    for _ in range(header.nr_vcpus):
        section = cursor.take(VCPU, 1, "a vCPU's section")[0]
        faults = cursor.take(FAULT, int(section["nr_faults"]), "faults")
        host_tsc = faults["start_tsc"].astype(np.int64) - np.int64(section["tsc_offset"])
        tscs.append(host_tsc.astype(np.uint64))
        latencies.append(faults["latency_page"] & np.uint64((1 << LATENCY_BITS) - 1))
        pages.append((faults["latency_page"] >> np.uint64(LATENCY_BITS)).astype(np.uint32))
        vcpus.append(np.full(len(faults), section["vcpu"], np.uint32))
    windows = cursor.take(WINDOW, int(raw["nr_windows"]), "storm windows")
    counters = cursor.take(COUNTER, int(raw["nr_counters"]), "counters")
    _trailer(cursor, sum(map(len, tscs)), len(windows), len(counters))
    return Recording(
        header,
        np.concatenate([*tscs, np.empty(0, np.uint64)]),
        np.concatenate([*latencies, np.empty(0, np.uint64)]),
        np.concatenate([*pages, np.empty(0, np.uint32)]),
        np.concatenate([*vcpus, np.empty(0, np.uint32)]),
        windows,
        tuple(Counter(_text(row["name"]), int(row["before"]), int(row["after"])) for row in counters),
    )


@dataclass
class _Cursor:
    """A place in the bytes that refuses to read past their end."""

    data: bytes
    offset: int
    name: str

    def take(self, dtype: np.dtype[np.void], count: int, what: str) -> NDArray[np.void]:
        need = dtype.itemsize * count
        left = len(self.data) - self.offset
        if need > left:
            raise RecordingError(
                f"{self.name} is truncated: {count} {what} need {need} bytes at offset {self.offset}, {left} are left"
            )
        array = np.frombuffer(self.data, dtype, count, self.offset)
        self.offset += need
        return array


def _header(data: bytes, name: str) -> tuple[Header, np.void]:
    if len(data) < HEADER_BYTES:
        raise RecordingError(f"{name} is truncated: {len(data)} bytes, the header alone has {HEADER_BYTES}")
    raw = np.frombuffer(data, HEADER, 1)[0]
    if raw["magic"] != MAGIC:
        raise RecordingError(f"{name} is not a recording: magic {int(raw['magic']):#018x}")
    if raw["version"] != VERSION or raw["header_bytes"] != HEADER_BYTES:
        raise RecordingError(
            f"{name} is of version {int(raw['version'])} (header of {int(raw['header_bytes'])} bytes); this tool reads"
            f" version {VERSION} ({HEADER_BYTES} bytes)"
        )
    if int(raw["arch"]) not in ARCHES or raw["tsc_hz"] == 0:
        raise RecordingError(f"{name}: architecture {int(raw['arch'])}, TSC at {int(raw['tsc_hz'])} Hz: not usable")
    flags = int(raw["flags"])
    numbers = {
        field: int(raw[field])
        for field in (
            "version", "seed", "tsc_hz", "mem_bytes", "mem_hva", "mem_gpa", "page_bytes", "rounds", "nr_vcpus",
            "start_tsc", "end_tsc",
        )
    }  # fmt: skip
    header = Header(
        arch=ARCHES[int(raw["arch"])],
        arm=_text(raw["arm"]),
        cell=_text(raw["cell"]),
        tdp=bool(flags & FLAG_TDP),
        write=bool(flags & FLAG_WRITE),
        random=bool(flags & FLAG_RANDOM),
        has_counters=bool(flags & FLAG_COUNTERS),
        **numbers,
    )
    return header, raw


def _trailer(cursor: _Cursor, nr_faults: int, nr_windows: int, nr_counters: int) -> None:
    start = cursor.offset
    trailer = cursor.take(TRAILER, 1, "trailer")[0]
    if cursor.offset != len(cursor.data):
        raise RecordingError(f"{cursor.name}: {len(cursor.data) - cursor.offset} bytes after the trailer")
    if trailer["magic"] != TRAILER_MAGIC:
        raise RecordingError(f"{cursor.name} is damaged: no trailer at offset {start}")
    crc = zlib.crc32(cursor.data[:-4])
    if int(trailer["crc32"]) != crc:
        raise RecordingError(
            f"{cursor.name} is damaged: CRC-32 {crc:#010x}, the trailer says {int(trailer['crc32']):#010x}"
        )
    counts = (int(trailer["nr_faults"]), int(trailer["nr_windows"]), int(trailer["nr_counters"]))
    if counts != (nr_faults, nr_windows, nr_counters):
        raise RecordingError(
            f"{cursor.name} is damaged: the trailer counts {counts}, found {(nr_faults, nr_windows, nr_counters)}"
        )


def _text(raw: bytes) -> str:
    return bytes(raw).rstrip(b"\0").decode("utf-8", "replace")
