"""Every sample of a run in one Parquet file, for other tools: one row a fault.

A trial has a row group of its own, or several of at most :data:`GROUP_ROWS` rows if it is larger than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.analysis.attribution import KINDS, Sorter
from orchestrator.analysis.measure import skim_checked
from orchestrator.experiment import Experiment
from orchestrator.recording import Faults, Recording
from orchestrator.results import Outcome, TrialResult

GROUP_ROWS = 1 << 20
_NAME = pa.dictionary(pa.int32(), pa.string())
# start_ns is on the host's clock since the measured rounds began; page is an index in units of page_bytes; seq
# counts the faults of one vCPU; storm is none, unrelated or needed, window the index of the window in the recording or
# -1, windows how many overlap the fault (analysis/attribution.py).
SCHEMA = pa.schema(
    [
        ("trial", _NAME), ("arm", _NAME), ("cell", _NAME), ("boot", pa.uint32()), ("vcpu", pa.uint32()),
        ("seq", pa.uint32()), ("start_ns", pa.float64()), ("latency_ns", pa.float64()), ("page", pa.uint32()),
        ("storm", _NAME), ("window", pa.int32()), ("windows", pa.uint16()),
    ]
)  # fmt: skip
# Columns that hardly repeat are not looked up in a dictionary, and those that go up step by step are kept as steps:
# half the bytes and half the time of the writer's own choice.
STEPS, HARDLY_REPEAT = ("seq", "page"), ("seq", "page", "start_ns")


def write_samples(experiment: Experiment, results: Sequence[TrialResult], trials: Path, path: Path) -> Path:
    """Write the samples of all ``ok`` trials to ``path``, one row group in memory at a time, and return it.

    The file appears under its name only when it is whole. Raises :class:`RecordingError` for a recording that is
    damaged, or of another arm or cell.
    """
    partial = path.with_name(path.name + ".part")
    placements = {cell.name: cell.storm.placement if cell.storm else "" for cell in experiment.cells}
    try:
        with _writer(partial) as writer:
            for result in results:
                if result.outcome is Outcome.OK and result.cell in placements:
                    for table in _row_groups(result, trials, placements[result.cell]):
                        writer.write_table(table)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _writer(path: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        SCHEMA,
        compression="zstd",
        use_dictionary=[name for name in SCHEMA.names if name not in HARDLY_REPEAT],
        column_encoding=dict.fromkeys(STEPS, "DELTA_BINARY_PACKED"),
    )


def _row_groups(result: TrialResult, trials: Path, placement: str) -> Iterator[pa.Table]:
    found = skim_checked(result, trials)
    sorter = Sorter(found, placement)
    waiting: list[pa.Table] = []
    for faults in found.chunks():
        if sum(map(len, waiting)) + len(faults) > GROUP_ROWS and waiting:
            yield pa.concat_tables(waiting)
            waiting = []
        waiting.append(_table(result, found, faults, sorter))
    yield pa.concat_tables(waiting)


def _table(result: TrialResult, found: Recording, faults: Faults, sorter: Sorter) -> pa.Table:
    count = len(faults)
    met = sorter.meet(faults)
    columns = {
        "trial": _constant(result.id, count),
        "arm": _constant(result.arm, count),
        "cell": _constant(result.cell, count),
        "boot": np.full(count, result.boot, np.uint32),
        "vcpu": np.full(count, faults.vcpu, np.uint32),
        "seq": np.arange(faults.first, faults.first + count, dtype=np.uint32),
        "start_ns": found.since_start_ns(faults.start_tsc),
        "latency_ns": found.ns(faults.latency_cycles),
        "page": faults.page,
        "storm": pa.DictionaryArray.from_arrays(met.kind.astype(np.int32), list(KINDS)),
        "window": sorter.windows(faults, met),
        "windows": met.count.astype(np.uint16),
    }
    return pa.table(columns, schema=SCHEMA)


def _constant(value: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [value])
