"""Every fault of the traced boots with what happened to it, in one Parquet file, for other tools: one row a fault."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.analysis.causes import CAUSES
from orchestrator.analysis.traced import NEEDED, OTHER, TAKEN, UNRELATED, explain
from orchestrator.analysis.tracedboots import load
from orchestrator.experiment import Experiment
from orchestrator.results import Outcome, TrialResult

_NAME = pa.dictionary(pa.int32(), pa.string())
# As in samples.parquet; cause and the times by cause are analysis/causes.py's. attempts is how often the guest faulted;
# spurious, needed, other and taken count those in vain by kind. window is the index in the recording of the storm's
# window that the last of them met, or -1. What is not covered ended after something was missing in the trace.
SCHEMA = pa.schema(
    [
        ("trial", _NAME), ("arm", _NAME), ("cell", _NAME), ("vcpu", pa.uint32()), ("start_ns", pa.float64()),
        ("latency_ns", pa.float64()), ("page", pa.uint32()), ("covered", pa.bool_()), ("cause", _NAME),
        *((f"{cause}_ns", pa.float64()) for cause in CAUSES),
        ("attempts", pa.uint32()), ("spurious", pa.uint32()), ("needed", pa.uint32()), ("other", pa.uint32()),
        ("taken", pa.uint32()), ("window", pa.int32()),
    ]
)  # fmt: skip


def write_traced(experiment: Experiment, results: Sequence[TrialResult], trials: Path, path: Path) -> Path | None:
    """Write the faults of all traced boots that ended well to ``path`` and return it; None if there is no such boot.

    The file appears under its name only when it is whole. Raises :class:`RecordingError` as
    :func:`orchestrator.analysis.tracedboots.judge` does.
    """
    partial = path.with_name(path.name + ".part")
    tables = [
        _table(result, experiment, trials)
        for result in results
        if result.outcome is Outcome.OK and any(cell.name == result.cell for cell in experiment.traced_cells)
    ]
    if not tables:
        return None
    try:
        pq.write_table(pa.concat_tables(tables), partial, compression="zstd")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _table(result: TrialResult, experiment: Experiment, trials: Path) -> pa.Table:
    cell = next(cell for cell in experiment.traced_cells if cell.name == result.cell)
    found, trace = load(result, cell, trials)
    seen = explain(found, trace)
    faults, to_ns = seen.faults, found.header.ns_per_cycle
    count = len(faults.start)
    columns = {
        "trial": _constant(result.id, count),
        "arm": _constant(result.arm, count),
        "cell": _constant(cell.cell.name, count),
        "vcpu": faults.vcpu.astype(np.uint32),
        "start_ns": (faults.start - found.header.start_tsc) * to_ns,
        "latency_ns": (faults.end - faults.start) * to_ns,
        "page": faults.page.astype(np.uint32),
        "covered": seen.covered,
        "cause": pa.DictionaryArray.from_arrays(seen.cause.astype(np.int32), list(CAUSES)),
        **{f"{cause}_ns": seen.parts[number] * to_ns for number, cause in enumerate(CAUSES)},
        "attempts": seen.attempts.astype(np.uint32),
        "spurious": seen.retries_of(UNRELATED).astype(np.uint32),
        "needed": seen.retries_of(NEEDED).astype(np.uint32),
        "other": seen.retries_of(OTHER).astype(np.uint32),
        "taken": seen.retries_of(TAKEN).astype(np.uint32),
        "window": seen.window.astype(np.int32),
    }
    return pa.table(columns, schema=SCHEMA)


def _constant(value: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [value])
