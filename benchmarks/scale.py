"""One large recording, and how fast and in how much memory each contender gets through it: a table.

Every contender is a process of its own (:mod:`benchmarks.contenders`), so that its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.big_recording import file_bytes
from benchmarks.contenders import BLOCK, HDR_DIGITS, HDR_STEP, QUANTILES, Measured

ROOT = Path(__file__).parents[1]
# On top of the recording: samples.parquet, which is somewhat smaller, and something to spare.
ROOM = 2.5
BEGIN, END = "<!-- begin: python -m benchmarks scale -->", "<!-- end -->"
# pandas holds the file, the latencies and their sorted copy.
PANDAS_BYTES_A_FAULT = 56


@dataclass(frozen=True)
class Contender:
    """``name`` in :mod:`benchmarks.contenders`; ``cold``: the file is taken out of the page cache before."""

    name: str
    label: str
    cold: bool = False
    repeat: int = 1


@dataclass(frozen=True)
class Row:
    contender: Contender
    measured: Measured
    peak_bytes: int
    cold: bool


CONTENDERS = (
    Contender("read", "reading the file, no more", cold=True, repeat=5),
    Contender("read", "reading the file, no more", repeat=5),
    Contender("check", "reading it and its CRC", repeat=5),
    Contender("tables", "**percentiles and CCDF**", cold=True, repeat=5),
    Contender("tables", "**percentiles and CCDF**", repeat=5),
    Contender("pandas", f"pandas {version('pandas')}, read and quantile", repeat=5),
    Contender("hdrhistogram", f"HdrHistogram, one fault in {HDR_STEP}", repeat=5),
    Contender("analysis", "whole analysis of the run"),
    Contender("samples", "samples.parquet"),
)


def main(faults: int, folder: Path | None, write: Path | None = None) -> None:
    """Print the table for a recording of ``faults`` faults, made in ``folder`` (default: the system's temporary).

    With ``write``, put it between the marks of that file as well.
    """
    if find_spec("hdrh") is None:
        sys.exit(
            "HdrHistogram's Python package is not installed; `make bench` does that, or: pip install -e '.[bench]'"
        )
    need = int(file_bytes(faults) * ROOM)
    with tempfile.TemporaryDirectory(prefix="orch-scale-", dir=folder) as name:
        free = shutil.disk_usage(name).free
        if free < need:
            sys.exit(f"{name} has {free >> 20} MiB free, {need >> 20} are needed: name another --folder, or --faults")
        path = Path(name) / "trials" / "000" / "recording.bin"
        path.parent.mkdir(parents=True)
        print(f"writing a recording of {faults:,} faults ({faults * 16 / 1e9:.2f} GB) to {path.parent}", flush=True)
        run("generate", path, str(faults))
        rows = []
        for contender in CONTENDERS:
            lacking = memory_lacking(contender, faults)
            if lacking:
                print(f"not run: {contender.label}: {lacking}", flush=True)
            else:
                print(f"running: {contender.label}", flush=True)
                rows.append(compete(contender, path))
    text = "\n".join([*table(rows), "", *about(), "", *notes(rows)])
    print(f"\n{text}")
    if write is not None:
        put(write, text)


def put(path: Path, text: str) -> None:
    before, mark, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        sys.exit(f"{path} has no place for the table: {BEGIN} and {END}, each on a line of its own")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def memory_lacking(contender: Contender, faults: int) -> str:
    if contender.name != "pandas":
        return ""
    need, free = faults * PANDAS_BYTES_A_FAULT, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    return "" if need < free else f"needs {need >> 20} MiB of memory, {free >> 20} are free"


def compete(contender: Contender, path: Path) -> Row:
    """The quickest run, the one that others on the machine disturbed least, and the largest memory of all."""
    found = []
    for _ in range(contender.repeat):
        if contender.cold:
            forget(path)
        else:
            warm(path)
        found.append(run(contender.name, path))
    measured = min((measured for measured, _ in found), key=lambda measured: measured.seconds)
    return Row(contender, measured, max(peak for _, peak in found), measured.disk_bytes > path.stat().st_size * 0.9)


def run(name: str, path: Path, *words: str) -> tuple[Measured, int]:
    """One contender in a process of its own: what it measured, and its peak resident bytes."""
    words = (sys.executable, "-m", "benchmarks.contenders", name, str(path), *words)
    ended = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if ended.returncode != 0:
        sys.exit(f"{name} ended with {ended.returncode}")
    said = json.loads(ended.stdout)
    return Measured(**said["measured"]), said["peak_bytes"]


def forget(path: Path) -> None:
    """Take the file, and no other, out of the page cache; no right is needed for that, but clean pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(path: Path) -> None:
    block = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def about() -> list[str]:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pandas", "hdrhistogram", "pyarrow"))
    return [
        f"{os.cpu_count()} CPUs ({cpu}), load average {os.getloadavg()[0]:.1f} at the end;"
        f" Python {platform.python_version()}, {packages}."
    ]


def table(rows: list[Row]) -> list[str]:
    """Markdown that reads well as text."""
    heads = [
        "what",
        "from",
        "faults",
        "s",
        "CPU s",
        "M faults/s",
        "peak MiB",
        *(name.replace("_", ".") for name in QUANTILES),
    ]
    cells = [heads]
    for row in rows:
        found = row.measured
        cells.append([
            row.contender.label, "disk" if row.cold else "cache", f"{found.faults:,}", f"{found.seconds:.2f}",
            f"{found.cpu_seconds:.2f}",
            f"{found.faults / found.seconds / 1e6:.1f}", f"{row.peak_bytes / (1 << 20):.0f}",
            *(f"{found.ns[name]:,.0f}" if name in found.ns else "" for name in QUANTILES),
        ])  # fmt: skip
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    justify = [str.ljust, str.ljust, *[str.rjust] * (len(heads) - 2)]
    lines = [
        "| " + " | ".join(pad(cell, width) for pad, cell, width in zip(justify, line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "| " + " | ".join(("-" * (w - 1) + ":" if i > 1 else "-" * w) for i, w in enumerate(widths)) + " |"
    return [lines[0], rule, *lines[1:]]


def notes(rows: list[Row]) -> list[str]:
    """Agreement of the quantiles, and what was read from where."""
    named = {row.contender.name: row for row in rows}
    ours, lines = named["tables"].measured.ns, []
    for name in ("pandas", "analysis"):
        if name in named:
            same = all(named[name].measured.ns[quantile] == value for quantile, value in ours.items())
            lines.append(f"- {named[name].contender.label}: {'the same quantiles' if same else 'OTHER quantiles'}.")
    histogram = named["hdrhistogram"].measured
    errors = ", ".join(
        f"{name.replace('_', '.')} {histogram.ns[name] / exact - 1:+.3%}" for name, exact in histogram.exact_ns.items()
    )
    lines.append(
        f"- HdrHistogram ({HDR_DIGITS} significant digits) against the exact quantiles of the same"
        f" {histogram.faults:,} faults: {errors}. Reading the file is not in its time."
    )
    if any(row.contender.cold and not row.cold for row in rows):
        lines.append("- The page cache could not be emptied of the file: no line is the disk's speed.")
    return lines
