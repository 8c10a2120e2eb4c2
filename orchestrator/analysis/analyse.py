"""The stage: results of trials in, :class:`Analysis` out. Reads recordings, runs no process, draws no plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.analysis import (
    aa,
    boots,
    compare,
    guestside,
    modes,
    selftests,
    stale,
    stopping,
    sure,
    tracedboots,
    why,
    wording,
)
from orchestrator.analysis.built import Kernel, TestPrograms
from orchestrator.analysis.checks import run_checks
from orchestrator.analysis.measure import measure
from orchestrator.analysis.model import (
    Analysis,
    ArmSummary,
    Bimodal,
    CellComparison,
    CellInfo,
    CellStop,
    CellSummary,
    CheckResult,
    Comparison,
    FailedTrial,
    MetricComparison,
    Said,
    Status,
)
from orchestrator.analysis.plotted import Curves
from orchestrator.experiment import Check, Experiment
from orchestrator.results import Outcome, TrialResult

SCHEMA = 1


@dataclass(frozen=True)
class _Run:
    """A run as far as it goes: its results that count, and how many trials would make it whole."""

    experiment: Experiment
    arms: tuple[ArmSummary, ...]
    results: tuple[TrialResult, ...]
    planned: int
    stops: tuple[CellStop, ...]
    trials: Path
    accel: str

    @property
    def deterministic(self) -> bool:
        return self.accel == "icount"

    @property
    def running(self) -> list[str]:
        """The arms that have a kernel."""
        return [arm.name for arm in self.arms if arm.build == "ok"]


@dataclass(frozen=True)
class _Judged:
    """Every verdict and check of a run, and what else its boots say."""

    metrics: tuple[MetricComparison, ...]
    verdicts: tuple[CellComparison, ...]
    floor: tuple[MetricComparison, ...]
    symptoms: tuple[MetricComparison, ...]
    groups: tuple[Bimodal, ...]
    stale: stale.Verdict
    tested: selftests.Verdict
    traced: tracedboots.Verdict
    checks: tuple[CheckResult, ...]


def analyse(
    experiment: Experiment,
    results: Sequence[TrialResult],
    kernels: Sequence[Kernel],
    trials: Path,
    *,
    run: str,
    accel: str,
    planned: int,
    tests: Sequence[TestPrograms] = (),
) -> Analysis:
    """Compare every arm with the base in every cell.

    ``trials`` is the folder with one folder a trial; ``accel`` is what ``auto`` came to (``icount``, ``tcg``,
    ``kvm``, or ``local``); ``planned`` is how many trials the plan has, so that an unfinished run says so; those that
    an early end made needless do not count. Arms without a kernel in ``kernels`` count as not built, unless the target
    is local. ``tests`` are the arms' selftests.

    Raises :class:`RecordingError` for a recording of an ``ok`` trial that is damaged or of another arm or cell.
    """
    found = _as_far_as_needed(experiment, results, kernels, trials, accel, planned)
    cells = tuple(boots.cell_info(cell) for cell in experiment.cells)
    measured = boots.measure_all(experiment, cells, found.arms, found.results, trials)
    judged = _judge(found, cells, measured.summaries, tests)
    return Analysis(_comparison(run, found, cells, measured.summaries, judged), Curves(SCHEMA, measured.curves))


def _as_far_as_needed(
    experiment: Experiment,
    results: Sequence[TrialResult],
    kernels: Sequence[Kernel],
    trials: Path,
    accel: str,
    planned: int,
) -> _Run:
    """The run without what its rule to stop made needless."""
    arms = boots.arm_summaries(experiment, kernels)
    running = [arm.name for arm in arms if arm.build == "ok"]
    stops = stopping.decide(experiment, results, running, partial(measure, trials=trials), accel == "icount")
    needed = tuple(item for item in results if stopping.is_needed(item, experiment, stops))
    return _Run(experiment, arms, needed, planned - stopping.not_needed(experiment, stops), stops, trials, accel)


def _judge(
    found: _Run, cells: Sequence[CellInfo], summaries: Sequence[CellSummary], tests: Sequence[TestPrograms]
) -> _Judged:
    experiment, results, trials = found.experiment, found.results, found.trials
    floor = aa.judge(experiment, *_base_twice(found, summaries), found.stops, found.deterministic)
    metrics = aa.with_noise(_judge_metrics(found, summaries).metrics, floor)
    mapped = stale.judge(experiment, results, trials)
    tested = selftests.judge(experiment, results, tests, trials)
    traced = tracedboots.judge(experiment, results, trials, summaries)
    own: dict[Check, Sequence[CheckResult]] = {
        "attribution": traced.checks, "storm_in_vmm": traced.storm, "stale_mapping": mapped.checks,
        "kvm_selftests": tested.checks,
    }  # fmt: skip
    return _Judged(
        metrics=metrics,
        verdicts=_verdicts(metrics),
        floor=floor,
        symptoms=guestside.judge(experiment, summaries, found.stops, found.deterministic),
        groups=modes.find([(item.cell, item.arm, item.per_boot) for item in summaries]),
        stale=mapped,
        tested=tested,
        traced=traced,
        checks=(*run_checks(experiment, cells, summaries, results, own), *aa.checks(floor)),
    )


def _comparison(
    run: str, found: _Run, cells: tuple[CellInfo, ...], summaries: tuple[CellSummary, ...], judged: _Judged
) -> Comparison:
    """All of it in one, with the sentences that it comes to."""
    experiment, arms, traced = found.experiment, found.arms, judged.traced.boots
    names = [arm.name for arm in arms]
    failures = boots.failed_trials(found.results, found.trials)
    headlines = _headlines(arms, judged, failures)
    return Comparison(
        schema=SCHEMA,
        run=run,
        name=experiment.name,
        description=experiment.description,
        status=_status(arms, found.results, found.planned),
        accel=found.accel,
        margin=experiment.report.margin,
        planned=found.planned,
        done=len(found.results),
        arms=arms,
        cells=cells,
        summaries=summaries,
        comparisons=judged.metrics,
        verdicts=judged.verdicts,
        checks=judged.checks,
        failures=failures,
        headlines=tuple(map(wording.plain, headlines)),
        titles=wording.plot_titles(judged.metrics, summaries, cells, names),
        why=why.lines(cells, names, summaries, traced),
        sure=_sure(found, judged) if cells else (),
        stale=judged.stale.counts,
        stale_notes=judged.stale.notes,
        selftests=judged.tested.rows,
        selftest_notes=judged.tested.notes,
        trials=boots.trial_lines(found.results, found.trials),
        traced=traced,
        traced_notes=why.traced_notes(traced, found.accel),
        aa=judged.floor,
        bimodal=judged.groups,
        looks=experiment.schedule.look_boots if found.stops else (),
        stops=found.stops,
        symptoms=judged.symptoms,
        headline_pieces=headlines,
    )


def _sure(found: _Run, judged: _Judged) -> tuple[str, ...]:
    return sure.sure_lines(found.experiment, found.accel, judged.metrics, judged.floor, judged.groups, found.stops)


def _judge_metrics(found: _Run, summaries: Sequence[CellSummary]) -> stopping.Judged:
    measurements = stopping.Measurements(
        boots={(item.cell, item.arm): item.per_boot for item in summaries},
        missing={(item.cell, item.arm): f"{item.arm}: {item.outcome}" for item in summaries if not item.boots},
        reached=stopping.reached(found.experiment, found.results, found.running),
    )
    return stopping.judge_run(found.experiment, measurements, found.deterministic)


BootsByCell = dict[str, Sequence[compare.Boot]]


def _base_twice(found: _Run, summaries: Sequence[CellSummary]) -> tuple[BootsByCell, BootsByCell]:
    """The base's first and second boots, by cell."""
    schedule = found.experiment.schedule
    first: BootsByCell = {item.cell: item.per_boot for item in summaries if item.arm == found.experiment.base.name}
    second: BootsByCell = {
        cell.name: [
            measure(item, found.trials)
            for item in found.results
            if (item.cell, item.outcome) == (cell.name, Outcome.OK) and schedule.is_twin(item.boot)
        ]
        for cell in found.experiment.cells
    }
    return first, second


