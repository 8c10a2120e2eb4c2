"""Every sample of a run in one Parquet file, for other tools: one row a fault, one row group a trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.analysis.analyse import read_checked
from orchestrator.analysis.attribution import KINDS, classify
from orchestrator.experiment import Experiment
from orchestrator.results import Outcome, TrialResult

_NAME = pa.dictionary(pa.int32(), pa.string())
# start_ns is on the host's clock since the measured rounds began; page is an index in units of page_bytes; seq
# counts the faults of one vCPU; storm is none, unrelated or needed (analysis/attribution.py).
SCHEMA = pa.schema(
    [
        ("trial", _NAME), ("arm", _NAME), ("cell", _NAME), ("boot", pa.uint32()), ("vcpu", pa.uint32()),
        ("seq", pa.uint32()), ("start_ns", pa.float64()), ("latency_ns", pa.float64()), ("page", pa.uint32()),
        ("storm", _NAME),
    ]
)  # fmt: skip


def write_samples(experiment: Experiment, results: Sequence[TrialResult], trials: Path, path: Path) -> Path:
    """Write the samples of all ``ok`` trials to ``path``, one trial in memory at a time, and return it.

    The file appears under its name only when it is whole. Raises :class:`RecordingError` as
    :func:`orchestrator.analysis.analyse.read_checked` does.
    """
    partial = path.with_name(path.name + ".part")
    placements = {cell.name: cell.storm.placement if cell.storm else "" for cell in experiment.cells}
    try:
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for result in results:
                if result.outcome is Outcome.OK and result.cell in placements:
                    writer.write_table(_table(result, trials, placements[result.cell]))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _table(result: TrialResult, trials: Path, placement: str) -> pa.Table:
    found = read_checked(result, trials)
    count = len(found.page)
    _, first, inverse = np.unique(found.vcpu, return_index=True, return_inverse=True)
    columns = {
        "trial": _constant(result.id, count),
        "arm": _constant(result.arm, count),
        "cell": _constant(result.cell, count),
        "boot": np.full(count, result.boot, np.uint32),
        "vcpu": found.vcpu,
        "seq": (np.arange(count) - first[inverse]).astype(np.uint32),
        "start_ns": found.since_start_ns(found.start_tsc),
        "latency_ns": found.latency_ns(),
        "page": found.page,
        "storm": pa.DictionaryArray.from_arrays(classify(found, placement).astype(np.int32), list(KINDS)),
    }
    return pa.table(columns, schema=SCHEMA)


def _constant(value: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [value])
