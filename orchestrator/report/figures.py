"""The tables of figures: each arm in a cell, each metric with its interval, and what the checks counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from orchestrator.analysis.correctness import SelftestRow, StaleCount
from orchestrator.analysis.model import CheckResult, Comparison, Metric, MetricComparison
from orchestrator.analysis.wording import CI_NAMES, LABELS, percent
from orchestrator.report.said import size
from orchestrator.report.style import microseconds, per_fault

COLUMNS: tuple[Metric, ...] = ("p50", "p90", "p99", "p99_9", "max", "mean", "retries_per_fault")
HEADS = (*(LABELS[name] for name in COLUMNS), "exits")
Hrefs = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Figure:
    """One value of the table, and how it moved against the base: empty, or a verdict and a change."""

    value: str
    verdict: str
    change: str


@dataclass(frozen=True)
class ArmFigures:
    """One arm in one cell; ``figures`` has one entry for each of :data:`HEADS`, ``href`` leads to its trials."""

    arm: str
    outcome: str
    href: str
    boots: int
    faults: int
    figures: tuple[Figure, ...]


def arm_figures(comparison: Comparison, cell: str, hrefs: Hrefs) -> tuple[ArmFigures, ...]:
    """A cell's arms in their order."""
    rows = []
    for arm in comparison.arms:
        found = comparison.summary(cell, arm.name)
        metrics = comparison.metrics(cell, arm.name)
        figures = []
        for name in COLUMNS:
            if name == "retries_per_fault":
                value = per_fault(found.retries_per_fault)
            else:
                value = microseconds(getattr(found.latency, name) if found.latency else None)
            metric = metrics.get(name)
            if metric is None or metric.value is None:
                figures.append(Figure(value, "", ""))
            else:
                figures.append(Figure(value, metric.verdict, moved(metric)))
        figures.append(Figure(per_fault(found.exits_per_fault), "", ""))
        href = hrefs.get((cell, arm.name), "")
        rows.append(ArmFigures(arm.name, found.outcome, href, found.boots, found.faults, tuple(figures)))
    return tuple(rows)


def moved(metric: MetricComparison) -> str:
    """A metric's change against the base."""
    return percent(metric.ratio - 1) if metric.ratio is not None else "from 0"


@dataclass(frozen=True)
class MetricRow:
    """One comparison in full, as text; ``kind`` says what the ``interval`` is, empty where there is none.

    ``base_href`` and ``href`` lead to the trials of both sides, as far as there are any.
    """

    arm: str
    metric: str
    base: str
    value: str
    change: str
    interval: str
    kind: str
    noise: str
    p_value: str
    p_adjusted: str
    pairs: int
    smallest: str
    verdict: str
    decides: bool
    reason: str
    base_href: str
    href: str


def metric_rows(comparison: Comparison, cell: str, hrefs: Hrefs) -> tuple[MetricRow, ...]:
    """Every metric of every arm in a cell, and of the base against itself where that was asked for."""
    ours = [item for item in (*comparison.aa, *comparison.comparisons) if item.cell == cell]
    return tuple(metric_row(item, hrefs) for item in ours)


def metric_row(item: MetricComparison, hrefs: Hrefs = MappingProxyType({})) -> MetricRow:
    """One comparison as text; ``hrefs`` as of :func:`orchestrator.report.trials.trial_hrefs`."""
    base_href = hrefs.get((item.cell, item.base), "")
    shown = per_fault if item.metric == "retries_per_fault" else microseconds
    needed = f"; about {item.boots_needed} boots would decide" if item.boots_needed else ""
    return MetricRow(
        arm=item.arm if item.arm != item.base else f"{item.arm} against itself",
        metric=LABELS[item.metric],
        base=shown(item.base_value),
        value=shown(item.value),
        change=moved(item) if item.value is not None else "n/a",
        interval=_interval(item.ci),
        kind=CI_NAMES[item.ci_kind] if item.ci_kind else "",
        noise=_interval(item.noise),
        p_value=_p(item.p_value),
        p_adjusted=_p(item.p_adjusted),
        pairs=item.pairs,
        smallest=size(item),
        verdict=item.verdict,
        decides=item.decides,
        reason=f"{item.reason}{needed}",
        base_href=base_href,
        href=hrefs.get((item.cell, item.arm), base_href),
    )


