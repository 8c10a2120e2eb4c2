"""Real traces (tests/data/traced) that lack events: one that is missing can turn the finding into its opposite."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulate
from numpy.typing import NDArray
from simulate import Plant, cell
from tracefile import Event, trace_bytes

from orchestrator import hosttrace
from orchestrator.analysis.causes import TracedBoot
from orchestrator.analysis.model import CheckResult
from orchestrator.analysis.spans import Invalidations
from orchestrator.analysis.tracedboots import judge
from orchestrator.experiment.traces import TraceSpec
from orchestrator.hosttrace import INVALIDATE, INVALIDATED, Trace
from orchestrator.recording import parse
from orchestrator.results import Outcome, TrialResult

DATA = Path(__file__).parents[1] / "data" / "traced"
Mask = NDArray[np.bool_]


def traced(name: str) -> Trace:
    return hosttrace.read(DATA / f"{name}.trace.bin.gz")


def written(trace: Trace, keep: Mask, missed: int = 0) -> bytes:
    events = [Event(*row) for row in trace.events[keep][["tsc", "kind", "a", "b", "tid", "cpu"]].tolist()]
    return trace_bytes(events, missed=missed, start_tsc=trace.start_tsc, end_tsc=trace.end_tsc)


def halves(trace: Trace) -> Mask:
    found: Mask = np.isin(trace.events["kind"], (INVALIDATE, INVALIDATED))
    return found


def judged(folder: Path, keep: Callable[[Trace], Mask], missed: int = 0) -> tuple[TracedBoot, CheckResult]:
    """What the check makes of the boot ``outside`` with those events of its trace only."""
    trial = folder / "100"
    trial.mkdir(parents=True)
    (trial / "recording.bin").write_bytes(gzip.decompress((DATA / "outside.recording.bin.gz").read_bytes()))
    (trial / "raw").write_bytes(written(traced("outside"), keep(traced("outside")), missed))
    hosttrace.pack(trial / "raw", trial / hosttrace.PACKED)
    plant = Plant((cell("quiet"), cell("outside", "outside", preempted=True)), checks=("attribution",), arms=("base",))
    chosen = replace(simulate.experiment(plant), trace=TraceSpec(("outside",)))
    (plain,) = (item for item in simulate.simulate(plant, folder / "plain") if item.cell == "outside")
    result: TrialResult = replace(plain, id="100", cell="traced,outside", outcome=Outcome.OK)
    found = judge(chosen, (result,), folder, ())
    return found.boots[0], found.checks[0]


def all_of(trace: Trace) -> Mask:
    return np.ones(len(trace.events), np.bool_)


def one_end_less(trace: Trace) -> Mask:
    """Without the end of an earlier invalidation over the page that spun."""
    found = parse(gzip.decompress((DATA / "outside.recording.bin.gz").read_bytes()), "outside")
    fault = next(faults for faults in found.chunks())
    slowest = int(np.argmax(fault.latency_cycles))
    hva = found.header.mem_hva + int(fault.page[slowest]) * found.header.page_bytes
    events, keep = trace.events, all_of(trace)
    over = (events["kind"] == INVALIDATE) & (events["a"] <= hva) & (hva < events["b"])
    begun = np.flatnonzero(over & (events["tsc"] < fault.start_tsc[slowest]))[-1]
    ends = np.flatnonzero((events["kind"] == INVALIDATED) & (events["tid"] == events["tid"][begun]))
    keep[ends[ends > begun][0]] = False
    return keep


def test_whole_it_holds(tmp_path: Path) -> None:
    boot, check = judged(tmp_path, all_of)
    assert (boot.spurious, boot.needed, boot.other, boot.covered) == (1430, 0, 0, 4096)
    assert check.status == "held" and "; 1430 of the 1430 spurious ones (100.0%) met a storm window" in check.why


def test_one_missing_end_turned_all_spurious_retries_into_needed_ones(tmp_path: Path) -> None:
    boot, check = judged(tmp_path, one_end_less)
    assert (boot.unended, boot.unbegun) == (1, 0)
    assert boot.covered < 4096 and boot.needed == 0, "what it says is of the time before"
    assert check.status == "failed" and "1 invalidation without an end, though the thread went on" in check.why


def test_without_any_invalidation_all_retries_are_of_other_kinds(tmp_path: Path) -> None:
    boot, check = judged(tmp_path, lambda trace: ~halves(trace))
    assert (boot.spurious, boot.needed, boot.other) == (0, 0, 1430)
    assert check.status == "failed" and "1430 of them (100.0%) met no invalidation (at most 5% allowed)" in check.why


def test_nothing_is_held_once_a_probe_missed_something(tmp_path: Path) -> None:
    boot, check = judged(tmp_path, all_of, missed=2)
    assert (boot.missed, boot.covered, check.status) == (2, 0, "failed")


@pytest.mark.parametrize("name", ["outside", "munmap"])
def test_whichever_half_is_missing_it_is_noticed(name: str) -> None:
    trace = traced(name)
    assert (Invalidations.of(trace).unended, Invalidations.of(trace).unbegun) == (0, 0)
    places = np.flatnonzero(halves(trace))
    for place in {*places[:2].tolist(), *places[::23].tolist(), *places[-2:].tolist()}:
        found = Invalidations.of(replace(trace, events=np.delete(trace.events, place)))
        half = (0, 1) if trace.events["kind"][place] == INVALIDATE else (1, 0)
        assert (found.unended, found.unbegun) == half, f"event {place}"
