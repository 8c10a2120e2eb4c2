"""One trial's recording: opened, and reduced to what arms are compared by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator import recording
from orchestrator.analysis import latency
from orchestrator.analysis.model import Latency
from orchestrator.analysis.tally import Tally, passes, tally
from orchestrator.errors import RecordingError
from orchestrator.results import TrialResult

RECORDING_FILE = "recording.bin"


@dataclass(frozen=True)
class Measured:
    """A boot without its attribution: all that a verdict needs (:class:`orchestrator.analysis.compare.Boot`)."""

    trial: str
    boot: int
    block: int
    faults: int
    latency: Latency
    retries: int | None


def skim_checked(result: TrialResult, trials: Path) -> recording.Recording:
    """The recording of an ``ok`` trial, its CRC left to the first pass over its faults.

    Raises :class:`RecordingError` if it is not this arm's and cell's, or holds no fault.
    """
    path = trials / result.id / RECORDING_FILE
    found = recording.skim(path)
    if (found.header.arm, found.header.cell) != (result.arm, result.cell):
        raise RecordingError(
            f"{path} is of arm {found.header.arm!r}, cell {found.header.cell!r}; the trial was of arm {result.arm!r},"
            f" cell {result.cell!r}",
            hint=result.rerun,
        )
    if found.nr_faults == 0:
        raise RecordingError(f"{path} holds no fault at all", hint=result.rerun)
    return found


def measure(result: TrialResult, trials: Path) -> Measured:
    """The figures of one boot that ended well, the same as in its summary; raises as :func:`skim_checked` does."""
    found = skim_checked(result, trials)
    counted = Tally()
    for faults in found.chunks():
        counted.add(faults.latency_cycles)
    shared = passes(counted.counts(), partial(tally, found))
    return Measured(
        trial=result.id,
        boot=result.boot,
        block=result.block,
        faults=found.nr_faults,
        latency=latency.summarise(shared, found.nr_faults, counted.cycles, found.header.ns_per_cycle),
        retries=latency.retries(found),
    )
