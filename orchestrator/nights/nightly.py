"""One night: every experiment with its newest tree, held against its last good run, and told on one page.

results/nights/
    .lock            held while a night runs
    DATE-TIME.json   what one night came to; written after each experiment
    NAME/            the history of an experiment: history.txt, history.csv, a plot for each metric
    index.html  index.txt
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator import experiment, run
from orchestrator.analysis.model import Comparison
from orchestrator.errors import OrchError, UserError
from orchestrator.nights import catalogue
from orchestrator.nights.catalogue import Run
from orchestrator.nights.compare import Versus, versus
from orchestrator.nights.sameness import examine
from orchestrator.progress import Reporter
from orchestrator.store import load_json, make_folder, take_lock, to_json, write_atomic

if TYPE_CHECKING:
    from orchestrator.engine.cluster import Cluster

    OpenCluster = Callable[[], contextlib.AbstractContextManager[Cluster | None]]

NIGHTS = "nights"
LOCK = ".lock"

# fine; worse than the last good run; by itself a regression against the base or a failed check; a stage failed (a
# source, a build, a trial that did not end well); the user's mistake.
State = Literal["fine", "worse", "gate closed", "stage failed", "mistake"]


@dataclass(frozen=True)
class Entry:
    """One experiment in one night.

    ``reference`` is the run that it was held against; where there is none, ``no_reference`` says why. ``worse`` and
    ``better`` are changes against it, ``closed`` what closes the run's own gate, ``notes`` what the two runs differ in
    besides. ``error`` is what failed, with its log and the next command.
    """

    config: str
    experiment: str
    state: State
    run: str = ""
    tree: str = ""
    reference: str = ""
    no_reference: str = ""
    worse: tuple[str, ...] = ()
    better: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    headlines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Night:
    """``started`` and ``ended`` are UTC, ISO 8601; ``ended`` is empty of a night that was interrupted."""

    started: str
    ended: str
    entries: tuple[Entry, ...]


def nights_folder(results: Path) -> Path:
    """Where the nights of a results folder are kept."""
    return results / NIGHTS


def run_night(
    configs: Sequence[Path],
    results: Path,
    jobs: int | None,
    command: Sequence[str],
    reporter: Reporter,
    open_cluster: OpenCluster = contextlib.nullcontext,
) -> Night:
    """Run every experiment, whatever becomes of the others, and leave a record of the night.

    ``open_cluster`` gives each experiment the machines for its trials, None for this process.
    An experiment whose last run was interrupted goes on with it. Raises :class:`StoreError` if another night is
    running in this folder.
    """
    folder = make_folder(nights_folder(results))
    began = datetime.now(UTC)
    night = Night(began.isoformat(timespec="seconds"), "", ())
    with contextlib.closing(take_lock(folder / LOCK)):
        record = _free(folder, began)
        for config in configs:
            entry = one(config, results, jobs, command, reporter, open_cluster)
            reporter.say(f"{entry.experiment}: {entry.state}")
            night = replace(night, entries=(*night.entries, entry))
            write_atomic(record, to_json(night))
        night = replace(night, ended=datetime.now(UTC).isoformat(timespec="seconds"))
        write_atomic(record, to_json(night))
    return night


def one(
    config: Path,
    results: Path,
    jobs: int | None,
    command: Sequence[str],
    reporter: Reporter,
    open_cluster: OpenCluster = contextlib.nullcontext,
) -> Entry:
    """One experiment: run it, compare it, and put whatever goes wrong into the record instead of ending the night."""
    began = time.monotonic()
    reporter.say(f"--- {config}")
    entry = Entry(str(config), config.stem, "stage failed")
    try:
        entry = replace(entry, experiment=experiment.load(config).name)
        with open_cluster() as cluster:
            finished = run.run(config, results, jobs, command, reporter, update=True, cluster=cluster)
        entry = _entry(entry, finished, catalogue.read(finished.run), results)
    except OrchError as error:
        entry = replace(
            entry, state="mistake" if isinstance(error, UserError) else "stage failed", error=error.render()
        )
        reporter.say(error.render())
    except Exception as error:  # A defect of ours in one experiment is no reason to lose the others' night.
        entry = replace(entry, state="stage failed", error=f"unexpected {type(error).__name__}: {error}")
        reporter.say(entry.error)
    return replace(entry, seconds=round(time.monotonic() - began, 1))


def _entry(entry: Entry, finished: run.Finished, ran: Run, results: Path) -> Entry:
    found = ran.comparison
    entry = replace(
        entry, experiment=found.name, run=ran.name, tree=ran.tree_text, headlines=found.headlines, closed=_closed(found)
    )
    compared = _against_last_good(ran, results) if found.status != "failed" else "no trial ended well"
    if isinstance(compared, Versus):
        entry = replace(
            entry,
            reference=compared.left.name,
            worse=compared.worse,
            better=compared.better,
            notes=(*(item.render() for item in compared.sameness.compared), *compared.sameness.notes, *compared.only),
        )
        if compared.worse:
            catalogue.mark_worse(ran, compared.left, compared.worse)
    else:
        entry = replace(entry, no_reference=compared)
    return replace(entry, state=_state(entry, finished))


def _state(entry: Entry, finished: run.Finished) -> State:
    """What could not be measured comes before what was measured, as in the exit code of ``orch run``."""
    if finished.failed_stage:
        return "stage failed"
    if entry.worse:
        return "worse"
    return "gate closed" if finished.gate_closed else "fine"


def _closed(found: Comparison) -> tuple[str, ...]:
    """Why the run's own gate is closed, a line each."""
    lines = [
        f"{item.cell}, {item.arm}: {item.verdict} against {found.base}: {item.summary}"
        for item in found.verdicts
        if item.verdict in ("regressed", "mixed")
    ]
    for check in found.checks:
        if check.status == "failed":
            where = ", ".join(part for part in (check.cell, check.arm) if part)
            lines.append(f"check {check.name} failed{f' ({where})' if where else ''}: {check.why}")
    return tuple(lines)


def _against_last_good(ran: Run, results: Path) -> Versus | str:
    """The comparison with the newest good run before this one that is like it, or why there is none."""
    before = [item for item in catalogue.find(results, ran.comparison.name).runs if _order(item) < _order(ran)]
    unlike = ""
    for item in reversed([item for item in before if catalogue.is_good(item)]):
        refused = examine(item, ran).refused
        if not refused:
            return versus(item, ran)
        unlike = unlike or f"the last good run, {item.name}, is not like it: {refused[0].render()}"
    return unlike or ("no run before it was good" if before else "it is the first")


def _order(item: Run) -> tuple[str, str]:
    return item.manifest.started, item.name


def exit_code(night: Night, gate: bool) -> int:
    """2 if a stage failed, else 1 if a config is a mistake, else with ``gate`` 3 if something is worse, else 0."""
    states = {entry.state for entry in night.entries}
    if "stage failed" in states:
        return 2
    if "mistake" in states:
        return 1
    return 3 if gate and states & {"worse", "gate closed"} else 0


def read_nights(results: Path) -> tuple[Night, ...]:
    """All nights on record, the latest first. A damaged record raises :class:`StoreError`."""
    records = sorted(nights_folder(results).glob("[0-9]*.json"), key=lambda path: path.stem, reverse=True)
    return tuple(load_json(path, Night) for path in records)


def _free(folder: Path, began: datetime) -> Path:
    """A record's name that is not taken: two short nights can begin within a second."""
    name = f"{began:%Y%m%d-%H%M%S}"
    number = 1
    while (path := folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")).exists():
        number += 1
    return path
