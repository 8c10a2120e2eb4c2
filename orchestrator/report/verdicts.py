"""The table at the top of the page: every cell and check by every arm, each entry a link to where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.analysis.model import CellInfo, Comparison
from orchestrator.report.said import parts, smallest
from orchestrator.report.style import duration, per_fault

# More arms than this, and than cells, and the arms stand below one another instead.
ARMS_ABREAST = 5
# With more, an entry has two figures and the median; the others are in the table that it leads to.
ARMS_IN_FULL = 3


@dataclass(frozen=True)
class Entry:
    """One arm in one cell or check. ``kind`` is the class of the mark before ``word``; ``column`` names the column
    where a narrow page has none."""

    column: str
    kind: str
    word: str
    href: str
    figures: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Row:
    """A row: its name, where that leads, and what it is."""

    name: str
    href: str
    about: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Matrix:
    """The table: heads of the columns after the first, and rows."""

    corner: str
    heads: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Subject:
    """What an arm is judged by."""

    name: str
    href: str
    about: str
    entries: Mapping[str, Entry]


def make_matrix(comparison: Comparison, cell_href: Mapping[str, str]) -> Matrix:
    """Cells and checks down and arms across, or the other way round if there are many arms."""
    arms = [arm.name for arm in comparison.arms]
    subjects = [_cell(comparison, cell, cell_href[cell.name]) for cell in comparison.cells]
    subjects += _checks(comparison)
    if len(arms) > max(ARMS_ABREAST, len(subjects)):
        rows = [
            Row(arm, "", "", tuple(replace(item.entries[arm], column=item.name) for item in subjects)) for arm in arms
        ]
        return Matrix("arm", tuple((item.name, item.href) for item in subjects), tuple(rows))
    rows = [Row(item.name, item.href, item.about, tuple(item.entries[arm] for arm in arms)) for item in subjects]
    return Matrix("cell", tuple((arm, "") for arm in arms), tuple(rows))


def where(cell: CellInfo) -> str:
    """A cell's storm and paging in words."""
    return f"{cell.storm}{'' if cell.tdp else '; shadow paging'}"


def _cell(comparison: Comparison, cell: CellInfo, href: str) -> _Subject:
    entries = {comparison.base: _base(comparison, cell.name, href)}
    for verdict in comparison.verdicts:
        if verdict.cell == cell.name:
            figures, reason = parts(verdict)
            if len(comparison.arms) > ARMS_IN_FULL:
                figures = (*figures[:2], *(text for text in figures[2:] if text.startswith("p50 ")))
            seen = smallest(comparison.metrics(cell.name, verdict.arm))
            note = "; ".join(text for text in (reason, f"sees {seen}" if seen else "") if text)
            entries[verdict.arm] = Entry(verdict.arm, verdict.verdict, verdict.verdict, href, figures, note)
    return _Subject(cell.name, href, where(cell), entries)


def _base(comparison: Comparison, cell: str, href: str) -> Entry:
    found = comparison.summary(cell, comparison.base)
    if found.latency is None:
        return Entry(comparison.base, "failed", found.outcome, href, (), "")
    figures = [f"p50 {duration(found.latency.p50)}", f"max {duration(found.latency.max)}"]
    if found.retries_per_fault is not None:
        figures.append(f"retries {per_fault(found.retries_per_fault)}")
    return Entry(comparison.base, "", "", href, tuple(figures), "")


def _checks(comparison: Comparison) -> list[_Subject]:
    arms = [arm.name for arm in comparison.arms]
    found = []
    if comparison.stale:
        entries = {arm: _stale(comparison, arm) for arm in arms}
        found.append(_Subject("stale mappings", "#stale", "can the guest still read what was taken away?", entries))
    if comparison.selftests:
        entries = {arm: _selftests(comparison, arm) for arm in arms}
        found.append(_Subject("KVM selftests", "#selftests", "what passes on base must pass", entries))
    rest = dict.fromkeys(item.name for item in comparison.checks)
    for name in rest:
        if name not in ("stale_mapping", "kvm_selftests"):
            entries = {arm: _check(comparison, name, arm) for arm in arms}
            found.append(_Subject(name, "#checks", "", entries))
    return found


def _stale(comparison: Comparison, arm: str) -> Entry:
    ours = [item for item in comparison.stale if item.arm == arm]
    bad = sum(item.status == "failed" for item in ours)
    missed = sum(item.status == "not covered" for item in ours)
    labels = {item.label for item in ours}
    warned = any(
        (item.name, item.arm, item.status) == ("stale_mapping", arm, "failed") and item.cell not in labels
        for item in comparison.checks
    )
    logs = ("and in the kernel's log",) if warned else ()
    if bad:
        return Entry(arm, "failed", "stale", "#stale", (f"in {bad} of {len(ours)} cases", *logs), "")
    if warned:
        return Entry(arm, "failed", "failed", "#checks", ("the kernel's log",), "")
    if missed:
        return Entry(arm, "notcovered", "not covered", "#stale", (f"{missed} of {len(ours)} cases",), "")
    return Entry(arm, "held", "held", "#stale", (f"all {len(ours)} cases",), "")


def _selftests(comparison: Comparison, arm: str) -> Entry:
    ours = [item for item in comparison.selftests if item.arm == arm]
    passed = sum(set(item.states) == {"pass"} for item in ours)
    bad = sum(item.finding in ("regression", "warning") for item in ours)
    other = sum(item.finding in ("not run", "changed", "flaky") for item in ours)
    figures = (f"{passed} of {len(ours)} pass",)
    if arm == comparison.base:
        return Entry(arm, "", "", "#selftests", figures, "")
    if bad:
        return Entry(arm, "failed", f"{bad} worse than {comparison.base}", "#selftests", figures, "")
    if other:
        return Entry(arm, "notcovered", f"{other} not the same", "#selftests", figures, "")
    return Entry(arm, "held", "held", "#selftests", figures, "")


def _check(comparison: Comparison, name: str, arm: str) -> Entry:
    ours = [item for item in comparison.checks if item.name == name and item.arm in ("", arm)]
    failed = sum(item.status == "failed" for item in ours)
    missed = sum(item.status == "not covered" for item in ours)
    if not ours:
        return Entry(arm, "", "", "#checks", ("not asked",), "")
    if failed:
        return Entry(arm, "failed", "failed", "#checks", (f"{failed} of {len(ours)}",), "")
    if missed:
        return Entry(arm, "notcovered", "not covered", "#checks", (f"{missed} of {len(ours)}",), "")
    return Entry(arm, "held", "held", "#checks", (f"all {len(ours)}",), "")
