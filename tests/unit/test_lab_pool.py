"""target/pool.py and the engine over it: a block has one machine, and goes to another one if it loses it."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_engine import experiment, result

from orchestrator import engine
from orchestrator.errors import TargetError, UserError
from orchestrator.lab.machine import MachineGone
from orchestrator.plan import Plan, Trial, make_plan
from orchestrator.results import Outcome, TrialResult
from orchestrator.target.pool import LabPool, NoMachineLeft
from orchestrator.target.target import Evidence, Job, Pool
from orchestrator.trials import stopped

JOB = Job(None, (), True, False, 1, 1, 1.0, 1.0)


@dataclass
class FakeMember:
    """A machine that is lost at its ``dies_at``-th job, counted from 1; at 0, when it is contacted."""

    name: str
    dies_at: int = -1
    usable: bool = True
    meanwhile: threading.Barrier | None = None
    jobs: int = 0
    closed: bool = False
    busy: threading.Lock = field(default_factory=threading.Lock)

    def contact(self) -> None:
        if self.dies_at == 0:
            raise MachineGone(f"{self.name} cannot be reached")

    def run(self, job: Job, folder: Path) -> Evidence:
        assert self.busy.acquire(blocking=False), "two trials at once on one machine"
        try:
            if self.meanwhile is not None:
                self.meanwhile.wait(60)
            self.jobs += 1
            lost = f"{self.name} does not come back" if self.jobs == self.dies_at else ""
            return Evidence("killed" if lost else "ended", 0, 1.0, 1.0, machine=self.name, machine_lost=lost)
        finally:
            self.busy.release()

    def close(self) -> None:
        self.closed = True


@dataclass
class Runner:
    """What the pipeline does with trials, without their analysis."""

    pool: LabPool
    outcome_when_lost: Outcome = Outcome.LOST
    results: list[TrialResult] = field(default_factory=list)
    machines: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def run_one(self, trial: Trial) -> TrialResult:
        seen = self.pool.run(JOB, Path())
        self.machines[trial.id].append(seen.machine)
        outcome = self.outcome_when_lost if seen.machine_lost else Outcome.OK
        values = {name: getattr(result(trial), name) for name in TrialResult.__dataclass_fields__}
        return TrialResult(**(values | {
            "outcome": outcome, "machine": seen.machine, "machine_lost": seen.machine_lost,
        }))  # fmt: skip

    def execute(self, plan: Plan, jobs: int) -> None:
        engine.execute(
            plan, (), "ssh", jobs, self.run_one, self.results.append, lambda trials: self.pool.block(trials[0].block)
        )

    @property
    def last(self) -> dict[str, TrialResult]:
        """As they lie on the disk in the end: a repeated trial replaces the first one."""
        return {item.id: item for item in self.results}


def pool(*members: FakeMember) -> LabPool:
    return LabPool({member.name: member for member in members})


def test_a_pool_is_one() -> None:
    assert isinstance(pool(), Pool)


def test_blocks_run_on_all_machines_at_once_and_each_stays_on_its_own() -> None:
    both = threading.Barrier(2)
    runner = Runner(pool(FakeMember("a", meanwhile=both), FakeMember("b", meanwhile=both)))
    plan = make_plan(experiment(arms=3, cells=2, boots=2))
    runner.execute(plan, 2)
    assert len(runner.results) == 12
    for block in plan.blocks:
        assert len({runner.machines[trial.id][0] for trial in block.trials}) == 1
    assert {name for names in runner.machines.values() for name in names} == {"a", "b"}
    runner.pool.close()
    assert all(member.closed for member in runner.pool.members.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_block_that_loses_its_machine_runs_on_another_one_as_a_whole(dies_at: int) -> None:
    runner = Runner(pool(FakeMember("a", dies_at=dies_at), FakeMember("b")))
    plan = make_plan(experiment(arms=2, cells=2, boots=1))
    runner.execute(plan, 1)
    assert {item.outcome for item in runner.last.values()} == {Outcome.OK} and len(runner.last) == 4
    assert {item.machine for item in runner.last.values()} == {"b"}
    assert [runner.machines[id] for id in ("000", "001")] == {
        0: [["b"], ["b"]], 1: [["a", "b"], ["b"]], 2: [["a", "b"], ["a", "b"]],
    }[dies_at]  # fmt: skip
    assert "a" in runner.pool.gone


def test_a_panic_on_the_last_trial_of_a_block_is_an_answer_and_not_repeated() -> None:
    runner = Runner(pool(FakeMember("a", dies_at=2), FakeMember("b")), outcome_when_lost=Outcome.PANIC)
    runner.execute(make_plan(experiment(arms=2, cells=2, boots=1)), 1)
    assert [runner.last[id].outcome for id in ("000", "001")] == [Outcome.OK, Outcome.PANIC]
    assert runner.machines["001"] == ["a"] and runner.machines["002"] == ["b"]


def test_a_block_that_takes_two_machines_down_is_not_tried_on_a_third() -> None:
    members = [FakeMember("a", dies_at=1), FakeMember("b", dies_at=1), FakeMember("c")]
    runner = Runner(pool(*members))
    runner.execute(make_plan(experiment(arms=2, cells=1, boots=1)), 1)
    assert runner.machines["000"] == ["a", "b"] and runner.last["000"].outcome is Outcome.LOST
    assert runner.machines["001"] == ["c"], "the rest of the block still runs"


def test_without_any_machine_left_the_reasons_are_told() -> None:
    runner = Runner(pool(FakeMember("a", dies_at=2), FakeMember("b", dies_at=0)))
    with pytest.raises(NoMachineLeft) as caught:
        runner.execute(make_plan(experiment(arms=2, cells=3, boots=1)), 2)
    assert "\n  a: a does not come back" in caught.value.what and "\n  b: b cannot be reached" in caught.value.what
    assert caught.value.hint == "orch lab status"
    # Of the first block, or of the second one, if that came to "a" first.
    assert runner.results[0].outcome is Outcome.OK, "what had finished is kept"


def test_a_machine_that_goes_between_two_trials_takes_its_block_along() -> None:
    first = FakeMember("a")
    runner = Runner(pool(first, FakeMember("b")))
    run = first.run

    def taken_over(job: Job, folder: Path) -> Evidence:
        if first.jobs == 1:
            raise MachineGone("a was taken over")
        return run(job, folder)

    first.run = taken_over  # type: ignore[method-assign]
    runner.execute(make_plan(experiment(arms=2, cells=1, boots=1)), 1)
    assert runner.machines == {"000": ["a", "b"], "001": ["b"]}


def results(plan: Plan, *ended: tuple[str, str, Outcome, str]) -> list[TrialResult]:
    """(id, machine, outcome, why the machine was lost)."""
    trials = {trial.id: trial for trial in plan.trials}
    made = []
    for id, machine, outcome, lost in ended:
        values = {name: getattr(result(trials[id]), name) for name in TrialResult.__dataclass_fields__}
        made.append(TrialResult(**(values | {"outcome": outcome, "machine": machine, "machine_lost": lost})))
    return made


OK, LOST, PANIC = Outcome.OK, Outcome.LOST, Outcome.PANIC


@pytest.mark.parametrize(
    ("ended", "kept", "then"),
    [
        ([("000", "a", OK, "")], ["000"], "a"),  # goes on where it was
        ([("000", "gone", OK, "")], [], "a"),  # on a machine that is not there any more
        ([("000", "quarantined", OK, "")], [], "a"),
        ([("000", "a", OK, ""), ("001", "a", LOST, "it died")], [], "a"),
        ([("000", "a", OK, ""), ("001", "a", PANIC, "it died")], ["000", "001"], "a"),
        ([("000", "gone", OK, ""), ("001", "gone", OK, "")], ["000", "001"], "a"),  # whole
    ],
)
def test_a_run_that_goes_on_keeps_what_can_still_be_compared(
    ended: list[tuple[str, str, Outcome, str]], kept: list[str], then: str
) -> None:
    plan = make_plan(experiment(arms=2, cells=1, boots=1))
    found = pool(FakeMember("b"), FakeMember("a"), FakeMember("quarantined", usable=False))
    assert [item.id for item in found.resume(plan, results(plan, *ended), ())] == kept
    if kept == ["000"]:
        with found.block(0):
            assert found.run(JOB, Path()).machine == then


def test_trials_of_kernels_that_were_not_built_are_not_missing() -> None:
    plan = make_plan(experiment(arms=2, cells=1, boots=1))
    kept = pool(FakeMember("a")).resume(plan, results(plan, ("000", "gone", OK, "")), ["001"])
    assert [item.id for item in kept] == ["000"]


def test_as_many_trials_at_once_as_there_are_machines() -> None:
    chosen = experiment("ssh")
    assert engine.choose_jobs(chosen, "ssh", None, 3) == 3 and engine.choose_jobs(chosen, "ssh", 1, 3) == 1
    with pytest.raises(UserError, match="--jobs 4, and 3 machines"):
        engine.choose_jobs(chosen, "ssh", 4, 3)


@pytest.mark.parametrize(
    ("done", "said"), [(("000", "001"), "report.txt"), (("000",), "report.txt; 1 have not run: 001")]
)
def test_a_run_that_ends_for_want_of_machines_names_what_is_missing_if_anything_is(
    done: tuple[str, ...], said: str
) -> None:
    finished = [SimpleNamespace(id=name) for name in done]
    conductor = SimpleNamespace(
        store=SimpleNamespace(finished_trials=lambda: finished),
        plan=SimpleNamespace(trials=[SimpleNamespace(id="000"), SimpleNamespace(id="001")]),
        runner=SimpleNamespace(runs=lambda trial: True),
    )
    why = NoMachineLeft("no machine of the lab is left:\n  rack1: gone", hint="orch lab status")
    error = stopped(Path("/r/run"), conductor, why)  # type: ignore[arg-type]
    assert error.what.splitlines()[-1] == f"{len(done)} trials have ended, see /r/run/{said}"
    assert error.hint == "orch lab status; the same command again goes on with run"


def test_an_error_of_another_kind_at_the_contact_leaves_no_block_waiting_for_that_machine() -> None:
    """The second block prefers the machine that the first one fails on."""
    bad = FakeMember("a")

    def contact() -> None:
        raise TargetError("a: something that nobody has thought of")

    bad.contact = contact  # type: ignore[method-assign]
    found = pool(bad, FakeMember("b"))
    plan = make_plan(experiment(arms=2, cells=2, boots=1))
    found.resume(plan, results(plan, ("000", "a", OK, ""), ("002", "a", OK, "")), ())
    ended: list[str] = []

    def hold(block: int) -> None:
        with pytest.raises(TargetError, match="nobody has thought of"), found.block(block):
            pass
        ended.append("as it should")

    for block in (0, 1):
        thread = threading.Thread(target=hold, args=(block,), daemon=True)
        thread.start()
        thread.join(10)
    assert ended == ["as it should"] * 2
