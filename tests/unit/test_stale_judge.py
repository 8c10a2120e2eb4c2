"""Which rounds count, and what is made of them: no vacuous pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from stalefile import Planted, result_bytes

from orchestrator import stale
from orchestrator.analysis.stale import CHECK, covered, judge
from orchestrator.errors import RecordingError
from orchestrator.experiment import Arm, Experiment, KernelSpec, ReportSpec, Schedule, StaleSpec, TargetSpec
from orchestrator.results import Outcome, TrialResult

TAG = stale.TAG | 1032
CELL = "stale-mapping,tdp=on,page=4k"
# Blocked from 20 to 100 us into the call; before and behind that the fault inside passed.
INSIDE = [
    Planted("inside", 60_000 + into, "blocked" if 20_000 <= into <= 100_000 else "passed", round=index)
    for index, into in enumerate(range(0, 160_000, 20_000))
]


def is_covered(item: Planted, others: Sequence[Planted] = INSIDE) -> bool:
    rounds = stale.parse(result_bytes([*others, item]), "x").rounds
    return covered(rounds[-1], rounds)


@pytest.mark.parametrize(
    "into_ns, counts",
    [
        (-5_000, False),
        (10_000, False),
        (20_000, True),
        (50_000, True),
        (100_000, True),
        (110_000, False),
        (1_000_000, False),
    ],
)
def test_a_pass_counts_only_between_two_blocked_moments(into_ns: int, counts: bool) -> None:
    assert is_covered(Planted("end-edge", 60_000 + into_ns)) is counts


def test_a_pass_without_calibration_never_counts() -> None:
    assert not is_covered(Planted("end-edge", 100_000), [])
    never_blocked = [Planted("inside", item.enter_ns) for item in INSIDE]
    assert not is_covered(Planted("end-edge", 100_000), never_blocked)


def test_calibration_is_by_the_same_operation_and_length() -> None:
    assert not is_covered(Planted("end-edge", 100_000, op="munmap"))
    assert not is_covered(Planted("short-end", 100_000, found=(0, 0)))
    short = [Planted("short-inside", at, "blocked", (0, 0)) for at in (61_000, 62_000)]
    assert is_covered(Planted("short-end", 61_500, found=(0, 0)), short)


def test_a_blocked_round_is_its_own_proof_and_a_late_one_proves_nothing() -> None:
    assert is_covered(Planted("far", 900_000, "blocked"), [])
    assert not is_covered(Planted("far", 100_000, "late"))
    # Blocked by something else: the invalidation had not begun.
    assert not is_covered(Planted("far", 50_000, "blocked", start_ns=60_000), [])


def test_a_stale_page_always_counts() -> None:
    assert is_covered(Planted("end-edge", 2_000_000, found=(0, 0, 0, 0, TAG)), [])


def test_two_counts_only_with_both_in_progress() -> None:
    both = Planted("two", 150_000, second=(100_000, 900_000))  # The first 40 us, the second 50 us into its call.
    assert is_covered(both)
    second_ended = Planted("two", 150_000, second=(100_000, 140_000))
    first_ended = Planted("two", 150_000, second=(100_000, 900_000), end_ns=99_000)
    second_to_come = Planted("two", 150_000, "blocked", second=(160_000, 900_000))
    second_too_far = Planted("two", 220_000, second=(100_000, 900_000))
    assert not any(map(is_covered, (second_ended, first_ended, second_to_come, second_too_far)))


def test_completed_counts_only_after_the_second_has_ended() -> None:
    # 90 us after the start, of which the second took 30: 60 us into the first.
    assert is_covered(Planted("completed", 150_000, second=(100_000, 130_000)))
    assert not is_covered(Planted("completed", 150_000, second=(100_000, 160_000)))
    assert not is_covered(Planted("completed", 150_000, "blocked", second=(100_000, 160_000)))
    # Without taking the second's time off, this would look covered.
    assert not is_covered(Planted("completed", 150_000, second=(65_000, 145_000)))


def test_straddle_counts_only_with_a_second_fault_in_it() -> None:
    inside = {"found": (0, 0), "start_ns": 62_000, "end_ns": 66_000}
    assert is_covered(Planted("straddle", 60_000, exits=3, **inside))
    assert not is_covered(Planted("straddle", 60_000, exits=2, **inside))
    assert not is_covered(Planted("straddle", 60_000, exits=0, **inside))
    assert is_covered(Planted("straddle", 60_000, "hole", exits=2, fixed=0, **inside))
    assert not is_covered(Planted("straddle", 60_000, "hole", exits=1, fixed=0, **inside))
    # Mapped, invalidated, faulted again: nobody asked whether to retry.
    assert not is_covered(Planted("straddle", 60_000, exits=3, fixed=2, **inside))
    assert not is_covered(Planted("straddle", 63_000, exits=3, **inside))  # It began before the fault.


# --- the verdict ------------------------------------------------------------------------------------------------------


def experiment(**spec: object) -> Experiment:
    return Experiment(
        name="x", description="", path=Path("/x.yaml"), kernel=KernelSpec((), ()),
        arms=(Arm("base", ()), Arm("v1", ())), target=TargetSpec("qemu"), cells=(), schedule=Schedule(),
        checks=("stale_mapping",), report=ReportSpec(),
        stale=StaleSpec(**{"cases": ("inside", "end-edge", "far"), "pages": ("4k",), "tdp": (True,), **spec}),  # type: ignore[arg-type]
    )  # fmt: skip


def trial(
    folder: Path, arm: str, rounds: Sequence[Planted], *, number: str = "000", outcome: Outcome = Outcome.OK,
    warnings: tuple[str, ...] = (),
) -> TrialResult:  # fmt: skip
    (folder / number).mkdir()
    if outcome in (Outcome.OK, Outcome.STALE):
        (folder / number / "recording.bin").write_bytes(result_bytes(rounds, arm=arm))
    rerun = f"orch trial RUN {number}" + (" --case inside --op madvise --round 99" if outcome is Outcome.STALE else "")
    return TrialResult(number, arm, CELL, 0, 0, 1, outcome, "because", (), warnings, 1.0, 2.0, "x", rerun)


def edges(ending: stale.Ending = "blocked", bad: Sequence[int] = ()) -> list[Planted]:
    return [
        Planted("end-edge", item.enter_ns, ending, (TAG if item.round in bad else 0, 0, 0, 0, 0), round=item.round)
        for item in INSIDE
    ]


def test_base_holds_and_a_stale_arm_fails(tmp_path: Path) -> None:
    results = [
        trial(tmp_path, "base", [*INSIDE, *edges()]),
        trial(tmp_path, "v1", [*INSIDE, *edges("passed", bad=(2, 3))], number="001", outcome=Outcome.STALE),
    ]
    verdict = judge(experiment(cases=("inside", "end-edge")), results, tmp_path)
    counts = {(item.arm, item.case): item for item in verdict.counts}
    assert (counts["base", "end-edge"].status, counts["base", "end-edge"].blocked) == ("held", 7)
    bad = counts["v1", "end-edge"]
    assert (bad.status, bad.stale, bad.covered, bad.passed, bad.rounds) == ("failed", 2, 5, 5, 8)
    assert bad.first == f"round 2, page 1032: {TAG:#x}"
    assert bad.rerun == "orch trial RUN 001 --case end-edge --op madvise --round 2"
    failed = [item for item in verdict.checks if item.status == "failed"]
    assert [(item.name, item.arm, item.cell) for item in failed] == [
        (CHECK, "v1", "end-edge,op=madvise,tdp=on,page=4k")
    ]
    assert "again: orch trial RUN 001 --case end-edge" in failed[0].why


def test_no_covered_round_is_not_covered(tmp_path: Path) -> None:
    passed = [Planted("inside", item.enter_ns, round=item.round) for item in INSIDE]
    results = [trial(tmp_path, "base", [*passed, *edges("passed")])]
    verdict = judge(experiment(cases=("inside", "end-edge")), results, tmp_path)
    ours = [item for item in verdict.counts if item.arm == "base"]
    assert [(item.case, item.rounds, item.covered, item.status) for item in ours] == [
        ("inside", 8, 0, "not covered"), ("end-edge", 8, 0, "not covered"),
    ]  # fmt: skip


def test_a_trial_that_fell_over_covers_nothing(tmp_path: Path) -> None:
    results = [trial(tmp_path, "base", [], outcome=Outcome.HANG)]
    verdict = judge(experiment(), results, tmp_path)
    assert {(item.status, item.rounds) for item in verdict.counts} == {("not covered", 0)}
    assert {item.status for item in verdict.checks} == {"not covered"}
    assert "because" in verdict.checks[-1].why


def test_what_the_kernel_says_counts_unless_base_says_it_too(tmp_path: Path) -> None:
    warning = "WARNING: CPU: 0 PID: 21 at arch/x86/kvm/mmu/mmu.c:560 mmu_spte_clear_track_bits+0x82/0x100"
    bad = tuple(f"BUG: Bad page state in process stale_check  pfn:01f5{digit}" for digit in "0123")
    results = [
        trial(tmp_path, "base", INSIDE, warnings=(warning,)),
        trial(tmp_path, "v1", INSIDE, number="001", warnings=(warning.replace("21", "22"), *bad)),
    ]
    verdict = judge(experiment(), results, tmp_path)
    logs = {item.arm: item for item in verdict.checks if item.cell == CELL}
    assert logs["base"].status == "failed" and "mmu_spte_clear_track_bits" in logs["base"].why
    assert logs["v1"].status == "failed" and logs["v1"].why.count("Bad page state") == 1
    assert "WARNING" not in logs["v1"].why


def test_the_far_case_tells_whether_an_arm_looks_at_ranges(tmp_path: Path) -> None:
    far = [Planted("far", item.enter_ns, item.ending, round=item.round) for item in INSIDE]
    passed = [Planted("far", item.enter_ns, round=item.round) for item in INSIDE]
    results = [
        trial(tmp_path, "base", [*INSIDE, *far]), trial(tmp_path, "v1", [*INSIDE, *passed], number="001"),
    ]  # fmt: skip
    notes = judge(experiment(), results, tmp_path).notes
    assert notes[0] == "base retries far from the range as well (5 of 5 covered rounds): it does not look at ranges"
    assert notes[1] == "v1 lets faults far from the range pass in 5 of 5 covered rounds"


def test_boots_add_up(tmp_path: Path) -> None:
    results = [trial(tmp_path, "base", INSIDE, number=number) for number in ("000", "001")]
    (inside, *_) = judge(experiment(), results, tmp_path).counts
    assert (inside.rounds, inside.covered) == (16, 10)


def test_a_result_of_another_arm_is_refused(tmp_path: Path) -> None:
    result = trial(tmp_path, "base", INSIDE)
    (tmp_path / "000" / "recording.bin").write_bytes(result_bytes(INSIDE, arm="v1"))
    with pytest.raises(RecordingError, match="is of arm 'v1'"):
        judge(experiment(), [result], tmp_path)
