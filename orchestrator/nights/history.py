"""Every metric of an experiment over its runs: which runs, which values, and since when they are what they are."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.analysis import changepoints
from orchestrator.analysis.compare import RETRIES_MARGIN
from orchestrator.analysis.model import METRICS, Metric
from orchestrator.errors import UserError, printable
from orchestrator.experiment.types import NAME, NAME_WORDS
from orchestrator.nights.catalogue import LeftOut, Run, find
from orchestrator.nights.sameness import examine, same_seeds

# Probability that a history in which nothing ever changed shows a change anywhere, over all cells, arms and metrics.
FALSE_ALARMS = 0.01

Direction = Literal["improved", "regressed", "within the margin"]


@dataclass(frozen=True)
class Change:
    """A new level: from ``before`` to ``after`` (medians of the runs on either side), first seen in run ``index``.

    ``ratio`` is None where ``before`` is 0. Lower is better, as everywhere.
    """

    index: int
    before: float
    after: float
    ratio: float | None
    direction: Direction


@dataclass(frozen=True)
class Series:
    """One metric of one arm in one cell, a value for each run; None where that arm did not end well in that cell.

    ``levels`` are the medians between the changes, one more than there are changes; none if no run has a value.
    """

    cell: str
    arm: str
    metric: Metric
    values: tuple[float | None, ...]
    levels: tuple[float, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class History:
    """``runs`` oldest first. ``exact``: without noise, every difference is real. ``rate`` is that of one series."""

    name: str
    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]
    cells: tuple[str, ...]
    arms: tuple[str, ...]
    metrics: tuple[Metric, ...]
    series: tuple[Series, ...]
    exact: bool
    margin: float
    rate: float

    def get(self, cell: str, arm: str, metric: Metric) -> Series:
        """The series of one metric; there is one for each cell, arm and metric."""
        return next(item for item in self.series if (item.cell, item.arm, item.metric) == (cell, arm, metric))

    @property
    def changes(self) -> tuple[tuple[Series, Change], ...]:
        """All changes, the latest first."""
        found = [(series, change) for series in self.series for change in series.changes]
        return tuple(sorted(found, key=lambda pair: -pair[1].index))


def collect(results: Path, name: str, metrics: Sequence[Metric] = METRICS) -> History:
    """The history of the experiment ``name``: all its runs that are like the newest one.

    Raises :class:`UserError` if there is no such experiment, or no run of it that can be used.
    """
    if not re.fullmatch(NAME, name):  # It becomes a folder's name.
        raise UserError(f"{printable(name)!r} is no name of an experiment: {NAME_WORDS}", hint="orch history NAME")
    found = find(results, name)
    left_out = list(found.left_out)
    runs: list[Run] = []
    for run in found.runs:
        why = difference(run, found.runs[-1])
        if why:
            left_out.append(LeftOut(run.name, f"not like {found.runs[-1].name}: {why}"))
        else:
            runs.append(run)
    if not runs:
        reasons = "\n".join(f"  {item.run}: {item.why}" for item in left_out)
        raise UserError(f"no run of {name!r} in {results} can be used:\n{reasons}", hint=f"orch run {name}.yaml")
    return _history(name, runs, left_out, metrics)


def difference(run: Run, newest: Run) -> str:
    """Why ``run`` cannot stand in a row with ``newest``, or nothing."""
    if run is newest:
        return ""
    refused = examine(run, newest).refused
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        return f"{refused[0].render()}{more}"
    if run.manifest.accel == "icount" and not same_seeds(run, newest):
        return "other seeds, which are the sample under icount"
    return ""


def _history(name: str, runs: Sequence[Run], left_out: Sequence[LeftOut], metrics: Sequence[Metric]) -> History:
    newest = runs[-1]
    cells = tuple(cell.name for cell in newest.experiment.cells)
    arms = tuple(arm.name for arm in newest.experiment.arms)
    margin = newest.experiment.report.margin
    exact = newest.manifest.accel == "icount"
    wanted = [(cell, arm, metric) for cell in cells for arm in arms for metric in metrics]
    # Bonferroni: all series are looked at together.
    rate = FALSE_ALARMS / max(1, len(wanted))
    series = []
    for cell, arm, metric in wanted:
        values = tuple(value_of(run, cell, arm, metric) for run in runs)
        series.append(_series(cell, arm, metric, values, margin, None if exact else rate))
    return History(name, tuple(runs), tuple(left_out), cells, arms, tuple(metrics), tuple(series), exact, margin, rate)


def value_of(run: Run, cell: str, arm: str, metric: Metric) -> float | None:
    """A run's value: latencies in ns; None if there is none, or a boot of that arm did not end well in that cell."""
    summary = next((item for item in run.comparison.summaries if (item.cell, item.arm) == (cell, arm)), None)
    if summary is None or summary.outcome != "ok" or summary.latency is None:
        return None
    return summary.retries_per_fault if metric == "retries_per_fault" else float(getattr(summary.latency, metric))


def _series(
    cell: str, arm: str, metric: Metric, values: tuple[float | None, ...], margin: float, rate: float | None
) -> Series:
    """Find the levels of one series; ``rate`` is None if its values have no noise."""
    places = [index for index, value in enumerate(values) if value is not None]
    known = [value for value in values if value is not None]
    if not known:
        return Series(cell, arm, metric, values, (), ())
    if rate is None:
        starts = changepoints.find_exact(_in_margins(known, metric, margin))
    else:
        starts = changepoints.find_noisy(known, rate)
    levels = tuple(statistics.median(known[low:high]) for low, high in itertools.pairwise([0, *starts, len(known)]))
    changes = tuple(
        _change(places[start], before, after, metric, margin)
        for start, (before, after) in zip(starts, itertools.pairwise(levels), strict=True)
    )
    return Series(cell, arm, metric, values, levels, changes)


def _in_margins(values: Sequence[float], metric: Metric, margin: float) -> list[float]:
    """Values on a scale on which a difference of 1 is the margin: logarithmic, of retries linear."""
    if metric == "retries_per_fault" or min(values) <= 0:
        return [value / max(RETRIES_MARGIN, margin * statistics.median(values)) for value in values]
    return [math.log(value) / math.log1p(margin) for value in values]


def _change(index: int, before: float, after: float, metric: Metric, margin: float) -> Change:
    allowed = margin * before
    if metric == "retries_per_fault":
        allowed = max(RETRIES_MARGIN, allowed)
    direction: Direction = "within the margin"
    if abs(after - before) > allowed:
        direction = "improved" if after < before else "regressed"
    return Change(index, before, after, after / before if before else None, direction)
