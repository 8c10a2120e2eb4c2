"""The frame of every plot: its size, the finding above, how each arm is drawn, and a grid of panels.

Places are in inches and fixed. matplotlib's automatic layouts draw everything several times to measure it, which took
most of the time of a report.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from orchestrator.report.palette import LIGHT
from orchestrator.report.style import clean, duration

COLOURS: Final = LIGHT
DASHES: Final[tuple[Any, ...]] = (
    "solid", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)), (0, (8, 2)),
)  # fmt: skip
MARKERS: Final = ("o", "s", "^", "D", "v", "P")
HATCHES: Final = ("", "////", "||||", "xxxx", "\\\\\\\\", "++++")
INK, FAINT, SHADE = "#1b1f24", "#c9ced6", "#b9bec6"

WIDTH_IN = 7.6
RIGHT_IN = 0.14
# Any: matplotlib types each key of this mapping as a literal.
RC: Final[Any] = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.7, "grid.color": FAINT,
    "grid.linewidth": 0.5, "lines.linewidth": 1.6, "axes.grid": True, "axes.axisbelow": True, "hatch.linewidth": 0.8,
    # A cell's name may hold a dollar; it is no formula. The fixed salt makes two drawings of one run equal.
    "text.parse_math": False, "svg.hashsalt": "orch", "svg.fonttype": "path",
}  # fmt: skip
# What the plots' font can draw; anything else in a name is shown as a question mark, not as an empty box.
EXTRA = "−–→±µ×…·"


@dataclass(frozen=True)
class Grid:
    """Rows and columns of panels; all lengths in inches. ``left`` and ``below`` leave room for ticks and labels,
    ``above`` for a panel's title. A panel alone is as wide as one of two."""

    rows: int
    columns: int
    panel: float
    left: float = 0.78
    below: float = 0.46
    above: float = 0.42

    @property
    def wide(self) -> float:
        """A panel's width with its labels."""
        return (WIDTH_IN - RIGHT_IN) / max(2, self.columns)

    @property
    def inner(self) -> float:
        """A panel's width between its axes."""
        return self.wide - self.left - 0.06


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """A figure and its panels, row by row; ``boxes`` are the panels' places with their labels: left, top, width,
    height in points from the top left corner."""

    figure: Figure
    axes: tuple[Axes, ...]
    boxes: tuple[Box, ...]
    grid: Grid

    def only(self, places: Sequence[int]) -> Frame:
        """The same with the panels at these places; the others are gone."""
        for spare in set(range(len(self.axes))) - set(places):
            self.figure.delaxes(self.axes[spare])
        return replace(self, axes=tuple(self.axes[at] for at in places), boxes=tuple(self.boxes[at] for at in places))


def plain(text: str) -> str:
    """A name as the plots' font can draw it."""
    return "".join(char if char in EXTRA or ord(char) < 0x180 else "?" for char in clean(text))


def short(text: str, length: int) -> str:
    """A name that fits: the middle gives way, since names differ at their ends."""
    whole = plain(text)
    keep = (length - 1) // 2
    return whole if len(whole) <= length else f"{whole[:keep]}…{whole[len(whole) - keep :]}"


def make_frame(title: str, grid: Grid, arms: Sequence[str] = (), *, extra: Sequence[Artist] = ()) -> Frame:
    """A figure with its finding, a key for the lines of ``arms`` and for ``extra``, and its panels row by row."""
    width = grid.wide * grid.columns + RIGHT_IN
    head = textwrap.fill(plain(title), int(width * 10.8))
    head_in = 0.12 + 0.2 * (head.count("\n") + 1)
    entries, abreast = len(arms) + len(extra), max(1, int(width / 1.9))
    key_in = 0.1 + 0.2 * -(-entries // abreast)
    top_in = head_in + key_in + 0.04
    step = grid.above + grid.panel + grid.below
    height = top_in + grid.rows * step
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(0.1 / width, 1 - 0.1 / height, head, va="top", ha="left", fontsize=11, fontweight="bold")
    if entries:
        key: list[Artist] = [_key(index, arm) for index, arm in enumerate(arms)]
        figure.legend(
            handles=[*key, *extra], loc="upper left", bbox_to_anchor=(0.03 / width, 1 - head_in / height),
            ncols=min(entries, abreast), frameon=False, handlelength=3.2, borderaxespad=0.2, fontsize=9,
        )  # fmt: skip
    axes, boxes = [], []
    for row in range(grid.rows):
        for column in range(grid.columns):
            left, top = column * grid.wide, top_in + row * step
            bottom = 1 - (top + grid.above + grid.panel) / height
            axes.append(figure.add_axes(((left + grid.left) / width, bottom, grid.inner / width, grid.panel / height)))
            boxes.append((left * 72, top * 72, (grid.wide + 0.08) * 72, step * 72))
    return Frame(figure, tuple(axes), tuple(boxes), grid)


def _key(index: int, arm: str) -> Artist:
    # A leading underscore would hide the entry.
    label = short(arm, 24).lstrip("_") or "?"
    return Line2D([], [], **line(index), marker=MARKERS[index % 6], markersize=5, label=label)


def line(index: int) -> dict[str, Any]:
    """How the arm of this index is drawn."""
    return {"color": COLOURS[index % 6], "linestyle": DASHES[index % 6]}


def name_panel(axes: Axes, name: str, said: str, room: float) -> None:
    """A panel's title, and what is said of it below; ``room`` is the panel's width in inches."""
    axes.set_title(short(name, max(12, int(room * 12))), loc="left", fontweight="bold", pad=14)
    axes.annotate(
        short(said, max(12, int(room * 16))), (0, 1), (0, 2), xycoords="axes fraction", textcoords="offset points",
        fontsize=8, va="bottom",
    )  # fmt: skip


def time_axis(axis: Axis) -> None:
    """Ticks at powers of ten, written with their unit."""
    axis.set_major_locator(LogLocator(10, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axis.set_minor_locator(NullLocator())
