"""How sure a reader may be: what the verdicts rest on, what the run could not have seen, and what looks odd."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis import power, statistics
from orchestrator.analysis.model import Bimodal, CellStop, Metric, MetricComparison
from orchestrator.analysis.sequential import FIXED, Stage
from orchestrator.analysis.wording import LABELS, percent
from orchestrator.experiment import Experiment, Schedule

SHOWN_GROUPS = 6
ORDERS = {
    "abba": "every other one in turned order",
    "random": "which arm boots first chosen by a coin",
    "abab": "the arms always in the same order, so that a drift of the machine favours one",
}


def sure_lines(
    experiment: Experiment,
    accel: str,
    metrics: Sequence[MetricComparison],
    floor: Sequence[MetricComparison],
    groups: Sequence[Bimodal],
    stops: Sequence[CellStop],
) -> tuple[str, ...]:
    """All sentences, what casts doubt on everything else first."""
    margin = experiment.report.margin
    return (
        *_broken_floor(floor),
        f"Lower is better in every metric. A change within ±{margin * 100:g} % (retries: or 0.001 per fault) is called"
        " equivalent.",
        *_basis(accel, metrics, stops, experiment.schedule),
        *_smallest(metrics),
        *_needed(metrics),
        *_floor(floor),
        *_groups(groups),
    )


def _basis(accel: str, metrics: Sequence[MetricComparison], stops: Sequence[CellStop], schedule: Schedule) -> list[str]:
    looks = schedule.look_boots
    pairs = max((item.pairs for item in metrics), default=0)
    if pairs == 0:
        return ["No cell has a good boot of both arms: nothing was compared."]
    if accel == "icount" and pairs < statistics.MIN_PAIRS:
        seeds = "this one seed" if pairs == 1 else f"these {pairs} seeds"
        return [
            f"icount: time is instructions executed, so every figure is exact and repeatable for {seeds}, and a"
            f" difference of zero is zero. It says nothing about other seeds, caches, or real time. The maximum of one"
            f" seed is a single fault: it is shown and does not decide a cell."
        ]
    if pairs == 1:
        return ["One boot of each arm: its noise is not known, so every verdict is inconclusive."]
    lines = []
    if accel == "icount":
        lines.append(
            f"icount: every figure is exact for its seed; the {pairs} seeds (start delay, storm phase, page order) are"
            " the sample, and the verdicts are about other seeds too. They say nothing about caches, or real time."
        )
    tests = sum(item.p_value is not None for item in metrics)
    lines.append(
        f"{pairs} boots of each arm, paired by block, {ORDERS[schedule.order]}; 95 % bootstrap intervals, paired"
        f" permutation test, Holm-corrected over {tests} comparisons. Smallest p that {pairs} boots can reach:"
        f" {statistics.smallest_p(pairs):.2g};"
        f" {power.pairs_that_can(Stage(looks).last if stops else FIXED, tests)} boots reach 5 % corrected."
    )
    return lines + _looks(stops, looks)


def _looks(stops: Sequence[CellStop], looks: tuple[int, ...]) -> list[str]:
    """The sequential rule with its levels, and where it ended each cell."""
    if not stops:
        return []
    levels = ", ".join(f"{Stage(looks, number).alpha * 100:.2g} %" for number in range(1, len(looks) + 1))
    boots = ", ".join(map(str, looks))
    lines = [
        f"Stopped early by rule: the results were looked at after {boots} boots of each arm, at levels of {levels},"
        " which keep 5 % together (Lan-DeMets alpha spending, the share of boots squared); intervals are as much"
        " wider, so that all looks' together cover 95 %."
    ]
    words = {
        "decided": "decided",
        "hopeless": "given up, since more boots would hardly decide the rest",
        "at most": "undecided at the end",
        "nothing to compare": "given up, since there was nothing to compare",
        "not reached": "cut short before a look: no verdict",
    }
    alike: dict[tuple[str, int], list[CellStop]] = {}
    for item in stops:
        alike.setdefault((item.why, item.boots), []).append(item)
    for (why, count), cells in alike.items():
        named = ", ".join(
            item.cell + (f" ({labels(item.undecided)})" if item.undecided and why != "not reached" else "")
            for item in cells
        )
        lines.append(f"After {count} boots {words[why]}: {named}.")
    return lines


def labels(undecided: Sequence[str]) -> str:
    """``v1 p99_9`` as a reader knows it."""
    parts = [name.rpartition(" ") for name in undecided]
    return ", ".join(f"{arm} {LABELS.get(metric, metric)}" for arm, _, metric in parts)  # type: ignore[call-overload]


def _smallest(metrics: Sequence[MetricComparison]) -> list[str]:
    """The smallest effect that this run could have seen in its least sensitive cell, by metric."""
    worst: dict[Metric, float] = {}
    for item in metrics:
        if item.smallest_effect is not None and (item.metric != "retries_per_fault" or item.base_value):
            worst[item.metric] = max(worst.get(item.metric, 0.0), item.smallest_effect)
    blind = [item for item in metrics if item.smallest_effect is None and item.p_value is not None]
    sizes = {LABELS[name]: percent(size)[1:] for name, size in worst.items() if name != "retries_per_fault"}
    lines = []
    if blind:
        lines.append(f"In {len(blind)} of {len(metrics)} comparisons these boots can call no change, however large.")
    if len(set(sizes.values())) == 1:
        lines.append(f"Smallest change of a latency that this run could have called: {next(iter(sizes.values()))}.")
    elif sizes:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        lines.append(f"Smallest change this run could have called, in its least sensitive cell: {listed}.")
    return lines


def _needed(metrics: Sequence[MetricComparison]) -> list[str]:
    """How many more boots what is open would take."""
    open_ = [item for item in metrics if item.verdict == "inconclusive" and item.p_value is not None]
    known = sorted(item.boots_needed for item in open_ if item.boots_needed is not None)
    if not open_:
        return []
    said = f"{len(open_)} of {len(metrics)} comparisons are inconclusive"
    if not known:
        return [f"{said}; {power.MOST_BOOTS} boots of each arm would not decide them."]
    rest = len(open_) - len(known)
    more = f"; the other {rest} are too near the margin to be decided by any number" if rest else ""
    span = f"about {known[0]}" if known[0] == known[-1] else f"about {known[0]} to {known[-1]}"
    return [f"{said}; {span} boots of each arm would decide {len(known) if rest else 'them'}{more}."]


def _broken_floor(floor: Sequence[MetricComparison]) -> list[str]:
    moved = [item for item in floor if item.verdict in ("improved", "regressed")]
    if not moved:
        return []
    listed = ", ".join(f"{LABELS[item.metric]} {item.verdict} in {item.cell}" for item in moved)
    return [
        f"DO NOT TRUST THE VERDICTS of these cells: the base differs from itself ({listed}). Its noise is not what the"
        " tests assume."
    ]


def _floor(floor: Sequence[MetricComparison]) -> list[str]:
    """The noise floor: the widest interval of the base against itself, by metric."""
    if not floor:
        return []
    widest: dict[Metric, tuple[float, float]] = {}
    for item in floor:
        low, high = item.ci
        if low is not None and high is not None:
            before = widest.get(item.metric, (1.0, 1.0))
            widest[item.metric] = (low, high) if high - low > before[1] - before[0] else before
    if not widest:
        return ["The base has no pair of good boots against itself: the noise floor is not known."]
    if all(low == high == 1.0 for low, high in widest.values()):
        return ["The base against itself: identical to the last digit in every cell."]
    listed = ", ".join(
        f"{LABELS[name]} {percent(low - 1)} to {percent(high - 1)}" for name, (low, high) in widest.items()
    )
    pairs = min(item.pairs for item in floor if item.ci[0] is not None)
    return [f"Noise floor, the base against itself over {pairs} pairs, in the noisiest cell: {listed}."]


def _groups(groups: Sequence[Bimodal]) -> list[str]:
    lines = []
    for item in groups[:SHOWN_GROUPS]:
        sizes = " and ".join(
            f"{len(group.trials)} at about {_value(item.metric, group.value)} ({_trials(group.trials)})"
            for group in (item.low, item.high)
        )
        lines.append(
            f"{item.cell}, {item.arm}, {LABELS[item.metric]}: boots fall in two groups, {sizes}; a mean over both"
            " describes neither."
        )
    if len(groups) > SHOWN_GROUPS:
        lines.append(f"{len(groups) - SHOWN_GROUPS} more metrics have boots in two groups.")
    return lines


def _value(metric: Metric, value: float) -> str:
    return f"{value:.3g} per fault" if metric == "retries_per_fault" else f"{value / 1000:.3g} µs"


def _trials(trials: Sequence[str]) -> str:
    shown = ", ".join(trials[:6])
    return f"trial{'s' if len(trials) > 1 else ''} {shown}{', …' if len(trials) > 6 else ''}"
