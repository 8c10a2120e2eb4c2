"""Looks, early ends, A/A boots and groups of boots: on worlds with known truth, and through the whole pipeline."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import simulated_orch
from simulate import recording_bytes
from simulated_orch import write_config

from benchmarks.worlds import World, experiment, measure
from orchestrator import run
from orchestrator.analysis import modes, stopping, sure
from orchestrator.analysis.measure import Measured
from orchestrator.analysis.model import CellStop, Comparison, Latency
from orchestrator.analysis.stopping import Measurements
from orchestrator.errors import TargetError, UserError
from orchestrator.experiment import Schedule
from orchestrator.progress import Reporter
from orchestrator.target.target import Evidence, Job
from orchestrator.trials import look_lines

UNTIL_DECIDED = Schedule(boots=12, until="decided", at_most=24)


def judged(world: World, seed: int = 1) -> tuple[stopping.Judged, Measurements]:
    found = measure(world, np.random.default_rng(seed))
    return stopping.judge_run(experiment(world), found, deterministic=False), found


def only(found: Measurements, boots: int) -> Measurements:
    """What was known after so many boots of every cell."""
    some = {key: [item for item in values if item.boot < boots] for key, values in found.boots.items()}
    return Measurements(some, found.missing, dict.fromkeys(found.reached, boots))


def test_a_large_effect_ends_at_the_first_look_and_is_called() -> None:
    world = World(size=0.005, shift=0.3, tail=0.5, retries=1.0, cells=1, schedule=UNTIL_DECIDED)
    found, _ = judged(world)
    (stop,) = found.stops
    assert (stop.boots, stop.look, stop.why) == (12, 1, "decided")
    assert {item.verdict for item in found.metrics} == {"regressed"}
    assert all(item.pairs == 12 and "over 7 comparisons and 4 looks" in item.reason for item in found.metrics)


def test_boots_after_the_end_change_nothing() -> None:
    world = World(size=0.02, cells=3, schedule=UNTIL_DECIDED)
    for seed in range(3):
        full, found = judged(world, seed)
        for boots in (12, 16, 20):
            part = stopping.judge_run(experiment(world), only(found, boots), deterministic=False)
            for stop, early in zip(full.stops, part.stops, strict=True):
                if stop.boots <= boots:
                    assert early == stop
                    cells = [[item for item in done.metrics if item.cell == stop.cell] for done in (full, part)]
                    assert cells[0] == cells[1]
                else:
                    assert (early.why, early.look) == ("not reached", UNTIL_DECIDED.look_boots.index(boots) + 1)


def test_between_two_looks_there_is_no_verdict() -> None:
    world = World(size=0.005, shift=0.3, cells=1, schedule=UNTIL_DECIDED)
    _, found = judged(world)
    part = stopping.judge_run(experiment(world), only(found, 11), deterministic=False)
    assert {item.verdict for item in part.metrics} == {"inconclusive"}
    assert {item.reason for item in part.metrics} == {"11 of the 12 boots of the next look"}
    assert part.metrics[0].ratio == pytest.approx(1.3, abs=0.02)
    assert (part.stops[0].why, part.stops[0].look) == ("not reached", 0)


def test_what_cannot_be_decided_is_given_up_at_once() -> None:
    ended = [judged(World(size=0.5, cells=1, schedule=UNTIL_DECIDED), seed)[0].stops[0] for seed in range(5)]
    assert sum((stop.boots, stop.why) == (12, "hopeless") for stop in ended) >= 4
    assert all("v1 p50" in stop.undecided for stop in ended)


def test_an_arm_that_never_boots_does_not_keep_a_cell_open() -> None:
    world = World(size=0.005, cells=1, schedule=UNTIL_DECIDED)
    _, found = judged(world)
    boots = {**found.boots, ("cell0", "v1"): []}
    dead = Measurements(boots, {("cell0", "v1"): "v1: panic"}, found.reached)
    ended = stopping.judge_run(experiment(world), dead, deterministic=False)
    assert (ended.stops[0].boots, ended.stops[0].why) == (12, "nothing to compare")
    assert {item.reason for item in ended.metrics} == {"v1: panic"}


def test_a_cell_of_which_nothing_could_be_compared_is_not_called_decided() -> None:
    world = World(size=0.005, shift=0.3, tail=0.5, retries=1.0, cells=2, schedule=UNTIL_DECIDED)
    _, found = judged(world)
    dead = Measurements({**found.boots, ("cell1", "base"): []}, {("cell1", "base"): "base: hang"}, found.reached)
    chosen = experiment(world)
    ended = stopping.judge_run(chosen, dead, deterministic=False)
    assert [(stop.cell, stop.why) for stop in ended.stops] == [("cell0", "decided"), ("cell1", "nothing to compare")]
    said = sure.sure_lines(chosen, "tcg", ended.metrics, (), (), ended.stops)
    assert "After 12 boots decided: cell0." in said
    assert "After 12 boots given up, since there was nothing to compare: cell1." in said
    assert look_lines(12, ended.stops, frozenset())[1:] == (
        "  cell0: decided", "  cell1: ends, since there is nothing to compare",
    )  # fmt: skip
    assert stopping.not_needed(chosen, ended.stops) == 2 * 12 * 2, "nor does it take any more boots"


def test_too_few_boots_for_any_verdict_are_refused_before_anything_is_built() -> None:
    few = dataclasses.replace(UNTIL_DECIDED, boots=6, at_most=10, looks=2)
    with pytest.raises(UserError, match="10 boots can call no change, however large: with 42 comparisons") as caught:
        stopping.check(experiment(World(cells=6, schedule=few)))
    assert caught.value.hint == "/simulated.yaml: at_most: 12"
    stopping.check(experiment(World(cells=6, schedule=dataclasses.replace(few, at_most=12))))


def test_trials_that_were_not_needed_are_counted() -> None:
    chosen = experiment(World(cells=2, schedule=dataclasses.replace(UNTIL_DECIDED, aa=True)))
    stops = (CellStop("cell0", 12, 1, "decided", ()), CellStop("cell1", 16, 1, "not reached", ()))
    assert stopping.not_needed(chosen, stops) == 12 * 3


# --- two groups -------------------------------------------------------------------------------------------------------


def boots(values: list[float]) -> list[Measured]:
    return [
        Measured(f"{index:03}", index, index, 1000, Latency(value, value, value, value, value, value), 0)
        for index, value in enumerate(values)
    ]


def test_boots_in_two_groups_are_named() -> None:
    rng = np.random.default_rng(3)
    values = [float(value) for value in np.where(np.arange(16) % 4 < 2, 5400, 6700) * rng.normal(1, 0.003, 16)]
    found = modes.find([("quiet", "base", boots(values))])
    assert {item.metric for item in found} == {"mean", "p50", "p90", "p99", "p99_9", "max"}
    low, high = found[0].low, found[0].high
    assert low.trials == tuple(f"{index:03}" for index in range(16) if index % 4 < 2)
    assert low.value == pytest.approx(5400, rel=0.01) and high.value == pytest.approx(6700, rel=0.01)


def test_one_group_a_straggler_and_too_few_boots_are_no_finding() -> None:
    rng = np.random.default_rng(3)
    one = [float(value) for value in 5400 * rng.normal(1, 0.02, 16)]
    assert modes.find([("quiet", "base", boots(one))]) == ()
    assert modes.find([("quiet", "base", boots([*one[:15], 9000.0]))]) == ()
    assert modes.find([("quiet", "base", boots([5400.0] * 3 + [6700.0] * 3))]) == ()
    assert modes.find([("quiet", "base", boots([5400.0] * 8 + [5405.0] * 8))]) == (), "a tenth of a percent apart"


# --- the pipeline -----------------------------------------------------------------------------------------------------


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    simulated_orch.install(monkeypatch.setattr)
    monkeypatch.setenv(simulated_orch.NOTES, str(tmp_path / "notes"))
    return tmp_path / "notes"


def go(config: Path, jobs: int = 1) -> tuple[run.Finished, str]:
    said = io.StringIO()
    finished = run.run(config, config.parent / "results", jobs, ["orch", "run"], Reporter(said))
    return finished, said.getvalue()


LOOKS = "until: decided, at_most: 16, looks: 3"


def test_a_run_ends_each_cell_where_it_is_decided_and_is_complete(tmp_path: Path, simulated: Path) -> None:
    config = write_config(tmp_path, ("base", "noisy"), boots=10, schedule=LOOKS)
    finished, said = go(config, jobs=2)
    found = finished.comparison
    assert [(stop.cell, stop.boots) for stop in found.stops] == [("cell0", 10), ("cell1", found.stops[1].boots)]
    assert found.stops[1].boots > 10 and found.looks == (10, 14, 16)
    ran = 2 * (10 + found.stops[1].boots)
    assert len(simulated.read_text().splitlines()) == ran == found.planned == found.done
    assert found.status == "complete" and json.loads((finished.run / "status.json").read_text())["status"] == "complete"
    assert "at most 64 trials" in said
    assert "look after 10 boots of each arm:\n  cell0: decided\n  cell1: goes on for noisy mean" in said
    assert any(line.startswith("After 10 boots decided: cell0") for line in found.sure)
    assert any("paired by block, every other one in turned order; " in line for line in found.sure)
    assert any("looked at after 10, 14, 16 boots of each arm, at levels of " in line for line in found.sure)


class Flaky:
    """A target that is gone after so many trials."""

    def __init__(self, trials: int) -> None:
        self.left = trials
        self.real = simulated_orch.SimulatedTarget()

    def run(self, job: Job, folder: Path) -> Evidence:
        if self.left == 0:
            raise TargetError("QEMU did not start")
        self.left -= 1
        return self.real.run(job, folder)


def test_interrupted_anywhere_it_comes_to_the_same_decisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: Path
) -> None:
    whole = go(write_config(tmp_path / "whole", ("base", "noisy"), boots=10, schedule=LOOKS))[0].comparison
    simulated.unlink()
    config = write_config(tmp_path / "parts", ("base", "noisy"), boots=10, schedule=LOOKS)
    for trials in (3, 37, 1):  # within the first look, at its very end, just after it
        monkeypatch.setattr(run, "make_target", lambda setting, guests, trials=trials: Flaky(trials))
        with pytest.raises(TargetError):
            go(config)
    monkeypatch.setattr(run, "make_target", lambda setting, guests: simulated_orch.SimulatedTarget())
    again = go(config)[0].comparison
    assert again.stops == whole.stops and again.comparisons == whole.comparisons
    done = simulated.read_text().splitlines()
    assert len(done) == len(set(done)) == whole.done, "no boot ran twice, none beyond the end of its cell"


def test_the_base_against_itself_stands_beside_each_verdict(tmp_path: Path, simulated: Path) -> None:
    config = write_config(tmp_path, ("base", "slow"), boots=2, cells=1, schedule="aa: true")
    found = go(config)[0].comparison
    assert len(simulated.read_text().splitlines()) == 6 == found.done == found.planned
    assert {(item.base, item.arm, item.verdict) for item in found.aa} == {("base", "base", "equivalent")}
    assert found.summary("cell0", "base").boots == 2, "second boots are for the noise floor only"
    assert {item.noise for item in found.comparisons} == {(1.0, 1.0)}
    assert "The base against itself: identical to the last digit in every cell." in found.sure
    assert [(item.cell, item.status) for item in found.checks if item.name == "base_against_itself"] == [
        ("cell0", "held")
    ]


def test_with_both_the_noise_floor_grows_with_the_cells(tmp_path: Path, simulated: Path) -> None:
    config = write_config(tmp_path, ("base", "noisy"), boots=10, schedule=f"{LOOKS}, aa: true")
    found = go(config, jobs=2)[0].comparison
    boots = {stop.cell: stop.boots for stop in found.stops}
    assert boots["cell0"] == 10 < boots["cell1"]
    assert {(item.cell, item.pairs) for item in found.aa} == set(boots.items())
    assert found.done == found.planned == 3 * sum(boots.values()) == len(simulated.read_text().splitlines())
    assert found.status == "complete"


def test_a_base_that_differs_from_itself_is_said_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: Path
) -> None:
    count = iter(range(1000))

    def second_is_slow(arm: str, cell: str, seed: int, factor: float = 1.0) -> bytes:
        # In each block of base, base, v1 the second boot is the slow one.
        cycles = np.full(simulated_orch.FAULTS, 15_000 if next(count) % 3 == 1 else 10_000, np.uint64)
        return recording_bytes(arm=arm, cell=cell, seed=seed, latencies=[cycles], pages=simulated_orch.FAULTS)

    monkeypatch.setattr(simulated_orch, "make_recording", second_is_slow)
    config = write_config(tmp_path, boots=2, cells=1, schedule="aa: true, order: abab")
    finished, _ = go(config)
    found: Comparison = finished.comparison
    assert finished.gate_closed
    assert found.sure[0].startswith("DO NOT TRUST THE VERDICTS of these cells: the base differs from itself (mean regr")
    assert "base_against_itself FAILED" in found.headlines[0]
