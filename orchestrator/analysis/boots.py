"""Every boot of a run, read once: summaries and curves of each cell and arm; and its trials as the report has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator.analysis import attribution, compare, curves, guestside, latency, wording
from orchestrator.analysis.built import Kernel
from orchestrator.analysis.measure import skim_checked
from orchestrator.analysis.model import (
    LATENCY_METRICS,
    TRIAL_FILES,
    ArmSummary,
    BootSummary,
    CellInfo,
    CellSummary,
    FailedTrial,
    Latency,
    TrialLine,
)
from orchestrator.analysis.plotted import CellCurves, Timeline
from orchestrator.analysis.tally import Pool, Tally, passes, pick, tally
from orchestrator.errors import tail
from orchestrator.experiment import Cell, Experiment, Guest, LinuxGuest
from orchestrator.results import Outcome, TrialResult

CONSOLE_FILE = "console.log"


@dataclass(frozen=True)
class _Boot:
    """One boot's summary with what is merged over boots."""

    summary: BootSummary
    attributed: attribution.Attributed
    timeline: Timeline


@dataclass(frozen=True)
class Measured:
    """A summary for each cell and arm, run or not, and curves of those that ran."""

    summaries: tuple[CellSummary, ...]
    curves: tuple[CellCurves, ...]


def measure_all(
    experiment: Experiment,
    cells: Sequence[CellInfo],
    arms: Sequence[ArmSummary],
    results: Sequence[TrialResult],
    trials: Path,
) -> Measured:
    """Read every recording once, those of one cell and arm together; second boots of the base are left out.

    Raises :class:`RecordingError` as :func:`orchestrator.analysis.analyse.analyse` says.
    """
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
    return Measured(tuple(summaries), tuple(drawn))


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


def arm_summaries(experiment: Experiment, kernels: Sequence[Kernel]) -> tuple[ArmSummary, ...]:
    """The arms, each with its kernel or without."""
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


def trial_lines(results: Sequence[TrialResult], trials: Path) -> tuple[TrialLine, ...]:
    """What leads from the figures to every trial."""
    return tuple(_trial(item, trials) for item in results)


def failed_trials(results: Sequence[TrialResult], trials: Path) -> tuple[FailedTrial, ...]:
    """The trials that did not end well, with the end of their consoles."""
    return tuple(_failed(item, trials) for item in results if item.outcome is not Outcome.OK)


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
