"""The stage: results of trials in, :class:`Analysis` out. Reads recordings, runs no process, draws no plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator.analysis import (
    aa,
    attribution,
    compare,
    curves,
    guestside,
    latency,
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
from orchestrator.analysis.measure import measure, skim_checked
from orchestrator.analysis.model import (
    LATENCY_METRICS,
    TRIAL_FILES,
    Analysis,
    ArmSummary,
    BootSummary,
    CellComparison,
    CellCurves,
    CellInfo,
    CellSummary,
    CheckResult,
    Comparison,
    Curves,
    FailedTrial,
    Latency,
    MetricComparison,
    Said,
    Status,
    Timeline,
    TrialLine,
)
from orchestrator.analysis.tally import Pool, Tally, passes, pick, tally
from orchestrator.errors import tail
from orchestrator.experiment import Cell, Check, Experiment, Guest, LinuxGuest
from orchestrator.results import Outcome, TrialResult

SCHEMA = 1
CONSOLE_FILE = "console.log"


@dataclass(frozen=True)
class _Boot:
    """One boot's summary with what is merged over boots."""

    summary: BootSummary
    attributed: attribution.Attributed
    timeline: Timeline


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
    arms = _arms(experiment, kernels)
    cells = tuple(cell_info(cell) for cell in experiment.cells)
    running = [arm.name for arm in arms if arm.build == "ok"]
    stops = stopping.decide(experiment, results, running, partial(measure, trials=trials), accel == "icount")
    results = [item for item in results if stopping.is_needed(item, experiment, stops)]
    planned -= stopping.not_needed(experiment, stops)
    summaries, drawn = [], []
    for cell in cells:
        for arm in arms:
            ours = [item for item in results if (item.cell, item.arm) == (cell.name, arm.name)]
            pool = Pool()
            boots = [
                _boot(item, trials, cell.placement, pool)
                for item in ours
                if item.outcome is Outcome.OK and not experiment.schedule.is_twin(item.boot)
            ]
            summaries.append(_summary(cell.name, arm, ours, boots))
            if boots:
                drawn.append(_curves(cell.name, arm.name, boots, pool))
    failures = tuple(_failed(item, trials) for item in results if item.outcome is not Outcome.OK)
    judged = _judge(experiment, results, summaries, running, accel)
    floor = aa.judge(experiment, *_base_twice(experiment, results, summaries, trials), stops, accel == "icount")
    metrics = aa.with_noise(judged.metrics, floor)
    verdicts = _verdicts(metrics)
    mapped = stale.judge(experiment, results, trials)
    tested = selftests.judge(experiment, results, tests, trials)
    traced = tracedboots.judge(experiment, results, trials, summaries)
    own: dict[Check, Sequence[CheckResult]] = {
        "attribution": traced.checks, "storm_in_vmm": traced.storm, "stale_mapping": mapped.checks,
        "kvm_selftests": tested.checks,
    }  # fmt: skip
    checks = (*run_checks(experiment, cells, summaries, results, own), *aa.checks(floor))
    groups = modes.find([(item.cell, item.arm, item.per_boot) for item in summaries])
    headlines = _headlines(arms, metrics, verdicts, checks, failures)
    comparison = Comparison(
        schema=SCHEMA,
        run=run,
        name=experiment.name,
        description=experiment.description,
        status=_status(arms, results, planned),
        accel=accel,
        margin=experiment.report.margin,
        planned=planned,
        done=len(results),
        arms=arms,
        cells=cells,
        summaries=tuple(summaries),
        comparisons=metrics,
        verdicts=verdicts,
        checks=checks,
        failures=failures,
        headlines=tuple(map(wording.plain, headlines)),
        titles=wording.plot_titles(metrics, summaries, cells, [arm.name for arm in arms]),
        why=why.lines(cells, [arm.name for arm in arms], summaries, traced.boots),
        sure=sure.sure_lines(experiment, accel, metrics, floor, groups, stops) if cells else (),
        stale=mapped.counts,
        stale_notes=mapped.notes,
        selftests=tested.rows,
        selftest_notes=tested.notes,
        trials=tuple(_trial(item, trials) for item in results),
        traced=traced.boots,
        traced_notes=why.traced_notes(traced.boots, accel),
        aa=floor,
        bimodal=groups,
        looks=experiment.schedule.look_boots if stops else (),
        stops=stops,
        symptoms=guestside.judge(experiment, summaries, stops, accel == "icount"),
        headline_pieces=headlines,
    )
    return Analysis(comparison, Curves(SCHEMA, tuple(drawn)))


