"""The stale-mapping check on the real kernels: base is clean, v1 is not, and both are proven by covered rounds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from orchcli import Run, orch, run

from orchestrator import stale
from orchestrator.kernel.build import BuiltKernel

pytestmark = [pytest.mark.kernel, pytest.mark.qemu]

CONFIG = Path(__file__).with_name("stale.yaml")
PAGING = (True, False)


@pytest.fixture(scope="module")
def checked(kernels: dict[str, BuiltKernel], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(CONFIG, tmp_path_factory.mktemp("stale"), "--gate")


def counts(checked: Run, arm: str, case: str) -> list[Any]:
    """The counts of an arm's case with TDP and with shadow paging."""
    found = [item for item in checked.summary["checks"]["stale_mapping"] if (item["arm"], item["case"]) == (arm, case)]
    assert [item["tdp"] for item in found] == list(PAGING)
    return found


def cell(tdp: bool) -> str:
    return f"stale-mapping,tdp={'on' if tdp else 'off'},page=4k"


def test_a_stale_arm_closes_the_gate_and_fails_no_stage(checked: Run) -> None:
    assert checked.ended.code == 3, checked.ended.text
    assert checked.summary["status"] == "complete"


@pytest.mark.parametrize("case", ["inside", "end-edge", "far", "straddle"])
def test_base_has_no_stale_page_in_covered_rounds(checked: Run, case: str) -> None:
    for item in counts(checked, "base", case):
        assert (item["stale"], item["status"]) == (0, "held") and item["covered"] > 0, item


def test_v1_is_stale_at_the_end_edge_with_tdp_and_with_shadow_paging(checked: Run) -> None:
    for item in counts(checked, "v1", "end-edge"):
        assert item["status"] == "failed" and item["stale"] == item["covered"] >= 3, item


def test_v1_retries_inside_and_lets_the_far_fault_pass(checked: Run) -> None:
    for inside, far in zip(counts(checked, "v1", "inside"), counts(checked, "v1", "far"), strict=True):
        assert inside["stale"] == 0 and inside["blocked"] == inside["covered"] > 0
        assert far["stale"] == 0 and far["passed"] == far["covered"] > 0
    assert all(item["passed"] == 0 for item in counts(checked, "base", "far"))


@pytest.mark.parametrize("tdp", PAGING)
def test_old_content_is_what_the_host_wrote_in_that_round(checked: Run, tdp: bool) -> None:
    found = stale.read(checked.trial(cell(tdp), "v1") / "recording.bin")
    assert (found.tdp, found.page) == (tdp, "4k")
    bad = [item for item in found.rounds if item.stale]
    assert {item.case for item in bad} == {"end-edge"}
    end = bad[0].range_page + bad[0].range_pages
    for item in bad:
        for page in item.stale:
            assert end - 5 <= page.page < end
            # Operation 1, case 3, the round, and the page's own number.
            assert page.content == stale.TAG | (0x13 << 8 | item.round) << stale.TAG_ROUND_SHIFT | page.page


def test_the_kernel_itself_complains_about_v1_only(checked: Run) -> None:
    for tdp in PAGING:
        assert checked.results[cell(tdp), "base"].warnings == ()
        # Debug code of the 5.10 allocator and of KVM's rmap sees the freed page in use.
        assert any("Bad page state" in line for line in checked.results[cell(tdp), "v1"].warnings)


@pytest.mark.parametrize("tdp", PAGING)
def test_again_it_is_identical_to_the_last_byte(checked: Run, tdp: bool) -> None:
    for arm, code in (("base", 0), ("v1", 3)):
        again = orch("trial", checked.folder, checked.results[cell(tdp), arm].id)
        assert again.code == code and "recording: identical to" in again.out, again.text


@pytest.mark.parametrize("tdp", PAGING)
def test_the_command_of_a_stale_trial_replays_just_its_round(checked: Run, tdp: bool) -> None:
    result = checked.results[cell(tdp), "v1"]
    words = re.fullmatch(r"orch trial (\S+) (\d+) --case end-edge --op madvise --round (\d+)", result.rerun)
    assert words and words.group(2) == result.id, result.rerun
    command = ("trial", checked.folder, result.id, "--case", "end-edge", "--op", "madvise", "--round", words.group(3))
    first, second = orch(*command), orch(*command)
    for again in (first, second):
        assert again.code == 3 and "round: identical to the first one" in again.out, again.text
    folders = [re.search(r"^kept in (.+)$", again.out, re.MULTILINE) for again in (first, second)]
    recordings = [Path(found.group(1)) / "recording.bin" for found in folders if found]
    assert recordings[0].read_bytes() == recordings[1].read_bytes()
    (only,) = stale.read(recordings[0]).rounds
    original = stale.read(checked.trial(cell(tdp), "v1") / "recording.bin").find("end-edge", "madvise", only.round)
    assert original is not None and only.stale == original.stale