def _interval(ends: tuple[float | None, float | None]) -> str:
    low, high = ends
    if low is None:
        return ""
    if high is None:
        return f"{percent(low - 1)} or more"
    return f"{percent(low - 1)} to {percent(high - 1)}" if low != high else percent(low - 1)


def interval_head(rows: Sequence[MetricRow]) -> str:
    """What a column of intervals is called; of several kinds all are named, and rows say which they are of."""
    return " or ".join(dict.fromkeys(row.kind for row in rows if row.kind)) or "interval"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


# --- checks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckCount:
    """One kind of check, counted; ``groups`` are the results that did not hold, by arm."""

    name: str
    held: int
    total: int
    failed: int
    groups: tuple[tuple[CheckResult, ...], ...]


def check_counts(checks: Sequence[CheckResult]) -> tuple[CheckCount, ...]:
    """Every kind of check in its order."""
    found = []
    for name in dict.fromkeys(item.name for item in checks):
        ours = [item for item in checks if item.name == name]
        alike: dict[tuple[str, str], list[CheckResult]] = {}
        for item in ours:
            if item.status != "held":
                alike.setdefault((item.status, item.arm), []).append(item)
        held = sum(item.status == "held" for item in ours)
        failed = sum(item.status == "failed" for item in ours)
        found.append(CheckCount(name, held, len(ours), failed, tuple(map(tuple, alike.values()))))
    return tuple(found)


@dataclass(frozen=True)
class Counted:
    """What one arm came to in one case or test: a mark, words, and where they come from."""

    kind: str
    word: str
    href: str


@dataclass(frozen=True)
class CountRow:
    """One case of the stale-mapping check, or one selftest, over the arms. ``open``: some arm did not hold."""

    name: str
    about: str
    open: bool
    arms: tuple[Counted, ...]


def stale_rows(comparison: Comparison, hrefs: Hrefs) -> tuple[CountRow, ...]:
    """A row for each case, operation, paging and guest page: stale of covered rounds in each arm."""
    rows = []
    for label in dict.fromkeys(item.label for item in comparison.stale):
        by_arm = {item.arm: item for item in comparison.stale if item.label == label}
        entries = tuple(_stale(by_arm.get(arm.name), hrefs) for arm in comparison.arms)
        case, _, about = label.partition(",")
        bad = any(item.status != "held" for item in by_arm.values())
        rows.append(CountRow(case, about.replace(",", ", "), bad, entries))
    return tuple(rows)


def _stale(item: StaleCount | None, hrefs: Hrefs) -> Counted:
    if item is None:
        return Counted("", "", "")
    href = hrefs.get((item.cell, item.arm), "")
    if item.status == "not covered":
        return Counted("notcovered", "not covered", href)
    return Counted(item.status, f"{item.stale} of {item.covered}", href)


def selftest_rows(comparison: Comparison, hrefs: Hrefs) -> tuple[CountRow, ...]:
    """A row for each test: how it ended on each arm."""
    rows = []
    for test in dict.fromkeys(item.test for item in comparison.selftests):
        by_arm = {item.arm: item for item in comparison.selftests if item.test == test}
        entries = tuple(_selftest(by_arm.get(arm.name), comparison.base, hrefs) for arm in comparison.arms)
        rows.append(CountRow(test, "", any(item.finding != "same" for item in by_arm.values()), entries))
    return tuple(rows)


def _selftest(item: SelftestRow | None, base: str, hrefs: Hrefs) -> Counted:
    if item is None:
        return Counted("", "", "")
    href = hrefs.get((item.cell, item.arm), "")
    if item.finding == "same":
        return Counted("", item.shown, href)
    kind = "failed" if item.finding in ("regression", "warning") else "notcovered"
    word = item.shown if item.finding == "regression" else f"{item.shown} ({item.finding})"
    return Counted(kind, word, href)
