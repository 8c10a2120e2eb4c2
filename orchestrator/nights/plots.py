"""A plot for each metric: its value in every run, a panel a cell, a line an arm, levels and changes on top."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
    low, high = _limits(known)
    axes.set_ylim(low, high)
    axes.set_xlim(-0.6, len(history.runs) - 0.4)
    for index, series in enumerate(arms):
        _changes(axes, series, index, f"{short(series.arm, 14)} " if len(arms) > 1 else "")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
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


def _changes(axes: Axes, series: Series, index: int, whose: str) -> None:
    """A line where a level begins, and the change beside it; each arm writes on a row of its own, in ink, since the
    colours of lines are too pale for small type."""
    for change in series.changes:
        axes.axvline(change.index - 0.5, color=COLOURS[index % 6], linewidth=0.9, linestyle=(0, (2, 2)))
        text = percent(change.ratio - 1) if change.ratio is not None else "from 0"
        side = -1 if change.index > 0.75 * len(series.values) else 1
        axes.annotate(
            whose + text, (change.index - 0.5, 1), (3 * side, -2 - 9 * index), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=7.5, va="top", ha="left" if side > 0 else "right",
        )  # fmt: skip


def _limits(values: list[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    middle = (low + high) / 2
    span = max((high - low) * 0.65, abs(middle) * LEAST_SPAN) or 0.001
    return max(0.0, middle - span) if low >= 0 and middle - span < 0 else middle - span, middle + span * 1.25


def _known(series: Series) -> list[float]:
    return [value for value in series.values if value is not None]
