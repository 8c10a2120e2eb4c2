"""What Linux guests see besides the fault, as rows for the text and the page."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.analysis.model import CellSummary, Comparison, MetricComparison
from orchestrator.analysis.symptoms import SYMPTOMS
from orchestrator.analysis.wording import LABELS
from orchestrator.report.figures import Figure, Hrefs, MetricRow, metric_row, moved
from orchestrator.report.style import NOT_MEASURED, microseconds

HEADS = (*(LABELS[name] for name in SYMPTOMS), "wakeups", "missed", "minor faults")


@dataclass(frozen=True)
class GuestRow:
    """One arm in one cell; ``figures`` has one entry for each of :data:`HEADS`."""

    arm: str
    href: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class GuestCell:
    """A cell with Linux guests."""

    name: str
    rows: tuple[GuestRow, ...]
    changes: tuple[MetricRow, ...]


def milliseconds(value_ns: float | None) -> str:
    """Nanoseconds as ms."""
    return NOT_MEASURED if value_ns is None else f"{value_ns / 1e6:,.1f}"


def guest_figures(item: CellSummary) -> tuple[str, ...]:
    """Timer p50, p99 and max in µs, wakeups, missed periods, steal in ms, minor faults."""
    found = item.symptoms
    if found is None:
        return (NOT_MEASURED,) * 7
    late = (microseconds(value) for value in (found.jitter_p50, found.jitter_p99, found.jitter_max))
    missed = NOT_MEASURED if found.missed is None else f"{found.missed:,}"
    return (*late, f"{found.wakeups:,}", missed, milliseconds(found.steal), f"{found.minor_faults:,}")


def guest_cells(comparison: Comparison, hrefs: Hrefs) -> tuple[GuestCell, ...]:
    """Every cell in which a Linux guest ran."""
    found = []
    for cell in comparison.cells:
        rows = [item for item in comparison.summaries if item.cell == cell.name and item.symptoms is not None]
        changes = [item for item in comparison.symptoms if item.cell == cell.name]
        if rows:
            shown = tuple(_row(item, changes, hrefs) for item in rows)
            found.append(GuestCell(cell.name, shown, tuple(metric_row(item, hrefs) for item in changes)))
    return tuple(found)


def _row(item: CellSummary, changes: list[MetricComparison], hrefs: Hrefs) -> GuestRow:
    p50, p99, worst, wakeups, missed, steal, minor = guest_figures(item)
    ours = {change.metric: change for change in changes if change.arm == item.arm}
    figures = []
    for name, value in zip(SYMPTOMS, (p50, p99, worst, steal), strict=True):
        change = ours.get(name)
        known = change is not None and change.value is not None
        figures.append(Figure(value, change.verdict, moved(change)) if change and known else Figure(value, "", ""))
    figures += [Figure(value, "", "") for value in (wakeups, missed, minor)]
    return GuestRow(item.arm, hrefs.get((item.cell, item.arm), ""), tuple(figures))
