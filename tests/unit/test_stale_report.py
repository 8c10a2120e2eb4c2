"""A run that only checks correctness, from results to every form of the report."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from stalefile import Planted, result_bytes

from orchestrator import stale
from orchestrator.analysis.analyse import analyse
from orchestrator.analysis.model import Analysis, Comparison, from_json
from orchestrator.analysis.samples import write_samples
from orchestrator.experiment import Arm, Experiment, KernelSpec, ReportSpec, Schedule, StaleSpec, TargetSpec
from orchestrator.report import html, text
from orchestrator.report.write import write_all
from orchestrator.results import Outcome, Provenance, TrialResult
from orchestrator.run import Finished

PROVENANCE = Provenance("orch run configs/correctness.yaml", (("seeds", "1"),))
CELL = "stale-mapping,tdp=on,page=4k"
TAG = stale.TAG | 1032
EXPERIMENT = Experiment(
    name="correctness", description="", path=Path("/x.yaml"), kernel=KernelSpec((), ()),
    arms=(Arm("base", ()), Arm("v1", ())), target=TargetSpec("local"), cells=(), schedule=Schedule(),
    checks=("stale_mapping",), report=ReportSpec(),
    stale=StaleSpec(cases=("inside", "end-edge"), pages=("4k",), tdp=(True,)),
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    analysis: Analysis
    folder: Path


def boot(folder: Path, number: str, arm: str, ending: stale.Ending, found: Sequence[int]) -> TrialResult:
    rounds = [
        *(Planted("inside", 80_000 + 10_000 * index, "blocked", round=index) for index in range(3)),
        *(Planted("end-edge", 80_000 + 10_000 * index, ending, found, round=index) for index in range(3)),
    ]
    (folder / number).mkdir(parents=True)
    (folder / number / "recording.bin").write_bytes(result_bytes(rounds, arm=arm, cell=CELL))
    outcome = Outcome.STALE if any(found) else Outcome.OK
    rerun = f"orch trial RUN {number}" + (" --case end-edge --op madvise --round 0" if any(found) else "")
    return TrialResult(number, arm, CELL, 0, 0, 1, outcome, "why", (), (), 1.0, 2.0, "x", rerun)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("run")
    results = [
        boot(folder / "trials", "000", "base", "blocked", (0, 0)),
        boot(folder / "trials", "001", "v1", "passed", (TAG, 0)),
    ]
    found = analyse(EXPERIMENT, results, (), folder / "trials", run="r", accel="icount", planned=2)
    write_samples(EXPERIMENT, results, folder / "trials", folder / "samples.parquet")
    write_all(found.comparison, found.curves, PROVENANCE, folder)
    return Written(found, folder)


def test_a_stale_mapping_is_a_failed_check_and_no_failed_stage(written: Written) -> None:
    comparison = written.analysis.comparison
    finished = Finished(written.folder, comparison, ())
    assert comparison.status == "complete" and not finished.failed_stage and finished.gate_closed
    assert comparison.headlines == ("v1: checks: stale_mapping FAILED",)
    broken = replace(comparison, failures=tuple(replace(item, outcome="panic") for item in comparison.failures))
    assert Finished(written.folder, broken, ()).failed_stage


def test_the_summary_counts_every_case(written: Written) -> None:
    found = json.loads((written.folder / "summary.json").read_text())
    assert (found["schema"], found["cells"], found["comparisons"]) == (1, [], [])
    assert list(found["checks"])[:2] == ["results", "stale_mapping"]
    rows = {(item["arm"], item["case"]): item for item in found["checks"]["stale_mapping"]}
    assert {key: (item["covered"], item["blocked"], item["passed"], item["stale"]) for key, item in rows.items()} == {
        ("base", "inside"): (3, 3, 0, 0), ("base", "end-edge"): (3, 3, 0, 0),
        ("v1", "inside"): (3, 3, 0, 0), ("v1", "end-edge"): (3, 0, 3, 3),
    }  # fmt: skip
    assert {item["cell"] for item in rows.values()} == {CELL}
    assert rows["v1", "end-edge"]["rerun"] == "orch trial RUN 001 --case end-edge --op madvise --round 0"
    assert [item["status"] for item in found["checks"]["results"]].count("failed") == 1


def test_the_text_fits_a_mail_and_names_page_and_content(written: Written) -> None:
    lines = (written.folder / "report.txt").read_text().splitlines()
    assert max(map(len, lines)) <= 72
    assert "  base: no check fails" in lines and "  v1 STALE: end-edge 3 of 3" in lines
    assert not any(line.startswith("Latency") for line in lines)
    joined = " ".join(line.strip() for line in lines)
    assert f"round 0, page 1032: {TAG:#x}" in joined and "--case end-edge --op madvise --round 0" in joined


def test_the_page_shows_the_table_and_no_empty_plots(written: Written) -> None:
    page = (written.folder / "report.html").read_text()
    assert "Stale mappings" in page and f"round 0, page 1032: {TAG:#x}" in page
    assert "What changed" not in page and "Every cell" not in page and "How sure" not in page


def test_junit_has_a_case_for_each_and_one_failure(written: Written) -> None:
    root = ET.fromstring((written.folder / "junit.xml").read_bytes())
    cases = root.findall(".//testcase")
    assert [case.get("classname") for case in cases] == ["check.stale_mapping"] * 6
    (failure,) = root.findall(".//failure")
    assert "3 stale of 3 covered rounds" in (failure.get("message") or "")


def test_the_comparison_comes_back_equal(written: Written) -> None:
    assert from_json(Comparison, written.folder / "comparison.json") == written.analysis.comparison


def test_names_that_want_to_be_markup_stay_text(written: Written) -> None:
    comparison = written.analysis.comparison
    hostile = replace(
        comparison,
        stale=tuple(replace(item, arm="<b>\x1b[31m", first="<script>") for item in comparison.stale),
        stale_notes=("<script>",),
    )
    page = html.render(hostile, (), PROVENANCE)
    assert "<script>" not in page and "<b>" not in page and "\x1b" not in page
    assert "\x1b" not in text.render(hostile, PROVENANCE)
