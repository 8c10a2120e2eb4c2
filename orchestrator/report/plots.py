"""The plots, SVG and PNG, drawn from a Comparison and its Curves alone: nothing is computed but places on paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from orchestrator.analysis.model import Comparison
from orchestrator.analysis.plotted import CellCurves, Curves
from orchestrator.analysis.wording import percent
from orchestrator.report import causes
from orchestrator.report.canvas import (
    COLOURS,
    HATCHES,
    MARKERS,
    RC,
    SHADE,
    Box,
    Frame,
    Grid,
    line,
    make_frame,
    name_panel,
    plain,
    short,
    time_axis,
)
from orchestrator.report.style import duration, grouped, per_fault

TIMELINE_COLUMNS = 3
# Room beside the longest bar for its value, as a factor on the axis.
BAR_ROOM = 60
KEYED, SMALL = ("tail", "percentiles"), ("retries", "causes")
PERCENTILES = ((0.30103, "p50"), (1.0, "p90"), (2.0, "p99"), (3.0, "p99.9"), (4.0, "p99.99"), (5.0, "p99.999"),
               (6.0, "p99.9999"), (7.0, "p99.99999"), (8.0, "p99.999999"))  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One panel: whose it is (``arm`` is empty where it shows all of them), and its place as in Frame."""

    cell: str
    arm: str
    box: Box


@dataclass(frozen=True)
class Drawn:
    """A figure before it is saved; a (cell, arm) for each of its panels."""

    frame: Frame
    shows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Plot:
    """A drawn plot: file stem, finding, a caption that says how to read it, its panels; ``columns`` as in Frame.

    ``keyed``: its lines are told apart by a key; else every panel names its arms. ``small``: its panels are.
    """

    name: str
    title: str
    caption: str
    svg: Path
    png: Path
    panels: tuple[Panel, ...]
    columns: int
    keyed: bool
    small: bool


Lines = tuple[Axes, list[tuple[int, CellCurves]]]


