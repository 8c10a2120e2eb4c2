"""One picture of a run of many arms: a square for each arm in each cell, and in each case of stale-mapping check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from orchestrator.analysis.findings import PAGING, case_findings
from orchestrator.analysis.model import Comparison, Metric
from orchestrator.report.canvas import RC, plain, short
from orchestrator.report.style import duration, per_fault

# Blue better, orange worse, as for the arms; the text in a square says the same. White: no difference.
BETTER, WORSE, SAME, GREY = (0.0, 0.447, 0.698), (0.835, 0.369, 0.0), (1.0, 1.0, 1.0), (0.86, 0.87, 0.89)
WIDTH_IN, ROW_IN, LEFT_IN, HEAD_IN, GAP_IN = 13.2, 0.24, 1.95, 0.72, 0.25
PANELS: tuple[tuple[Metric, str], ...] = (
    ("retries_per_fault", "Retries per fault"),
    ("p50", "Median fault"),
    ("p99_9", "99.9th percentile"),
    ("max", "Slowest fault (one fault: decides nothing)"),
)
# A fall or a rise by this factor has the full colour.
FULL = 4.0

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Square:
    """What stands in a square, and on what."""

    text: str
    colour: Colour


@dataclass(frozen=True)
class Panel:
    """Rows of squares, a column an arm."""

    title: str
    rows: tuple[tuple[str, tuple[Square, ...]], ...]

    @property
    def height_in(self) -> float:
        return HEAD_IN + ROW_IN * len(self.rows) + GAP_IN


def draw(comparison: Comparison, path: Path) -> None:
    """Draw the picture as SVG."""
    panels = [*(_metric(comparison, metric, title) for metric, title in PANELS if comparison.cells)]
    checks = _checks(comparison)
    columns = _columns(panels, checks)
    height = max(sum(panel.height_in for panel in column) for column in columns) + 0.35
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH_IN, height), facecolor="white")
        FigureCanvasAgg(figure)
        title = f"{comparison.name}: blue is better than {comparison.base}, orange worse, white the same"
        figure.text(0.1 / WIDTH_IN, 1 - 0.1 / height, plain(title), va="top", fontsize=11, fontweight="bold")
        wide = WIDTH_IN / len(columns)
        for place, column in enumerate(columns):
            top = 0.35
            for panel in column:
                _draw(figure, panel, (place * wide, top, wide), height, [arm.name for arm in comparison.arms])
                top += panel.height_in
        figure.savefig(path, metadata={"Date": None, "Creator": "orch"})


def _columns(panels: Sequence[Panel], checks: Panel | None) -> list[list[Panel]]:
    """Three columns of panels: the metrics in two, the checks in the third."""
    half = -(-len(panels) // 2)
    columns = [list(panels[:half]), list(panels[half:]), [checks] if checks else []]
    return [column for column in columns if column]


def _metric(comparison: Comparison, metric: Metric, title: str) -> Panel:
    rows = []
    for cell in comparison.cells:
        squares = tuple(_square(comparison, cell.name, arm.name, metric) for arm in comparison.arms)
        rows.append((cell.name, squares))
    return Panel(title, tuple(rows))


def _square(comparison: Comparison, cell: str, arm: str, metric: Metric) -> Square:
    found = comparison.summary(cell, arm)
    if found.latency is None:
        return Square(found.outcome, GREY)
    if metric == "retries_per_fault":
        text = per_fault(found.retries_per_fault)
    else:
        text = duration(float(getattr(found.latency, metric)))
    change = comparison.metrics(cell, arm).get(metric)
    if change is None or not change.decides or change.verdict in ("equivalent", "inconclusive"):
        return Square(text, SAME)
    factor = 1 / FULL if change.verdict == "improved" else FULL
    ratio = change.ratio if change.ratio is not None and change.ratio > 0 else factor
    strength = min(1.0, abs(math.log(ratio)) / math.log(FULL))
    return Square(text, _mix(BETTER if change.verdict == "improved" else WORSE, 0.2 + 0.55 * strength))


def _mix(colour: Colour, strength: float) -> Colour:
    red, green, blue = (1 - strength * (1 - part) for part in colour)
    return red, green, blue


def _checks(comparison: Comparison) -> Panel | None:
    found = {arm.name: case_findings(comparison, arm.name) for arm in comparison.arms}
    kinds = dict.fromkeys((item.case, item.tdp) for items in found.values() for item in items)
    if not kinds:
        return None
    rows = []
    for case, tdp in kinds:
        squares = []
        for items in found.values():
            item = next((one for one in items if (one.case, one.tdp) == (case, tdp)), None)
            if item is None or item.covered == 0:
                squares.append(Square("not covered", GREY))
            else:
                squares.append(
                    Square(
                        f"{item.stale} of {item.covered}",
                        _mix(WORSE, 0.3 + 0.6 * item.stale / item.covered) if item.stale else SAME,
                    )
                )
        rows.append((f"{case}, {PAGING[tdp]}", tuple(squares)))
    return Panel("Stale mappings, of covered rounds", tuple(rows))


def _draw(figure: Figure, panel: Panel, box: tuple[float, float, float], height: float, arms: Sequence[str]) -> None:
    left, top, wide = box
    rows = len(panel.rows)
    axes: Axes = figure.add_axes((
        (left + LEFT_IN) / WIDTH_IN, 1 - (top + HEAD_IN + ROW_IN * rows) / height,
        (wide - LEFT_IN - 0.15) / WIDTH_IN, ROW_IN * rows / height,
    ))  # fmt: skip
    axes.set_xlim(0, len(arms))
    axes.set_ylim(rows, 0)
    axes.grid(visible=False)
    axes.tick_params(length=0, pad=2)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_yticks([row + 0.5 for row in range(rows)], [short(name, 26) for name, _ in panel.rows], fontsize=7.5)
    axes.set_xticks(
        [place + 0.5 for place in range(len(arms))], [short(arm, 18).replace("-", "-\n", 1) for arm in arms], fontsize=7
    )
    axes.xaxis.tick_top()
    axes.annotate(
        panel.title, (0, 1), (-LEFT_IN * 72 + 8, 30), xycoords="axes fraction", textcoords="offset points",
        fontsize=9.5, fontweight="bold",
    )  # fmt: skip
    for row, (_, squares) in enumerate(panel.rows):
        for place, square in enumerate(squares):
            axes.add_patch(Rectangle((place, row), 1, 1, facecolor=square.colour, edgecolor="#8b929c", linewidth=0.4))
            axes.text(place + 0.5, row + 0.5, plain(square.text), ha="center", va="center", fontsize=6.6)