def _verdicts(metrics: Sequence[MetricComparison]) -> tuple[CellComparison, ...]:
    wanted = dict.fromkeys((item.cell, item.arm) for item in metrics)
    return tuple(
        wording.cell_verdict(cell, arm, [item for item in metrics if (item.cell, item.arm) == (cell, arm)])
        for cell, arm in wanted
    )


def _headlines(
    arms: Sequence[ArmSummary], judged: _Judged, failures: Sequence[FailedTrial]
) -> tuple[tuple[Said, ...], ...]:
    """A line for each arm, or for the base if it is alone."""
    base, *others = arms
    if not others:
        return ((Said(f"{base.name}: no other arm to compare with; "), *wording.of_checks(judged.checks, base.name)),)
    return tuple(wording.headline(arm, judged.metrics, judged.verdicts, judged.checks, failures) for arm in others)


def _status(arms: Sequence[ArmSummary], results: Sequence[TrialResult], planned: int) -> Status:
    """``complete``: every planned trial ended well; ``failed``: not one did; else ``partial``.

    A trial that found a stale mapping did its work: what it found is a failed check.
    """
    good = sum(item.outcome in (Outcome.OK, Outcome.STALE) for item in results)
    if good == 0:
        return "failed"
    built = all(arm.build != "failed" for arm in arms)
    return "complete" if built and good == len(results) >= planned else "partial"
