"""The stale-mapping check in a config, its boots in the plan, and what the guest program is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from stalefile import Planted, result_bytes

from orchestrator import stale
from orchestrator.errors import ConfigError
from orchestrator.experiment import STALE_CASES, Experiment, StaleCell, TargetSpec, load
from orchestrator.experiment.reader import parse
from orchestrator.plan import Plan, Trial, make_plan
from orchestrator.results import Outcome, TrialResult
from orchestrator.store import load_json, to_json
from orchestrator.target.target import Evidence, Job
from orchestrator.trial import make_job, padded, run_trial

ROOT = Path(__file__).parents[2]
TAG = stale.TAG | 1032


def config(stale_section: str = "", *, checks: str = "[stale_mapping]", target: str = "{kind: qemu}") -> str:
    """A config without cells; ``stale:`` stands in line 6."""
    return (
        "name: x\n"
        "kernel: {sources: [{tree: linux}], fragments: [/dev/null]}\n"
        "arms: {base: [], v1: [/dev/null]}\n"
        f"target: {target}\n"
        f"checks: {checks}\n"
        f"{stale_section}\n"
    )


def read(text: str) -> Experiment:
    return parse(text.encode(), Path("/nonexistent/x.yaml"))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return [problem.split(":", 1)[1] for problem in caught.value.problems]


def test_without_a_section_everything_is_tried_by_madvise() -> None:
    found = read(config()).stale
    assert found is not None
    assert (found.cases, found.ops, found.pages, found.tdp, found.rounds, found.range_pages) == (
        STALE_CASES, ("madvise",), ("4k", "2m"), (True, False), 24, 1026,
    )  # fmt: skip


def test_without_the_check_there_is_nothing() -> None:
    text = config(checks="[]") + "cells: {quiet: {guest: {rounds: 1}, storm: none}}\n"
    assert read(text).stale is None and read(text).stale_cells == ()


def test_the_quick_config_is_a_boot_for_each_paging_and_guest_page() -> None:
    chosen = load(ROOT / "configs/correctness.yaml")
    assert chosen.cells == () and [arm.name for arm in chosen.arms] == ["base", "v1", "union-noprefetch"]
    assert [cell.name for cell in chosen.stale_cells] == [
        f"stale-mapping,tdp={tdp},page={page}" for tdp in ("on", "off") for page in ("4k", "2m")
    ]
    trials = make_plan(chosen).trials
    assert len(trials) == 12 and {trial.arm for trial in trials[:3]} == {"base", "v1", "union-noprefetch"}


def test_a_plan_with_both_kinds_of_trials_comes_back_from_json(tmp_path: Path) -> None:
    text = config("stale: {pages: [4k], tdp: [true]}") + "cells: {quiet: {guest: {rounds: 1}, storm: none}}\n"
    plan = make_plan(read(text))
    assert [trial.cell.name for trial in plan.trials] == ["quiet"] * 2 + ["stale-mapping,tdp=on,page=4k"] * 2
    (tmp_path / "plan.json").write_bytes(to_json(plan))
    assert load_json(tmp_path / "plan.json", Plan) == plan
    (tmp_path / "experiment.json").write_bytes(to_json(read(text)))
    assert load_json(tmp_path / "experiment.json", Experiment) == read(text)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("stale: {cases: [end-edge, edge]}", "6: stale.cases[1]: expected 'inside'"),
        ("stale: {cases: []}", "6: stale.cases: expected at least one value, found none"),
        ("stale: {cases: end-edge}", "6: stale.cases: expected a list ([] for none), found 'end-edge'"),
        ("stale: {ops: [madvise, madvise]}", "6: stale.ops[1]: expected each value once, found 'madvise'"),
        ("stale: {ops: [madvise_dontneed]}", "6: stale.ops[0]: expected 'madvise'"),
        ("stale: {pages: [4k, 1g]}", "6: stale.pages[1]: expected '4k' or '2m', found '1g'"),
        ("stale: {tdp: [on, 1]}", "6: stale.tdp[1]: expected true or false, found 1"),
        ("stale: {rounds: 1}", "6: stale.rounds: expected at least 2, found 1"),
        ("stale: {range_kib: 100}", "6: stale.range_kib: expected a multiple of 32, found 100"),
        ("stale: {case: [inside]}", "6: stale.case: expected the key 'cases', found the unknown key 'case'"),
        (
            "stale: {cases: [two], ops: [madvise, mprotect]}",
            "6: stale.ops[1]: expected a case that mprotect applies to",
        ),
        ("stale: {range_kib: 65536}", None),
    ],
)
def test_each_mistake_is_the_only_one_found(section: str, expected: str | None) -> None:
    target = "{kind: qemu, mem_mib: 128}" if expected is None else "{kind: qemu}"
    (found,) = problems(config(section, target=target))
    assert found.startswith(expected or "6: stale.range_kib: expected what fits target.mem_mib, 128")


def test_a_section_without_its_check_does_nothing_and_is_refused() -> None:
    (found,) = problems(config("stale: {rounds: 3}", checks="[]") + "cells: {q: {guest: {rounds: 1}, storm: none}}\n")
    assert found.startswith("6: stale: expected the check stale_mapping")


def test_no_cells_and_no_check_is_nothing_to_do() -> None:
    (found,) = problems(config(checks="[]"))
    assert "cells: expected at least one cell" in found


def test_a_check_of_cells_needs_cells() -> None:
    (found,) = problems(config(checks="[stale_mapping, kernel_log]"))
    assert found.startswith("5: checks[1]: expected cells for this check")


def test_the_running_kernel_has_one_kind_of_paging() -> None:
    text = "name: x\narms: {base: []}\ntarget: {kind: local}\nchecks: [stale_mapping]\n"
    (found,) = problems(text)
    assert "stale.tdp: expected one kind of paging with kind: local" in found
    assert read(text + "stale: {tdp: [true]}\n").stale_cells[0].tdp


def test_the_name_of_a_boot_is_taken() -> None:
    cells = 'cells: {"stale-mapping,tdp=on,page=4k": {guest: {rounds: 1}, storm: none}}\n'
    (found,) = problems(config() + cells)
    assert "expected another name" in found


def test_calibrating_cases_come_by_themselves() -> None:
    spec = read(config("stale: {cases: [short-end, far], ops: [madvise, mremap]}")).stale
    assert spec is not None
    assert spec.rounds_of("madvise") == ("inside", "far", "short-inside", "short-end")
    assert spec.rounds_of("mremap") == ("inside", "far")
    spec = read(config("stale: {cases: [straddle, two]}")).stale
    assert spec is not None
    assert spec.rounds_of("mprotect") == () and spec.rounds_of("munmap") == ("inside", "two", "straddle")


# --- one trial --------------------------------------------------------------------------------------------------------


def planned(section: str = "stale: {cases: [end-edge], pages: [2m], tdp: [false], rounds: 3}") -> Trial:
    return make_plan(read(config(section))).trials[1]


def test_the_words_of_a_boot_and_of_one_round() -> None:
    trial = planned()
    assert isinstance(trial.cell, StaleCell)
    job = make_job(trial, TargetSpec("qemu"), Path("/vmlinux"))
    assert (job.program, job.tdp, job.swap) == ("stale_check", False, False)
    start = (
        "--arm",
        padded("v1"),
        "--cell",
        "stale-mapping,tdp=off,page=2m",
        "--seed",
        str(trial.seed),
        "--page",
        "2m",
    )
    size = ("--rounds", "3", "--range-pages", "1026", "--op", "madvise")
    assert job.words == (*start, *size, "--case", "inside", "--case", "end-edge")
    (only,) = stale.parse(result_bytes([Planted("end-edge", 90_000, round=2, wake_ns=88_123)]), "x").rounds
    assert make_job(trial, TargetSpec("qemu"), None, only).words == (
        *start, *size, "--case", "end-edge", "--only-round", "2", "--wake-ns", "88123", "--second-ns", "0",
    )  # fmt: skip


def test_the_guest_program_knows_every_option() -> None:
    source = (ROOT / "guests/stale_check/main.c").read_text()
    (only,) = stale.parse(result_bytes([Planted("end-edge", 90_000)]), "x").rounds
    for words in (make_job(planned(), TargetSpec("qemu"), None, chosen).words for chosen in (None, only)):
        assert all(f'{{ "{word[2:]}", required_argument' in source for word in words[::2])


class Leaves:
    """A target whose program leaves these rounds."""

    def __init__(self, *rounds: Planted, cut: int = 0, console: str = "") -> None:
        data = result_bytes(rounds, arm="v1", cell="stale-mapping,tdp=off,page=2m")
        self.data, self.console = data[: len(data) - cut], console

    def run(self, job: Job, folder: Path) -> Evidence:
        (folder / "recording.bin").write_bytes(self.data)
        (folder / "status.log").write_text("pid1 0.1\nexit 0\nend 1.0\n")
        (folder / "console.log").write_text(self.console)
        return Evidence("ended", 0, 0.5, 1.0)


def ended(folder: Path, target: Leaves) -> TrialResult:
    return run_trial(planned(), TargetSpec("qemu"), None, target, folder, "orch trial RUN 001")


def test_clean_rounds_are_ok(tmp_path: Path) -> None:
    result = ended(tmp_path, Leaves(Planted("end-edge", 90_000)))
    assert (result.outcome, result.reason, result.rerun) == (Outcome.OK, "", "orch trial RUN 001")
    assert result.recording_sha256


def test_a_stale_page_is_an_outcome_with_the_command_for_its_round(tmp_path: Path) -> None:
    console = "[    1.5] BUG: Bad page state in process stale_check  pfn:01f50\n"
    rounds = [
        Planted("inside", 80_000, "blocked"),
        Planted("end-edge", 90_000, found=(TAG, TAG + 1), round=1),
        Planted("end-edge", 95_000, found=(0, TAG + 1), round=2),
    ]
    result = ended(tmp_path, Leaves(*rounds, console=console))
    assert result.outcome is Outcome.STALE
    assert result.reason == (
        "the guest still read pages that had been taken away: end-edge, madvise: 2x, first in round 1:"
        f" page 1032 held {TAG:#x}"
    )
    assert result.rerun == "orch trial RUN 001 --case end-edge --op madvise --round 1"
    assert result.warnings == ("BUG: Bad page state in process stale_check  pfn:01f50",)
    assert result.recording_sha256


def test_a_cut_result_is_a_failure(tmp_path: Path) -> None:
    result = ended(tmp_path, Leaves(Planted("end-edge", 90_000, found=(TAG,)), cut=1))
    assert result.outcome is Outcome.FAILED and "truncated" in result.reason
