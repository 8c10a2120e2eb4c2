"""Which boots a run needed, and what they say: verdicts of all cells, look by look where the schedule says so.

A run ``until: decided`` takes its looks after fixed numbers of boots. A cell ends at the first look at which each of
its metrics, in every arm, is decided, or hopeless: not likely to be decided by the last look; and where there is
nothing to compare, since no boot of an arm, or of the base, ended well. Cells that ended keep
the verdicts of that look. All of it follows from the results alone, in the order of the plan: a run that was killed
and goes on comes to the same decisions.

Why the error rate holds: at each look the cells that are still open are tested at the look's level
(``sequential.py``), Holm-corrected for every comparison of the run but those called before in cells that ended. The
first false call, at whatever look, beats the corrected level of all true hypotheses together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.analysis import compare, power, statistics
from orchestrator.analysis.compare import Boot, Context, Effect, Family
from orchestrator.analysis.model import METRICS, CellStop, MetricComparison
from orchestrator.analysis.sequential import FIXED, Stage
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.results import Outcome, TrialResult

Key = tuple[str, str]  # cell, arm


@dataclass(frozen=True)
class Measurements:
    """What there is to judge by.

    ``boots`` has the good boots of each cell and arm, without second boots of the base. ``missing`` says why there are
    none, where there are none. ``reached`` is how many boots of every arm that runs have ended, well or not, by cell.
    """

    boots: Mapping[Key, Sequence[Boot]]
    missing: Mapping[Key, str]
    reached: Mapping[str, int]


@dataclass(frozen=True)
class Judged:
    """Every verdict, cells and arms in the experiment's order, and where each cell of a run until decided ended."""

    metrics: tuple[MetricComparison, ...]
    stops: tuple[CellStop, ...]


def check(experiment: Experiment) -> None:
    """Raise :class:`UserError` if no number of boots that the schedule allows could call a change."""
    schedule = experiment.schedule
    if schedule.until != "decided":
        return
    tests = len(METRICS) * len(experiment.cells) * (len(experiment.arms) - 1)
    needed = power.pairs_that_can(Stage(schedule.look_boots).last, tests)
    if schedule.most < needed:
        raise UserError(
            f"schedule.at_most: {schedule.most} boots can call no change, however large: with {tests} comparisons and"
            f" {schedule.looks} looks the permutation test takes {needed}",
            hint=f"{experiment.path}: at_most: {needed + needed % 2}",
        )


def judge_run(experiment: Experiment, found: Measurements, deterministic: bool) -> Judged:
    """Judge all boots of a run of fixed size at once, those of a run ``until: decided`` look by look."""
    schedule = experiment.schedule
    if schedule.until != "decided":
        effects = [effect for cell in experiment.cells for effect in _effects(experiment, found, cell.name)]
        return Judged(compare.judge(effects, experiment.base.name, Context(deterministic)), ())
    metrics: dict[str, tuple[MetricComparison, ...]] = {}
    stops: dict[str, CellStop] = {}
    open_: dict[str, tuple[str, ...]] = {}
    names = [cell.name for cell in experiment.cells]
    family = Family()
    stage = FIXED
    for number, boots in enumerate(schedule.look_boots, 1):
        waiting = [name for name in names if name not in stops]
        stage = Stage(schedule.look_boots, number)
        if not waiting or any(found.reached[name] < boots for name in waiting):
            break
        context = Context(deterministic, stage, family)
        looked = _look(experiment, found, waiting, boots, context)
        for name in waiting:
            if stop := _stop(name, boots, looked[name], context, _tests(looked, family)):
                stops[name], metrics[name] = stop, tuple(item for _, item in looked[name])
            open_[name] = _names([item for _, item in looked[name]])
        family = _grown(family, [metrics[name] for name in waiting if name in stops])
    left = [name for name in names if name not in stops]
    for name in left:
        context = Context(deterministic, stage, family)
        stops[name], metrics[name] = _unreached(experiment, found, name, context, open_.get(name))
    return Judged(
        tuple(item for name in names for item in metrics[name]),
        tuple(stops[name] for name in names),
    )


def decide(
    experiment: Experiment,
    results: Sequence[TrialResult],
    runs: Sequence[str],
    read: Callable[[TrialResult], Boot],
    deterministic: bool,
) -> tuple[CellStop, ...]:
    """Where each cell of a run ``until: decided`` ends, as far as the results go; empty for a run of fixed size.

    ``runs`` are the arms that have a kernel; ``read`` gets a result that ended well.
    """
    if experiment.schedule.until != "decided":
        return ()
    boots: dict[Key, list[Boot]] = {(cell.name, arm.name): [] for cell in experiment.cells for arm in experiment.arms}
    for item in results:
        if (item.cell, item.arm) in boots and item.outcome is Outcome.OK and not experiment.schedule.is_twin(item.boot):
            boots[item.cell, item.arm].append(read(item))
    missing = {key: "no good boot" for key, found in boots.items() if not found}
    return judge_run(experiment, Measurements(boots, missing, reached(experiment, results, runs)), deterministic).stops


def reached(experiment: Experiment, results: Sequence[TrialResult], runs: Sequence[str]) -> dict[str, int]:
    """Of each cell, how many boots in a row of each of the arms ``runs`` have ended."""
    schedule = experiment.schedule
    ended = {(item.cell, item.arm, item.boot) for item in results}
    wanted = [(arm, 0) for arm in runs]
    if schedule.aa and experiment.base.name in runs:
        wanted.append((experiment.base.name, schedule.most))
    return {
        cell.name: next(
            (
                boot
                for boot in range(schedule.most)
                if any((cell.name, arm, first + boot) not in ended for arm, first in wanted)
            ),
            schedule.most,
        )
        for cell in experiment.cells
    }


