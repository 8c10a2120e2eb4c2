"""The runs of a results folder: which there are, which can be used, and which one the next is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.analysis.model import COMPARISON_FILE, Comparison, from_json
from orchestrator.errors import StoreError, UserError
from orchestrator.experiment import Experiment
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.keep import TREE
from orchestrator.kernel.source import KernelTree
from orchestrator.manifest import Manifest
from orchestrator.run import EXPERIMENT
from orchestrator.store import MANIFEST, STATUS, RunStatus, load_json, to_json, write_atomic

ACCEPTED = "accepted.json"
WORSE = "worse.json"


@dataclass(frozen=True)
class Run:
    """A run that has ended, with everything of it that other runs are held against.

    ``kernels`` has the arms that were built, ``tree`` is None for runs of before it was kept.
    """

    folder: Path
    manifest: Manifest
    experiment: Experiment
    comparison: Comparison
    kernels: tuple[BuiltKernel, ...]
    tree: KernelTree | None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def tree_text(self) -> str:
        """The kernel tree in a few words."""
        if self.tree is not None:
            return self.tree.identity
        return ", ".join(dict.fromkeys(arm.release for arm in self.comparison.arms if arm.release)) or "not built"


@dataclass(frozen=True)
class LeftOut:
    """A run that is not used, and why."""

    run: str
    why: str


@dataclass(frozen=True)
class Catalogue:
    """All runs of one experiment, oldest first."""

    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Worse:
    """worse.json: a nightly found this run worse than ``reference``, in what ``why`` lists."""

    reference: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class Accepted:
    """accepted.json: somebody said at this time (UTC, ISO 8601) that a worse run is the new normal."""

    when: str


def read(folder: Path) -> Run:
    """One ended run. Raises :class:`StoreError` if it has not ended or a file of it is damaged."""
    load_json(folder / STATUS, RunStatus)
    experiment = load_json(folder / EXPERIMENT, Experiment)
    kernels = (folder / f"kernels/{arm.name}.json" for arm in experiment.arms)
    return Run(
        folder=folder,
        manifest=load_json(folder / MANIFEST, Manifest),
        experiment=experiment,
        comparison=from_json(Comparison, folder / COMPARISON_FILE),
        kernels=tuple(load_json(path, BuiltKernel) for path in kernels if path.exists()),
        tree=load_json(folder / TREE, KernelTree) if (folder / TREE).exists() else None,
    )


def open_run(folder: Path) -> Run:
    """A run that the user named. Raises :class:`UserError` if it is none or has not ended."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not a run: it has no {MANIFEST}", hint="name a folder inside results/")
    if not (folder / STATUS).is_file():
        raise UserError(f"{folder} has not ended: it has no {STATUS}", hint="run its command again: it goes on")
    return read(folder)


def find(results: Path, name: str) -> Catalogue:
    """All runs of the experiment ``name`` below ``results``.

    Raises :class:`UserError`, naming the experiments that there are, if there is no run of it.
    """
    runs: list[Run] = []
    left_out: list[LeftOut] = []
    others: set[str] = set()
    for path in sorted(results.glob(f"[!.]*/{MANIFEST}")):
        folder = path.parent
        try:
            manifest = load_json(path, Manifest)
        except StoreError as error:
            if folder.name.startswith(f"{name}-"):
                left_out.append(LeftOut(folder.name, error.what))
            continue
        if manifest.experiment != name:
            others.add(manifest.experiment)
            continue
        try:
            runs.append(_usable(folder))
        except StoreError as error:
            left_out.append(LeftOut(folder.name, error.what))
    if not runs and not left_out:
        known = f"it has runs of: {', '.join(sorted(others))}" if others else "it has no runs at all"
        raise UserError(f"no run of {name!r} in {results}: {known}", hint="orch history NAME --results DIR")
    runs.sort(key=lambda run: (run.manifest.started, run.name))
    return Catalogue(tuple(runs), tuple(left_out))


def _usable(folder: Path) -> Run:
    if not (folder / STATUS).exists():
        raise StoreError("it has not ended")
    run = read(folder)
    if run.comparison.status == "failed":
        raise StoreError("it failed: no trial ended well")
    return run


def is_exact(run: Run) -> bool:
    """Whether its time is without noise, so that one run says all that there is to say."""
    return run.manifest.accel == "icount"


def is_accepted(run: Run) -> bool:
    """Whether somebody took it as the new normal."""
    return (run.folder / ACCEPTED).exists()


def is_good(run: Run) -> bool:
    """Whether later runs are held against this one: complete, no check failed, and where time is exact not worse.

    A worse run counts from the moment at which somebody accepts it. Where time is noisy the slow nights belong to what
    is known of the machine: without them every lucky night would be the measure of all later ones.
    """
    if run.comparison.status != "complete" or any(check.status == "failed" for check in run.comparison.checks):
        return False
    return not is_exact(run) or not (run.folder / WORSE).exists() or is_accepted(run)


def mark_worse(run: Run, reference: Run, why: Sequence[str]) -> None:
    """Later runs will not be held against this one, unless it is accepted."""
    write_atomic(run.folder / WORSE, to_json(Worse(reference.name, tuple(why))))


def accept(folder: Path) -> Run:
    """Take a run as good although it is worse than one before.

    Raises :class:`UserError` for a run that is not good for another reason.
    """
    run = open_run(folder)
    if run.comparison.status != "complete":
        raise UserError(f"{run.name} is {run.comparison.status}: only a complete run can be accepted")
    failed = sorted({check.name for check in run.comparison.checks if check.status == "failed"})
    if failed:
        raise UserError(f"in {run.name} the check {', '.join(failed)} failed: it cannot be accepted")
    write_atomic(folder / ACCEPTED, to_json(Accepted(datetime.now(UTC).isoformat(timespec="seconds"))))
    return run
