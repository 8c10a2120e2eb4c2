"""Where trials execute: in this process, several at a time where that cannot disturb what they measure."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.plan import Plan, Trial
from orchestrator.results import TrialResult

POLL_S = 0.2

RunOne = Callable[[Trial], TrialResult]
OnResult = Callable[[TrialResult], None]


def choose_jobs(experiment: Experiment, accel: str, wanted: int | None) -> int:
    """How many trials run at once.

    Under icount time is counted in instructions, so as many as there are CPUs. Otherwise real CPUs are what is timed:
    one, unless asked for more, and never more than the CPUs carry. Raises :class:`UserError`.
    """
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


def execute(plan: Plan, finished: Iterable[str], accel: str, jobs: int, run_one: RunOne, on_result: OnResult) -> None:
    """Run every trial of ``plan`` whose id is not in ``finished``; ``on_result`` sees each result in this thread.

    Trials of a block run one after the other in one worker, since they are compared with each other; under icount,
    where nothing can disturb them, each is a unit of its own. What ``run_one`` raises ends the execution after the
    trials that run already; an interrupt (Ctrl-C) ends it at once and leaves them to die with this process.
    """
    done = set(finished)
    groups: list[Sequence[Trial]] = [block.trials for block in plan.blocks]
    if accel == "icount":
        groups = [(trial,) for trial in plan.trials]
    left = (tuple(trial for trial in group if trial.id not in done) for group in groups)
    waiting = (unit for unit in left if unit)
    results: queue.SimpleQueue[TrialResult] = queue.SimpleQueue()
    stop = threading.Event()
    pool = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="trial")
    running: set[Future[None]] = set()
    try:
        while True:
            while len(running) < jobs and (unit := next(waiting, None)) is not None:
                running.add(pool.submit(_run_unit, unit, run_one, results.put, stop))
            if not running:
                break
            ended, running = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            _hand_over(results, on_result)
            for future in ended:
                future.result()
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


def _hand_over(results: queue.SimpleQueue[TrialResult], on_result: OnResult) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            on_result(results.get_nowait())


def _run_unit(unit: Sequence[Trial], run_one: RunOne, put: OnResult, stop: threading.Event) -> None:
    for trial in unit:
        if stop.is_set():
            return
        put(run_one(trial))
