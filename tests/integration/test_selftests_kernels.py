"""The kernel's own KVM selftests on the real kernels: built from the tree, run in the emulated host, told apart."""

from __future__ import annotations

from typing import Any

import pytest
from orchcli import Run, orch, run
from realkernel import ROOT

from orchestrator import ktap

pytestmark = [pytest.mark.kernel, pytest.mark.qemu]

CONFIG = ROOT / "tests/integration/selftests.yaml"
STATES = {
    "x86_64/set_sregs_test": "pass",
    "x86_64/svm_vmcall_test": "pass",
    "x86_64/vmx_dirty_log_test": "skip",
    "x86_64/smm_test": "fail",
    "demand_paging_test -b 16M -v 2": "pass",
    "dirty_log_test": "skip",
    "demand_paging_test -b 512M": "timeout",
}


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run builds its two kernels itself, or takes them from the cache."""
    return run(CONFIG, tmp_path_factory.mktemp("selftests"), "--gate")


def rows(tested: Run, arm: str) -> dict[str, Any]:
    return {row["test"]: row for row in tested.summary["checks"]["kvm_selftests"] if row["arm"] == arm}


def test_nothing_regresses_and_the_gate_stays_open(tested: Run) -> None:
    assert tested.ended.code == 0, tested.ended.text
    assert tested.summary["status"] == "complete"
    (check,) = tested.summary["checks"]["results"]
    assert (check["check"], check["arm"], check["status"]) == ("kvm_selftests", "v1", "held")


@pytest.mark.parametrize("arm", ["base", "v1"])
def test_pass_skip_and_fail_are_told_apart(tested: Run, arm: str) -> None:
    found = rows(tested, arm)
    assert {name: found[name]["states"] for name in STATES} == {name: [state] for name, state in STATES.items()}
    assert found["x86_64/vmx_dirty_log_test"]["reason"] == "nested VMX not enabled"
    assert found["x86_64/smm_test"]["reason"].startswith("lib/x86_64/processor.c:")
    assert found["dirty_log_test"]["reason"] == "needs 3 CPUs, the target has 2"
    assert {row["finding"] for row in found.values()} == {"same"}
    report = ktap.read(tested.trial("kvm-selftests", arm) / "recording.bin")
    assert report.complete and len(report.tests) == 6, "all but the one that needs more CPUs"
    assert 1 <= report.tests[5].seconds < 30, "ended for its time"


def test_a_boot_can_be_repeated(tested: Run) -> None:
    again = orch("trial", tested.folder, tested.results["kvm-selftests", "v1"].id)
    assert again.code == 0 and "(kvm-selftests, v1): ok" in again.out, again.text


def test_an_unknown_test_is_refused_before_anything_is_built(tmp_path: Any) -> None:
    text = CONFIG.read_text().replace("x86_64/smm_test", "x86_64/smn_test").replace("../../", f"{ROOT}/")
    (tmp_path / "typo.yaml").write_text(text)
    ended = orch("run", tmp_path / "typo.yaml", "--results", tmp_path / "results")
    assert ended.code == 1 and "did you mean x86_64/smm_test?" in ended.err, ended.text
