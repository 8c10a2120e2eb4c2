"""A Linux guest under QEMU, nested in the emulated host: the patch's effect, the proof of whose memory the storm takes
away, and the same bytes twice. About 75 s on two CPUs with kernels built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from orchcli import ROOT, Run, check_samples, orch, run

from orchestrator.results import Outcome
from orchestrator.store import file_sha256

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]

CONFIG = ROOT / "tests/integration/linux_guest.yaml"
CELLS = ("quiet", "outside", "overlap", "other-process")
TRACED = ("outside", "other-process")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(CONFIG, tmp_path_factory.mktemp("linux") / "results")


def test_every_trial_ends_well_with_whole_samples(done: Run) -> None:
    assert done.ended.code == 0, done.ended.text
    assert len(done.results) == 12 and {item.outcome for item in done.results.values()} == {Outcome.OK}
    assert all(item.warnings == () for item in done.results.values())
    check_samples(done)


def test_the_patch_takes_away_base_s_retries_in_a_linux_guest(done: Run) -> None:
    base, v1 = (done.cell("outside", arm)["retries_per_fault"] for arm in ("base", "v1"))
    assert base > 0.05 and v1 < 0.001
    assert done.verdicts("v1", "outside")["outside", "retries_per_fault"] == "improved"
    for arm in ("base", "v1"):
        assert done.cell("quiet", arm)["retries_per_fault"] == 0
        assert done.cell("other-process", arm)["retries_per_fault"] == 0


def test_where_the_storm_is_over_the_faulting_pages_every_retry_stays(done: Run) -> None:
    base, v1 = (done.cell("overlap", arm)["retries_per_fault"] for arm in ("base", "v1"))
    assert base > 0.05 and done.verdicts("v1", "overlap")["overlap", "retries_per_fault"] == "equivalent", (base, v1)


def test_the_storm_is_in_qemus_memory_call_by_call_and_another_process_s_is_not(done: Run) -> None:
    found = {
        (item["cell"], item["arm"]): (item["status"], item["why"])
        for item in done.summary["checks"]["results"]
        if item["check"] == "storm_in_vmm"
    }
    assert set(found) == {(cell, arm) for cell in TRACED for arm in ("base", "v1")}
    for (cell, arm), (status, why) in found.items():
        calls = len(done.recording(f"traced,{cell}", arm).windows)
        met, process = (calls, "the VMM") if cell == "outside" else (0, "another process")
        assert calls > 2 and status == "held"
        assert why.startswith(f"{met} of {calls} calls of the storm in {process} invalidated the VMM's memory ({met} ")


def test_all_checks_hold(done: Run) -> None:
    assert [item for item in done.summary["checks"]["results"] if item["status"] != "held"] == []


def test_the_guest_tells_what_it_sees(done: Run) -> None:
    for cell in CELLS:
        guest = done.cell(cell, "base")["guest"]
        assert guest["wakeups"] == 50 and guest["minor_faults"] == 0
        assert 1000 < guest["jitter_p50"] <= guest["jitter_p99"] <= guest["jitter_max"] < 100_000_000
    assert done.cell("outside", "base")["guest"]["steal"] >= 10_000_000, "the storm shares the vCPU's CPU"
    assert "In the Linux guests" in (done.folder / "report.txt").read_text()


def test_the_run_says_what_was_packed(done: Run) -> None:
    packed = json.loads((done.folder / "linux-guest/packed.json").read_text())
    said = json.loads((done.folder / "manifest.json").read_text())["linux_guest"]
    assert said["path"] == "linux-guest/packed.json" and said["id"] == packed["id"]
    files = {file["path"]: file for file in packed["files"]}
    own = files[packed["program"].lstrip("/")]
    assert own["sha256"] == file_sha256(Path(packed["program"]))
    assert any(path.endswith("/qboot.rom") for path in files) and any(path.endswith("/libc.so.6") for path in files)


def test_a_stormed_trial_gives_the_same_bytes_again(done: Run) -> None:
    ended = orch("trial", done.folder, done.results["outside", "base"].id)
    assert ended.code == 0 and "identical to the first one, byte for byte" in ended.text
