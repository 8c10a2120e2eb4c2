"""What traced boots spent their time on: a plot of stacked bars, and rows for tables. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter

from orchestrator.analysis.causes import CAUSES, Cause, SlowFault, TracedBoot
from orchestrator.analysis.model import Comparison
from orchestrator.analysis.why import HAPPENED, IN_VAIN
from orchestrator.analysis.wording import share
from orchestrator.report.canvas import COLOURS, SHADE, Frame, Grid, make_frame, name_panel, short
from orchestrator.report.style import microseconds

SPENT: dict[Cause, str] = {
    "handled": "handled", "unrelated": "spun on an unrelated invalidation", "needed": "waited for a needed one",
    "other": "retried without one", "taken": "mapping taken away", "preempted": "lost the CPU", "blocked": "asleep",
}  # fmt: skip
# The same for the head of a column.
HEADS: dict[Cause, str] = {
    "handled": "handled", "unrelated": "spun", "needed": "needed", "other": "other", "taken": "taken",
    "preempted": "no CPU", "blocked": "asleep",
}  # fmt: skip
# The colours of the arms in another order: what ought to go away stands out most. Hatches tell the same.
FILLS: dict[Cause, tuple[str, str]] = {
    "handled": (SHADE, ""), "unrelated": (COLOURS[1], "////"), "needed": (COLOURS[0], ""),
    "other": (COLOURS[3], "xxxx"), "taken": (COLOURS[2], "||||"),
    "preempted": (COLOURS[4], ""), "blocked": (COLOURS[5], "\\\\\\\\"),
}  # fmt: skip
# Faults that a table lists one by one.
LISTED = 10


def boots_of(comparison: Comparison) -> dict[str, tuple[TracedBoot, ...]]:
    """The traced boots that have something to say, by cell."""
    found = [boot for boot in comparison.traced if boot.covered and boot.total_ns]
    cells = dict.fromkeys(boot.cell for boot in found)
    return {cell: tuple(boot for boot in found if boot.cell == cell) for cell in cells}


def used_causes(comparison: Comparison) -> tuple[Cause, ...]:
    """The causes that took any time at all, in their order."""
    boots = [boot for found in boots_of(comparison).values() for boot in found]
    return tuple(cause for cause in CAUSES if any(boot.share(cause).time_ns for boot in boots))


def draw(comparison: Comparison, title: str) -> tuple[Frame, tuple[tuple[str, str], ...]] | None:
    """A panel for each traced cell: for each arm a bar of the time in all faults and one of that in the slowest."""
    by_cell = boots_of(comparison)
    if not by_cell:
        return None
    arms = [arm.name for arm in comparison.arms]
    labels = [(arm, what) for arm in arms for what in ("all", "slowest")]
    left = 0.75 + 0.06 * max(len(short(arm, 14)) for arm in arms)
    columns = min(2, len(by_cell))
    grid = Grid(-(-len(by_cell) // columns), columns, 0.1 + 0.17 * len(labels), left=left, below=0.3, above=0.4)
    handles = [Patch(label=SPENT[cause], **_bar_style(cause)) for cause in used_causes(comparison)]
    frame = make_frame(title, grid, extra=handles).only(range(len(by_cell)))
    for axes, (cell, boots) in zip(frame.axes, by_cell.items(), strict=True):
        name_panel(axes, cell, "traced boots", grid.inner)
        axes.set_xlim(0, 1.06)
        axes.set_ylim(len(labels) - 0.45, -0.55)
        axes.set_yticks(range(len(labels)), [f"{short(arm, 14)}, {what}" for arm, what in labels], fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))
        for boot in boots:
            for what, parts in (("all", boot.of_all), ("slowest", boot.of_slowest)):
                start = 0.0
                for cause, part in zip(CAUSES, parts, strict=True):
                    axes.barh(labels.index((boot.arm, what)), part, left=start, height=0.78, **_bar_style(cause))
                    start += part
    return frame, tuple((cell, "") for cell in by_cell)


def _bar_style(cause: Cause) -> dict[str, Any]:
    colour, hatch = FILLS[cause]
    return {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def in_words(comparison: Comparison, cell: str, arm: str) -> str:
    """What a traced boot's bars show; empty if there is none."""
    boot = next((boot for boot in boots_of(comparison).get(cell, ()) if boot.arm == arm), None)
    if boot is None:
        return f"{arm} not traced"
    parts = sorted(zip(CAUSES, boot.of_slowest, strict=True), key=lambda item: -item[1])
    return f"{arm}, slowest faults: {', '.join(f'{share(part)} {SPENT[cause]}' for cause, part in parts if part)}"


@dataclass(frozen=True)
class SlowRow:
    """One of the slowest faults; ``met`` is the invalidation that its last retry met."""

    start_ms: str
    latency_us: str
    vcpu: int
    page: int
    happened: str
    attempts: int
    met: str


@dataclass(frozen=True)
class CauseRow:
    """One line of a traced boot, a value for each of :data:`CAUSES`."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class BootCauses:
    """One traced boot as text; ``cost`` is the measured boot's figures and this one's, empty without a measured one."""

    boot: TracedBoot
    rows: tuple[CauseRow, ...]
    cost: str
    slowest: tuple[SlowRow, ...]


def cause_tables(comparison: Comparison) -> tuple[tuple[str, tuple[BootCauses, ...]], ...]:
    """For each traced cell its boots."""
    return tuple((cell, tuple(map(_boot_causes, boots))) for cell, boots in boots_of(comparison).items())


def _boot_causes(boot: TracedBoot) -> BootCauses:
    rows = (
        CauseRow("time of all faults", _shares(boot.of_all)),
        CauseRow(f"time of the {len(boot.slowest)} slowest", _shares(boot.of_slowest)),
        CauseRow(f"the {len(boot.slowest)} slowest, counted", tuple(str(item.slowest) for item in boot.shares)),
        CauseRow(
            "attempts in vain", tuple(f"{item.retries:,}" if item.cause in IN_VAIN else "" for item in boot.shares)
        ),
    )
    return BootCauses(boot, rows, cost_of(boot), tuple(map(_slow_row, boot.slowest[:LISTED])))


def cost_of(boot: TracedBoot) -> str:
    """What the tracing itself does: p50 and retries of the measured boot and of the traced one."""
    if boot.cost is None:
        return ""
    p50 = " → ".join(f"{value:,.0f}" for value in boot.cost.p50_ns)
    retries = " → ".join("n/a" if value is None else f"{value:,}" for value in boot.cost.retries)
    return f"p50 {p50} ns, retries {retries}"


def _shares(parts: Sequence[float]) -> tuple[str, ...]:
    return tuple(share(part) for part in parts)


def _slow_row(fault: SlowFault) -> SlowRow:
    met = ""
    if fault.hva is not None and fault.size_bytes is not None:
        window = f", window {fault.window} of the storm" if fault.window is not None else ", none of the storm's"
        met = f"{fault.hva:#x}, {fault.size_bytes >> 10:,} KiB{window}"
    return SlowRow(
        start_ms=f"{fault.start_ns / 1e6:,.3f}",
        latency_us=microseconds(fault.latency_ns),
        vcpu=fault.vcpu,
        page=fault.page,
        happened=HAPPENED[fault.cause],
        attempts=fault.attempts,
        met=met,
    )