def cell_info(cell: Cell) -> CellInfo:
    """A cell in words, and what it controls for."""
    placement = cell.storm.placement if cell.storm else ""
    return CellInfo(
        name=cell.name,
        storm=wording.storm_text(cell.storm),
        placement=placement,
        tdp=cell.guest.tdp,
        vcpus=cell.guest.vcpus,
        page=cell.guest.page if isinstance(cell.guest, Guest) else cell.guest.memory,
        control=_control(cell),
    )


def _control(cell: Cell) -> Literal["", "quiet", "other-process", "overlap"]:
    """What a cell controls for by its retries.

    Where a Linux guest drops pages itself, nothing: KVM is asked about none of the faults, or (``both``) its counters
    also have what the guest's kernel faults in while the host discards page by page, between the measured faults.
    """
    if isinstance(cell.guest, LinuxGuest) and cell.guest.faults != "host":
        return ""
    if cell.storm is None:
        return "quiet"
    return cell.storm.placement if cell.storm.placement in ("other-process", "overlap") else ""


def _boot(result: TrialResult, trials: Path, placement: str, pool: Pool) -> _Boot:
    """One pass over a recording, piece by piece; its latencies go into the ``pool`` of its cell and arm."""
    found = skim_checked(result, trials)
    counted = Tally()
    attributor, timeline = attribution.Attributor(found, placement), curves.TimelineMaker(found)
    for faults in found.chunks():
        counted.add(faults.latency_cycles)
        attributor.add(faults)
        timeline.add(faults)
    counts, to_ns = counted.counts(), found.header.ns_per_cycle
    # The recording is opened anew there, so that a pool of many boots does not hold all their windows.
    pool.add(counts, to_ns, lambda low: tally(skim_checked(result, trials), low))
    attributed = attributor.result()
    summary = BootSummary(
        trial=result.id,
        boot=result.boot,
        block=result.block,
        seed=result.seed,
        faults=found.nr_faults,
        latency=latency.summarise(passes(counts, partial(tally, found)), found.nr_faults, counted.cycles, to_ns),
        exits=latency.exits(found),
        retries=latency.retries(found),
        attribution=attributed.sums,
        symptoms=guestside.read(found),
    )
    return _Boot(summary, attributed, timeline.result(result.id))


def _summary(cell: str, arm: ArmSummary, results: Sequence[TrialResult], boots: Sequence[_Boot]) -> CellSummary:
    per_boot = tuple(boot.summary for boot in boots)
    bad = next((item.outcome.value for item in results if item.outcome is not Outcome.OK), None)
    if bad is None and not results:
        bad = "build failed" if arm.build == "failed" else "not run"
    exits = [item.exits / item.faults for item in per_boot if item.exits is not None]
    retries = [item.retries / item.faults for item in per_boot if item.retries is not None]
    return CellSummary(
        cell=cell,
        arm=arm.name,
        boots=len(boots),
        outcome=bad or "ok",
        faults=sum(item.faults for item in per_boot),
        latency=_mean_latency(per_boot),
        exits_per_fault=float(np.mean(exits)) if exits else None,
        retries_per_fault=float(np.mean(retries)) if retries else None,
        attribution=attribution.merge([boot.attributed for boot in boots]) if boots else None,
        per_boot=per_boot,
        symptoms=guestside.merge([item.symptoms for item in per_boot if item.symptoms is not None]),
    )


def _mean_latency(boots: Sequence[BootSummary]) -> Latency | None:
    if not boots:
        return None
    means = {name: compare.average([getattr(boot.latency, name) for boot in boots], name) for name in LATENCY_METRICS}
    return Latency(**{str(name): value for name, value in means.items()})


def _curves(cell: str, arm: str, boots: Sequence[_Boot], pool: Pool) -> CellCurves:
    """Curves over all boots together; the timeline is the first boot's, since boots share no clock."""
    faults = sum(boot.summary.faults for boot in boots)
    at_ranks_ns = pick(curves.ranks(faults), pool.passes())
    ccdf, percentiles = curves.ccdf(faults, at_ranks_ns), curves.percentiles(faults, at_ranks_ns)
    return CellCurves(cell, arm, ccdf, percentiles, boots[0].timeline)


