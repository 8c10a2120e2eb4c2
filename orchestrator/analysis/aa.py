"""The base against itself (``schedule.aa``): the noise floor beside every verdict, and a test of the method.

Whatever two boots of one kernel in one block differ by is noise. If that comes out as a change, then this machine has
noise that the tests do not know of, and no verdict of the cell deserves trust.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.analysis import compare, stopping
from orchestrator.analysis.compare import Boot, Effect
from orchestrator.analysis.model import CellStop, CheckResult, MetricComparison
from orchestrator.experiment import Experiment

CHECK = "base_against_itself"


def judge(
    experiment: Experiment,
    first: Mapping[str, Sequence[Boot]],
    second: Mapping[str, Sequence[Boot]],
    stops: Sequence[CellStop],
    deterministic: bool,
) -> tuple[MetricComparison, ...]:
    """Compare the base's first and second boots, by cell; a family of its own for Holm's correction.

    A cell of a run until decided is judged at the level of the look where it ended.
    """
    if not experiment.schedule.aa:
        return ()
    base = experiment.base.name
    effects: list[Effect] = []
    for cell in (item.name for item in experiment.cells):
        missing = "" if first[cell] and second[cell] else f"{base}: no pair of good boots"
        effects += compare.effects_of(cell, base, first[cell], second[cell], experiment.report.margin, missing)
    return stopping.judge_beside(effects, base, stopping.stages(experiment, stops), deterministic)


def with_noise(metrics: Sequence[MetricComparison], floor: Sequence[MetricComparison]) -> tuple[MetricComparison, ...]:
    """The verdicts with the base's own interval beside each."""
    found = {(item.cell, item.metric): item.ci for item in floor}
    return tuple(replace(item, noise=found.get((item.cell, item.metric), (None, None))) for item in metrics)


def checks(floor: Sequence[MetricComparison]) -> tuple[CheckResult, ...]:
    """One result a cell: failed if the base differs from itself, not covered if that could not have been seen."""
    results = []
    for cell in dict.fromkeys(item.cell for item in floor):
        ours = [item for item in floor if item.cell == cell]
        moved = [item for item in ours if item.verdict in ("improved", "regressed")]
        seen = [item for item in ours if item.decides and (item.verdict == "equivalent" or item.smallest_effect)]
        if moved:
            said = ", ".join(f"{item.metric} {item.verdict} ({item.reason})" for item in moved)
            why = f"the same kernel twice, and yet {said}: this cell's noise is not what the tests assume"
            results.append(CheckResult(CHECK, ours[0].base, cell, "failed", why))
        elif not seen:
            pairs = max(item.pairs for item in ours)
            why = ours[0].reason if not pairs else f"{pairs} pairs of boots could show no difference, however large"
            results.append(CheckResult(CHECK, ours[0].base, cell, "not covered", why))
        else:
            results.append(CheckResult(CHECK, ours[0].base, cell, "held", f"{max(item.pairs for item in ours)} pairs"))
    return tuple(results)
