"""The plots, SVG and PNG, drawn from a Comparison and its Curves alone: nothing is computed but places on paper."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from orchestrator.analysis.model import CellCurves, Comparison, Curves
from orchestrator.report.canvas import (
    COLOURS,
    HATCHES,
    MARKERS,
    RC,
    SHADE,
    WIDTH_IN,
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
from orchestrator.report.style import duration, per_fault

TIMELINE_COLUMNS = 3
PERCENTILES = ((0.30103, "p50"), (1.0, "p90"), (2.0, "p99"), (3.0, "p99.9"), (4.0, "p99.99"), (5.0, "p99.999"),
               (6.0, "p99.9999"), (7.0, "p99.99999"), (8.0, "p99.999999"))  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A drawn plot: file stem, finding, a caption that says how to read it; the rest as in Frame."""

    name: str
    title: str
    caption: str
    svg: Path
    png: Path
    boxes: tuple[Box, ...]
    key: Box
    columns: int


Panel = tuple[Axes, list[tuple[int, CellCurves]]]


def draw_all(comparison: Comparison, curves: Curves, folder: Path) -> tuple[Plot, ...]:
    """Draw every plot of which there is data into ``folder`` (made if need be)."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = comparison.titles
    wanted: tuple[tuple[str, str, str, Callable[[Comparison, Curves, str], Frame | None]], ...] = (
        ("retries", titles.retries, "Page-fault exits that installed nothing, so that the guest had to fault again,"
         " per fault; the axis is linear up to 0.001 and logarithmic above.", _retries),
        ("tail", titles.tail, "Share of faults that took at least so long; both axes are logarithmic. Further left is"
         " faster; the marker is the slowest fault.", _tail),
        ("timeline", titles.timeline, "The first boot of each arm over time: small dots are the slowest fault of each"
         " moment, bars single slow faults from their start to their end. Shaded: a system call of the storm in"
         " progress.", _timeline),
        ("percentiles", titles.percentiles, "Latency at each percentile, from the median to the slowest fault. Lower"
         " is faster.", _percentiles),
    )  # fmt: skip
    with mpl.rc_context(RC):
        drawn = [(name, title, caption, draw(comparison, curves, title)) for name, title, caption, draw in wanted]
        return tuple(
            _save(made, name, title, caption, folder) for name, title, caption, made in drawn if made is not None
        )


def _save(frame: Frame, name: str, title: str, caption: str, folder: Path) -> Plot:
    plot = Plot(
        name, title, caption, folder / f"{name}.svg", folder / f"{name}.png", frame.boxes, frame.key, frame.columns
    )
    FigureCanvasAgg(frame.figure)
    frame.figure.savefig(plot.svg, metadata={"Date": None, "Creator": "orch"})
    frame.figure.savefig(plot.png, dpi=150, metadata={"Software": "orch"})
    return plot


def _drawn_cells(comparison: Comparison, curves: Curves) -> list[str]:
    arms = [arm.name for arm in comparison.arms]
    return [cell.name for cell in comparison.cells if any(curves.get(cell.name, arm) for arm in arms)]


def _panels(comparison: Comparison, curves: Curves, title: str, height: float) -> tuple[Frame, list[Panel]] | None:
    """One panel for each cell that has curves, two to a row, titled with the cell and its verdicts."""
    arms = [arm.name for arm in comparison.arms]
    cells = _drawn_cells(comparison, curves)
    if not cells:
        return None
    columns = min(2, len(cells))
    whole = make_frame(title, Grid(-(-len(cells) // columns), columns, height), arms)
    for spare in whole.axes[len(cells) :]:
        whole.figure.delaxes(spare)
    axes = whole.axes[: len(cells)]
    panels: list[Panel] = []
    for place, cell in zip(axes, cells, strict=True):
        said = ", ".join(f"{item.arm} {item.verdict}" for item in comparison.verdicts if item.cell == cell)
        name_panel(place, cell, said, WIDTH_IN / columns - 0.9)
        found = ((index, curves.get(cell, arm)) for index, arm in enumerate(arms))
        panels.append((place, [(index, curve) for index, curve in found if curve is not None]))
    return replace(whole, axes=axes, boxes=whole.boxes[: len(cells)]), panels


def _tail(comparison: Comparison, curves: Curves, title: str) -> Frame | None:
    made = _panels(comparison, curves, title, 1.55)
    if made is None:
        return None
    frame, panels = made
    everything = [curve.ccdf for _, found in panels for _, curve in found]
    slowest = max(curve.x[-1] for curve in everything)
    fastest = min(curve.x[0] for curve in everything)
    rarest = min(curve.y[-1] for curve in everything)
    # Room on the right for the labels, whatever the number of decades.
    room = max(4.0, (slowest / fastest) ** 0.38)
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
    return frame


def _label_ends(axes: Axes, found: list[tuple[int, CellCurves]]) -> None:
    """The slowest fault of each arm, written right of all markers, one line for each so that none covers another."""
    right = max(curve.ccdf.x[-1] for _, curve in found)
    lowest = min(curve.ccdf.y[-1] for _, curve in found)
    for row, (index, curve) in enumerate(reversed(found)):
        x, y = curve.ccdf.x[-1], curve.ccdf.y[-1]
        colour = COLOURS[index % 6]
        axes.plot([x], [y], linestyle="none", marker=MARKERS[index % 6], markersize=5, color=colour, zorder=4)
        axes.annotate(
            f"max {duration(x)}", (right, lowest), (8, 10 * row - 3), textcoords="offset points", fontsize=7.5,
            ha="left", va="bottom", color=colour, fontweight="bold",
        )  # fmt: skip


def _percentiles(comparison: Comparison, curves: Curves, title: str) -> Frame | None:
    made = _panels(comparison, curves, title, 1.45)
    if made is None:
        return None
    frame, panels = made
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
    return frame


def _timeline(comparison: Comparison, curves: Curves, title: str) -> Frame | None:
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
    for spare in set(range(len(frame.axes))) - set(used):
        frame.figure.delaxes(frame.axes[spare])
    frame = replace(frame, axes=tuple(frame.axes[at] for at in used), boxes=tuple(frame.boxes[at] for at in used))
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
            name_panel(panel, cell, arm, WIDTH_IN / columns - 0.9)
            _over_time(panel, curves.get(cell, arm), column, comparison.summary(cell, arm).outcome)
            panel.xaxis.set_major_locator(MaxNLocator(max(2, 10 // columns)))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
            if column % columns == 0:
                panel.set_ylabel("latency")
    return frame


def _over_time(axes: Axes, curve: CellCurves | None, index: int, outcome: str) -> None:
    if curve is None:
        axes.text(0.5, 0.5, plain(outcome), transform=axes.transAxes, ha="center", va="center", fontweight="bold")
        return
    found = curve.timeline
    spans = [(start * 1e3, (end - start) * 1e3) for start, end in found.windows]
    axes.broken_barh(spans, (0, 1), transform=axes.get_xaxis_transform(), color=SHADE, alpha=0.55, linewidth=0)
    colour = COLOURS[index % 6]
    axes.plot(
        [x * 1e3 for x in found.maxima.x], found.maxima.y, linestyle="none", color=colour, marker=MARKERS[index % 6],
        markersize=1.8, markeredgewidth=0,
    )  # fmt: skip
    starts = [x * 1e3 for x in found.slow.x]
    ends = [x + y * 1e-6 for x, y in zip(starts, found.slow.y, strict=True)]
    axes.hlines(found.slow.y, starts, ends, color=colour, linewidth=2)
    axes.plot(starts, found.slow.y, linestyle="none", color=colour, marker=MARKERS[index % 6], markersize=2.6,
              markeredgewidth=0)  # fmt: skip


def _retries(comparison: Comparison, curves: Curves, title: str) -> Frame | None:
    arms = [arm.name for arm in comparison.arms]
    values = {(item.cell, item.arm): item.retries_per_fault for item in comparison.summaries}
    known = [value for value in values.values() if value is not None]
    if not known:
        return None
    cells = [cell.name for cell in comparison.cells]
    frame = make_frame(title, Grid(1, 1, 0.2 * len(cells) * (len(arms) + 0.8), left=1.95, above=0.1), arms, bars=True)
    (axes,) = frame.axes
    axes.set_xscale("symlog", linthresh=0.001, linscale=0.6)
    step = 1 / (len(arms) + 0.8)
    for row, cell in enumerate(cells):
        for index, arm in enumerate(arms):
            value = values[cell, arm]
            y = row + (index - (len(arms) - 1) / 2) * step
            axes.barh(y, value or 0, height=step * 0.88, color=COLOURS[index % 6], hatch=HATCHES[index % 6],
                      edgecolor="white", linewidth=0)  # fmt: skip
            axes.annotate(_bar_label(comparison, cell, arm, value), (value or 0, y), (4, 0), va="center", fontsize=8,
                          textcoords="offset points")  # fmt: skip
    axes.set_yticks(range(len(cells)), [textwrap.fill(short(cell, 52), 26) for cell in cells])
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xlim(0, max(0.01, *known) * 9)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(FixedLocator([0, 0.001, 0.01, 0.1, 1, 10, 100, 1000]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("retries per fault (linear up to 0.001, then logarithmic)")
    return frame


def _bar_label(comparison: Comparison, cell: str, arm: str, value: float | None) -> str:
    """A bar's value and, for an arm that changed it, by how much."""
    found = comparison.summary(cell, arm)
    if value is None:
        return "n/a: no counters" if found.boots else plain(found.outcome)
    figure = f"{value:.3g}" if value >= 0.001 or value == 0 else per_fault(value)
    metric = comparison.metrics(cell, arm).get("retries_per_fault") if arm != comparison.base else None
    if metric is None or metric.ratio is None or metric.verdict not in ("improved", "regressed"):
        return figure
    return f"{figure}  ({(metric.ratio - 1) * 100:+.1f} %)".replace("-", "−")
