"""Two runs of one experiment against each other: base with base, arm with arm, in every cell."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.analysis import compare, wording
from orchestrator.analysis.model import BootSummary, CellComparison, CheckResult, MetricComparison, Verdict
from orchestrator.errors import UserError, printable
from orchestrator.nights.catalogue import Run
from orchestrator.nights.sameness import Sameness, examine, same_seeds
from orchestrator.report.style import microseconds, per_fault

WIDTH = 100


@dataclass(frozen=True)
class Versus:
    """What changed from ``left`` to ``right``. Verdicts are of ``right``; lower is better in every metric.

    ``failed`` are checks that fail in ``right`` and did not in ``left``, ``mended`` the other way round; ``only`` says
    which arms just one of the runs has.
    """

    left: Run
    right: Run
    sameness: Sameness
    exact: bool
    metrics: tuple[MetricComparison, ...]
    verdicts: tuple[CellComparison, ...]
    failed: tuple[CheckResult, ...]
    mended: tuple[CheckResult, ...]
    only: tuple[str, ...]

    @property
    def worse(self) -> tuple[str, ...]:
        """What got worse: a line for each cell and arm with the metrics that decide, and one for each check."""
        return (*self._moved("regressed"), *(f"check {where(item)} failed: {item.why}" for item in self.failed))

    @property
    def better(self) -> tuple[str, ...]:
        """What got better, likewise."""
        return (*self._moved("improved"), *(f"check {where(item)} holds again" for item in self.mended))

    def _moved(self, verdict: Verdict) -> tuple[str, ...]:
        moved = [item for item in self.metrics if item.verdict == verdict and item.decides]
        return tuple(
            f"{cell}, {arm}: "
            + ", ".join(wording.change(item) for item in moved if (item.cell, item.arm) == (cell, arm))
            for cell, arm in dict.fromkeys((item.cell, item.arm) for item in moved)
        )


def versus(left: Run, right: Run) -> Versus:
    """Compare two runs by the statistics of the report, boot by boot in the order of their seeds.

    Under icount with the same seeds each pair is exact. Otherwise the boots are those of two nights, and what changed
    on the machine between them is part of the difference. Raises :class:`UserError`, naming each field with both
    values, if the runs differ in anything else that matters.
    """
    sameness = examine(left, right)
    if sameness.refused:
        lines = "\n".join(f"  {item.render()}" for item in sameness.refused)
        raise UserError(
            f"{left.name} and {right.name} cannot be compared, they differ in\n{lines}",
            hint=f"orch history {right.manifest.experiment}   (says which runs go together)",
        )
    exact = right.manifest.accel == "icount" and same_seeds(left, right)
    metrics = compare.judge(_effects(left, right), left.name, compare.Context(exact))
    pairs = dict.fromkeys((item.cell, item.arm) for item in metrics)
    verdicts = tuple(
        wording.cell_verdict(cell, arm, [item for item in metrics if (item.cell, item.arm) == (cell, arm)])
        for cell, arm in pairs
    )
    failed, mended = turned(left, right), turned(right, left)
    return Versus(left, right, sameness, exact, metrics, verdicts, failed, mended, only(left, right))


def only(left: Run, right: Run) -> tuple[str, ...]:
    """The arms that just one of two runs has."""
    ours, theirs = ([arm.name for arm in run.experiment.arms] for run in (left, right))
    lines = [f"arm {arm}: only in {left.name}" for arm in ours if arm not in theirs]
    return (*lines, *(f"arm {arm}: only in {right.name}" for arm in theirs if arm not in ours))


def _effects(left: Run, right: Run) -> list[compare.Effect]:
    common = [arm.name for arm in right.experiment.arms if arm.name in {item.name for item in left.experiment.arms}]
    margin = right.experiment.report.margin
    effects: list[compare.Effect] = []
    known = {cell.name for cell in left.experiment.cells}
    for cell in (cell for cell in right.experiment.cells if cell.name in known):
        for arm in common:
            sides = [run.comparison.summary(cell.name, arm) for run in (left, right)]
            both = zip((left, right), sides, strict=True)
            ended = [f"{run.name}: {side.outcome}" for run, side in both if not side.boots]
            missing = ended[0] if ended else ""
            one, other = (_by_boot(side.per_boot) for side in sides)
            effects += compare.effects_of(cell.name, arm, one, other, margin, missing)
    return effects


def _by_boot(boots: Sequence[BootSummary]) -> tuple[BootSummary, ...]:
    """Boots are paired by their number, whose seed is the same in both runs; blocks count differently in each."""
    return tuple(dataclasses.replace(boot, block=boot.boot) for boot in boots)


def turned(before: Run, after: Run) -> tuple[CheckResult, ...]:
    """Checks that fail in ``after`` and did not in ``before``."""
    failed = {(item.name, item.arm, item.cell) for item in before.comparison.checks if item.status == "failed"}
    return tuple(
        item
        for item in after.comparison.checks
        if item.status == "failed" and (item.name, item.arm, item.cell) not in failed
    )


def where(check: CheckResult) -> str:
    """A check with its cell and arm."""
    place = ", ".join(part for part in (check.cell, check.arm) if part)
    return f"{check.name} ({place})" if place else check.name


# --- as text ----------------------------------------------------------------------------------------------------------


def render(found: Versus) -> str:
    """For a terminal: what differs, what came of it in each cell and arm, and every metric that is not equivalent."""
    lines = [f"{found.left.name} (before) and {found.right.name} (after)", ""]
    lines += [f"  {item.render()}" for item in found.sameness.compared] or ["  the same kernels, from the same sources"]
    lines += [f"  note: {note}" for note in (*found.sameness.notes, *found.only, _basis(found))]
    for cell in dict.fromkeys(item.cell for item in found.verdicts):
        lines += ["", cell]
        for verdict in found.verdicts:
            if verdict.cell == cell:
                lines += _rows(found, verdict)
    lines += ["", *(f"check {where(item)} FAILED: {item.why}" for item in found.failed)]
    lines += [f"check {where(item)} holds again" for item in found.mended]
    lines.append(_last(found))
    return "\n".join(line for text in lines for line in _wrap(printable(text))) + "\n"


def _rows(found: Versus, verdict: CellComparison) -> Iterator[str]:
    metrics = [item for item in found.metrics if (item.cell, item.arm) == (verdict.cell, verdict.arm)]
    same = found.exact and all(item.ratio == 1 for item in metrics)
    yield f"  {verdict.arm}: {verdict.verdict}: {'identical' if same else verdict.summary}"
    for item in metrics:
        if item.verdict == "equivalent" or item.value is None or item.base_value is None:
            continue
        write = per_fault if item.metric == "retries_per_fault" else microseconds
        unit = "" if item.metric == "retries_per_fault" else " µs"
        yield (
            f"    {wording.LABELS[item.metric]:8}{write(item.base_value)} → {write(item.value)}{unit}"
            f" ({wording.change(item).split(' ', 1)[1]}{_interval(item)}): {item.verdict}, {item.reason}"
        )


def _interval(item: MetricComparison) -> str:
    (low, high), kind = item.ci, item.ci_kind
    if low is None or kind is None or low == high:
        return ""
    return f", ratio {low:.3f} {'or more' if high is None else f'to {high:.3f}'}, {wording.CI_NAMES[kind]}"


def _basis(found: Versus) -> str:
    if found.exact:
        return "time is counted in instructions and the seeds are the same: each pair of boots is exact"
    return (
        "the boots are of two times: what changed on the machine between them is part of the difference, and two runs"
        " cannot tell how much that is; orch nightly and orch history can"
    )


def _last(found: Versus) -> str:
    counts = [f"{sum(item.verdict == kind for item in found.verdicts)} {kind}" for kind in
              ("improved", "regressed", "mixed", "equivalent", "inconclusive")]  # fmt: skip
    return f"cells and arms: {', '.join(counts)}; margin ±{found.right.experiment.report.margin * 100:g} %"


def _wrap(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, WIDTH, subsequent_indent=f"{indent}    ", break_on_hyphens=False) or [""]
