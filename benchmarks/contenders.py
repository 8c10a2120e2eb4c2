"""What is measured on one large recording, each in a process of its own: ``python -m benchmarks.contenders NAME FILE``.

Each prints one line of JSON: :class:`Measured`, and its peak of memory. The seconds begin after the imports and end
with the result.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from orchestrator import recording as rec
from orchestrator.analysis import curves, latency
from orchestrator.analysis.model import Latency
from orchestrator.analysis.tally import Tally, passes, pick, tally

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
BLOCK = 1 << 20
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "max": 1.0}
HDR_STEP = 100  # record_value() takes most of a microsecond: every hundredth fault
HDR_DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Measured:
    """``cpu_seconds`` are of all threads; ``disk_bytes`` is what the kernel read from a disk meanwhile.

    ``ns`` has latencies by quantile, if asked for, and ``exact_ns`` the nearest-rank ones of the same faults where not
    all were taken.
    """

    faults: int
    seconds: float
    cpu_seconds: float
    disk_bytes: int
    ns: dict[str, float] = dataclasses.field(default_factory=dict)
    exact_ns: dict[str, float] = dataclasses.field(default_factory=dict)


def read(path: Path) -> int:
    """The file's bytes and nothing else: what no reader can beat."""
    block = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass
    return rec.skim(path).nr_faults


def tables(path: Path) -> Latency:
    """The percentile table and the CCDF of a recording, its CRC checked, as the analysis makes them."""
    found, counted = rec.skim(path), Tally()
    for faults in found.chunks():
        counted.add(faults.latency_cycles)
    counts, to_ns = counted.counts(), found.header.ns_per_cycle
    again = partial(tally, found)
    at_ranks_ns = pick(curves.ranks(found.nr_faults), passes(counts, again)) * to_ns
    if curves.ccdf(found.nr_faults, at_ranks_ns).y[0] != 1:
        raise AssertionError("all faults take at least as long as the quickest")
    return latency.summarise(passes(counts, again), found.nr_faults, counted.cycles, to_ns)


def with_pandas(path: Path) -> dict[str, float]:
    """The same quantiles as a person with pandas would get them: all of the file in memory, then quantile()."""
    import pandas as pd

    header = np.fromfile(path, rec.HEADER, 1)[0]
    parts = []
    with path.open("rb") as file:
        file.seek(rec.HEADER_BYTES)
        for _ in range(header["nr_vcpus"]):
            count = np.fromfile(file, rec.VCPU, 1)[0]["nr_faults"]
            parts.append(pd.DataFrame(np.fromfile(file, rec.FAULT, count)))
    frame = pd.concat(parts, ignore_index=True)
    cycles = frame["latency_page"] & ((1 << rec.LATENCY_BITS) - 1)
    found = cycles.quantile(list(QUANTILES.values()), interpolation="lower")
    to_ns = 1e9 / int(header["tsc_hz"])
    return {name: float(value) * to_ns for name, value in zip(QUANTILES, found, strict=True)}


def with_hdrhistogram(path: Path) -> Measured:
    """HdrHistogram's Python package on every :data:`HDR_STEP`-th fault. Reading the file is not in its time."""
    from hdrh.histogram import HdrHistogram

    found = rec.skim(path)
    taken = np.concatenate([faults.latency_cycles[::HDR_STEP].copy() for faults in found.chunks()])
    values = taken.tolist()
    started, cpu = time.perf_counter(), time.process_time()
    histogram = HdrHistogram(1, (1 << rec.LATENCY_BITS) - 1, HDR_DIGITS)
    for value in values:
        histogram.record_value(value)
    got = {name: histogram.get_value_at_percentile(quantile * 100) for name, quantile in QUANTILES.items()}
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    taken.sort()
    ranks = {name: max(0, int(np.ceil(quantile * len(taken) - 1e-9)) - 1) for name, quantile in QUANTILES.items()}
    to_ns = found.header.ns_per_cycle
    return Measured(
        len(taken),
        seconds,
        cpu_seconds,
        0,
        {name: value * to_ns for name, value in got.items()},
        {name: float(taken[rank]) * to_ns for name, rank in ranks.items()},
    )


def analysis(path: Path) -> Latency:
    """The whole analysis of a run of this one trial: tables, curves, attribution, timeline, verdicts."""
    from orchestrator.analysis.analyse import analyse

    experiment, results = one_trial(path)
    found = analyse(experiment, results, [], path.parents[1], run="bench", accel="local", planned=1).comparison
    measured = found.summaries[0].latency
    if measured is None or found.summaries[0].faults != rec.skim(path).nr_faults:
        raise AssertionError("the trial was not analysed")
    return measured


def samples(path: Path) -> int:
    """samples.parquet of that run."""
    from orchestrator.analysis.samples import write_samples

    experiment, results = one_trial(path)
    write_samples(experiment, results, path.parents[1], path.parents[1] / "samples.parquet")
    return rec.skim(path).nr_faults


def one_trial(path: Path):  # type: ignore[no-untyped-def]
    """An experiment of one cell and arm, and the result of its one trial, whose recording ``path`` is."""
    from orchestrator.experiment import Arm, TargetSpec, load
    from orchestrator.results import Outcome, TrialResult

    header = rec.skim(path).header
    experiment = load(CONFIG)
    (cell, *_) = (cell for cell in experiment.cells if cell.storm and cell.storm.placement == "outside")
    only = dataclasses.replace(
        experiment,
        arms=(Arm(header.arm, ()),),
        cells=(dataclasses.replace(cell, name=header.cell),),
        target=TargetSpec(kind="local", accel="auto"),
    )
    result = TrialResult(
        id=path.parent.name, arm=header.arm, cell=header.cell, boot=0, block=0, seed=1, outcome=Outcome.OK, reason="",
        trace=(), warnings=(), boot_seconds=0.0, wall_seconds=0.0, recording_sha256="", rerun="",
    )  # fmt: skip
    return only, (result,)


def generate(path: Path, faults: int) -> int:
    """Write the recording."""
    from benchmarks import big_recording

    big_recording.write(path, faults)
    return faults


def disk_bytes() -> int:
    """What this process has had read from disks so far (proc(5), /proc/pid/io); 0 where the kernel does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), 0)


def peak_bytes() -> int:
    """The most memory that this process has had resident (proc(5), VmHWM).

    Not getrusage()'s ru_maxrss, which a program inherits from the process that started it (exec_mmap() of the kernel
    keeps the larger of the two).
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def measure(work: Callable[[], int | Latency | dict[str, float] | Measured], path: Path) -> Measured:
    before, cpu, started = disk_bytes(), time.process_time(), time.perf_counter()
    made = work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    if isinstance(made, Measured):
        return made
    faults = made if isinstance(made, int) else rec.skim(path).nr_faults
    ns = dataclasses.asdict(made) if isinstance(made, Latency) else made if isinstance(made, dict) else {}
    shown = {name: ns[name] for name in QUANTILES if name in ns}
    return Measured(faults, seconds, cpu_seconds, disk_bytes() - before, shown)


CONTENDERS = {
    "read": read, "check": lambda path: rec.read(path).nr_faults, "tables": tables, "pandas": with_pandas,
    "hdrhistogram": with_hdrhistogram, "analysis": analysis, "samples": samples,
}  # fmt: skip


def main(name: str, file: str, faults: str = "0") -> None:
    path = Path(file)
    if name == "generate":
        found = measure(lambda: generate(path, int(faults)), path)
    else:
        found = measure(lambda: CONTENDERS[name](path), path)
    print(json.dumps({"measured": dataclasses.asdict(found), "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
