"""The trials of a run, in the order of its plan: all of them, or look by look until every cell is decided."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.analysis import compare, measure, stopping
from orchestrator.analysis.model import CellStop
from orchestrator.analysis.sure import labels
from orchestrator.engine import Runner
from orchestrator.experiment import Experiment, SelftestCell
from orchestrator.plan import Block, Plan, Trial
from orchestrator.progress import Reporter, Stage
from orchestrator.results import Outcome, TrialResult
from orchestrator.store import Store
from orchestrator.target.pool import NoMachineLeft

TRIALS = "trials"
MISSING_SHOWN = 20


@dataclass
class Conductor:
    """Runs the trials of one run that are not ``done`` yet; arms whose kernel did not build have none."""

    experiment: Experiment
    plan: Plan
    accel: str
    jobs: int | None
    store: Store
    runner: Runner
    reporter: Reporter
    results: dict[str, TrialResult] = field(default_factory=dict)
    _read: dict[str, compare.Boot] = field(default_factory=dict)

    def run(self, done: Sequence[TrialResult]) -> None:
        """Run everything; what is raised by a trial ends it, see :class:`orchestrator.engine.Runner`."""
        done = self.runner.resume(self.plan, done)
        self.results = {item.id: item for item in done}
        total = len(self._runnable(self.plan.blocks))
        measuring, tests = phases(self.plan)
        with self.reporter.stage("trials", total, lines=False) as stage:
            counter = _Counter(total, len(done), time.monotonic(), self.reporter)
            self._measure(measuring, counter, stage)
            # The selftests run after all else, and one boot at a time unless time is counted in instructions.
            spec = self.experiment.selftests
            accel = spec.accel if spec is not None else ""
            self._execute(tests, accel, self.jobs if accel == "icount" else 1, counter, stage)

    def _measure(self, blocks: Sequence[Block], counter: _Counter, stage: Stage) -> None:
        """All blocks; of cells until decided only those up to the look at which each ended."""
        schedule = self.experiment.schedule
        if schedule.until != "decided":
            self._execute(blocks, self.accel, self.jobs, counter, stage)
            return
        ended: frozenset[str] = frozenset()
        for boots in schedule.look_boots:
            due = [item for item in blocks if item.cell not in ended and item.trials[0].boot % schedule.most < boots]
            self._execute(due, self.accel, self.jobs, counter, stage)
            stops = self._decide()
            now = frozenset(item.cell for item in stops if item.why != "not reached")
            for line in look_lines(boots, stops, ended):
                self.reporter.say(line)
            ended = now
            left = [item for item in blocks if item.cell not in ended and item.trials[0].boot % schedule.most >= boots]
            waiting = {item.id for item in self._runnable((*left, *phases(self.plan)[1]))}
            counter.total = len(waiting | set(self.results))

    def _decide(self) -> tuple[CellStop, ...]:
        arms = {trial.arm for trial in self._runnable(self.plan.blocks)}
        results = sorted(self.results.values(), key=lambda item: item.id)
        return stopping.decide(self.experiment, results, sorted(arms), self._boot, self.accel == "icount")

    def _boot(self, result: TrialResult) -> compare.Boot:
        if result.id not in self._read:
            self._read[result.id] = measure.measure(result, self.store.run / TRIALS)
        return self._read[result.id]

    def _runnable(self, blocks: Sequence[Block]) -> list[Trial]:
        return [trial for block in blocks for trial in block.trials if self.runner.runs(trial)]

    def _execute(self, blocks: Sequence[Block], accel: str, jobs: int | None, counter: _Counter, stage: Stage) -> None:
        def on_result(result: TrialResult) -> None:
            self.results[result.id] = result
            counter.count(result, stage)

        skipped = [trial.id for block in blocks for trial in block.trials if not self.runner.runs(trial)]
        self.runner.execute(Plan(tuple(blocks)), [*self.results, *skipped], accel, jobs, on_result)


def stopped(run: Path, conductor: Conductor, why: NoMachineLeft) -> NoMachineLeft:
    """No machine of the lab is left: what there is, and what is missing. The run can be gone on with."""
    done = {item.id for item in conductor.store.finished_trials()}
    missing = [item.id for item in conductor.plan.trials if item.id not in done and conductor.runner.runs(item)]
    shown = ", ".join(missing[:MISSING_SHOWN]) + (" …" if len(missing) > MISSING_SHOWN else "")
    not_run = f"; {len(missing)} have not run: {shown}" if missing else ""
    return NoMachineLeft(
        f"{why.what}\n{len(done)} trials have ended, see {run / 'report.txt'}{not_run}",
        hint=f"{why.hint}; the same command again goes on with {run.name}",
    )


def phases(plan: Plan) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """Blocks that measure (or check for stale mappings), and those of the selftests."""
    tests = tuple(block for block in plan.blocks if any(isinstance(item.cell, SelftestCell) for item in block.trials))
    return tuple(block for block in plan.blocks if block not in tests), tests


def look_lines(boots: int, stops: Sequence[CellStop], ended: frozenset[str]) -> tuple[str, ...]:
    """What a look came to: the cells that end with it, and what the others wait for."""
    words = {
        "decided": "decided",
        "hopeless": "ends, since more boots would hardly decide {}",
        "at most": "ends undecided in {}",
        "nothing to compare": "ends, since there is nothing to compare",
        "not reached": "goes on for {}",
    }
    lines = []
    for item in stops:
        if item.cell not in ended:
            lines.append(f"  {item.cell}: {words[item.why].format(labels(item.undecided) or 'its next look')}")
    return (f"look after {boots} boots of each arm:", *lines) if lines else ()


@dataclass
class _Counter:
    """Says how each trial ended, and how long the rest will take."""

    total: int
    before: int
    started: float
    reporter: Reporter
    seen: set[str] = field(default_factory=set)  # A lab repeats trials whose machine was lost.

    def count(self, result: TrialResult, stage: Stage) -> None:
        self.seen.add(result.id)
        done = self.before + len(self.seen)
        left = (time.monotonic() - self.started) / len(self.seen) * (self.total - done)
        name = f"{result.cell} {result.arm}"
        ending = "ok" if result.outcome is Outcome.OK else f"{result.outcome.upper()}: {result.reason}"
        self.reporter.say(
            f"trial {result.id} ({done} of {self.total}, about {left:.0f} s left): {name},"
            f" {result.wall_seconds:.1f} s, {ending}"
        )
        stage.update(done, self.total, name)