def draw_all(comparison: Comparison, curves: Curves, folder: Path) -> tuple[Plot, ...]:
    """Draw every plot of which there is data into ``folder`` (made if need be)."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = comparison.titles
    wanted: tuple[tuple[str, str, str, Callable[[Comparison, Curves, str], Drawn | None]], ...] = (
        ("retries", titles.retries, "Page-fault exits that installed nothing, so that the guest had to fault again,"
         " per fault; the axis is linear up to 0.001 and logarithmic above.", _retries),
        ("tail", titles.tail, "Share of faults that took at least so long; both axes are logarithmic. Further left is"
         " faster; the marker is the slowest fault.", _tail),
        ("timeline", titles.timeline, "The first boot of each arm over time: small dots are the slowest fault of each"
         " moment, bars single slow faults from their start to their end. Shaded: a system call of the storm in"
         " progress.", _timeline),
        ("percentiles", titles.percentiles, "Latency at each percentile, from the median to the slowest fault. Lower"
         " is faster.", _percentiles),
        ("causes", "Time in faults: what it was spent on", "Observed in traced boots: of the time in all faults, and in"
         " the slowest ones, the part that each cause took.", _causes),
    )  # fmt: skip
    with mpl.rc_context(RC):
        drawn = [(name, title, caption, draw(comparison, curves, title)) for name, title, caption, draw in wanted]
        return tuple(
            _save(made, name, title, caption, folder) for name, title, caption, made in drawn if made is not None
        )


def _save(drawn: Drawn, name: str, title: str, caption: str, folder: Path) -> Plot:
    frame = drawn.frame
    panels = tuple(Panel(*shown, box) for shown, box in zip(drawn.shows, frame.boxes, strict=True))
    plot = Plot(
        name, title, caption, folder / f"{name}.svg", folder / f"{name}.png", panels, frame.grid.columns,
        keyed=name in KEYED, small=name in SMALL,
    )  # fmt: skip
    FigureCanvasAgg(frame.figure)
    frame.figure.savefig(plot.svg, metadata={"Date": None, "Creator": "orch"})
    frame.figure.savefig(plot.png, dpi=150, metadata={"Software": "orch"})
    return plot


def _drawn_cells(comparison: Comparison, curves: Curves) -> list[str]:
    arms = [arm.name for arm in comparison.arms]
    return [cell.name for cell in comparison.cells if any(curves.get(cell.name, arm) for arm in arms)]


def _panels(comparison: Comparison, curves: Curves, title: str, height: float) -> tuple[Drawn, list[Lines]] | None:
    """One panel for each cell that has curves, two to a row, titled with the cell and its verdicts."""
    arms = [arm.name for arm in comparison.arms]
    cells = _drawn_cells(comparison, curves)
    if not cells:
        return None
    columns = min(2, len(cells))
    frame = make_frame(title, Grid(-(-len(cells) // columns), columns, height), arms).only(range(len(cells)))
    panels: list[Lines] = []
    for place, cell in zip(frame.axes, cells, strict=True):
        name_panel(place, cell, _verdicts(comparison, cell), frame.grid.inner)
        found = ((index, curves.get(cell, arm)) for index, arm in enumerate(arms))
        panels.append((place, [(index, curve) for index, curve in found if curve is not None]))
    return Drawn(frame, tuple((cell, "") for cell in cells)), panels


def _verdicts(comparison: Comparison, cell: str) -> str:
    return grouped([(item.arm, item.verdict) for item in comparison.verdicts if item.cell == cell])


def _tail(comparison: Comparison, curves: Curves, title: str) -> Drawn | None:
    made = _panels(comparison, curves, title, 1.55)
    if made is None:
        return None
    drawn, panels = made
    everything = [curve.ccdf for _, found in panels for _, curve in found]
    slowest = max(curve.x[-1] for curve in everything)
    fastest = min(curve.x[0] for curve in everything)
    rarest = min(curve.y[-1] for curve in everything)
    # Room on the right for the labels, whatever the number of decades.
    room = max(4.0, (slowest / fastest) ** 0.48)
    for axes, found in panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(fastest / 1.2, slowest * room)
        axes.set_ylim(rarest / 1.6, 1.35)
        for index, curve in found:
            axes.plot(curve.ccdf.x, curve.ccdf.y, drawstyle="steps-pre", **line(index))
        _label_ends(axes, found)
        time_axis(axes.xaxis)
        axes.yaxis.set_major_locator(LogLocator(10, numticks=9))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))
        axes.set_ylabel("share of faults")
        axes.set_xlabel("latency of at least")
    return drawn


def _label_ends(axes: Axes, found: list[tuple[int, CellCurves]]) -> None:
    """The slowest fault of each arm, written right of all markers in lines of their own, each with its marker again:
    in ink, since a colour that stands out as a line is too pale for small type."""
    right = max(curve.ccdf.x[-1] for _, curve in found)
    lowest = min(curve.ccdf.y[-1] for _, curve in found)
    for row, (index, curve) in enumerate(reversed(found)):
        style: dict[str, Any] = {"linestyle": "none", "marker": MARKERS[index % 6], "color": COLOURS[index % 6]}
        axes.plot([curve.ccdf.x[-1]], [curve.ccdf.y[-1]], markersize=5, zorder=4, **style)
        place = ScaledTranslation(13 / 72, (10 * row + 1) / 72, axes.figure.dpi_scale_trans)
        axes.plot([right], [lowest], markersize=3.5, transform=axes.transData + place, clip_on=False, **style)
        axes.annotate(
            f"max {duration(curve.ccdf.x[-1])}", (right, lowest), (18, 10 * row - 3), textcoords="offset points",
            fontsize=7.5, ha="left", va="bottom",
        )  # fmt: skip


def _percentiles(comparison: Comparison, curves: Curves, title: str) -> Drawn | None:
    made = _panels(comparison, curves, title, 1.45)
    if made is None:
        return None
    drawn, panels = made
    everything = [curve.percentiles for _, found in panels for _, curve in found]
    nines = max(curve.x[-1] for curve in everything)
    marks = [mark for mark in PERCENTILES if mark[0] <= nines]
    for axes, found in panels:
        axes.set_yscale("log")
        axes.set_ylim(min(curve.y[0] for curve in everything) / 1.4, max(curve.y[-1] for curve in everything) * 1.8)
        axes.set_xlim(0, nines * 1.03)
        for index, curve in found:
            axes.plot(curve.percentiles.x, curve.percentiles.y, drawstyle="steps-post", **line(index))
        axes.xaxis.set_major_locator(FixedLocator([place for place, _ in marks]))
        axes.set_xticklabels([name for _, name in marks])
        axes.set_xlabel("percentile (each decade ten times rarer)")
        axes.set_ylabel("latency")
        time_axis(axes.yaxis)
    return drawn


def _timeline(comparison: Comparison, curves: Curves, title: str) -> Drawn | None:
    arms = [arm.name for arm in comparison.arms]
    cells = _drawn_cells(comparison, curves)
    if not cells:
        return None
    shade = Patch(color=SHADE, alpha=0.55, label="system call of the storm")
    # Each cell begins a row; more arms than fit beside each other take more rows.
    columns = min(len(arms), TIMELINE_COLUMNS)
    deep = -(-len(arms) // columns)
    frame = make_frame(title, Grid(len(cells) * deep, columns, 0.95, below=0.27, above=0.4), arms, extra=[shade])
    used = [row * deep * columns + place for row in range(len(cells)) for place in range(len(arms))]
    frame = frame.only(used)
    axes = frame.axes
    lines = [curve.timeline for curve in curves.curves]
    low = min((min(item.maxima.y) for item in lines), default=1.0) / 1.5
    high = max((max(item.maxima.y) for item in lines), default=1e9) * 2
    for row, cell in enumerate(cells):
        length = max(curve.timeline.seconds for arm in arms if (curve := curves.get(cell, arm)))
        for column, arm in enumerate(arms):
            panel = axes[row * len(arms) + column]
            panel.set_yscale("log")
            panel.set_ylim(low, high)
            panel.set_xlim(0, length * 1e3)
            time_axis(panel.yaxis)
            name_panel(panel, cell, arm, frame.grid.inner)
            _over_time(panel, curves.get(cell, arm), column, comparison.summary(cell, arm).outcome)
            panel.xaxis.set_major_locator(MaxNLocator(max(2, 10 // max(2, columns))))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
            if column % columns == 0:
                panel.set_ylabel("latency")
    return Drawn(frame, tuple((cell, arm) for cell in cells for arm in arms))


def _over_time(axes: Axes, curve: CellCurves | None, index: int, outcome: str) -> None:
    if curve is None:
        axes.text(0.5, 0.5, plain(outcome), transform=axes.transAxes, ha="center", va="center", fontweight="bold")
        return
    found = curve.timeline
    storm = [(start * 1e3, (end - start) * 1e3) for start, end in found.windows]
    axes.broken_barh(storm, (0, 1), transform=axes.get_xaxis_transform(), color=SHADE, alpha=0.55, linewidth=0)
    maxima = [(x * 1e3, x * 1e3, y) for x, y in zip(found.maxima.x, found.maxima.y, strict=True)]
    slow = [(x * 1e3, x * 1e3 + y * 1e-6, y) for x, y in zip(found.slow.x, found.slow.y, strict=True)]
    for spans, width in ((maxima, 1.9), (slow, 2.6)):
        _strokes(axes, spans, color=COLOURS[index % 6], linewidth=width)


def _strokes(axes: Axes, spans: Sequence[tuple[float, float, float]], **style: Any) -> None:
    """Level strokes (start, end, y) with round ends: one of no length is a dot. All of them are one path, so that a
    drawing of ten thousand of them is still small."""
    least = (axes.get_xlim()[1] - axes.get_xlim()[0]) * 1e-4
    x = [value for start, end, _ in spans for value in (start, max(end, start + least), math.nan)]
    y = [value for *_, at in spans for value in (at, at, math.nan)]
    # Simplifying would drop the dots; whether it may is settled when the path is made.
    with mpl.rc_context({"path.simplify": False}):
        (strokes,) = axes.plot(x, y, solid_capstyle="round", **style)
        strokes.recache()


def _causes(comparison: Comparison, curves: Curves, title: str) -> Drawn | None:
    made = causes.draw(comparison, title)
    return None if made is None else Drawn(*made)


def _retries(comparison: Comparison, curves: Curves, title: str) -> Drawn | None:
    arms = [arm.name for arm in comparison.arms]
    known = [item.retries_per_fault for item in comparison.summaries if item.retries_per_fault is not None]
    if not known:
        return None
    cells = [cell.name for cell in comparison.cells]
    columns = min(2, len(cells))
    left = 0.2 + 0.06 * max(len(short(arm, 18)) for arm in arms)
    grid = Grid(-(-len(cells) // columns), columns, 0.08 + 0.185 * len(arms), left=left, below=0.3, above=0.4)
    frame = make_frame(title, grid).only(range(len(cells)))
    for axes, cell in zip(frame.axes, cells, strict=True):
        judged = [(item.arm, item.verdict) for item in comparison.comparisons
                  if (item.cell, item.metric) == (cell, "retries_per_fault")]  # fmt: skip
        name_panel(axes, cell, grouped(judged), grid.inner)
        axes.set_xscale("symlog", linthresh=0.001, linscale=0.6)
        axes.set_xlim(0, max(0.01, *known) * BAR_ROOM)
        axes.set_yticks(range(len(arms)), [short(arm, 18) for arm in arms], fontsize=8)
        axes.set_ylim(len(arms) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(FixedLocator([0, 0.001, 0.01, 0.1, 1, 10, 100, 1000]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for index, arm in enumerate(arms):
            value = comparison.summary(cell, arm).retries_per_fault
            axes.barh(index, value or 0, height=0.78, color=COLOURS[index % 6], hatch=HATCHES[index % 6],
                      edgecolor="white", linewidth=0)  # fmt: skip
            axes.annotate(_bar_label(comparison, cell, arm, value), (value or 0, index), (4, 0), va="center_baseline",
                          fontsize=8, textcoords="offset points", annotation_clip=False)  # fmt: skip
    return Drawn(frame, tuple((cell, "") for cell in cells))


def _bar_label(comparison: Comparison, cell: str, arm: str, value: float | None) -> str:
    """A bar's value and, for an arm that changed it, by how much."""
    found = comparison.summary(cell, arm)
    if value is None:
        return "n/a: no counters" if found.boots else plain(found.outcome)
    figure = f"{value:.3g}" if value >= 0.001 or value == 0 else per_fault(value)
    metric = comparison.metrics(cell, arm).get("retries_per_fault") if arm != comparison.base else None
    if metric is None or metric.ratio is None or metric.verdict not in ("improved", "regressed"):
        return figure
    return f"{figure}  ({percent(metric.ratio - 1)})"
