"""report.html: one file without script or outside reference, for screen, phone and paper.

Everything that comes from a mail, a patch, a config or a guest goes through Jinja's autoescape and, by ``finalize``,
through :func:`orchestrator.report.style.clean`; only our own SVG and CSS are marked as safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from orchestrator.analysis.model import CheckResult, Comparison, Metric
from orchestrator.analysis.wording import LABELS, percent, share
from orchestrator.report.plots import Plot
from orchestrator.report.style import clean, microseconds, per_fault
from orchestrator.report.svg import cut
from orchestrator.results import Provenance

COLUMNS: tuple[Metric, ...] = ("p50", "p90", "p99", "p99_9", "max", "mean")


@dataclass(frozen=True)
class Figure:
    """One value of the table, and how it moved against the base: empty, or a verdict and a change."""

    value: str
    verdict: str
    change: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One arm in one cell. ``figures`` has one entry for each of :data:`COLUMNS`, then retries and exits."""

    arm: str
    outcome: str
    boots: int
    faults: int
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class CheckCount:
    """One kind of check, counted, with the results that did not hold."""

    name: str
    held: int
    total: int
    failed: int
    open: tuple[CheckResult, ...]


def render(comparison: Comparison, plots: Sequence[Plot], provenance: Provenance) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.report", ""),
        autoescape=True,
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assert environment.loader is not None
    css = environment.loader.get_source(environment, "report.css")[0]
    return environment.get_template("report.html").render(
        comparison=comparison,
        provenance=provenance,
        css=Markup(css),
        figures=[_figure(plot) for plot in plots],
        rows={cell.name: _rows(comparison, cell.name) for cell in comparison.cells},
        heads=[*(LABELS[name] for name in COLUMNS), "retries", "exits"],
        checks=_checks(comparison.checks),
        attributions=[item for item in comparison.summaries if item.attribution and item.attribution.windows],
        share=share,
        tones=[_tone(comparison, arm.name) for arm in comparison.arms[1:] or comparison.arms],
        cell_number={cell.name: number for number, cell in enumerate(comparison.cells, 1)},
        margin=f"{comparison.margin * 100:g}",
    )


@dataclass(frozen=True)
class Drawing:
    """One plot in the page."""

    plot: Plot
    key: Markup
    panels: tuple[Markup, ...]


def _figure(plot: Plot) -> Drawing:
    parts = cut(plot)
    # Markup: drawn by us; names in it are outlines of glyphs, not text.
    return Drawing(plot, Markup(parts.key), tuple(Markup(panel) for panel in parts.panels))


def _finalize(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _rows(comparison: Comparison, cell: str) -> tuple[Row, ...]:
    rows = []
    for arm in comparison.arms:
        found = comparison.summary(cell, arm.name)
        latency = [getattr(found.latency, name) if found.latency else None for name in COLUMNS]
        shown = [microseconds(value) for value in latency]
        shown += [per_fault(found.retries_per_fault), per_fault(found.exits_per_fault)]
        metrics = comparison.metrics(cell, arm.name)
        figures = []
        for name, value in zip((*COLUMNS, "retries_per_fault", "exits"), shown, strict=True):
            metric = next((item for key, item in metrics.items() if key == name), None)
            if metric is None or metric.value is None:
                figures.append(Figure(value, "", "", "" if metric is None else metric.reason))
            else:
                moved = percent(metric.ratio - 1) if metric.ratio is not None else "from 0"
                figures.append(Figure(value, metric.verdict, moved, _why(metric.reason, metric.ci)))
        rows.append(Row(arm.name, found.outcome, found.boots, found.faults, tuple(figures)))
    return tuple(rows)


def _why(reason: str, ci: tuple[float | None, float | None]) -> str:
    low, high = ci
    if low is None or high is None or low == high:
        return reason
    return f"{reason}; ratio {low:.3f} to {high:.3f}"


def _checks(checks: Sequence[CheckResult]) -> tuple[CheckCount, ...]:
    found = []
    for name in dict.fromkeys(item.name for item in checks):
        ours = [item for item in checks if item.name == name]
        not_held = tuple(item for item in ours if item.status != "held")
        failed = sum(item.status == "failed" for item in ours)
        found.append(CheckCount(name, len(ours) - len(not_held), len(ours), failed, not_held))
    return tuple(found)


def _tone(comparison: Comparison, arm: str) -> str:
    """The colour of an arm's headline: the worst thing that it says."""
    kernel = next(item for item in comparison.arms if item.name == arm)
    if kernel.build != "ok" or any(item.status == "failed" for item in comparison.checks if item.arm in ("", arm)):
        return "failed"
    kinds = {item.verdict for item in comparison.verdicts if item.arm == arm}
    return next((kind for kind in ("regressed", "mixed", "improved") if kind in kinds), "equivalent")
