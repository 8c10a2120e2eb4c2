"""The kernel's selftests held against the base: what is a regression, what is not gated, and what reports say."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest
from ktapfile import Ran, built, experiment, trial

from orchestrator.analysis import selftests
from orchestrator.analysis.analyse import analyse
from orchestrator.analysis.selftests import Verdict
from orchestrator.bench import RunningKernel
from orchestrator.errors import RecordingError
from orchestrator.experiment import Selftest
from orchestrator.report.write import write_all
from orchestrator.results import Provenance

WARN = "WARNING: CPU: 1 PID: 71 at arch/x86/kvm/mmu/mmu.c:1 direct_page_fault+0x1/0x2"
PASS, FAIL, SKIP, TIMEOUT, LOST = (Ran(state) for state in ("pass", "fail", "skip", "timeout", "lost"))
PROGRAMS = {"smm_test": "", "x86_64/state_test": ""}


def judge(folder: Path, base: Sequence[Ran], v1: Sequence[Ran]) -> Verdict:
    """The one test ``smm_test`` in a boot for each of ``base`` and of ``v1``, beside a test that always passes."""
    chosen = experiment("x86_64/state_test", "smm_test", base_runs=len(base), runs=max(1, len(v1)))
    results = [
        trial(folder, f"{number:03}", arm, {"x86_64/state_test": PASS, "smm_test": ran}, boot)
        for number, (arm, boot, ran) in enumerate(
            [
                *(("base", boot, ran) for boot, ran in enumerate(base)),
                *(("v1", boot, ran) for boot, ran in enumerate(v1)),
            ]
        )
    ]
    return selftests.judge(chosen, results, [built("base", PROGRAMS), built("v1", PROGRAMS)], folder)


@pytest.mark.parametrize(
    ("base", "v1", "finding", "status"),
    [
        ([PASS, PASS], [PASS], "same", "held"),
        ([PASS, PASS], [FAIL], "regression", "failed"),
        ([PASS, PASS], [TIMEOUT], "regression", "failed"),
        ([PASS, PASS], [SKIP], "regression", "failed"),
        ([PASS, PASS], [LOST], "regression", "failed"),
        ([PASS, PASS], [PASS, FAIL], "regression", "failed"),
        ([PASS, FAIL], [FAIL], "flaky", "held"),
        ([PASS, FAIL], [PASS], "flaky", "held"),
        ([FAIL, FAIL], [FAIL], "same", "held"),
        ([FAIL, FAIL], [TIMEOUT], "changed", "held"),
        ([FAIL, FAIL], [PASS], "better", "held"),
        ([FAIL, FAIL], [LOST], "regression", "failed"),
        ([SKIP, SKIP], [SKIP], "same", "held"),
        ([SKIP, SKIP], [FAIL], "changed", "held"),
        ([PASS, PASS], [], "not run", "not covered"),
    ],
)
def test_what_counts_against_an_arm(
    tmp_path: Path, base: Sequence[Ran], v1: Sequence[Ran], finding: str, status: str
) -> None:
    found = judge(tmp_path, base, v1)
    row = next(row for row in found.rows if (row.test, row.arm) == ("smm_test", "v1"))
    assert row.finding == finding
    (check,) = found.checks
    assert (check.name, check.arm, check.status) == ("kvm_selftests", "v1", status)


def test_a_regression_names_the_test_how_often_and_why(tmp_path: Path) -> None:
    found = judge(tmp_path, [PASS], [PASS, Ran("fail", "no such MSR")])
    (check,) = found.checks
    assert check.cell == "smm_test"
    assert check.why == "passes on base, here: fail in 1 of 2 boots: exit code 254; last line: no such MSR"
    assert any("v1, smm_test: REGRESSION, pass on base, here pass/fail" in note for note in found.notes)


def test_a_new_warning_of_the_kernel_is_a_failed_check_and_an_old_one_is_not(tmp_path: Path) -> None:
    elsewhere = WARN.replace("CPU: 1 PID: 71", "CPU: 0 PID: 9")
    new = judge(tmp_path / "new", [PASS, PASS], [Ran("pass", log=(WARN, "kvm: harmless"))])
    (check,) = new.checks
    assert (check.status, check.why) == ("failed", f"the kernel's log: {WARN}")
    old = judge(tmp_path / "old", [Ran("pass", log=(elsewhere,)), PASS], [Ran("pass", log=(WARN,))])
    assert [item.status for item in old.checks] == ["held"]


def test_tests_that_the_kernel_did_not_live_to_see_are_not_run(tmp_path: Path) -> None:
    chosen = experiment("smm_test", "x86_64/state_test", base_runs=1)
    programs = [built("base", PROGRAMS), built("v1", PROGRAMS)]
    results = [
        trial(tmp_path, "000", "base", {"smm_test": PASS, "x86_64/state_test": PASS}),
        trial(tmp_path, "001", "v1", {"smm_test": LOST}),
    ]
    found = selftests.judge(chosen, results, programs, tmp_path)
    assert [(row.shown, row.finding) for row in found.rows if row.arm == "v1"] == [
        ("lost", "regression"), ("not run", "not run"),
    ]  # fmt: skip
    assert "v1: not run (the boot ended before it): x86_64/state_test" in found.notes


def test_few_cpus_and_broken_programs_are_named(tmp_path: Path) -> None:
    chosen = experiment(Selftest("dirty_log_test", cpus=2), "smm_test", "steal_time", base_runs=1, cpus=1)
    programs = [
        built("base", {"dirty_log_test": "", "smm_test": "", "steal_time": ""}),
        built("v1", {"dirty_log_test": "", "smm_test": "smm_test.c:1: error: x", "steal_time": ""}),
    ]
    results = [
        trial(tmp_path, "000", "base", {"smm_test": PASS, "steal_time": PASS}),
        trial(tmp_path, "001", "v1", {"steal_time": PASS}),
    ]
    found = selftests.judge(chosen, results, programs, tmp_path)
    assert [(row.shown, row.finding) for row in found.rows] == [
        ("skip", "same"), ("skip", "same"), ("pass", "same"), ("not built", "regression"), ("pass", "same"),
        ("pass", "same"),
    ]  # fmt: skip
    assert found.rows[0].reason == "needs 2 CPUs, the target has 1"
    assert "skip (needs 2 CPUs, the target has 1): dirty_log_test" in found.notes
    (check,) = found.checks
    assert check.cell == "smm_test" and check.why.endswith("not built: smm_test.c:1: error: x")


def test_an_arm_whose_tests_do_not_compile_says_so_once(tmp_path: Path) -> None:
    chosen = experiment("smm_test", "x86_64/state_test", base_runs=1)
    results = [trial(tmp_path, "000", "base", {"smm_test": PASS, "x86_64/state_test": PASS})]
    found = selftests.judge(
        chosen, results, [built("base", PROGRAMS), built("v1", error="kvm.h:1: error: x")], tmp_path
    )
    (check,) = found.checks
    assert (check.status, check.why) == ("failed", "its tests do not compile: kvm.h:1: error: x")


def test_nothing_passes_on_base_or_nothing_to_compare_with_is_not_covered(tmp_path: Path) -> None:
    chosen = experiment("smm_test", base_runs=1)
    results = [
        trial(tmp_path / "a", "000", "base", {"smm_test": FAIL}),
        trial(tmp_path / "a", "001", "v1", {"smm_test": FAIL}),
    ]
    (check,) = selftests.judge(chosen, results, [], tmp_path / "a").checks
    assert check.status == "not covered" and check.why == "no test passes on base and here; 1 fail"
    alone = experiment("smm_test", arms=("base",), base_runs=1)
    (check,) = selftests.judge(alone, results[:1], [], tmp_path / "a").checks
    assert check.status == "not covered" and "no other arm" in check.why


def test_a_damaged_report_of_a_good_trial_is_an_error(tmp_path: Path) -> None:
    result = trial(tmp_path, "000", "base", {"smm_test": PASS})
    (tmp_path / "000" / "recording.bin").write_text("nonsense\n")
    with pytest.raises(RecordingError, match="no report of ktest_runner"):
        selftests.judge(experiment("smm_test"), [result], [], tmp_path)


def test_every_form_of_the_report(tmp_path: Path) -> None:
    chosen = experiment("x86_64/state_test", "smm_test", "steal_time", base_runs=1)
    programs = [built(arm, {**PROGRAMS, "steal_time": ""}) for arm in ("base", "v1")]
    skip = Ran("skip", "nested VMX not enabled, skipping test")
    base = {"x86_64/state_test": PASS, "smm_test": PASS, "steal_time": skip}
    evil = Ran("fail", "</td><script>alert(1)</script>\x1b[31m")
    results = [
        trial(tmp_path / "trials", "000", "base", base),
        trial(tmp_path / "trials", "001", "v1", {**base, "smm_test": evil}),
    ]
    kernels = [RunningKernel("base", "5.10.262"), RunningKernel("v1", "5.10.262")]
    found = analyse(chosen, results, kernels, tmp_path / "trials", run="r", accel="icount", planned=2, tests=programs)
    write_all(found.comparison, found.curves, Provenance("orch run x.yaml", ()), tmp_path)
    text = (tmp_path / "report.txt").read_text()
    assert all(len(line) <= 72 and line.isprintable() for line in text.splitlines())
    text = " ".join(text.split())
    assert "kvm_selftests FAILED" in text and "REGRESSION, pass on base, here fail" in text
    assert "skip (nested VMX not enabled): steal_time" in text
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "\x1b" not in page
    assert page.count('<span class="chip failed">regression</span>') == 1
    cases = {
        (case.get("classname"), case.get("name")): [child.tag for child in case]
        for case in ET.parse(tmp_path / "junit.xml").iter("testcase")
    }
    assert cases["kvm_selftests.smm_test", "v1"] == ["failure"] and cases["kvm_selftests.smm_test", "base"] == []
    assert cases["kvm_selftests.steal_time", "v1"] == ["skipped"]
    rows = json.loads((tmp_path / "summary.json").read_text())["checks"]["kvm_selftests"]
    assert len(rows) == 6 and [row["finding"] for row in rows if row["arm"] == "v1"] == ["same", "regression", "same"]
