"""How the values of a history are written."""

from __future__ import annotations

from orchestrator.analysis.model import Metric
from orchestrator.analysis.wording import LABELS, percent
from orchestrator.nights.history import Change, History, Series
from orchestrator.report.style import microseconds, per_fault


def value_text(metric: Metric, value: float | None) -> str:
    """A value without its unit."""
    return per_fault(value) if metric == "retries_per_fault" else microseconds(value)


def unit(metric: Metric) -> str:
    return "per fault" if metric == "retries_per_fault" else "µs"


def change_text(series: Series, change: Change) -> str:
    """``p50 5.374 → 5.643 µs (+5.0 %), regressed``."""
    before, after = value_text(series.metric, change.before), value_text(series.metric, change.after)
    size = f" ({percent(change.ratio - 1)})" if change.ratio is not None else ""
    return f"{LABELS[series.metric]} {before} → {after} {unit(series.metric)}{size}, {change.direction}"


def moved(history: History, index: int) -> tuple[str, ...]:
    """What changed with one run, a line for each cell, arm and direction: ``cell, base: p50 +5.0 %, … regressed``."""
    found = [(series, change) for series, change in history.changes if change.index == index]
    lines = []
    for key in dict.fromkeys((series.cell, series.arm, change.direction) for series, change in found):
        ours = [(one, change) for one, change in found if (one.cell, one.arm, change.direction) == key]
        sizes = ", ".join(f"{LABELS[series.metric]} {_size_text(change)}" for series, change in ours)
        lines.append(f"{key[0]}, {key[1]}: {sizes}: {key[2]}")
    return tuple(lines)


def _size_text(change: Change) -> str:
    return percent(change.ratio - 1) if change.ratio is not None else f"from 0 to {change.after:.3g}"


def date_of(started: str) -> str:
    """The day of a time in ISO 8601."""
    return started[:10]


def finding(history: History, metric: Metric) -> str:
    """What the history of one metric shows, in a line: the largest of its latest changes, and how many others."""
    found = [(series, change) for series, change in history.changes if series.metric == metric]
    over = f"over {len(history.runs)} runs"
    if not found:
        return f"{LABELS[metric]}: no change {over}"
    latest = found[0][1].index
    series, change = max((pair for pair in found if pair[1].index == latest), key=lambda pair: _size(pair[1]))
    since = date_of(history.runs[change.index].manifest.started)
    others = f"; {len(found) - 1} other change{'s' if len(found) > 2 else ''} {over}" if len(found) > 1 else ""
    return f"{LABELS[metric]}: {_size_text(change)} for {series.arm} in {series.cell} since {since}{others}"


def _size(change: Change) -> float:
    """How large a change is, whichever its direction; from 0 it is the largest."""
    if change.ratio is None or change.ratio == 0:
        return float("inf")
    return max(change.ratio, 1 / change.ratio)
