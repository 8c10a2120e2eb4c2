"""The binary recording that a trial leaves: the one reader.

The format is defined by ``guests/include/recording.h``; ``tests/unit/test_recording.py`` parses that header and holds
every constant, offset and size here against it.
"""

from __future__ import annotations

import io
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

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
# 1 MiB of file: a piece and what is made of it stay in a core's cache, and what Python does around numpy's and zlib's
# loops is still little beside them.
CHUNK_FAULTS = 1 << 16
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

    @property
    def ns_per_cycle(self) -> float:
        return 1e9 / self.tsc_hz


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
class Faults:
    """Faults of one vCPU that follow one another, in the order in which they happened.

    ``first`` is the index of the first of them among all of that vCPU's. Arrays have shape (len(self),) and are made
    when they are asked for, so that a pass over latencies alone does not pay for the rest.
    """

    vcpu: int
    first: int
    tsc_offset: int
    raw: NDArray[np.void]

    def __len__(self) -> int:
        return len(self.raw)

    @cached_property
    def start_tsc(self) -> NDArray[np.uint64]:
        """When each access began, on the *host's* clock: the vCPU's TSC offset is taken off, modulo 2^64."""
        start: NDArray[np.uint64] = self.raw["start_tsc"] - np.uint64(self.tsc_offset % (1 << 64))
        return start

    @cached_property
    def latency_cycles(self) -> NDArray[np.uint64]:
        """Below 2^40."""
        cycles: NDArray[np.uint64] = self.raw["latency_page"] & np.uint64((1 << LATENCY_BITS) - 1)
        return cycles

    @cached_property
    def page(self) -> NDArray[np.uint32]:
        """Which page, in units of ``page_bytes``."""
        return (self.raw["latency_page"] >> np.uint64(LATENCY_BITS)).astype(np.uint32)


