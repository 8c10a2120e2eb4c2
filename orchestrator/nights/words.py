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


def date_of(started: str) -> str:
    """The day of a time in ISO 8601."""
    return started[:10]


def finding(history: History, metric: Metric) -> str:
    """What the history of one metric shows, in a line: its largest change, and how many others."""
    found = [(series, change) for series, change in history.changes if series.metric == metric]
    over = f"over {len(history.runs)} runs"
    if not found:
        return f"{LABELS[metric]}: no change {over}"
    series, change = max(found, key=lambda pair: _size(pair[1]))
    size = percent(change.ratio - 1) if change.ratio is not None else f"from 0 to {change.after:.3g}"
    since = date_of(history.runs[change.index].manifest.started)
    others = f"; {len(found) - 1} other change{'s' if len(found) > 2 else ''} {over}" if len(found) > 1 else ""
    return f"{LABELS[metric]}: {size} for {series.arm} in {series.cell} since {since}{others}"


def _size(change: Change) -> float:
    """How large a change is, whichever its direction; from 0 it is the largest."""
    if change.ratio is None or change.ratio == 0:
        return float("inf")
    return max(change.ratio, 1 / change.ratio)
