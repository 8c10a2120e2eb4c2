"""engine.py: what runs at once, in which order, and what an error or an interrupt does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator import engine
from orchestrator.errors import TargetError, UserError
from orchestrator.experiment import Arm, Cell, Experiment, Guest, KernelSpec, ReportSpec, Schedule, TargetSpec
from orchestrator.plan import Plan, Trial, make_plan
from orchestrator.results import Outcome, TrialResult


def experiment(kind: str = "qemu", cpus: int = 1, arms: int = 2, cells: int = 3, boots: int = 2) -> Experiment:
    return Experiment(
        name="x",
        description="",
        path=Path("/x.yaml"),
        kernel=KernelSpec((), ()),
        arms=tuple(Arm(f"arm{index}", ()) for index in range(arms)),
        target=TargetSpec(kind, cpus=cpus),  # type: ignore[arg-type]
        cells=tuple(Cell(f"cell{index}", Guest(), None) for index in range(cells)),
        schedule=Schedule(boots=boots),
        checks=(),
        report=ReportSpec(),
    )


def result(trial: Trial) -> TrialResult:
    return TrialResult(
        id=trial.id, arm=trial.arm, cell=trial.cell.name, boot=trial.boot, block=trial.block, seed=trial.seed,
        outcome=Outcome.OK, reason="", trace=(), warnings=(), boot_seconds=0, wall_seconds=0, recording_sha256="",
        rerun="",
    )  # fmt: skip


class Recorder:
    """Stands for a trial; notes when each began and ended, and how many ran at once.

    None ends before so many ran at once as ``meet`` says; if they never do, after a minute.
    """

    def __init__(self, seconds: float = 0.02, meet: int = 1) -> None:
        self.seconds = seconds
        self.meet = meet
        self.lock = threading.Condition()
        self.running: set[str] = set()
        self.most = 0
        self.events: list[tuple[str, str]] = []  # ("begin" or "end", id)
        self.threads: dict[str, int] = {}

    def __call__(self, trial: Trial) -> TrialResult:
        with self.lock:
            self.running.add(trial.id)
            self.most = max(self.most, len(self.running))
            self.events.append(("begin", trial.id))
            self.threads[trial.id] = threading.get_ident()
            self.lock.notify_all()
            self.lock.wait_for(lambda: self.most >= self.meet, 60)
        time.sleep(self.seconds)
        with self.lock:
            self.running.remove(trial.id)
            self.events.append(("end", trial.id))
        return result(trial)

    @property
    def begun(self) -> list[str]:
        return [trial for what, trial in self.events if what == "begin"]


def execute(plan: Plan, accel: str, jobs: int, recorder: Recorder, finished: tuple[str, ...] = ()) -> list[str]:
    seen: list[str] = []
    main = threading.get_ident()

    def on_result(item: TrialResult) -> None:
        assert threading.get_ident() == main
        seen.append(item.id)

    engine.execute(plan, finished, accel, jobs, recorder, on_result)
    return seen


@pytest.mark.parametrize("accel", ["icount", "tcg"])
@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_every_trial_runs_once_and_is_reported_once(accel: str, jobs: int) -> None:
    plan, recorder = make_plan(experiment()), Recorder()
    seen = execute(plan, accel, jobs, recorder)
    everything = [trial.id for trial in plan.trials]
    assert sorted(seen) == sorted(recorder.begun) == everything
    assert recorder.most <= jobs
    if jobs == 1:
        assert seen == everything


def test_jobs_really_run_at_once() -> None:
    recorder = Recorder(meet=3)
    execute(make_plan(experiment()), "icount", 3, recorder)
    assert recorder.most == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_block_stays_together_where_trials_can_disturb_each_other(jobs: int) -> None:
    """One worker, one after the other, nothing of another block between: a block is compared within itself."""
    plan, recorder = make_plan(experiment(arms=3)), Recorder()
    execute(plan, "tcg", jobs, recorder)
    for block in plan.blocks:
        ids = [trial.id for trial in block.trials]
        worker = recorder.threads[ids[0]]
        own = [trial for trial in recorder.begun if recorder.threads[trial] == worker]
        at = own.index(ids[0])
        assert own[at : at + len(ids)] == ids


def test_under_icount_the_trials_of_a_block_run_side_by_side() -> None:
    recorder = Recorder(meet=2)
    plan = make_plan(experiment(cells=1, boots=1))
    execute(plan, "icount", 2, recorder)
    assert [what for what, _ in recorder.events][:2] == ["begin", "begin"]


@pytest.mark.parametrize("accel", ["icount", "tcg"])
def test_what_is_finished_does_not_run_again(accel: str) -> None:
    plan, recorder = make_plan(experiment()), Recorder(0)
    finished = tuple(trial.id for trial in plan.trials[::3])
    execute(plan, accel, 2, recorder, finished)
    assert sorted(recorder.begun) == [trial.id for trial in plan.trials if trial.id not in finished]
    again = Recorder(0)
    execute(plan, accel, 2, again, tuple(trial.id for trial in plan.trials))
    assert again.begun == []


@pytest.mark.parametrize(("accel", "stops_within"), [("icount", 2), ("tcg", 2)])
def test_an_exception_ends_it_after_the_trials_that_run(
    accel: str, stops_within: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, recorder = make_plan(experiment(arms=4)), Recorder()
    seen: list[str] = []
    noticed = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            noticed.set()
            super().shutdown(wait, cancel_futures=cancel_futures)

    def run_one(trial: Trial) -> TrialResult:
        if trial.id == "001":
            raise TargetError("QEMU is gone")
        if trial.id != "000":  # That one may come before it, in the same thread.
            noticed.wait(60)
        return recorder(trial)

    monkeypatch.setattr(engine.local, "ThreadPoolExecutor", Pool)
    with pytest.raises(TargetError, match="QEMU is gone"):
        engine.execute(plan, (), accel, 2, run_one, lambda item: seen.append(item.id))
    assert len(recorder.begun) <= 1 + stops_within < len(plan.trials) - 1
    assert sorted(seen) == sorted(recorder.begun), "what had run is reported all the same"
    before = list(recorder.begun)
    time.sleep(0.3)
    assert recorder.begun == before, "nothing goes on behind our back"


def test_an_interrupt_does_not_wait_for_the_trials_that_run() -> None:
    """Their processes die with ours; a person who presses Ctrl-C does not wait for a five-minute deadline."""
    release = threading.Event()

    def run_one(trial: Trial) -> TrialResult:
        if trial.id != "000":
            release.wait(60)
        return result(trial)

    def on_result(_: TrialResult) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine.execute(make_plan(experiment()), (), "icount", 2, run_one, on_result)
    took = time.monotonic() - started
    release.set()
    assert took < 30


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.local.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("accel", "cpus", "wanted", "jobs"),
    [
        ("icount", 1, None, 4), ("icount", 1, 1, 1), ("icount", 1, 9, 9),  # Time is counted: load does no harm.
        ("tcg", 2, None, 1), ("tcg", 2, 1, 1), ("tcg", 2, 2, 2), ("tcg", 1, 4, 4),
        ("kvm", 1, None, 1), ("kvm", 1, 4, 4),
        ("tcg", 8, None, 1), ("tcg", 8, 1, 1),  # More emulated CPUs than real ones is the experiment's own choice.
    ],
)  # fmt: skip
def test_how_many_jobs(accel: str, cpus: int, wanted: int | None, jobs: int) -> None:
    assert engine.choose_jobs(experiment(cpus=cpus), accel, wanted) == jobs


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(("cpus", "wanted", "hint"), [(2, 3, "--jobs 2"), (1, 5, "--jobs 4"), (8, 2, "--jobs 1")])
def test_more_jobs_than_cpus_is_refused_where_time_is_real(cpus: int, wanted: int, hint: str) -> None:
    with pytest.raises(UserError, match=f"needs {cpus * wanted} CPUs, this machine has 4") as caught:
        engine.choose_jobs(experiment(cpus=cpus), "tcg", wanted)
    assert caught.value.hint == hint


@pytest.mark.usefixtures("four_cpus")
def test_the_running_kernel_takes_one_job() -> None:
    local = experiment("local")
    assert engine.choose_jobs(local, "local", None) == engine.choose_jobs(local, "local", 1) == 1
    with pytest.raises(UserError, match="disturb each other"):
        engine.choose_jobs(local, "local", 2)
