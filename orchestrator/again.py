"""One trial of a run once more, or one round of its stale-mapping check: ``orch trial``."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator import image, linuxguest, proc, run, selftests, stale
from orchestrator.bench import Bench
from orchestrator.errors import StoreError, UserError
from orchestrator.experiment import Experiment, StaleCase, StaleOp
from orchestrator.kernel.build import BuiltKernel
from orchestrator.plan import Plan, Trial
from orchestrator.progress import Reporter
from orchestrator.results import TrialResult
from orchestrator.store import RECORDING, Store


def repeat_trial(run_folder: Path, trial_id: str, reporter: Reporter) -> tuple[TrialResult, Path, bool | None]:
    """``orch trial``: run one trial of a run again, in ``reruns/`` beside it.

    Returns the result, its folder, and whether the recording is the same byte for byte (None if there is none).
    """
    again = _prepare_again(run_folder, trial_id, reporter)
    result = again.run(None)
    before = next((item for item in again.store.finished_trials() if item.id == trial_id), None)
    if before is None or not before.recording_sha256 or not result.recording_sha256:
        return result, again.folder, None
    return result, again.folder, before.recording_sha256 == result.recording_sha256


def replay_round(
    run_folder: Path, trial_id: str, case: StaleCase, op: StaleOp, number: int, reporter: Reporter
) -> tuple[TrialResult, Path, bool | None]:
    """``orch trial --round``: run just one round of a stale-mapping check again, preempting at the same moment.

    Returns as :func:`repeat_trial` does; the same is a round that ended in the same way with the same stale pages of
    the same content. Raises :class:`UserError` if the trial has no such round.
    """
    store = run.existing(run_folder)
    first = stale.read(store.trial_dir(trial_id) / RECORDING).find(case, op, number)
    if first is None:
        raise UserError(f"trial {trial_id} has no round {number} of case {case} by {op}")
    again = _prepare_again(run_folder, trial_id, reporter)
    result = again.run(first)
    if not result.recording_sha256:
        return result, again.folder, None
    (new,) = stale.read(again.folder / RECORDING).rounds
    return result, again.folder, (new.ending, new.stale) == (first.ending, first.stale)


@dataclass(frozen=True)
class _Again:
    """A trial that is ready to run once more, in a folder of its own."""

    store: Store
    item: Trial
    bench: Bench
    folder: Path
    rerun: str

    def run(self, only: stale.Round | None) -> TrialResult:
        try:
            with self.bench.hold((self.item,)):
                return self.bench.run(self.item, self.folder, self.rerun, only)
        finally:
            self.bench.close()


def _prepare_again(run_folder: Path, trial_id: str, reporter: Reporter) -> _Again:
    store = run.existing(run_folder)
    chosen = store.load(run.EXPERIMENT, Experiment)
    planned = store.load(run.PLAN, Plan)
    found = next((item for item in planned.trials if item.id == trial_id), None)
    if found is None:
        last = planned.trials[-1].id
        raise UserError(f"run {run_folder.name} has no trial {trial_id}: they go from {planned.trials[0].id} to {last}")
    setting = run.settle(chosen, reporter)
    guests = image.build_guests(reporter.say)
    kernels: list[BuiltKernel] = []
    if chosen.builds_kernels:
        kernel = store.load(f"kernels/{found.arm}.json", BuiltKernel)
        if kernel.build == "failed":
            raise StoreError(f"the kernel of arm {found.arm} did not compile", log=kernel.log)
        if kernel.vmlinux is None or not kernel.vmlinux.exists():
            raise StoreError(
                f"the kernel of arm {found.arm} is no longer in the cache", hint=f"orch build {chosen.path}"
            )
        kernels.append(kernel)
    linux = linuxguest.load(store, chosen, guests, _guest_kernels(store, chosen))
    bench = run.make_bench(setting, guests, kernels, selftests.load(store, chosen), linux, reporter)
    folder = store.path(f"reruns/{trial_id}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}/x").parent
    rerun = proc.quote(["orch", "trial", run_folder, trial_id])
    return _Again(store, found, bench, folder, rerun)


def _guest_kernels(store: Store, chosen: Experiment) -> tuple[BuiltKernel, ...]:
    """The base's kernel, which Linux guests run in every arm's trials."""
    name = f"kernels/{chosen.base.name}.json"
    return (store.load(name, BuiltKernel),) if (store.run / name).exists() else ()
