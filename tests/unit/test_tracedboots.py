"""Traced boots from trial folder to report: their sums, the check on them, what they cost, and what they lack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import simulate
from simulate import Effect, Plant, cell
from tracefile import STORM_TID, VCPU_TID, Event, trace_bytes

from orchestrator import hosttrace
from orchestrator import recording as rec
from orchestrator.analysis.analyse import analyse
from orchestrator.analysis.causes import CAUSES, TracedBoot
from orchestrator.analysis.model import Comparison, from_json, to_json
from orchestrator.analysis.tracedsamples import write_traced
from orchestrator.errors import RecordingError
from orchestrator.experiment import Cell, Experiment
from orchestrator.experiment.traces import TraceSpec
from orchestrator.report import text
from orchestrator.results import Outcome, Provenance, TrialResult

PROVENANCE = Provenance("orch run configs/attribution.yaml", ())
HALVES = (hosttrace.INVALIDATE, hosttrace.INVALIDATED)
RETRIES = {"base": 240, "v1": 24}
PLANT = Plant(
    (cell("quiet"), cell("outside", "outside", preempted=True)),
    checks=("attribution",),
    effects={("outside", arm): Effect(retries=count / 4000, stall_cycles=9_000_000) for arm, count in RETRIES.items()},
)


def events_of(found: rec.Recording, retries: int) -> list[Event]:
    """An attempt and a mapping for each fault; retries and a lost CPU for those that stand in a window."""
    faults = simulate.whole(found)
    start, cycles = faults.start_tsc.astype(np.int64), faults.latency_cycles.astype(np.int64)
    windows = found.windows
    stalled = np.flatnonzero(cycles > 5_000_000)
    share = retries // len(stalled) if len(stalled) else 0
    events = []
    for index, (begin, length, page) in enumerate(zip(start, cycles, faults.page, strict=True)):
        times = [begin + 3000]
        if index in stalled:
            times = [begin + 3000 + 100 * number for number in range(share)] + [begin + length - 3000]
            events.append(Event(int(begin) + 4_000_000, hosttrace.SWITCH, STORM_TID, 0x100))
            events.append(Event(int(begin) + 8_000_000, hosttrace.SWITCH, VCPU_TID, 1, tid=STORM_TID))
        events += [Event(int(time), hosttrace.PAGE_FAULT, int(page) * simulate.PAGE, 6) for time in times]
        events.append(Event(int(times[-1]) + 500, hosttrace.INSTALL, int(page), 1))
    for row in windows:
        place = (int(row["hva"]), int(row["hva"] + row["bytes"]))
        events.append(Event(int(row["start_tsc"]) + 500, hosttrace.INVALIDATE, *place, tid=STORM_TID))
        events.append(Event(int(row["end_tsc"]) - 500, hosttrace.INVALIDATED, tid=STORM_TID))
    return sorted(events, key=lambda event: event.tsc)


@dataclasses.dataclass(frozen=True)
class Simulated:
    """A run with a traced boot of each arm in the cell ``outside``, in trials 100 and 101."""

    experiment: Experiment
    results: tuple[TrialResult, ...]
    trials: Path

    def comparison(self, accel: str = "icount") -> Comparison:
        built = [simulate.BuiltLike(arm) for arm in PLANT.arms]
        return analyse(
            self.experiment, self.results, built, self.trials, run="r", accel=accel, planned=len(self.results)  # type: ignore[arg-type]
        ).comparison  # fmt: skip

    def rewrite(
        self, trial: str, lost: Mapping[int, int] | None = None, drop: Sequence[int] = (), **header: int
    ) -> None:
        """Give a traced trial another trace: with losses, or without the events of some kinds."""
        found = rec.read(self.trials / trial / "recording.bin")
        events = [event for event in events_of(found, RETRIES[found.header.arm]) if event.kind not in drop]
        self.leave(trial, trace_bytes(events[: len(events) // 2] if lost else events, lost=lost, **header))

    def leave(self, trial: str, trace: bytes) -> None:
        (self.trials / trial / "raw").write_bytes(trace)
        hosttrace.pack(self.trials / trial / "raw", self.trials / trial / hosttrace.PACKED)


@pytest.fixture
def simulated(tmp_path: Path) -> Simulated:
    results = list(simulate.simulate(PLANT, tmp_path))
    for number, arm in enumerate(PLANT.arms, 100):
        plain = next(item for item in results if (item.cell, item.arm) == ("outside", arm))
        folder = tmp_path / str(number)
        folder.mkdir()
        data = (tmp_path / plain.id / "recording.bin").read_bytes()
        (folder / "recording.bin").write_bytes(data)
        results.append(replace(plain, id=str(number), cell="traced,outside"))
    chosen = replace(simulate.experiment(PLANT), trace=TraceSpec(("outside",)))
    made = Simulated(chosen, tuple(results), tmp_path)
    for trial in ("100", "101"):
        made.rewrite(trial)
    return made


def boots(comparison: Comparison) -> dict[str, TracedBoot]:
    return {boot.arm: boot for boot in comparison.traced}


def test_every_sum_adds_up(simulated: Simulated) -> None:
    found = boots(simulated.comparison())
    assert list(found) == ["base", "v1"]
    for arm, boot in found.items():
        assert boot.retries == boot.counted == boot.spurious == boot.in_window == RETRIES[arm]
        assert boot.attempts == boot.faulting + boot.retries + boot.taken == boot.faults + RETRIES[arm]
        assert [item.cause for item in boot.shares] == list(CAUSES)
        assert sum(item.faults for item in boot.shares) == boot.faults == boot.covered == 4000
        assert sum(item.time_ns for item in boot.shares) == pytest.approx(boot.total_ns)
        assert sum(item.slowest for item in boot.shares) == len(boot.slowest) == 100
        slowest_ns = sum(fault.latency_ns for fault in boot.slowest)
        assert sum(item.slowest_ns for item in boot.shares) == pytest.approx(slowest_ns)
        assert sum(boot.of_all) == pytest.approx(1) and sum(boot.of_slowest) == pytest.approx(1)
        for fault in boot.slowest:
            assert sum(fault.parts_ns) == pytest.approx(fault.latency_ns)


def test_the_slowest_faults_say_what_they_met(simulated: Simulated) -> None:
    boot = boots(simulated.comparison())["base"]
    assert [fault.latency_ns for fault in boot.slowest] == sorted(
        (fault.latency_ns for fault in boot.slowest), reverse=True
    )
    assert boot.share("unrelated").slowest == 12 and boot.share("unrelated").slowest_retries == 240
    first = boot.slowest[0]
    assert (first.cause, first.attempts, first.size_bytes) == ("unrelated", 21, 16384 * 1024)
    assert first.hva == simulate.MEM_HVA + (1 << 32) and first.window in range(12)
    assert first.parts_ns[CAUSES.index("preempted")] == 2_000_000  # 4,000,000 cycles at 2 GHz
    assert boot.slowest[-1].window is None and boot.slowest[-1].hva is None


def storm_checks(comparison: Comparison) -> dict[str, tuple[str, str]]:
    return {item.arm: (item.status, item.why) for item in comparison.checks if item.name == "storm_in_vmm"}


def test_the_storm_is_found_in_the_vmms_memory_call_by_call(simulated: Simulated) -> None:
    chosen = replace(simulated.experiment, checks=("storm_in_vmm",))
    comparison = replace(simulated, experiment=chosen).comparison()
    assert boots(comparison)["base"].storm_met == boots(comparison)["base"].storm_calls == 12
    said = "12 of 12 calls of the storm in the VMM invalidated the VMM's memory (12 events of its mm in their ranges)"
    assert storm_checks(comparison) == {"base": ("held", said), "v1": ("held", said)}
    note = "base: 12 of 12 calls of the storm in the VMM invalidated the VMM's memory (12 events of its mm)."
    assert note in comparison.traced_notes
    simulated.rewrite("100", drop=HALVES)
    status, why = storm_checks(replace(simulated, experiment=chosen).comparison())["base"]
    assert status == "failed" and why.startswith("0 of 12 calls of the storm in the VMM")
    simulated.rewrite("100", lost={0: 3})
    status, why = storm_checks(replace(simulated, experiment=chosen).comparison())["base"]
    assert status == "not covered" and why.endswith("the trace is incomplete")


def test_a_storm_in_another_process_must_not_reach_the_vmms_memory(simulated: Simulated) -> None:
    def elsewhere(found: Cell) -> Cell:
        return replace(found, storm=replace(found.storm, placement="other-process")) if found.storm else found

    cells = tuple(elsewhere(found) for found in simulated.experiment.cells)
    chosen = replace(simulated.experiment, cells=cells, checks=("storm_in_vmm",))
    simulated.rewrite("101", drop=HALVES)
    comparison = replace(simulated, experiment=chosen).comparison()
    assert storm_checks(comparison)["v1"] == (
        "held", "0 of 12 calls of the storm in another process invalidated the VMM's memory (0 events of its mm in"
        " their ranges)",
    )  # fmt: skip
    assert storm_checks(comparison)["base"][0] == "failed"
    assert any("v1: 0 of 12 calls of the storm in another process" in note for note in comparison.traced_notes)
    simulated.rewrite("101", drop=HALVES, missed=1)  # None was seen, which proves nothing.
    said = storm_checks(replace(simulated, experiment=chosen).comparison())
    assert said["v1"][0] == "not covered" and said["v1"][1].endswith("the trace is incomplete")


def test_its_cost_is_told_from_the_measured_boot_of_the_same_seed(simulated: Simulated) -> None:
    cost = boots(simulated.comparison())["v1"].cost
    assert cost is not None and cost.untraced == "003"
    assert cost.p50_ns[0] == cost.p50_ns[1] > 0, "here both are the same recording"
    assert cost.retries == (24, 24)
    alone = replace(simulated, results=tuple(item for item in simulated.results if item.cell != "outside"))
    assert boots(alone.comparison())["v1"].cost is None


def test_traced_boots_are_compared_with_nothing(simulated: Simulated) -> None:
    comparison = simulated.comparison()
    plain = replace(simulated.experiment, trace=None, checks=())
    untraced = replace(simulated, experiment=plain, results=simulated.results[:-2]).comparison()
    assert comparison.summaries == untraced.summaries and comparison.comparisons == untraced.comparisons
    assert untraced.traced == () and untraced.traced_notes == ()


def checks(comparison: Comparison) -> dict[str, tuple[str, str]]:
    return {item.arm: (item.status, item.why) for item in comparison.checks if item.name == "attribution"}


def test_the_check_holds_where_everything_is_accounted_for(simulated: Simulated) -> None:
    assert checks(simulated.comparison()) == {
        arm: (
            "held",
            f"{count} retries by trace, {count} by KVM's counters; {count} of the {count} spurious ones (100.0%) met a"
            " storm window (at least 95% asked)",
        )
        for arm, count in RETRIES.items()
    }  # fmt: skip


def test_a_lost_event_fails_the_check_and_is_said_aloud(simulated: Simulated) -> None:
    simulated.rewrite("100", lost={0: 77})
    comparison = simulated.comparison()
    boot = boots(comparison)["base"]
    assert (boot.lost, boot.faults) == (77, 4000) and 1000 < boot.covered < 3000
    assert sum(item.faults for item in boot.shares) == boot.covered
    status, why = checks(comparison)["base"]
    assert status == "failed" and why.startswith("the trace is incomplete: 77 events did not fit its buffers; ")
    assert why.endswith("raise trace.buffer_mib")
    assert "base: the trace is INCOMPLETE: 77 events" in comparison.traced_notes[0]
    assert checks(comparison)["v1"][0] == "held"


def test_retries_that_do_not_agree_with_kvm_fail_the_check(simulated: Simulated) -> None:
    found = rec.read(simulated.trials / "100" / "recording.bin")
    simulated.leave("100", trace_bytes(events_of(found, 0)))
    status, why = checks(simulated.comparison())["base"]
    assert (status, why) == ("failed", "0 retries by trace, 240 by KVM's counters")


def test_spurious_retries_outside_the_storms_windows_fail_it(simulated: Simulated) -> None:
    """Invalidations of a thread that no window knows: half a page further on."""
    found = rec.read(simulated.trials / "100" / "recording.bin")
    moved = [
        replace(event, a=event.a + 0x800, b=event.b + 0x800) if event.kind == hosttrace.INVALIDATE else event
        for event in events_of(found, 240)
    ]
    simulated.leave("100", trace_bytes(moved))
    status, why = checks(simulated.comparison())["base"]
    assert status == "failed" and "0 of the 240 spurious ones (0.0%) met a storm window" in why


def test_retries_without_an_invalidation_are_not_called_spurious(simulated: Simulated) -> None:
    simulated.rewrite("100", drop=HALVES)
    comparison = simulated.comparison()
    assert (boots(comparison)["base"].spurious, boots(comparison)["base"].other) == (0, 240)
    assert checks(comparison)["base"] == (
        "failed", "240 retries by trace, 240 by KVM's counters; 240 of them (100.0%) met no invalidation (at most 5%"
        " allowed)",
    )  # fmt: skip


def test_a_missed_probe_fails_it_and_nothing_is_covered(simulated: Simulated) -> None:
    simulated.rewrite("100", missed=1)
    comparison = simulated.comparison()
    missed = "1 time a probe missed an invalidation, nobody knows when"
    covered = "0 of 4000 faults are covered"
    assert checks(comparison)["base"] == ("failed", f"the trace is incomplete: {missed}; {covered}")
    assert "base: the trace is INCOMPLETE: 1 time a probe missed an invalidation" in comparison.traced_notes[0]
    assert not any(note.startswith("base: ") for note in comparison.traced_notes), "its sums mean nothing"
    assert "base: no fault is covered" in text.render(comparison, PROVENANCE)


def test_a_trace_that_does_not_say_what_was_missed_is_not_held(simulated: Simulated) -> None:
    simulated.rewrite("100", version=1)
    status, why = checks(simulated.comparison())["base"]
    assert status == "not covered" and why.endswith("; the trace does not say what its probes missed")


@pytest.mark.parametrize(
    ("gone", "status"),
    [
        (0, "held"),
        (12, "held"),  # 5 % of 240
        (13, "not covered"),  # more than that, and too few to tell a trace with holes from a quicker vCPU
        (16, "not covered"),
        (17, "failed"),
    ],
)
def test_too_many_retries_without_an_invalidation_are_not_held(simulated: Simulated, gone: int, status: str) -> None:
    """One fault's 20 retries, of which so many come before its invalidation begins."""
    found = rec.read(simulated.trials / "100" / "recording.bin")
    events = events_of(found, 240)
    first = next(nr for nr, event in enumerate(events) if event.kind == hosttrace.INVALIDATE)
    fault = [event.tsc for event in events if event.kind == hosttrace.PAGE_FAULT and event.tsc > events[first].tsc]
    spun = next(nr for nr in range(len(fault)) if fault[nr + 1] - fault[nr] == 100)
    if gone:
        events[first] = replace(events[first], tsc=fault[spun + gone] + 1)
    simulated.leave("100", trace_bytes(sorted(events, key=lambda event: event.tsc)))
    comparison = simulated.comparison()
    assert boots(comparison)["base"].other == gone and checks(comparison)["base"][0] == status


