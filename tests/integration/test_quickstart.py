"""The default experiment, as `make run` runs it: what the first patch is said to do, it does."""

from __future__ import annotations

import pytest
from orchcli import ROOT, Run, orch

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]

OUTSIDE = ("outside-madvise,tdp=on", "outside-madvise,tdp=off", "outside-munmap")
QUIET = ("quiet,tdp=on", "quiet,tdp=off")
MAIL = ROOT / "patches/hva-retry/review-mail.txt"


def retries(run: Run, cell: str, arm: str) -> float:
    value = run.cell(cell, arm)["retries_per_fault"]
    assert isinstance(value, float)
    return value


def test_it_ends_well_and_says_so(quickstart: Run) -> None:
    assert quickstart.ended.code == 0, quickstart.ended.text
    assert quickstart.summary["status"] == "complete" and quickstart.summary["schema"] == 1
    assert {arm["build"] for arm in quickstart.summary["arms"].values()} == {"ok"}
    for cell in quickstart.summary["cells"]:
        assert (cell["outcome"], cell["boots"], cell["faults"], cell["unit"]) == ("ok", 1, 65536, "ns")
    html = (quickstart.folder / "report.html").read_text()
    assert "<svg" in html and "https://" not in html.replace("https://www.w3.org", "")


def test_the_patch_came_out_of_the_mail(quickstart: Run) -> None:
    recovered = quickstart.folder / "patches/v1/review-mail.patch"
    assert recovered.read_bytes() == (MAIL.parent / "v1.patch").read_bytes()
    assert "recovered 15 hunks of 4 files" in quickstart.ended.err


@pytest.mark.parametrize("cell", OUTSIDE)
def test_a_preempted_storm_elsewhere_makes_base_retry_and_v1_not(quickstart: Run, cell: str) -> None:
    base, v1 = retries(quickstart, cell, "base"), retries(quickstart, cell, "v1")
    assert base >= 0.05 and v1 <= 0.1 * base
    assert quickstart.verdicts("v1", cell)[cell, "retries_per_fault"] == "improved"


@pytest.mark.parametrize("arm", ["base", "v1"])
def test_the_controls_show_no_retry(quickstart: Run, arm: str) -> None:
    assert [retries(quickstart, cell, arm) for cell in (*QUIET, "other-process")] == [0, 0, 0]
    assert len(quickstart.recording("other-process", arm).windows) >= 2, "a storm that did not blow controls nothing"


def test_retries_that_are_needed_stay(quickstart: Run) -> None:
    base, v1 = retries(quickstart, "overlap", "base"), retries(quickstart, "overlap", "v1")
    assert base >= 0.05 and v1 >= 0.5 * base


@pytest.mark.parametrize("cell", QUIET)
def test_the_price_of_the_patch_is_a_few_instructions(quickstart: Run, cell: str) -> None:
    base, v1 = (quickstart.cell(cell, arm)["latency"]["p50"] for arm in ("base", "v1"))
    assert 0 < v1 - base < 0.02 * base
    assert quickstart.verdicts("v1", cell)[cell, "p50"] == "equivalent"


@pytest.mark.parametrize("arm", ["base", "v1"])
def test_the_recordings_say_what_was_asked(quickstart: Run, arm: str) -> None:
    for cell, tdp in ((QUIET[0], True), (QUIET[1], False), (OUTSIDE[1], False)):
        recording = quickstart.recording(cell, arm)
        header = recording.header
        assert (header.arm, header.cell, header.tdp, header.write, header.rounds) == (arm, cell, tdp, True, 4)
        assert recording.nr_faults == 65536 and header.mem_bytes == 64 << 20
        assert (len(recording.windows) > 0) == (cell not in QUIET)


@pytest.mark.parametrize(("cell", "arm"), [(OUTSIDE[0], "base"), ("overlap", "v1")])
def test_a_trial_with_a_storm_repeats_to_the_last_bit(quickstart: Run, cell: str, arm: str) -> None:
    ended = orch("trial", quickstart.folder, quickstart.results[cell, arm].id)
    assert ended.code == 0 and "recording: identical to the first one, byte for byte" in ended.out, ended.text


def test_the_report_is_made_again_byte_for_byte(quickstart: Run) -> None:
    names = [*quickstart.folder.glob("*.*"), *quickstart.folder.glob("plots/*")]
    before = {path: path.read_bytes() for path in names if path.is_file() and not path.name.startswith(".")}
    assert len(before) > 15
    ended = orch("report", quickstart.folder)
    assert ended.code == 0, ended.text
    assert [path.name for path in before if path.read_bytes() != before[path]] == []


def test_the_gate_lets_it_through_or_names_what_closed_it(quickstart: Run) -> None:
    """The default experiment has no failed check: the gate's verdict is that of the comparisons alone."""
    text = (quickstart.folder / "report.txt").read_text()
    assert "FAILED" not in text[text.index("\nChecks\n") : text.index("\nKernels\n")]


def test_the_patch_that_was_tested_applies_to_the_tree(quickstart: Run, kernel_tree: object) -> None:
    path = kernel_tree.path  # type: ignore[attr-defined]
    ended = orch("patch", "check", quickstart.folder / "patches/v1/review-mail.patch", "--tree", path)
    assert ended.code == 0 and "applies" in ended.out, ended.text
