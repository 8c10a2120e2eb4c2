"""One night: every experiment with its newest tree, held against the nights before it, and told on one page.

results/nights/
    .lock            held while a night runs
    DATE-TIME.json   what one night came to; written after each experiment
    DATE-TIME-N.log  where a defect of ours ended its N-th experiment
    NAME/            the history of an experiment: history.txt, history.csv, a plot for each metric
    index.html  index.txt
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator import experiment, proc, run
from orchestrator.analysis.model import Comparison
from orchestrator.errors import OrchError, StageError, StoreError, UserError, printable
from orchestrator.nights import catalogue
from orchestrator.nights.catalogue import Run
from orchestrator.nights.tonight import Judged, judge
from orchestrator.progress import Reporter
from orchestrator.store import load_json, make_folder, take_lock, to_json, write_atomic

if TYPE_CHECKING:
    from orchestrator.engine.cluster import Cluster

    OpenCluster = Callable[[], contextlib.AbstractContextManager[Cluster | None]]

NIGHTS = "nights"
LOCK = ".lock"

# fine; worse than the nights before it; by itself a regression against the base or a failed check; a stage failed (a
# source, a build, a trial that did not end well); the user's mistake.
State = Literal["fine", "worse", "gate closed", "stage failed", "mistake"]


@dataclass(frozen=True)
class Entry:
    """One experiment in one night.

    From ``reference`` to ``better``, and ``sees``: see :class:`orchestrator.nights.tonight.Judged`. ``closed`` is what
    closes the run's own gate, ``notes`` what it and the reference differ in besides. ``error`` is what failed, with its
    log and the next command; ``log`` the name of a log beside this record, of a defect of ours.
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
    anchor: str = ""
    nights: int = 0
    sees: str = ""
    log: str = ""


@dataclass(frozen=True)
class Night:
    """``started`` and ``ended`` are UTC, ISO 8601; ``ended`` is empty of a night that was interrupted."""

    started: str
    ended: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Damaged:
    """A record that cannot be read: its file, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Records:
    """All nights on record, the latest first."""

    nights: tuple[Night, ...]
    damaged: tuple[Damaged, ...]


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
    publish: Callable[[], object] = lambda: None,
) -> Night:
    """Run every experiment, whatever becomes of the others, and leave a record of the night.

    ``open_cluster`` gives each experiment the machines for its trials, None for this process. ``publish`` is called
    after each one but the last: whoever looks at the page need not wait for the night's end.
    An experiment whose last run was interrupted goes on with it. Raises :class:`StoreError` if another night is
    running in this folder.
    """
    folder = make_folder(nights_folder(results))
    began = datetime.now(UTC)
    night = Night(began.isoformat(timespec="seconds"), "", ())
    with contextlib.closing(take_lock(folder / LOCK)):
        record = _free(folder, began)
        for number, config in enumerate(configs, 1):
            log = record.with_name(f"{record.stem}-{number}.log")
            entry = one(config, results, jobs, command, reporter, open_cluster, log)
            reporter.say(f"{entry.experiment}: {entry.state}")
            night = replace(night, entries=(*night.entries, entry))
            write_atomic(record, to_json(night))
            if number < len(configs):
                publish()
        night = replace(night, ended=datetime.now(UTC).isoformat(timespec="seconds"))
        write_atomic(record, to_json(night))
    return night


def one(
    config: Path,
    results: Path,
    jobs: int | None,
    command: Sequence[str],
    reporter: Reporter,
    open_cluster: OpenCluster,
    log: Path,
) -> Entry:
    """One experiment: run it, compare it, and put whatever goes wrong into the record instead of ending the night.

    ``log`` is where the traceback of a defect of ours goes.
    """
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
        failed = unexpected(error, log, ["orch", "--debug", "run", str(config), "--results", str(results)])
        entry = replace(entry, state="stage failed", error=failed.render(), log=log.name)
        reporter.say(entry.error)
    return replace(entry, seconds=round(time.monotonic() - began, 1))


def unexpected(error: Exception, log: Path, command: Sequence[str]) -> StageError:
    """A defect of ours as an error that says where: its traceback goes into ``log``; ``command`` shows it again."""
    write_atomic(log, "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace"))
    return StageError(
        f"unexpected {type(error).__name__}: {printable(str(error))}", log=log, hint=proc.quote(list(command))
    )


def _entry(entry: Entry, finished: run.Finished, ran: Run, results: Path) -> Entry:
    found = ran.comparison
    entry = replace(
        entry, experiment=found.name, run=ran.name, tree=ran.tree_text, headlines=found.headlines, closed=_closed(found)
    )
    judged = judge(ran, results) if found.status != "failed" else Judged(no_reference="no trial ended well")
    entry = replace(entry, **vars(judged))
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


def exit_code(night: Night, gate: bool) -> int:
    """2 if a stage failed, else 1 if a config is a mistake, else with ``gate`` 3 if something is worse, else 0."""
    states = {entry.state for entry in night.entries}
    if "stage failed" in states:
        return 2
    if "mistake" in states:
        return 1
    return 3 if gate and states & {"worse", "gate closed"} else 0


def read_nights(results: Path) -> Records:
    """What is on record. One file that is damaged is no reason to lose the others."""
    nights: list[Night] = []
    damaged: list[Damaged] = []
    for path in sorted(nights_folder(results).glob("[0-9]*.json"), key=lambda path: path.stem, reverse=True):
        try:
            nights.append(load_json(path, Night))
        except StoreError as error:
            damaged.append(Damaged(path, error.what.removeprefix(f"{path} is damaged: ")))
    return Records(tuple(nights), tuple(damaged))


def _free(folder: Path, began: datetime) -> Path:
    """A record's name that is not taken: two short nights can begin within a second."""
    name = f"{began:%Y%m%d-%H%M%S}"
    number = 1
    while (path := folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")).exists():
        number += 1
    return path