def _judge(
    experiment: Experiment,
    results: Sequence[TrialResult],
    summaries: Sequence[CellSummary],
    running: Sequence[str],
    accel: str,
) -> stopping.Judged:
    found = stopping.Measurements(
        boots={(item.cell, item.arm): item.per_boot for item in summaries},
        missing={(item.cell, item.arm): f"{item.arm}: {item.outcome}" for item in summaries if not item.boots},
        reached=stopping.reached(experiment, results, running),
    )
    return stopping.judge_run(experiment, found, accel == "icount")


def _base_twice(
    experiment: Experiment, results: Sequence[TrialResult], summaries: Sequence[CellSummary], trials: Path
) -> tuple[dict[str, Sequence[compare.Boot]], dict[str, Sequence[compare.Boot]]]:
    """The base's first and second boots, by cell."""
    first: dict[str, Sequence[compare.Boot]] = {
        item.cell: item.per_boot for item in summaries if item.arm == experiment.base.name
    }
    second: dict[str, Sequence[compare.Boot]] = {
        cell.name: [
            measure(item, trials)
            for item in results
            if (item.cell, item.outcome) == (cell.name, Outcome.OK) and experiment.schedule.is_twin(item.boot)
        ]
        for cell in experiment.cells
    }
    return first, second


def _verdicts(metrics: Sequence[MetricComparison]) -> tuple[CellComparison, ...]:
    wanted = dict.fromkeys((item.cell, item.arm) for item in metrics)
    return tuple(
        wording.cell_verdict(cell, arm, [item for item in metrics if (item.cell, item.arm) == (cell, arm)])
        for cell, arm in wanted
    )


def _headlines(
    arms: Sequence[ArmSummary],
    metrics: Sequence[MetricComparison],
    verdicts: Sequence[CellComparison],
    checks: Sequence[CheckResult],
    failures: Sequence[FailedTrial],
) -> tuple[tuple[Said, ...], ...]:
    """A line for each arm, or for the base if it is alone."""
    base, *others = arms
    if not others:
        return ((Said(f"{base.name}: no other arm to compare with; "), *wording.of_checks(checks, base.name)),)
    return tuple(wording.headline(arm, metrics, verdicts, checks, failures) for arm in others)


def _arms(experiment: Experiment, kernels: Sequence[Kernel]) -> tuple[ArmSummary, ...]:
    built = {kernel.arm: kernel for kernel in kernels}
    arms = []
    for arm in experiment.arms:
        patches = tuple(path.name for path in arm.patches)
        kernel = built.get(arm.name)
        if kernel is None:
            # Nothing is built for the kernel that runs already.
            state: Literal["ok", "not built"] = "not built" if experiment.builds_kernels else "ok"
            arms.append(ArmSummary(arm.name, patches, state, "", "", 0.0, False, ""))
        else:
            arms.append(
                ArmSummary(
                    name=arm.name,
                    patches=patches,
                    build=kernel.build,
                    release=kernel.release,
                    vmlinux_sha256=kernel.vmlinux_sha256,
                    build_seconds=kernel.build_seconds,
                    cached=kernel.cached,
                    error=kernel.error,
                )
            )
    return tuple(arms)


def _trial(result: TrialResult, trials: Path) -> TrialLine:
    return TrialLine(
        trial=result.id,
        arm=result.arm,
        cell=result.cell,
        boot=result.boot,
        seed=result.seed,
        outcome=result.outcome.value,
        rerun=result.rerun,
        files=tuple(name for name in TRIAL_FILES if (trials / result.id / name).is_file()),
    )


def _failed(result: TrialResult, trials: Path) -> FailedTrial:
    return FailedTrial(
        trial=result.id,
        arm=result.arm,
        cell=result.cell,
        outcome=result.outcome.value,
        reason=result.reason,
        trace=result.trace,
        rerun=result.rerun,
        console=f"trials/{result.id}/{CONSOLE_FILE}",
        console_tail=tail(trials / result.id / CONSOLE_FILE),
    )


def _status(arms: Sequence[ArmSummary], results: Sequence[TrialResult], planned: int) -> Status:
    """``complete``: every planned trial ended well; ``failed``: not one did; else ``partial``.

    A trial that found a stale mapping did its work: what it found is a failed check.
    """
    good = sum(item.outcome in (Outcome.OK, Outcome.STALE) for item in results)
    if good == 0:
        return "failed"
    built = all(arm.build != "failed" for arm in arms)
    return "complete" if built and good == len(results) >= planned else "partial"
