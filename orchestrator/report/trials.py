"""The boots behind the figures: a row for each trial, with its files and the command that repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.analysis.model import BootSummary, Comparison, FailedTrial, TrialLine
from orchestrator.report.style import microseconds, per_fault


@dataclass(frozen=True)
class TrialRow:
    """One trial; ``figures`` are p50, p99, p99.9, max and retries of one that was measured, or empty."""

    line: TrialLine
    figures: tuple[str, ...]


@dataclass(frozen=True)
class ArmTrials:
    """The trials of one arm in one cell; ``anchor`` names their rows."""

    anchor: str
    arm: str
    rows: tuple[TrialRow, ...]


@dataclass(frozen=True)
class CellTrials:
    """The trials of one cell; ``measured``: they have figures."""

    cell: str
    measured: bool
    arms: tuple[ArmTrials, ...]


def trial_groups(comparison: Comparison) -> tuple[CellTrials, ...]:
    """All trials by cell and arm, in the order of the run."""
    boots = {boot.trial: boot for item in comparison.summaries for boot in item.per_boot}
    groups = []
    for number, cell in enumerate(dict.fromkeys(line.cell for line in comparison.trials), 1):
        ours = [line for line in comparison.trials if line.cell == cell]
        arms = [
            ArmTrials(
                f"trials-{number}-{place}",
                arm,
                tuple(TrialRow(line, _figures(boots.get(line.trial))) for line in ours if line.arm == arm),
            )
            for place, arm in enumerate(dict.fromkeys(line.arm for line in ours), 1)
        ]
        groups.append(CellTrials(cell, any(row.figures for arm in arms for row in arm.rows), tuple(arms)))
    return tuple(groups)


def trial_hrefs(groups: tuple[CellTrials, ...]) -> Mapping[tuple[str, str], str]:
    """Where the trials of a (cell, arm) are on the page; it has no entry for those without any."""
    return {(group.cell, arm.arm): f"#{arm.anchor}" for group in groups for arm in group.arms}


def _figures(boot: BootSummary | None) -> tuple[str, ...]:
    if boot is None:
        return ()
    latency = boot.latency
    shown = tuple(microseconds(value) for value in (latency.p50, latency.p99, latency.p99_9, latency.max))
    return (*shown, per_fault(boot.retries / boot.faults if boot.retries is not None and boot.faults else None))


@dataclass(frozen=True)
class Failures:
    """Trials that ended alike: the first, with all that it left, and the others."""

    first: FailedTrial
    others: tuple[FailedTrial, ...]


def failure_groups(comparison: Comparison) -> tuple[Failures, ...]:
    """Trials that did not end well, those of one arm, cell and end together.

    One that found a stale mapping did its work; it is told of there.
    """
    alike: dict[tuple[str, str, str, str], list[FailedTrial]] = {}
    for item in comparison.failures:
        if item.outcome != "stale":
            alike.setdefault((item.arm, item.cell, item.outcome, item.reason), []).append(item)
    return tuple(Failures(first, tuple(others)) for first, *others in alike.values())
