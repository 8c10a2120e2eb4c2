"""Every planted effect meets its verdict; a bad arm costs its own trials and nothing else."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from orchcli import ROOT, Run, orch

from orchestrator.recording import HEADER
from orchestrator.results import Outcome

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]

GOOD = ("base", "again", "v1", "comment", "slow")
CRASHES = {"panic": Outcome.PANIC, "oops": Outcome.OOPS, "hang": Outcome.HANG}


def test_bad_arms_make_exit_code_2_and_the_rest_is_measured(planted: Run) -> None:
    assert planted.ended.code == 2 and "\nreport: " in planted.ended.out, planted.ended.text
    assert not re.search(r"^(?:error: |Traceback)", planted.ended.err, re.MULTILINE), planted.ended.text
    assert planted.summary["status"] == "partial" and planted.summary["schema"] == 1
    outcomes = {arm: item.outcome for (_, arm), item in planted.results.items()}
    assert outcomes == dict.fromkeys(GOOD, Outcome.OK) | CRASHES
    for arm in GOOD:
        item = planted.cell("quiet", arm)
        assert (item["faults"], item["boots"], item["outcome"]) == (4096, 1, "ok")
        assert item["latency"]["p50"] > 1000 and item["retries_per_fault"] == 0
        assert planted.results["quiet", arm].warnings == ()


def test_what_does_not_compile_is_named_with_the_compilers_line(planted: Run) -> None:
    arms = planted.summary["arms"]
    assert {name: arm["build"] for name, arm in arms.items()} == dict.fromkeys([*GOOD, *CRASHES], "ok") | {
        "broken": "failed"
    }
    assert ("quiet", "broken") not in planted.results
    line = r"arch/x86/kvm/mmu/mmu\.c:\d+:\d+: error: 'planted_undeclared'"
    assert re.search(rf"kernel broken: DOES NOT COMPILE: {line}", planted.ended.err)
    assert re.search(line, (planted.folder / "report.txt").read_text())


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        ("panic", r"^Kernel panic - not syncing: planted: guest page fault 1000$"),
        ("oops", r"^BUG: kernel NULL pointer dereference, address: 0+ in direct_page_fault\+0x"),
        ("hang", r"^no end within the deadline \(wall time\); an NMI found it in direct_page_fault\+0x"),
    ],
)
def test_a_crash_is_classified_with_its_trace_console_and_rerun(planted: Run, arm: str, reason: str) -> None:
    result, folder = planted.results["quiet", arm], planted.trial("quiet", arm)
    assert result.outcome is CRASHES[arm] and re.search(reason, result.reason), result.reason
    assert any("direct_page_fault" in line for line in result.trace)
    assert result.trace[0] in (folder / "console.log").read_text()
    assert result.recording_sha256 == "" and result.rerun == f"orch trial {planted.folder} {result.id}"
    assert result.boot_seconds > 0 and "pid1" in (folder / "status.log").read_text()
    report = (planted.folder / "report.txt").read_text()
    assert f"again: {result.rerun}" in re.sub(r"[\s\\]+", " ", report)


def test_a_hang_takes_its_deadline_and_not_more(planted: Run) -> None:
    """The NMI's trace and panic come at once; without them the tool would wait ten seconds and kill."""
    assert 40 <= planted.results["quiet", "hang"].wall_seconds < 50


def test_a_crash_is_repeated_alone_in_the_same_instruction(planted: Run) -> None:
    result = planted.results["quiet", "oops"]
    ended = orch("trial", planted.folder, result.id)
    assert ended.code == 2 and f"trial {result.id} (quiet, oops): oops {result.reason}" in ended.out, ended.text
    (again,) = (planted.folder / "reruns").glob(f"{result.id}-*")
    # To the end of the trace. Then the host idles for a minute of its time before it is restarted; QEMU moves an idle
    # icount clock from another thread than the CPU's, and the restart's time stamps were seen to differ by 1 us.
    crashes = [
        (folder / "console.log").read_text().partition("kvm: exiting hardware virtualization")
        for folder in (planted.trial("quiet", "oops"), again)
    ]
    (first, restarted, _), (repeated, _, _) = crashes
    assert restarted and "end trace" in first
    assert first.rpartition("[")[0] == repeated.rpartition("[")[0], "every register and time stamp of the crash"


def test_a_slower_fault_path_is_regressed(planted: Run) -> None:
    verdicts = planted.verdicts("slow")
    assert verdicts["quiet", "p50"] == verdicts["quiet", "mean"] == "regressed"
    assert verdicts["quiet", "retries_per_fault"] == "equivalent"
    slower = planted.cell("quiet", "slow")["latency"]["p50"] - planted.cell("quiet", "base")["latency"]["p50"]
    assert 400 < slower < 800, "200 turns of a loop are about 600 instructions, which are nanoseconds under icount"


@pytest.mark.parametrize("arm", ["comment", "again"])
def test_no_change_is_equivalent_in_everything(planted: Run, arm: str) -> None:
    verdicts = planted.verdicts(arm)
    assert len(verdicts) == 7 and set(verdicts.values()) == {"equivalent"}
    arms = planted.summary["arms"]
    assert arms[arm]["vmlinux_sha256"] == arms["base"]["vmlinux_sha256"] != arms["v1"]["vmlinux_sha256"]


@pytest.mark.parametrize("arm", ["comment", "again"])
def test_the_same_kernel_leaves_the_same_bytes_but_for_the_arms_name(planted: Run, arm: str) -> None:
    base = bytearray((planted.trial("quiet", "base") / "recording.bin").read_bytes())
    other = bytearray((planted.trial("quiet", arm) / "recording.bin").read_bytes())
    assert len(base) == len(other)
    offset, size = HEADER.fields["arm"][1], HEADER.fields["arm"][0].itemsize  # type: ignore[index]
    assert base[offset : offset + size].rstrip(b"\0") == b"base"
    base[offset : offset + size] = other[offset : offset + size]
    assert base[:-4] == other[:-4], "all but the CRC, which covers the name"


@pytest.mark.parametrize("arm", ["base", "v1"])
def test_a_trial_repeated_alone_is_identical(planted: Run, arm: str) -> None:
    ended = orch("trial", planted.folder, planted.results["quiet", arm].id)
    assert ended.code == 0 and "recording: identical to the first one, byte for byte" in ended.out, ended.text


def test_ci_sees_each_bad_trial(planted: Run) -> None:
    root = ET.parse(planted.folder / "junit.xml").getroot()
    text = ET.tostring(root, encoding="unicode")
    assert all(word in text for word in ("planted: guest page fault 1000", "planted_undeclared", "an NMI found it"))
    failed = int(root.get("failures", "0")) + int(root.get("errors", "0"))
    assert failed >= len(CRASHES) + 1


def test_a_kernel_that_was_built_is_not_built_again(planted: Run) -> None:
    ended = orch("build", ROOT / "configs/quickstart.yaml", deadline_s=600)
    assert ended.code == 0 and ended.err.count("built before") == 2, ended.text
    for line in ended.out.splitlines():
        assert Path(line.partition(": ")[2]).is_file(), line
