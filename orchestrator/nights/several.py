"""One command for several configs: each a run of its own, one after the other, and a page that shows them side by side.

    results/beside/NAME-DATE-TIME/
        session.json            written first, and again with each run that ends
        beside.html beside.txt

The same command again goes on: with a run that was interrupted where it was, and past those that have ended, until all
have.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import experiment, run
from orchestrator.errors import (
    EXIT_GATE,
    EXIT_OK,
    EXIT_STAGE,
    EXIT_USER,
    ConfigError,
    OrchError,
    StageError,
    StoreError,
    UserError,
)
from orchestrator.experiment import Experiment
from orchestrator.manifest import Manifest
from orchestrator.nights import besidepage, catalogue
from orchestrator.nights.beside import Absent, side_by_side
from orchestrator.nights.catalogue import Run
from orchestrator.progress import Reporter
from orchestrator.store import LOCK, MANIFEST, STATUS, load_json, make_folder, take_lock, to_json, write_atomic

if TYPE_CHECKING:
    from orchestrator.engine.cluster import Cluster

FOLDER, SESSION = "beside", "session.json"
WORST_FIRST = (EXIT_STAGE, EXIT_USER, EXIT_GATE)

OpenCluster = Callable[[], AbstractContextManager["Cluster | None"]]


@dataclass(frozen=True)
class Session:
    """What one command has come to: absolute paths of its configs, the name of each one's run (empty until it has
    ended), and when all had (UTC, ISO 8601; empty until then)."""

    configs: tuple[str, ...]
    runs: tuple[str, ...]
    ended: str = ""


@dataclass(frozen=True)
class Part:
    """One config: its run, or the error that it came to."""

    config: Path
    run: Run | None
    error: OrchError | None = None

    def exit_code(self, gate: bool) -> int:
        """What ``orch run`` of this config alone would have exited with."""
        if self.error is not None:
            return self.error.exit_code
        if self.run is None:
            return EXIT_OK
        finished = run.Finished(self.run.folder, self.run.comparison, ())
        if finished.failed_stage:
            return EXIT_STAGE
        return EXIT_GATE if gate and finished.gate_closed else EXIT_OK


@dataclass(frozen=True)
class Several:
    """All parts, in the order of the command, and the two forms of their page; None if no run has ended."""

    parts: tuple[Part, ...]
    page: tuple[Path, Path] | None

    def exit_code(self, gate: bool) -> int:
        """The worst of the parts'."""
        codes = {part.exit_code(gate) for part in self.parts}
        return next((code for code in WORST_FIRST if code in codes), EXIT_OK)


def run_all(
    configs: Sequence[Path],
    results: Path,
    jobs: int | None,
    command: Sequence[str],
    reporter: Reporter,
    open_cluster: OpenCluster = contextlib.nullcontext,
) -> Several:
    """Run every config, whatever becomes of the others; see the module.

    Raises :class:`UserError` with every error of every config before anything is built, and :class:`StoreError` if the
    same command is running already.
    """
    chosen = check_all(configs, open_cluster)
    folder = _session_folder(results, [str(item.path) for item in chosen], chosen[0].name)
    with contextlib.closing(take_lock(folder / LOCK)):
        session = load_json(folder / SESSION, Session)
        parts: list[Part] = []
        for index, (config, item) in enumerate(zip(configs, chosen, strict=True)):
            reporter.say(f"--- {config} ({index + 1} of {len(configs)})")
            part = _one(config, item, results, session.runs[index], jobs, command, reporter, open_cluster)
            parts.append(part)
            if part.run is not None:
                runs = (*session.runs[:index], part.run.name, *session.runs[index + 1 :])
                session = replace(session, runs=runs)
                write_atomic(folder / SESSION, to_json(session))
        page = _show(parts, folder)
        if all(session.runs):
            ended = datetime.now(UTC).isoformat(timespec="seconds")
            write_atomic(folder / SESSION, to_json(replace(session, ended=ended)))
    return Several(tuple(parts), page)


