"""Does the run still measure what it says? The checks that an experiment asks for, each with its proof.

A check that nothing tested is ``not covered``, never ``held``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from orchestrator.analysis.model import CellInfo, CellSummary, CheckResult
from orchestrator.analysis.wording import tenths
from orchestrator.experiment import Check, Experiment
from orchestrator.results import Outcome, TrialResult

# Retries per fault above which a control shows retries at all.
NO_RETRIES = 0.001
# The share of base's retries that an arm must keep where every one of them is needed.
KEPT_SHARE = 0.5

_STAMP = re.compile(r"^\s*(<\d+>)?(\[[^\]]*\]\s*)*")
_VARIABLE = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|(?<=PID: )\d+|(?<=CPU: )\d+", re.IGNORECASE)


def run_checks(
    experiment: Experiment,
    cells: Sequence[CellInfo],
    summaries: Sequence[CellSummary],
    results: Sequence[TrialResult],
    own: Mapping[Check, Sequence[CheckResult]] = MappingProxyType({}),
) -> tuple[CheckResult, ...]:
    """All checks of ``experiment.checks``, one result for each cell and arm they concern.

    ``own`` are the results of the checks that have trials of their own and do not look at cells.
    """
    arms = tuple(arm.name for arm in experiment.arms)
    found: list[CheckResult] = []
    for name in experiment.checks:
        made = list(own[name]) if name in own else _CHECKS[name](cells, arms, summaries, results)
        found.extend(made or [CheckResult(name, "", "", "not covered", "no cell of this experiment tests it")])
    return tuple(found)


def _kernel_log(
    cells: Sequence[CellInfo], arms: Sequence[str], summaries: Sequence[CellSummary], results: Sequence[TrialResult]
) -> list[CheckResult]:
    """No WARNING or BUG in the kernel log of a trial that ended well; of a patched arm, none that base has not."""
    found = []
    for cell in cells:
        lines = {arm: _warnings(results, cell.name, arm) for arm in arms}
        known = {same_line(line) for line in lines[arms[0]] or ()}
        for arm in arms:
            ours = lines[arm]
            new = [line for line in ours or () if arm == arms[0] or same_line(line) not in known]
            if ours is None:
                found.append(CheckResult("kernel_log", arm, cell.name, "not covered", "no trial ended well"))
            elif new:
                more = f" (and {len(new) - 1} more)" if len(new) > 1 else ""
                found.append(CheckResult("kernel_log", arm, cell.name, "failed", new[0] + more))
            else:
                why = "no warning that base has not" if ours else "no warning"
                found.append(CheckResult("kernel_log", arm, cell.name, "held", why))
    return found


def _warnings(results: Sequence[TrialResult], cell: str, arm: str) -> tuple[str, ...] | None:
    ours = [item for item in results if (item.cell, item.arm, item.outcome) == (cell, arm, Outcome.OK)]
    return tuple(dict.fromkeys(line for item in ours for line in item.warnings)) if ours else None


def same_line(line: str) -> str:
    """A kernel log line without what differs from boot to boot: time stamp, addresses, PID, CPU."""
    return _VARIABLE.sub("#", _STAMP.sub("", line))


def _needed_retries(
    cells: Sequence[CellInfo], arms: Sequence[str], summaries: Sequence[CellSummary], results: Sequence[TrialResult]
) -> list[CheckResult]:
    """Where the storm is over the faulting pages every retry is needed: an arm that loses them is broken, not fast."""
    found = []
    for cell in cells:
        if cell.control != "overlap":
            continue
        base = _retries(summaries, cell.name, arms[0])
        for arm in arms[1:]:
            value = _retries(summaries, cell.name, arm)
            if base is None or value is None:
                result = CheckResult("needed_retries", arm, cell.name, "not covered", "retries could not be counted")
            elif base < NO_RETRIES:
                why = f"base has {base:.4f} retries per fault: the storm does not reach the faults"
                result = CheckResult("needed_retries", arm, cell.name, "not covered", why)
            else:
                kept = value / base
                share = f"{tenths(kept, 1)}% of base's {base:.4f} retries per fault"
                why = f"keeps {share} (at least {KEPT_SHARE:.0%} asked)"
                result = CheckResult("needed_retries", arm, cell.name, "held" if kept >= KEPT_SHARE else "failed", why)
            found.append(result)
    return found


def _controls(
    cells: Sequence[CellInfo], arms: Sequence[str], summaries: Sequence[CellSummary], results: Sequence[TrialResult]
) -> list[CheckResult]:
    """A quiet host and a storm in another process cause no retry: an mmu_notifier belongs to one mm."""
    found = []
    for cell in cells:
        if cell.control not in ("quiet", "other-process"):
            continue
        for arm in arms:
            value = _retries(summaries, cell.name, arm)
            if value is None:
                result = CheckResult("controls", arm, cell.name, "not covered", "retries could not be counted")
            else:
                why = f"{value:.4f} retries per fault (below {NO_RETRIES} asked)"
                result = CheckResult("controls", arm, cell.name, "held" if value < NO_RETRIES else "failed", why)
            found.append(result)
    return found


def _retries(summaries: Sequence[CellSummary], cell: str, arm: str) -> float | None:
    return next(item.retries_per_fault for item in summaries if (item.cell, item.arm) == (cell, arm))


_Checker = Callable[
    [Sequence[CellInfo], Sequence[str], Sequence[CellSummary], Sequence[TrialResult]], list[CheckResult]
]
_CHECKS: Final[Mapping[Check, _Checker]] = {
    "kernel_log": _kernel_log,
    "needed_retries": _needed_retries,
    "controls": _controls,
}