@dataclass(frozen=True)
class Recording:
    """A complete recording: all of it but the faults, which each :meth:`chunks` reads from the file again.

    ``windows`` is a structured array of dtype :data:`WINDOW`.
    """

    name: str
    header: Header
    nr_faults: int
    windows: NDArray[np.void]
    counters: tuple[Counter, ...]
    _layout: _Layout = field(repr=False)

    def chunks(self, faults: int = CHUNK_FAULTS) -> Iterator[Faults]:
        """Every fault, vCPU by vCPU, at most ``faults`` at a time. Four such pieces are in memory at once, 16 bytes a
        fault each, besides the arrays that the caller makes of them.

        Reading and the CRC run ahead in a thread of their own. Raises :class:`RecordingError` *at the end* if the
        file's CRC is not the trailer's: only then may be used what was computed from the pieces.
        """
        with self._layout.open() as file:
            reader = _Reader(file, self.name)
            for span, raw in _ahead(reader.load, self._layout.spans(faults)):
                if span.section is not None:
                    yield Faults(span.section.vcpu, span.first, span.section.tsc_offset, raw.view(FAULT))
        self._right(reader)

    def check(self) -> Recording:
        """This recording itself, its CRC found right; else :class:`RecordingError`.

        In this thread alone: between the pieces there is nothing to do that could run beside their reading.
        """
        with self._layout.open() as file:
            reader = _Reader(file, self.name)
            for span in self._layout.spans(CHUNK_FAULTS):
                reader.load(span)
        return self._right(reader)

    def _right(self, reader: _Reader) -> Recording:
        said = self._layout.crc32
        if reader.crc != said:
            raise RecordingError(f"{self.name} is damaged: CRC-32 {reader.crc:#010x}, the trailer says {said:#010x}")
        return self

    def ns(self, cycles: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Cycles as nanoseconds."""
        return cycles.astype(np.float64) * self.header.ns_per_cycle

    def since_start_ns(self, tsc: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Host TSC values as nanoseconds since the measured rounds began (negative before)."""
        return (tsc.astype(np.int64) - self.header.start_tsc).astype(np.float64) * self.header.ns_per_cycle

    def counter(self, name: str) -> int | None:
        """How far a KVM statistic moved, or None where the kernel does not offer it."""
        return next((counter.delta for counter in self.counters if counter.name == name), None)


def read(path: Path) -> Recording:
    """Read and check one recording; its faults are looked at for their CRC and not kept.

    Raises :class:`RecordingError` for a file that is truncated, damaged (CRC), of an unknown version, or not a
    recording at all.
    """
    return skim(path).check()


def skim(path: Path) -> Recording:
    """:func:`read` without the CRC, which then is found right or wrong by the first :meth:`Recording.chunks`."""
    return _structure(lambda: _open(path), str(path))


def parse(data: bytes, name: str) -> Recording:
    """:func:`read` on bytes; ``name`` stands for the file in messages."""
    return _structure(lambda: io.BytesIO(data), name).check()


_File = io.FileIO | io.BytesIO
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class _Section:
    """Where one vCPU's faults are in the file."""

    vcpu: int
    tsc_offset: int
    offset: int
    size: int


@dataclass(frozen=True)
class _Span:
    """Bytes that are read together: some of a vCPU's faults from its ``first`` on, or what is between them (None)."""

    offset: int
    size: int
    section: _Section | None = None
    first: int = 0


@dataclass(frozen=True)
class _Layout:
    """``end`` is where the CRC is, which covers all bytes before it."""

    open: Callable[[], _File]
    sections: tuple[_Section, ...]
    end: int
    crc32: int

    def spans(self, faults: int) -> Iterator[_Span]:
        """All bytes up to the CRC, in order and without a gap."""
        step, place = faults * FAULT.itemsize, 0
        for section in self.sections:
            yield _Span(place, section.offset - place)
            place = section.offset + section.size
            for offset in range(section.offset, place, step):
                first = (offset - section.offset) // FAULT.itemsize
                yield _Span(offset, min(step, place - offset), section, first)
        for offset in range(place, self.end, step):
            yield _Span(offset, min(step, self.end - offset))


@dataclass
class _Reader:
    """Reads spans one after another and keeps the CRC of all so far."""

    file: _File
    name: str
    crc: int = 0

    def load(self, span: _Span) -> NDArray[np.uint8]:
        raw = np.empty(span.size, np.uint8)
        try:
            got = self.file.readinto(raw.data)
        except OSError as error:
            raise RecordingError(f"cannot read the recording {self.name}: {error.strerror}") from error
        if got != span.size:
            raise RecordingError(f"{self.name} was truncated while it was read, at offset {span.offset + (got or 0)}")
        self.crc = zlib.crc32(raw.data, self.crc)
        return raw


def _ahead(work: Callable[[_Item], _Made], items: Iterable[_Item]) -> Iterator[tuple[_Item, _Made]]:
    """Each item with what ``work`` makes of it, in order, worked on in one thread up to two items ahead.

    Reading and zlib's CRC leave Python's lock to the caller meanwhile.
    """
    left = iter(items)
    with ThreadPoolExecutor(1) as pool:
        waiting = deque((item, pool.submit(work, item)) for item in islice(left, 2))
        while waiting:
            item, made = waiting.popleft()
            result = made.result()
            waiting.extend((following, pool.submit(work, following)) for following in islice(left, 1))
            yield item, result


def _open(path: Path) -> io.FileIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise RecordingError(f"cannot read the recording {path}: {error.strerror}") from error


def _structure(opened: Callable[[], _File], name: str) -> Recording:
    with opened() as file:
        cursor = _Cursor(file, file.seek(0, io.SEEK_END), name)
        header, raw = _header(cursor)
        sections = []
        for _ in range(header.nr_vcpus):
            row = cursor.take(VCPU, 1, "a vCPU's section")[0]
            offset, count = cursor.offset, int(row["nr_faults"])
            cursor.skip(FAULT, count, "faults")
            sections.append(_Section(int(row["vcpu"]), int(row["tsc_offset"]), offset, count * FAULT.itemsize))
        windows = cursor.take(WINDOW, int(raw["nr_windows"]), "storm windows")
        counters = cursor.take(COUNTER, int(raw["nr_counters"]), "counters")
        nr_faults = sum(section.size for section in sections) // FAULT.itemsize
        crc32 = _trailer(cursor, nr_faults, len(windows), len(counters))
    return Recording(
        name,
        header,
        nr_faults,
        windows,
        tuple(Counter(_text(row["name"]), int(row["before"]), int(row["after"])) for row in counters),
        _Layout(opened, tuple(sections), cursor.size - 4, crc32),
    )


@dataclass
class _Cursor:
    """A place in the file that refuses to go past its end."""

    file: _File
    size: int
    name: str
    offset: int = 0

    def take(self, dtype: np.dtype[np.void], count: int, what: str) -> NDArray[np.void]:
        start = self.offset
        self.skip(dtype, count, what)
        self.file.seek(start)
        data = self.file.read(self.offset - start)
        if len(data) != self.offset - start:
            raise RecordingError(f"{self.name} was truncated while it was read, at offset {start + len(data)}")
        return np.frombuffer(data, dtype, count)

    def skip(self, dtype: np.dtype[np.void], count: int, what: str) -> None:
        need, left = dtype.itemsize * count, self.size - self.offset
        if need > left:
            raise RecordingError(
                f"{self.name} is truncated: {count} {what} need {need} bytes at offset {self.offset}, {left} are left"
            )
        self.offset += need


def _header(cursor: _Cursor) -> tuple[Header, np.void]:
    name = cursor.name
    raw = cursor.take(HEADER, 1, "header")[0]
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


def _trailer(cursor: _Cursor, nr_faults: int, nr_windows: int, nr_counters: int) -> int:
    """The CRC that the trailer gives, its counts compared with what was found."""
    start = cursor.offset
    trailer = cursor.take(TRAILER, 1, "trailer")[0]
    if cursor.offset != cursor.size:
        raise RecordingError(f"{cursor.name}: {cursor.size - cursor.offset} bytes after the trailer")
    if trailer["magic"] != TRAILER_MAGIC:
        raise RecordingError(f"{cursor.name} is damaged: no trailer at offset {start}")
    counts = (int(trailer["nr_faults"]), int(trailer["nr_windows"]), int(trailer["nr_counters"]))
    if counts != (nr_faults, nr_windows, nr_counters):
        raise RecordingError(
            f"{cursor.name} is damaged: the trailer counts {counts}, found {(nr_faults, nr_windows, nr_counters)}"
        )
    return int(trailer["crc32"])


def _text(raw: bytes) -> str:
    return bytes(raw).rstrip(b"\0").decode("utf-8", "replace")
