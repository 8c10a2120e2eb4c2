"""A plot for each metric: its value in every run, a panel a cell, a line an arm, levels and changes on top."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from orchestrator.analysis.model import Metric
from orchestrator.analysis.wording import percent
from orchestrator.nights.history import History, Series
from orchestrator.nights.words import date_of, finding
from orchestrator.report.canvas import COLOURS, MARKERS, RC, Grid, line, make_frame, name_panel, short
from orchestrator.report.plots import Panel, Plot
from orchestrator.report.style import duration

# A flat line must look flat: the axis shows at least this much to either side of the middle.
LEAST_SPAN = 0.05
FEW_RUNS = 40
LETTER_PT, ROW_PT = 4.4, 9.0
# About half a panel; the figures of more changes than fit stand in history.txt alone.
MOST_ROWS = 5
DATES = 3


CAPTION = (
    "Each marker is a run, each line the level between two changes. The axis does not start at 0, and shows at least"
    " 5 % to either side of the middle."
)


def draw(history: History, folder: Path) -> tuple[Plot, ...]:
    """Draw every metric of which any run has a value into ``folder`` (made if need be)."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with mpl.rc_context(RC):
        for metric in history.metrics:
            if any(series.metric == metric and _known(series) for series in history.series):
                drawn.append(_draw(history, metric, folder))
    return tuple(drawn)


def _draw(history: History, metric: Metric, folder: Path) -> Plot:
    title = finding(history, metric)
    columns = min(2, len(history.cells))
    grid = Grid(-(-len(history.cells) // columns), columns, 1.35)
    frame = make_frame(title, grid, history.arms).only(range(len(history.cells)))
    for axes, cell in zip(frame.axes, history.cells, strict=True):
        _panel(axes, history, [history.get(cell, arm, metric) for arm in history.arms], grid)
    svg = folder / f"history-{metric}.svg"
    panels = tuple(Panel(cell, "", box) for cell, box in zip(history.cells, frame.boxes, strict=True))
    made = Plot(
        f"{history.name}-{metric}", title, CAPTION, svg, svg.with_suffix(".png"), panels, columns,
        keyed=True, small=False,
    )  # fmt: skip
    FigureCanvasAgg(frame.figure)
    frame.figure.savefig(made.svg, metadata={"Date": None, "Creator": "orch"})
    frame.figure.savefig(made.png, dpi=150, metadata={"Software": "orch"})
    return made


def _panel(axes: Axes, history: History, arms: list[Series], grid: Grid) -> None:
    cell, metric = arms[0].cell, arms[0].metric
    changes = sum(len(series.changes) for series in arms)
    said = "no change" if not changes else f"{changes} change{'s' if changes > 1 else ''}"
    name_panel(axes, cell, said, grid.inner)
    for index, series in enumerate(arms):
        _line(axes, series, index)
    known = [value for series in arms for value in _known(series)]
    labels = _labels(arms, len(history.runs), grid)
    low, high = _limits(known)
    # What is written at the top stands above every marker.
    rows = min(MOST_ROWS, len({label.row for label in labels}))
    axes.set_ylim(low, low + (high - low) / (1 - ROW_PT * rows / (grid.panel * 72)))
    axes.set_xlim(-0.6, len(history.runs) - 0.4)
    for label in labels:
        _mark(axes, label)
    axes.xaxis.set_major_locator(FixedLocator(_dated(len(history.runs))))
    days = [date_of(run.manifest.started) for run in history.runs]
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: days[round(value)] if 0 <= round(value) < len(days) else "")
    )
    if metric == "retries_per_fault":
        axes.set_ylabel("retries per fault")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylabel("latency")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _dated(runs: int) -> list[int]:
    """The runs whose day is written below: none so far to the right that it would be cut off."""
    return [run for run in range(0, runs, -(-runs // DATES)) if run + 0.6 <= 0.88 * runs]


def _line(axes: Axes, series: Series, index: int) -> None:
    """The runs as markers, and the level between two changes as a line."""
    colour = COLOURS[index % 6]
    places = [at for at, value in enumerate(series.values) if value is not None]
    size = 4.0 if len(series.values) <= FEW_RUNS else 2.5
    axes.plot(
        places, _known(series), linestyle="none", marker=MARKERS[index % 6], markersize=size, color=colour,
        markeredgewidth=0, alpha=0.75,
    )  # fmt: skip
    if not places:
        return
    edges = [places[0], *(change.index for change in series.changes), places[-1] + 1]
    for level, (start, end) in zip(series.levels, itertools.pairwise(edges), strict=True):
        axes.plot([start - 0.5, end - 0.5], [level, level], **line(index))


@dataclass(frozen=True)
class _Label:
    """A change as it is written: in runs, where its line stands; to its right (1) or left (-1); rows from the top."""

    index: int
    place: float
    text: str
    side: int
    row: int


def _labels(arms: list[Series], runs: int, grid: Grid) -> tuple[_Label, ...]:
    """Every change of a panel, each in the first row in which it covers no other."""
    run_pt = grid.inner * 72 / runs
    taken: list[list[tuple[float, float]]] = []
    labels = []
    for index, series in enumerate(arms):
        for change in series.changes:
            whose = f"{short(series.arm, 14)} " if len(arms) > 1 else ""
            text = whose + (percent(change.ratio - 1) if change.ratio is not None else "from 0")
            place, wide = change.index - 0.5, (LETTER_PT * len(text) + 6) / run_pt
            side = -1 if place + wide > runs - 0.4 else 1
            start, end = sorted((place, place + side * wide))
            free = (row for row, spans in enumerate(taken) if all(end < low or high < start for low, high in spans))
            row = next(free, len(taken))
            if row == len(taken):
                taken.append([])
            taken[row].append((start, end))
            labels.append(_Label(index, place, text, side, row))
    return tuple(labels)


def _mark(axes: Axes, label: _Label) -> None:
    """A line where a level begins, and the change beside it: in ink, since the colours of lines are too pale for small
    type."""
    axes.axvline(label.place, color=COLOURS[label.index % 6], linewidth=0.9, linestyle=(0, (2, 2)))
    if label.row >= MOST_ROWS:
        return
    axes.annotate(
        label.text, (label.place, 1), (3 * label.side, -ROW_PT * label.row), xycoords=("data", "axes fraction"),
        textcoords="offset points", fontsize=7.5, va="top", ha="left" if label.side > 0 else "right",
    )  # fmt: skip


def _limits(values: list[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    middle = (low + high) / 2
    span = max((high - low) * 0.65, abs(middle) * LEAST_SPAN) or 0.001
    return max(0.0, middle - span) if low >= 0 and middle - span < 0 else middle - span, middle + span


def _known(series: Series) -> list[float]:
    return [value for value in series.values if value is not None]
