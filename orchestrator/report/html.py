"""report.html: one file without script or outside reference, for screen, phone and paper.

It links into the run's folder (``trials/ID/``, ``plots/``) by relative paths, so it works from a disk as from a server.
What comes from a mail, a patch, a config or a guest is made harmless by :mod:`orchestrator.report.templates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from orchestrator.analysis.causes import CAUSES
from orchestrator.analysis.findings import arm_lines
from orchestrator.analysis.model import CellSummary, Comparison, Said
from orchestrator.analysis.wording import share
from orchestrator.report import causes, figures, guestside, templates
from orchestrator.report.drawings import make_drawings
from orchestrator.report.plots import Plot
from orchestrator.report.said import limits
from orchestrator.report.style import microseconds, per_fault
from orchestrator.report.trials import failure_groups, trial_groups, trial_hrefs
from orchestrator.report.verdicts import make_matrix, where
from orchestrator.results import Provenance

SHOWN_SENTENCES, SHOWN_CASES = 3, 16
TONES = ("regressed", "mixed", "improved", "inconclusive")


def render(comparison: Comparison, plots: Sequence[Plot], provenance: Provenance) -> str:
    """The page as text."""
    environment = templates.environment()
    environment.globals.update(share=share, microseconds=microseconds, per_fault=per_fault, where=where)
    environment.globals.update(interval_head=figures.interval_head)
    drawings = make_drawings(comparison, plots)
    groups = trial_groups(comparison)
    hrefs = trial_hrefs(groups)
    cell_href = {cell.name: f"#cell-{number}" for number, cell in enumerate(comparison.cells, 1)}
    return environment.get_template("report.html").render(
        comparison=comparison,
        provenance=provenance,
        css=templates.stylesheet(environment, "report.css"),
        standing=limits(comparison),
        headlines=comparison.headline_pieces or [[Said(line)] for line in comparison.headlines],
        tones=[_tone(comparison, arm.name) for arm in comparison.arms[1:] or comparison.arms],
        matrix=make_matrix(comparison, cell_href),
        failures=failure_groups(comparison),
        drawings=[item for item in drawings if item.plot.name != "causes"],
        cause_drawings=[item for item in drawings if item.plot.name == "causes"],
        attributions=_attributed(comparison),
        traced=causes.cause_tables(comparison),
        cause_heads=[causes.HEADS[cause] for cause in CAUSES],
        why=_sentences(comparison.why),
        cell_of=partial(_cell_of, list(cell_href)),
        stale=figures.stale_rows(comparison, hrefs),
        stale_lines=arm_lines(comparison),
        shown_cases=SHOWN_CASES,
        selftests=figures.selftest_rows(comparison, hrefs),
        checks=figures.check_counts(comparison.checks),
        heads=figures.HEADS,
        arms={cell.name: figures.arm_figures(comparison, cell.name, hrefs) for cell in comparison.cells},
        metrics={cell.name: figures.metric_rows(comparison, cell.name, hrefs) for cell in comparison.cells},
        guest_cells=guestside.guest_cells(comparison, hrefs),
        guest_heads=guestside.HEADS,
        trials=groups,
        trial_href=hrefs,
        cell_href=cell_href,
        margin=f"{comparison.margin * 100:g}",
    )


def _attributed(comparison: Comparison) -> list[list[CellSummary]]:
    """What met a storm's windows, cell by cell."""
    found = [item for item in comparison.summaries if item.attribution and item.attribution.windows]
    return [[item for item in found if item.cell == cell] for cell in dict.fromkeys(item.cell for item in found)]


def _sentences(why: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those to be seen at once, what was observed before what was inferred, and the others."""
    observed = [line for line in why if "observed in traced boots" in line]
    shown = observed or list(why[:SHOWN_SENTENCES])
    return shown, [line for line in why if line not in shown]


def _cell_of(cells: Sequence[str], line: str) -> str:
    """The cell that a sentence is about and begins with, or empty; names may begin with one another."""
    found = [cell for cell in cells if line.startswith((f"{cell}: ", f"{cell}, observed"))]
    return max(found, key=len, default="")


def _tone(comparison: Comparison, arm: str) -> str:
    """The colour of an arm's headline: the worst thing that it says."""
    kernel = next(item for item in comparison.arms if item.name == arm)
    if kernel.build != "ok" or any(item.status == "failed" for item in comparison.checks if item.arm in ("", arm)):
        return "failed"
    if any(item.arm == arm for item in comparison.failures):
        return "failed"
    kinds = {item.verdict for item in comparison.verdicts if item.arm == arm}
    return next((kind for kind in TONES if kind in kinds), "equivalent")
