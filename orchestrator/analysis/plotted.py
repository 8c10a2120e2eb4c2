"""What the plots draw, as it is saved beside the comparison. Nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A curve, x and y of one length."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Timeline:
    """One boot over time: x in seconds since the measured rounds began, y in ns.

    ``maxima`` has the slowest fault of each bucket, ``slow`` single faults that stand out, ``windows`` the storm's
    merged intervals as (start, end) in seconds.
    """

    trial: str
    seconds: float
    maxima: Line
    slow: Line
    windows: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class CellCurves:
    """What the plots draw of one arm in one cell. ``ccdf``: ns against the share of faults that took longer or as
    long. ``percentiles``: nines (``-log10(1 - quantile)``) against ns."""

    cell: str
    arm: str
    ccdf: Line
    percentiles: Line
    timeline: Timeline


@dataclass(frozen=True)
class Curves:
    """All curves of a run; only cells and arms with at least one good boot are in it."""

    schema: int
    curves: tuple[CellCurves, ...]

    def get(self, cell: str, arm: str) -> CellCurves | None:
        return next((item for item in self.curves if (item.cell, item.arm) == (cell, arm)), None)
