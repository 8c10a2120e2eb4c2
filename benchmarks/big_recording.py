"""A recording of any size, the same one each time: bimodal, heavy-tailed latencies of several vCPUs under a storm.

Two modes, as where a fault now and then allocates a page table; a Pareto tail; and one fault in 100,000 loses its CPU
for some milliseconds. The figures are plausible and no measurement.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from orchestrator import recording as rec

ARM, CELL = "base", "storm"
VCPUS = 4
TSC_HZ = 3_000_000_000
PIECE = 1 << 20
PAGES = 1 << 20
WINDOWS = 100_000
GAP_CYCLES = 300
START_TSC = 1_000_000_000
MEM_HVA = 0x7F00_0000_0000


def file_bytes(faults: int) -> int:
    """How large the file of so many faults is, about."""
    return faults * rec.FAULT.itemsize + WINDOWS * rec.WINDOW.itemsize + 4096


def write(path: Path, faults: int) -> None:
    """Write a valid recording of ``faults`` faults, a piece at a time."""
    with path.open("wb") as file:
        # The header tells when the last fault ended, and so is known last. Until then its place is kept.
        file.write(bytes(rec.HEADER_BYTES))
        end = START_TSC
        for vcpu in range(VCPUS):
            own = faults // VCPUS + (vcpu < faults % VCPUS)
            section = np.zeros(1, rec.VCPU)
            section["vcpu"], section["tsc_offset"], section["nr_faults"] = vcpu, -(vcpu + 1) * 1_000_000, own
            file.write(section.tobytes())
            tsc = START_TSC + vcpu * 1000
            for index, count in enumerate(pieces(own)):
                piece, tsc = faults_of(vcpu, index, count, tsc)
                file.write(piece.data)
            end = max(end, tsc)
        file.write(windows(end).data)
        file.write(counters(faults).data)
        trailer = np.zeros(1, rec.TRAILER)
        trailer["magic"], trailer["nr_faults"] = rec.TRAILER_MAGIC, faults
        trailer["nr_windows"], trailer["nr_counters"] = WINDOWS, len(counters(faults))
        file.write(trailer.tobytes()[:-4])
        file.seek(0)
        file.write(header(end, len(counters(faults))).tobytes())
    with path.open("r+b") as file:
        crc = 0
        while data := file.read(1 << 23):
            crc = zlib.crc32(data, crc)
        file.write(crc.to_bytes(4, "little"))


def pieces(faults: int) -> Iterator[int]:
    for start in range(0, faults, PIECE):
        yield min(PIECE, faults - start)


def faults_of(vcpu: int, index: int, count: int, tsc: int) -> tuple[np.ndarray, int]:
    """Faults of dtype :data:`FAULT` from host time ``tsc`` on, and when the last had ended."""
    rng = np.random.default_rng([vcpu, index])
    cycles = rng.standard_normal(count, np.float32) * 350 + 15_400
    which = rng.random(count, np.float32)
    cycles[which < 0.28] += 9_000
    tail = np.flatnonzero(which > 0.998)
    cycles[tail] += 20_000 * (1 + rng.pareto(1.8, len(tail)))
    lost = np.flatnonzero(which < 0.00001)
    cycles[lost] += rng.uniform(3e6, 24e6, len(lost))
    whole = cycles.astype(np.uint64)
    begin = tsc + np.cumsum(whole + np.uint64(GAP_CYCLES)).astype(np.int64)
    piece = np.empty(count, rec.FAULT)
    piece["start_tsc"] = begin - whole.astype(np.int64) - (vcpu + 1) * 1_000_000
    page = rng.integers(0, PAGES, count, np.uint64)
    piece["latency_page"] = whole | (page << np.uint64(rec.LATENCY_BITS))
    return piece, int(begin[-1])


def windows(end_tsc: int) -> np.ndarray:
    """A call of 60 us in equal steps, its range outside of the guest's memory."""
    storm = np.zeros(WINDOWS, rec.WINDOW)
    storm["start_tsc"] = np.linspace(START_TSC, end_tsc, WINDOWS).astype(np.uint64)
    storm["end_tsc"] = storm["start_tsc"] + np.uint64(60 * TSC_HZ // 1_000_000)
    storm["hva"], storm["bytes"], storm["op"] = MEM_HVA + (1 << 40), 16 << 20, 1
    return storm


def counters(faults: int) -> np.ndarray:
    found = np.zeros(3, rec.COUNTER)
    found["name"] = [b"exits", b"pf_fixed", b"irq_exits"]
    found["after"] = [faults + faults // 50 + 1000, faults, 1000]
    return found


def header(end_tsc: int, nr_counters: int) -> np.ndarray:
    found = np.zeros(1, rec.HEADER)
    values = {
        "magic": rec.MAGIC, "version": rec.VERSION, "header_bytes": rec.HEADER_BYTES, "arch": 62,
        "flags": rec.FLAG_TDP | rec.FLAG_WRITE | rec.FLAG_RANDOM | rec.FLAG_COUNTERS, "tsc_hz": TSC_HZ, "seed": 1,
        "mem_bytes": PAGES * 4096, "mem_hva": MEM_HVA, "page_bytes": 4096, "rounds": 1, "nr_vcpus": VCPUS,
        "nr_counters": nr_counters, "nr_windows": WINDOWS, "start_tsc": START_TSC, "end_tsc": end_tsc,
        "arm": ARM.encode(), "cell": CELL.encode(),
    }  # fmt: skip
    for name, value in values.items():
        found[name] = value
    return found