def stages(experiment: Experiment, stops: Sequence[CellStop]) -> dict[str, Stage]:
    """The look at which each cell ended, as a stage: the level for whatever else is asked of its boots.

    How many boots there are follows from what they showed, so a level that only a fixed number would justify is none.
    """
    if not stops:
        return {cell.name: FIXED for cell in experiment.cells}
    return {item.cell: Stage(experiment.schedule.look_boots, max(1, item.look)) for item in stops}


def judge_beside(
    effects: Sequence[Effect], base: str, stages: Mapping[str, Stage], deterministic: bool
) -> tuple[MetricComparison, ...]:
    """Judge effects that form a family beside the run's own, each at the stage of its cell; in their order.

    Holm's correction is over all of them; of another stage none counts as called before, so it errs on the safe side.
    """
    found: dict[int, MetricComparison] = {}
    for stage in dict.fromkeys(stages.values()):
        ours = [index for index, item in enumerate(effects) if stages[item.cell] == stage]
        context = Context(deterministic, stage, Family(others=len(effects) - len(ours)))
        found |= zip(ours, compare.judge([effects[index] for index in ours], base, context), strict=True)
    return tuple(found[index] for index in range(len(effects)))


def is_needed(result: TrialResult, experiment: Experiment, stops: Sequence[CellStop]) -> bool:
    """Whether a result counts: not one of a cell that had ended before."""
    most = experiment.schedule.most
    limits = {item.cell: most if item.why == "not reached" else item.boots for item in stops}
    return result.boot % most < limits.get(result.cell, most) or result.cell not in limits


def not_needed(experiment: Experiment, stops: Sequence[CellStop]) -> int:
    """How many trials of the plan need not run, since their cell has ended."""
    a_block = len(experiment.arms) + experiment.schedule.aa
    return sum((experiment.schedule.most - item.boots) * a_block for item in stops if item.why != "not reached")


# --- one look ---------------------------------------------------------------------------------------------------------

Looked = list[tuple[Effect, MetricComparison]]


def _effects(experiment: Experiment, found: Measurements, cell: str, boots: int | None = None) -> list[Effect]:
    base = experiment.base.name
    effects: list[Effect] = []
    for arm in experiment.arms[1:]:
        left, right = (
            [item for item in found.boots[cell, name] if boots is None or item.boot < boots]
            for name in (base, arm.name)
        )
        missing = found.missing.get((cell, base), "") or found.missing.get((cell, arm.name), "")
        effects += compare.effects_of(cell, arm.name, left, right, experiment.report.margin, missing)
    return effects


def _look(
    experiment: Experiment, found: Measurements, cells: Sequence[str], boots: int, context: Context
) -> dict[str, Looked]:
    effects = [effect for name in cells for effect in _effects(experiment, found, name, boots)]
    judged = compare.judge(effects, experiment.base.name, context)
    looked: dict[str, Looked] = {name: [] for name in cells}
    for effect, item in zip(effects, judged, strict=True):
        looked[effect.cell].append((effect, item))
    return looked


def _stop(cell: str, boots: int, looked: Looked, context: Context, tests: int) -> CellStop | None:
    stage = context.stage
    undecided = [(effect, item) for effect, item in looked if item.decides and item.verdict == "inconclusive"]
    names = _names([item for _, item in undecided])
    if not any(item.decides for _, item in looked):
        return CellStop(cell, boots, stage.number, "nothing to compare", ())
    if not undecided:
        return CellStop(cell, boots, stage.number, "decided", ())
    if stage == stage.last:
        return CellStop(cell, boots, stage.number, "at most", names)
    if all(compare.hopeless(effect, stage.last, tests) for effect, _ in undecided):
        return CellStop(cell, boots, stage.number, "hopeless", names)
    return None


def _tests(looked: Mapping[str, Looked], family: Family) -> int:
    known = [item for cell in looked.values() for _, item in cell if item.p_value is not None]
    return len(known) + family.called + family.others


def _grown(family: Family, stopped: Sequence[Sequence[MetricComparison]]) -> Family:
    """The family with the comparisons of cells that ended at this look."""
    known = [item.p_adjusted for cell in stopped for item in cell if item.p_adjusted is not None]
    called = sum(p_value <= statistics.ALPHA for p_value in known)
    return Family(family.called + called, family.others + len(known) - called)


def _unreached(
    experiment: Experiment, found: Measurements, cell: str, context: Context, open_: tuple[str, ...] | None
) -> tuple[CellStop, tuple[MetricComparison, ...]]:
    """A cell whose next look has not come: figures, but no verdict, which would be a look that is not paid for.

    ``open_`` is what the look before left undecided, None if there was none.
    """
    wanted = context.stage.looks[context.stage.number - 1]
    judged = compare.judge(_effects(experiment, found, cell, wanted), experiment.base.name, context)
    reason = f"{found.reached[cell]} of the {wanted} boots of the next look"
    metrics = tuple(
        item if not item.decides else replace(item, verdict="inconclusive", reason=reason, boots_needed=wanted)
        for item in judged
    )
    left = _names(metrics) if open_ is None else open_
    return CellStop(cell, found.reached[cell], context.stage.number - 1, "not reached", left), metrics


def _names(metrics: Sequence[MetricComparison]) -> tuple[str, ...]:
    """What of a cell has no verdict."""
    return tuple(f"{item.arm} {item.metric}" for item in metrics if item.decides and item.verdict == "inconclusive")