def check_all(configs: Sequence[Path], open_cluster: OpenCluster = contextlib.nullcontext) -> tuple[Experiment, ...]:
    """Read every config and see whether its target can work; every error of all of them at once.

    Raises :class:`UserError`, or :class:`StageError` if one of the errors is not the user's.
    """
    chosen: list[Experiment] = []
    errors: list[tuple[Path, OrchError]] = []
    quiet = Reporter(io.StringIO())  # What is decided is said when it is used.
    twice = [path for path in configs if [item.resolve() for item in configs].count(path.resolve()) > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice", hint="orch run CONFIG   (again, when it has ended)")
    with open_cluster() as cluster:
        for config in configs:
            try:
                chosen.append(experiment.load(config))
                run.settle(chosen[-1], quiet, cluster)
            except OrchError as error:
                errors.append((config, error))
    if errors:
        raise _together(errors)
    return tuple(chosen)


def _together(errors: Sequence[tuple[Path, OrchError]]) -> OrchError:
    found = [error for _, error in errors]
    if len(found) == 1:
        return found[0]
    if all(isinstance(error, ConfigError) for error in found):
        problems = [problem for error in found if isinstance(error, ConfigError) for problem in error.problems]
        return ConfigError(tuple(problems), hint=found[0].hint)
    kind = UserError if all(isinstance(error, UserError) for error in found) else StageError
    lines = "\n".join(f"{config}: {error.what}" for config, error in errors)
    return kind(f"{len(found)} configs cannot work\n{lines}", hint=found[0].hint)


def _one(
    config: Path,
    chosen: Experiment,
    results: Path,
    ended: str,
    jobs: int | None,
    command: Sequence[str],
    reporter: Reporter,
    open_cluster: OpenCluster,
) -> Part:
    """Run one config, or take the run that has ``ended`` before, if a new one would be the same."""
    try:
        with open_cluster() as cluster:
            setting = run.settle(chosen, reporter, cluster)
            ready = run.prepare(setting, jobs, command, reporter, cluster)
            if ended and _stands(results / ended, ready.manifest):
                reporter.say(f"{results / ended} has ended: it stands until all configs have")
                return Part(config, catalogue.read(results / ended))
            finished = run.carry_out(ready, results, reporter, cluster=cluster)
        return Part(config, catalogue.read(finished.run))
    except OrchError as error:
        reporter.say(error.render())
        return Part(config, None, error)


def _stands(folder: Path, manifest: Manifest) -> bool:
    """Whether a run has ended that has the fingerprint of this manifest."""
    with contextlib.suppress(StoreError):
        return (folder / STATUS).is_file() and load_json(
            folder / MANIFEST, Manifest
        ).fingerprint == manifest.fingerprint
    return False


def _show(parts: Sequence[Part], folder: Path) -> tuple[Path, Path] | None:
    runs = [part.run for part in parts if part.run is not None]
    absent = [Absent(str(part.config), part.error.render()) for part in parts if part.error is not None]
    return besidepage.write(side_by_side(runs, absent), folder) if runs else None


def _session_folder(results: Path, configs: Sequence[str], name: str) -> Path:
    """That of the newest session of these configs which has not ended, or a new one."""
    root = make_folder(results / FOLDER)
    with contextlib.closing(take_lock(root / LOCK, blocking=True)):
        for path in sorted(root.glob(f"*/{SESSION}"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            with contextlib.suppress(StoreError):  # Of another version, or damaged: not ours to go on with.
                session = load_json(path, Session)
                if session.configs == tuple(configs) and not session.ended:
                    return path.parent
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        names = itertools.chain([f"{name}-{stamp}"], (f"{name}-{stamp}-{count}" for count in itertools.count(2)))
        folder = next(path for path in (root / item for item in names) if not path.exists())
        make_folder(folder)
        write_atomic(folder / SESSION, to_json(Session(tuple(configs), ("",) * len(configs))))
        return folder
