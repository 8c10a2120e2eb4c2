"""Arms by cells, and which check fails which arm, from a Comparison made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.analysis import findings
from orchestrator.analysis.correctness import CheckStatus, StaleCount
from orchestrator.analysis.model import (
    ArmSummary,
    Attribution,
    BootSummary,
    CellInfo,
    CellSummary,
    CheckResult,
    Comparison,
    FailedTrial,
    Latency,
    MetricComparison,
    PlotTitles,
    Verdict,
)
from orchestrator.errors import UserError
from orchestrator.report import table

NOTHING = Attribution(1, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0.0)


def arm(name: str) -> ArmSummary:
    return ArmSummary(name, (), "ok", "5.10.262", "ab" * 32, 1.0, True, "")


def summary(name: str, retries: float, max_ns: float) -> CellSummary:
    latency = Latency(5_000, 4_900, 6_000, 7_000, 8_000, max_ns)
    boot = BootSummary("000", 0, 0, 1, 10, latency, 10, 0, NOTHING)
    return CellSummary("outside", name, 1, "ok", 10, latency, 1.0, retries, NOTHING, (boot,))


def metric(name: str, metric_name: str, verdict: Verdict, decides: bool) -> MetricComparison:
    return MetricComparison(
        "outside", "base", name, metric_name, 1.0, 0.1, 0.1, (0.1, 0.1), None, None, 1, None, verdict, "", decides  # type: ignore[arg-type]
    )  # fmt: skip


def count(name: str, case: str, tdp: bool, page: str, stale: int, covered: int = 15, blocked: int = 0) -> StaleCount:
    status: CheckStatus = "failed" if stale else "held" if covered else "not covered"
    return StaleCount(name, case, "madvise", tdp, page, 24, covered, blocked, 0, stale, status, "round 0", "orch trial")


@pytest.fixture
def comparison() -> Comparison:
    stale = [
        count(name, case, tdp, page, 15 if bad else 0, blocked=15 if (name, case) == ("base", "far") else 0)
        for name in ("base", "v1", "half")
        for case in ("inside", "end-edge", "far")
        for tdp in (True, False)
        for page in ("4k", "2m")
        for bad in [case == "end-edge" and (name == "v1" or (name == "half" and not tdp and page == "4k"))]
    ]
    log = CheckResult(
        "stale_mapping", "v1", "stale-mapping,tdp=on,page=4k", "failed", "the log: BUG: Bad page state in"
    )
    return Comparison(
        1, "run-1", "versions", "", "complete", "icount", 0.02, 2, 2, (arm("base"), arm("v1"), arm("half")),
        (CellInfo("outside", "a storm", "outside", True, 1, "4k", ""),),
        (summary("base", 0.25, 15e6), summary("v1", 0.0, 6e6), summary("half", 0.25, 16e6)),
        (
            metric("v1", "retries_per_fault", "improved", True), metric("v1", "max", "improved", True),
            metric("half", "max", "regressed", False), metric("half", "p50", "regressed", True),
        ),
        (), (log,), (), (), PlotTitles("", "", "", ""), (), (), tuple(stale),
    )  # fmt: skip


def test_each_arm_says_what_fails_and_where_it_is_restricted(comparison: Comparison) -> None:
    assert findings.arm_lines(comparison) == (
        "base: no check fails; far waits (TDP and shadow paging)",
        "v1: end-edge 60 of 60; kernel log: Bad page state",
        "half: end-edge 15 of 30 (shadow paging, 4k by madvise only)",
    )


def test_other_checks_and_crashes_and_builds_are_named(comparison: Comparison) -> None:
    controls = CheckResult("controls", "half", "outside", "failed", "retries in a quiet cell")
    panic = FailedTrial("001", "v1", "outside", "panic", "why", (), "orch trial", "console.log", ())
    broken = replace(
        comparison,
        arms=(*comparison.arms[:2], replace(comparison.arms[2], build="failed")),
        checks=(*comparison.checks, controls),
        failures=(panic, panic),
    )
    base, v1, half = findings.arm_lines(broken)
    assert base.startswith("base: no check fails") and half == "half: does not compile"
    assert v1.endswith("kernel log: Bad page state; panic in outside")
    assert "controls in outside" in findings.failing(broken, "half")


def test_nothing_covered_is_no_zero(comparison: Comparison) -> None:
    empty = replace(comparison, stale=(count("base", "inside", True, "4k", 0, covered=0),))
    assert findings.case_findings(empty, "base")[0].status == "not covered"
    assert "| inside, TDP | not covered | not covered | not covered |" in table.render(empty, "x.svg")


def test_the_table_marks_only_what_decides(comparison: Comparison) -> None:
    text = table.render(comparison, "x.svg")
    assert "| Retries per fault | base | v1 | half |\n| --- | ---: | ---: | ---: |\n" in text
    assert "| outside | 0.2500 | **0** | 0.2500 |" in text
    assert "| outside | 15,000 | **6,000** | 16,000 |" in text, "max of half regressed, but decides nothing"
    assert "| outside | 4.900 | 4.900 | _4.900_ (regressed) |" in text
    assert "| end-edge, shadow paging | 0 of 30 | **30 of 30** | **15 of 30** |" in text


def test_a_file_keeps_what_is_not_between_the_marks(comparison: Comparison, tmp_path: Path) -> None:
    page = tmp_path / "versions.md"
    page.write_text(f"# Story\n{table.BEGIN}\nold\n{table.END}\nthe end\n")
    assert table.write_table(comparison, page) == (page, tmp_path / "versions.svg")
    text = page.read_text()
    assert text.startswith(f"# Story\n{table.BEGIN}\n![") and text.endswith(f"{table.END}\nthe end\n")
    assert "old" not in text
    picture = (tmp_path / "versions.svg").read_bytes()
    table.write_table(comparison, page)
    assert page.read_text() == text and (tmp_path / "versions.svg").read_bytes() == picture


def test_a_file_without_marks_is_not_ours(comparison: Comparison, tmp_path: Path) -> None:
    page = tmp_path / "mine.md"
    page.write_text("mine\n")
    with pytest.raises(UserError, match="has no lines"):
        table.write_table(comparison, page)
    assert page.read_text() == "mine\n" and list(tmp_path.iterdir()) == [page]


def test_names_are_no_markup(comparison: Comparison) -> None:
    hostile = replace(comparison, run="<b>`x", arms=(*comparison.arms[:2], replace(comparison.arms[2], build="failed")))
    cells = tuple(replace(item, name="a|[x](y)<script>") for item in hostile.cells)
    rows = tuple(replace(item, cell="a|[x](y)<script>") for item in hostile.summaries)
    text = table.render(replace(hostile, cells=cells, summaries=rows), "x.svg")
    assert "<script>" not in text and "<b>" not in text and "a\\|\\[x](y)&lt;script>" in text
