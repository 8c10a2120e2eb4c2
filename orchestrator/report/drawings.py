"""The plots as the page shows them: the panels that tell most, the others folded away, and each in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from orchestrator.analysis.model import Comparison
from orchestrator.report import causes
from orchestrator.report.plots import Panel, Plot
from orchestrator.report.style import clean, duration, per_fault
from orchestrator.report.svg import cut, sample, swatch

# Cells that are drawn in full view, those that have most to say: a row of a desk's page. With a panel for each arm,
# only so many panels.
SHOWN_CELLS = 3
SHOWN_PANELS = 6
ORDER = ("regressed", "mixed", "improved", "inconclusive", "equivalent")


@dataclass(frozen=True)
class Drawing:
    """One plot in the page. ``key`` has a sample of the line and a name for each arm, if it needs one; ``shown`` and
    ``folded`` are grids of panels: one for all cells, or one for each cell if it has a panel for each arm."""

    plot: Plot
    head: str
    findings: tuple[str, ...]
    shared: Markup
    key: tuple[tuple[Markup, str], ...]
    shown: tuple[tuple[Markup, ...], ...]
    folded: tuple[tuple[Markup, ...], ...]
    folded_cells: tuple[str, ...]


def make_drawings(comparison: Comparison, plots: Sequence[Plot]) -> tuple[Drawing, ...]:
    """Cut every plot and sort its panels."""
    telling = telling_cells(comparison)
    return tuple(_drawing(comparison, plot, telling) for plot in plots)


def telling_cells(comparison: Comparison) -> tuple[str, ...]:
    """The :data:`SHOWN_CELLS` cells whose verdicts say most: regressions before gains before nothing."""

    def rank(cell: str) -> int:
        return min((ORDER.index(item.verdict) for item in comparison.verdicts if item.cell == cell), default=len(ORDER))

    return tuple(sorted((cell.name for cell in comparison.cells), key=rank)[:SHOWN_CELLS])


def _drawing(comparison: Comparison, plot: Plot, telling: Sequence[str]) -> Drawing:
    labels = tuple(str(escape(clean(_words(comparison, plot, panel)))) for panel in plot.panels)
    parts = cut(plot, labels)
    cells = dict.fromkeys(panel.cell for panel in plot.panels)
    abreast = len(plot.panels) // len(cells)
    shown = cells if plot.small else telling[: max(1, min(SHOWN_CELLS, SHOWN_PANELS // abreast))]
    folded = tuple(cell for cell in cells if cell not in shown)
    # Markup: drawn by us; names in it are outlines of glyphs, and escaped in its labels.
    drawn = [(panel.cell, Markup(part)) for panel, part in zip(plot.panels, parts.panels, strict=True)]
    head, _, rest = plot.title.partition(": ")
    return Drawing(
        plot=plot,
        head=head if rest else plot.title,
        findings=_findings(rest, [arm.name for arm in comparison.arms]),
        shared=Markup(parts.shared),
        key=_key(comparison, plot),
        shown=_grids(drawn, [cell for cell in cells if cell in shown], apart=abreast > 1),
        folded=_grids(drawn, folded, apart=abreast > 1),
        folded_cells=folded,
    )


def _key(comparison: Comparison, plot: Plot) -> tuple[tuple[Markup, str], ...]:
    if plot.name == "causes":
        used = causes.used_causes(comparison)
        return tuple((Markup(swatch(*causes.FILLS[cause])), causes.SPENT[cause]) for cause in used)
    arms = enumerate(comparison.arms) if plot.keyed else ()
    return tuple((Markup(sample(index)), arm.name) for index, arm in arms)


def _grids(drawn: Sequence[tuple[str, Markup]], cells: Sequence[str], *, apart: bool) -> tuple[tuple[Markup, ...], ...]:
    if not cells:
        return ()
    groups = [[cell] for cell in cells] if apart else [cells]
    return tuple(tuple(panel for cell, panel in drawn if cell in group) for group in groups)


def _findings(text: str, arms: Sequence[str]) -> tuple[str, ...]:
    """A finding's sentence by arm: a part that begins with no arm's name belongs to the one before."""
    found: list[str] = []
    for part in text.split("; ") if text else ():
        if found and not part.startswith(tuple(f"{arm} " for arm in arms)):
            found[-1] += f"; {part}"
        else:
            found.append(part)
    return tuple(found)


def _words(comparison: Comparison, plot: Plot, panel: Panel) -> str:
    """What a panel shows, for those who cannot see it."""
    head = plot.title.partition(":")[0]
    arms = [panel.arm] if panel.arm else [arm.name for arm in comparison.arms]
    return f"{head}, {panel.cell}: {'; '.join(_arm_words(comparison, plot, panel.cell, arm) for arm in arms)}"


def _arm_words(comparison: Comparison, plot: Plot, cell: str, arm: str) -> str:
    if plot.name == "causes":
        return causes.in_words(comparison, cell, arm)
    found = comparison.summary(cell, arm)
    if found.latency is None:
        return f"{arm} {found.outcome}"
    if plot.name == "retries":
        return f"{arm} {per_fault(found.retries_per_fault)}"
    if plot.name == "percentiles":
        return f"{arm} p50 {duration(found.latency.p50)}, p99 {duration(found.latency.p99)}"
    return f"{arm} p99.9 {duration(found.latency.p99_9)}, slowest {duration(found.latency.max)}"