def test_a_traced_boot_that_did_not_end_well_is_not_covered(simulated: Simulated) -> None:
    *others, last = simulated.results
    ill = replace(simulated, results=(*others[:-1], replace(last, outcome=Outcome.HANG)))
    comparison = ill.comparison()
    assert checks(comparison) == {
        "base": ("not covered", "the traced boot did not run"), "v1": ("not covered", "the traced boot: hang"),
    }  # fmt: skip
    assert comparison.traced == () and [item.cell for item in comparison.failures] == ["traced,outside"]


def test_a_recording_of_another_arm_is_refused(simulated: Simulated) -> None:
    (simulated.trials / "100/recording.bin").write_bytes((simulated.trials / "101/recording.bin").read_bytes())
    with pytest.raises(RecordingError, match="is of arm 'v1', cell 'outside'; the trial was of 'base', 'outside'"):
        simulated.comparison()


def test_the_report_splits_the_tail(simulated: Simulated, tmp_path: Path) -> None:
    comparison = simulated.comparison()
    why = [line for line in comparison.why if line.startswith("outside, observed in traced boots: ")]
    assert len(why) == 1 and why[0].startswith(
        "outside, observed in traced boots: of the 100 slowest faults in base, 12 spun on an unrelated invalidation"
        " (240 times), 88 did none of this; of all time in faults, attempts in vain took "
    )
    said = text.render(comparison, PROVENANCE)
    assert all(len(line) <= 72 for line in said.splitlines())
    rows = [line.split() for line in said.splitlines()]
    assert ["count", "240", "0", "0", "0"] in rows and ["count", "24", "0", "0", "0"] in rows
    assert "retries 24 -> 24" in said
    flat = " ".join(said.split())
    assert (
        "base: 240 retries by trace, 240 by KVM's own counters; 240 spurious, 100.0% of them during a recorded call"
        in flat
    )
    assert "Tracing itself changes the p50 of a fault by +/-0%, against the measured boot" in flat
    assert "same kernel and seed. So" in comparison.traced_notes[-1]
    assert "two single boots included. So" in simulated.comparison("tcg").traced_notes[-1]
    path = tmp_path / "comparison.json"
    path.write_bytes(to_json(comparison))
    assert from_json(Comparison, path) == comparison


def test_every_fault_is_in_the_table_for_other_tools(simulated: Simulated, tmp_path: Path) -> None:
    path = write_traced(simulated.experiment, simulated.results, simulated.trials, tmp_path / "t.parquet")
    assert path is not None
    table = pd.read_parquet(path)
    assert len(table) == 8000 and set(table["cell"]) == {"outside"} and table["covered"].all()
    assert table.groupby("arm", observed=True)["spurious"].sum().to_dict() == RETRIES
    assert (table["attempts"] == 1 + table[["spurious", "needed", "other", "taken"]].sum(axis=1)).all()
    spent = table[[f"{cause}_ns" for cause in CAUSES]].sum(axis=1)
    assert np.allclose(spent, table["latency_ns"])
    assert ((table["window"] >= 0) == (table["cause"] == "unrelated")).all()
    assert write_traced(simulated.experiment, simulated.results[:-2], simulated.trials, tmp_path / "u") is None
