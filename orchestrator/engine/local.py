"""The engine ``local``: trials execute in this process, several at a time where that disturbs no measurement."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass

from orchestrator import proc
from orchestrator.bench import Bench
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.lab.machine import MachineGone
from orchestrator.plan import Plan, Trial
from orchestrator.results import Outcome, TrialResult
from orchestrator.store import Store

POLL_S = 0.2
# A block that took two machines down is not tried on a third one: that is the kernel's doing, not bad luck.
MAX_MACHINES = 2

RunOne = Callable[[Trial], TrialResult]
OnResult = Callable[[TrialResult], None]
Hold = Callable[[Sequence[Trial]], AbstractContextManager[object]]


def choose_jobs(experiment: Experiment, accel: str, wanted: int | None, machines: int = 0) -> int:
    """How many trials run at once.

    Under icount time is counted in instructions, so as many as there are CPUs; in a lab, one on each of its
    ``machines``. Otherwise real CPUs are what is timed: one, unless asked for more, and never more than the CPUs carry.
    Raises :class:`UserError`.
    """
    if machines:
        if wanted is not None and wanted > machines:
            raise UserError(f"--jobs {wanted}, and {machines} machines to run them on", hint="leave out --jobs")
        return wanted or machines
    cpus = len(os.sched_getaffinity(0))
    if accel == "icount":
        return wanted or cpus
    if wanted is None:
        return 1
    if experiment.target.kind == "local" and wanted > 1:
        raise UserError(f"--jobs {wanted} with target: local: trials would disturb each other", hint="leave out --jobs")
    need = wanted * experiment.target.cpus
    if wanted > 1 and need > cpus:
        raise UserError(
            f"--jobs {wanted} with {experiment.target.cpus} emulated CPUs each needs {need} CPUs, this machine has"
            f" {cpus}: the times would mean nothing",
            hint=f"--jobs {max(1, cpus // experiment.target.cpus)}",
        )
    return wanted


@dataclass(frozen=True)
class Unit:
    """Trials that run one after the other in one place: ``left`` of ``whole``, a block or a trial.

    ``machines`` have been lost to it.
    """

    whole: tuple[Trial, ...]
    left: tuple[Trial, ...]
    machines: int = 0


def units(plan: Plan, finished: Iterable[str], accel: str) -> list[Unit]:
    """What must run in one place, one trial after the other, of the trials whose ids are not in ``finished``.

    A block, since its trials are compared with each other; under icount, where nothing can disturb it, each trial.
    """
    done = set(finished)
    groups: list[tuple[Trial, ...]] = [block.trials for block in plan.blocks]
    if accel == "icount":
        groups = [(trial,) for trial in plan.trials]
    found = (Unit(group, tuple(trial for trial in group if trial.id not in done)) for group in groups)
    return [unit for unit in found if unit.left]


def execute(
    plan: Plan,
    finished: Iterable[str],
    accel: str,
    jobs: int,
    run_one: RunOne,
    on_result: OnResult,
    hold: Hold = contextlib.nullcontext,
) -> None:
    """Run every trial of ``plan`` whose id is not in ``finished``; ``on_result`` sees each result in this thread.

    The trials of one of the :func:`units` run in one thread. ``hold`` is entered around a unit, with its trials. One
    whose machine is lost in the middle is repeated as a whole on another machine. What ``run_one`` or ``hold`` raises
    ends the execution after the trials that run already; an interrupt (Ctrl-C) ends it at once and leaves them to die
    with this process.
    """
    waiting = deque(units(plan, finished, accel))
    results: queue.SimpleQueue[TrialResult] = queue.SimpleQueue()
    stop = threading.Event()
    pool = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="trial")

    def begin(unit: Unit) -> Future[Unit | None]:
        return pool.submit(_run_unit, unit, run_one, results.put, stop, hold)

    try:
        _run_all(waiting, jobs, begin, lambda: _hand_over(results, on_result))
    except Exception:
        stop.set()
        pool.shutdown()
        _hand_over(results, on_result)
        raise
    except BaseException:
        stop.set()
        pool.shutdown(wait=False)
        raise
    pool.shutdown()


def _run_all(
    waiting: deque[Unit], jobs: int, begin: Callable[[Unit], Future[Unit | None]], hand_over: Callable[[], None]
) -> None:
    """Begin ``jobs`` units at a time until none is left; what must run on another machine comes next."""
    running: set[Future[Unit | None]] = set()
    while True:
        while len(running) < jobs and waiting:
            running.add(begin(waiting.popleft()))
        if not running:
            return
        ended, running = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
        hand_over()
        for future in ended:
            if (again := future.result()) is not None:
                waiting.appendleft(again)


def _hand_over(results: queue.SimpleQueue[TrialResult], on_result: OnResult) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            on_result(results.get_nowait())


def _run_unit(unit: Unit, run_one: RunOne, put: OnResult, stop: threading.Event, hold: Hold) -> Unit | None:
    """Run a unit to its end; what of it must run on another machine, or None."""
    with hold(unit.left):
        for place, trial in enumerate(unit.left):
            if stop.is_set():
                return None
            try:
                result = run_one(trial)
            except MachineGone:
                return Unit(unit.whole, unit.whole, unit.machines)
            put(result)
            if result.machine_lost:
                return elsewhere(unit, unit.left[place + 1 :], result)
    return None


def elsewhere(unit: Unit, rest: tuple[Trial, ...], last: TrialResult) -> Unit | None:
    """What runs again when a machine was lost: all of the block, since its trials are compared with each other.

    Not if all it lacks is an answer that we have: its last trial's kernel panicked. And not without end.
    """
    if not rest and last.outcome not in (Outcome.LOST, Outcome.NOT_RUN):
        return None
    if unit.machines + 1 < MAX_MACHINES:
        return Unit(unit.whole, unit.whole, unit.machines + 1)
    return Unit(unit.whole, rest, unit.machines + 1) if rest else None


@dataclass(frozen=True)
class LocalRunner:
    """A :class:`~orchestrator.engine.Runner` in this process."""

    bench: Bench
    store: Store

    def runs(self, item: Trial) -> bool:
        """See :class:`~orchestrator.engine.Runner`."""
        return self.bench.runs(item)

    def resume(self, plan: Plan, done: Sequence[TrialResult]) -> Sequence[TrialResult]:
        """See :class:`~orchestrator.engine.Runner`."""
        return self.bench.resume(plan, done)

    def execute(self, plan: Plan, finished: Iterable[str], accel: str, jobs: int | None, on_result: OnResult) -> None:
        """See :class:`~orchestrator.engine.Runner` and :func:`execute`."""
        lock = threading.Lock()

        def run_one(item: Trial) -> TrialResult:
            with lock:
                folder = self.store.begin_trial(item.id)
            rerun = proc.quote(["orch", "trial", self.store.run, item.id])
            result = self.bench.run(item, folder, rerun)
            with lock:
                self.store.set_aside(item.id)
            self.store.finish_trial(result)
            return result

        at_once = jobs or len(os.sched_getaffinity(0))
        execute(plan, finished, accel, at_once, run_one, on_result, self.bench.hold)

    def close(self) -> None:
        """See :class:`~orchestrator.engine.Runner`."""
        self.bench.close()
