"""Verdicts on simulated runs with known effects."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulate
from simulate import BuiltLike, Effect, Plant, cell, run

from orchestrator.analysis import compare, wording
from orchestrator.analysis.model import METRICS, Comparison, Metric, MetricComparison
from orchestrator.errors import RecordingError
from orchestrator.results import Outcome

QUIET = (cell("quiet"),)
OUTSIDE = (cell("outside", "outside", preempted=True),)
OVERLAP = (cell("overlap", "overlap"),)


def verdicts(comparison: Comparison, name: str, arm: str = "v1") -> dict[Metric, MetricComparison]:
    return dict(comparison.metrics(name, arm))


def compared(plant: Plant, folder: Path) -> Comparison:
    return run(plant, folder).comparison


def test_icount_a_against_a_is_identical(tmp_path: Path) -> None:
    found = verdicts(compared(Plant(QUIET), tmp_path), "quiet")
    assert set(found) == set(METRICS)
    for item in found.values():
        assert (item.verdict, item.ratio, item.ci, item.p_value) == ("equivalent", 1.0, (1.0, 1.0), None)
        assert item.reason == "identical, exact for this seed"


def test_icount_planted_slowdown_of_200_loop_turns_is_a_regression(tmp_path: Path) -> None:
    # 200 turns add 200 to 400 ns to a median of 5,400 ns.
    found = compared(Plant(QUIET, effects={("quiet", "v1"): Effect(scale=1 + 200 / 5400)}), tmp_path)
    assert verdicts(found, "quiet")["p50"].verdict == "regressed"
    assert found.verdicts[0].verdict == "regressed"
    assert "regressed 1 cell (" in found.headlines[0]


def test_icount_change_within_the_margin_is_equivalent(tmp_path: Path) -> None:
    found = verdicts(compared(Plant(QUIET, effects={("quiet", "v1"): Effect(scale=1.004)}), tmp_path), "quiet")
    assert {item.verdict for item in found.values()} == {"equivalent"}
    assert found["p50"].ratio == pytest.approx(1.004, abs=1e-4)
    assert found["p50"].smallest_effect == pytest.approx(0.02)


def test_tail_only_shift_is_found_and_the_middle_is_equivalent(tmp_path: Path) -> None:
    plant = Plant(QUIET, faults=20_000, effects={("quiet", "v1"): Effect(tail_scale=1.5)})
    found = verdicts(compared(plant, tmp_path), "quiet")
    assert found["p99_9"].verdict == "regressed"
    assert (found["p50"].verdict, found["p90"].verdict) == ("equivalent", "equivalent")


def test_maximum_of_one_seed_is_shown_but_does_not_decide(tmp_path: Path) -> None:
    effects = {("outside", "base"): Effect(stall_cycles=4_000), ("outside", "v1"): Effect(stall_cycles=4_000)}
    found = compared(Plant(OUTSIDE, effects=effects), tmp_path)
    assert not verdicts(found, "outside")["max"].decides
    assert verdicts(found, "outside")["p99_9"].decides


def test_fall_in_retries_is_an_improvement(tmp_path: Path) -> None:
    effects = {("outside", "base"): Effect(retries=0.28), ("outside", "v1"): Effect(retries=0.005)}
    found = compared(Plant(OUTSIDE, effects=effects), tmp_path)
    item = verdicts(found, "outside")["retries_per_fault"]
    assert (item.verdict, item.base_value, item.value) == ("improved", 0.28, 0.005)
    assert item.ratio == pytest.approx(0.005 / 0.28)
    assert found.headlines[0].startswith("v1: improved 1 cell (retries −98.2 %")


@pytest.mark.parametrize(
    ("base", "arm", "verdict", "ratio"),
    [
        (0.0, 0.0, "equivalent", 1.0),
        (0.0, 0.0005, "equivalent", None),
        (0.0, 0.25, "regressed", None),
        (0.0005, 0.0, "equivalent", 0.0),
        (0.28, 0.2805, "equivalent", 0.2805 / 0.28),
        (0.28, 0.0, "improved", 0.0),
    ],
)
def test_retries_near_zero(tmp_path: Path, base: float, arm: float, verdict: str, ratio: float | None) -> None:
    effects = {("outside", "base"): Effect(retries=base), ("outside", "v1"): Effect(retries=arm)}
    item = verdicts(compared(Plant(OUTSIDE, effects=effects), tmp_path), "outside")["retries_per_fault"]
    assert item.verdict == verdict
    assert item.ratio == (None if ratio is None else pytest.approx(ratio))


def judged_retries(base: tuple[float, ...], arm: tuple[float, ...], *, exact: bool) -> MetricComparison:
    steps = tuple(right - left for left, right in zip(base, arm, strict=True))
    found = compare.Effect("outside", "v1", "retries_per_fault", base, arm, steps, (-0.001, 0.001), "")
    return compare.judge([found], "base", compare.Context(deterministic=exact))[0]


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
def test_the_interval_of_retries_knows_that_the_base_is_a_sample_too(scale: float) -> None:
    base = tuple(0.28 * factor for factor in (0.7, 1.3, 0.9, 1.1, 0.6, 1.4, 1.0, 1.0, 0.8, 1.2, 0.95, 1.05))
    arm = tuple(scale * value for value in (base[3:] + base[:3]))
    item = judged_retries(base, arm, exact=False)
    low, high = item.ci
    assert low is not None and high is not None and item.ci_kind == "interval"
    assert item.ratio == pytest.approx(scale)
    # Both means have a relative standard error of 0.25 / sqrt(12): the ratio's interval is as wide, relative to it.
    assert 0.15 < (high - low) / scale < 0.8
    assert item.verdict == ("improved" if scale < 1 else "regressed")
    assert (high < 1) if scale < 1 else (low > 1)


def test_a_range_of_retries_is_of_the_seeds_own_ratios() -> None:
    item = judged_retries((0.1, 0.3), (0.05, 0.05), exact=True)
    assert item.ci == pytest.approx((0.05 / 0.3, 0.5)) and item.ci_kind == "range"
    assert item.ratio == pytest.approx(0.25)
    assert judged_retries((0.1, 0.0), (0.2, 0.0), exact=True).ci == (2.0, 2.0)
    assert judged_retries((0.1, 0.0), (0.2, 0.1), exact=True).ci == (2.0, None)
    assert judged_retries((0.0, 0.0), (0.2, 0.1), exact=True).ci == (None, None)


@pytest.mark.parametrize("exact", [True, False])
def test_retries_over_a_base_without_any_have_no_ratio(exact: bool) -> None:
    pairs = 3 if exact else 8
    none = judged_retries((0.0,) * pairs, (0.25,) * pairs, exact=exact)
    assert (none.ratio, none.ci, none.ci_kind) == (None, (None, None), None)
    same = judged_retries((0.0,) * pairs, (0.0,) * pairs, exact=exact)
    assert (same.ratio, same.ci) == (1.0, (1.0, 1.0))
    assert same.ci_kind == ("range" if exact else "interval")


def test_missing_counters_are_unknown_never_zero(tmp_path: Path) -> None:
    found = compared(Plant(QUIET, effects={("quiet", "v1"): Effect(retries=None)}), tmp_path)
    assert found.summary("quiet", "v1").retries_per_fault is None
    assert found.summary("quiet", "v1").exits_per_fault is None
    item = verdicts(found, "quiet")["retries_per_fault"]
    assert (item.verdict, item.value, item.ratio, item.ci) == ("inconclusive", None, None, (None, None))
    assert item.reason == "KVM's counters could not be read"
    # The latencies still decide the cell.
    assert found.verdicts[0].verdict == "equivalent"
    assert [check.status for check in found.checks if check.name == "controls"] == ["held", "not covered"]


def test_one_boot_of_a_noisy_target_decides_nothing(tmp_path: Path) -> None:
    found = compared(Plant(QUIET, accel="tcg", effects={("quiet", "v1"): Effect(scale=3.0)}), tmp_path)
    assert {item.verdict for item in found.comparisons} == {"inconclusive"}
    assert found.comparisons[0].reason == "one boot: its noise is not known"
    assert found.verdicts[0].verdict == "inconclusive"


def test_few_boots_say_that_they_cannot_decide(tmp_path: Path) -> None:
    plant = Plant(QUIET, accel="tcg", boots=4, noise=0.01, effects={("quiet", "v1"): Effect(scale=3.0)})
    comparison = compared(plant, tmp_path)
    found = verdicts(comparison, "quiet")
    assert {item.verdict for item in found.values()} == {"inconclusive"}
    assert found["p50"].reason == "4 boots cannot decide at 5 %, the smallest p is 0.12"
    assert found["p50"].boots_needed == 9 and found["p50"].smallest_effect is None
    assert ": 4 boots cannot decide at 5 %, the smallest p is 0.12; about " in comparison.verdicts[0].summary
    assert comparison.verdicts[0].summary.endswith(" boots would decide")


def test_many_boots_find_a_planted_shift(tmp_path: Path) -> None:
    plant = Plant(QUIET, accel="tcg", boots=12, noise=0.01, effects={("quiet", "v1"): Effect(scale=1.10)})
    item = verdicts(compared(plant, tmp_path), "quiet")["p50"]
    assert item.verdict == "regressed"
    assert item.ci[0] is not None and item.ci[1] is not None
    assert item.ratio == pytest.approx(1.10, abs=0.02)
    assert 1.06 < item.ci[0] < item.ratio < item.ci[1] < 1.14
    assert item.p_value is not None and item.p_adjusted is not None
    assert item.p_value < item.p_adjusted <= 0.05


def test_many_boots_find_a_shift_in_the_tail_only(tmp_path: Path) -> None:
    effects = {("quiet", "v1"): Effect(tail_scale=0.5)}
    plant = Plant(QUIET, accel="tcg", boots=12, faults=20_000, noise=0.003, effects=effects)
    found = verdicts(compared(plant, tmp_path), "quiet")
    assert found["p99_9"].verdict == "improved"
    assert found["p50"].verdict == "equivalent"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("boots", [1, 6, 12])
def test_noisy_a_against_a_is_never_a_change(tmp_path: Path, seed: int, boots: int) -> None:
    found = compared(Plant(QUIET, accel="tcg", boots=boots, noise=0.02, seed=seed, faults=1500), tmp_path)
    assert {item.verdict for item in found.comparisons} <= {"equivalent", "inconclusive"}


def test_smallest_visible_effect_shrinks_with_boots(tmp_path: Path) -> None:
    few = verdicts(compared(Plant(QUIET, accel="tcg", boots=9, noise=0.05), tmp_path / "few"), "quiet")["p50"]
    many = verdicts(compared(Plant(QUIET, accel="tcg", boots=30, noise=0.05), tmp_path / "many"), "quiet")["p50"]
    assert few.smallest_effect is not None and many.smallest_effect is not None
    assert 0.02 < many.smallest_effect < few.smallest_effect


def test_seeds_under_icount_must_agree(tmp_path: Path) -> None:
    found = compared(Plant(QUIET, boots=3, effects={("quiet", "v1"): Effect(scale=1.1)}), tmp_path)
    item = verdicts(found, "quiet")["p50"]
    assert (item.verdict, item.reason) == ("regressed", "exact for these 3 seeds")
    steps = (math.log(1.1), 0.0, math.log(1.1))
    mixed = compare.Effect("quiet", "v1", "p50", (1.0,) * 3, (1.1, 1.0, 1.1), steps, (-0.02, 0.02), "")
    (judged,) = compare.judge([mixed], "base", compare.Context(deterministic=True))
    assert (judged.verdict, judged.reason) == ("inconclusive", "these 3 seeds disagree")


def test_boots_are_paired_within_their_block(tmp_path: Path) -> None:
    boots = run(Plant(QUIET, boots=3, accel="tcg"), tmp_path).comparison.summary("quiet", "base").per_boot
    arm = (replace(boots[2], trial="x"), replace(boots[0], trial="y"))
    pairs = compare.pair(boots, arm)
    assert [(left.block, right.trial) for left, right in pairs] == [(0, "y"), (2, "x")]


def test_value_and_ratio_of_several_boots_agree(tmp_path: Path) -> None:
    plant = Plant(QUIET, accel="tcg", boots=8, noise=0.1, effects={("quiet", "v1"): Effect(scale=1.3)})
    for item in compared(plant, tmp_path).comparisons:
        assert item.base_value is not None and item.value is not None and item.ratio is not None
        if item.base_value:
            assert item.ratio == pytest.approx(item.value / item.base_value)


def test_panicking_arm_is_classified_and_base_is_intact(tmp_path: Path) -> None:
    broken = Effect(outcome=Outcome.PANIC, reason="Kernel panic: test", trace=("RIP: 0010:kvm_fault",))
    found = compared(Plant((*QUIET, *OUTSIDE), effects={("quiet", "v1"): broken}), tmp_path)
    assert found.status == "partial"
    assert found.summary("quiet", "base").boots == 1
    assert (found.summary("quiet", "v1").outcome, found.summary("quiet", "v1").latency) == ("panic", None)
    assert verdicts(found, "quiet")["p50"].reason == "v1: panic"
    assert found.verdicts[0].verdict == "inconclusive"
    assert (found.failures[0].outcome, found.failures[0].console) == ("panic", "trials/001/console.log")
    assert "1 trial did not end well (panic)" in found.headlines[0]


def test_arm_that_does_not_build_is_named_with_its_error(tmp_path: Path) -> None:
    plant = Plant(QUIET, arms=("base",))
    results = simulate.simulate(plant, tmp_path)
    both = replace(plant, arms=("base", "v1"))
    kernels = [BuiltLike("base"), BuiltLike("v1", build="failed", error="mmu.c:1: error: expected ';'")]
    found = simulate.analyse(
        simulate.experiment(both), results, kernels, tmp_path, run="r", accel="icount", planned=2  # type: ignore[arg-type]
    ).comparison  # fmt: skip
    assert found.status == "partial"
    assert found.headlines == ("v1: build failed, nothing measured",)
    assert found.summary("quiet", "v1").outcome == "build failed"
    assert found.arms[1].error == "mmu.c:1: error: expected ';'"
    assert found.comparisons[0].reason == "v1: build failed"


def test_status_of_unfinished_and_failed_runs(tmp_path: Path) -> None:
    assert run(Plant(QUIET), tmp_path / "a").comparison.status == "complete"
    assert run(Plant(QUIET), tmp_path / "b", planned=3).comparison.status == "partial"
    hang = Effect(outcome=Outcome.HANG)
    both = {("quiet", "base"): hang, ("quiet", "v1"): hang}
    assert compared(Plant(QUIET, effects=both), tmp_path / "c").status == "failed"


def test_one_arm_alone_is_a_report_too(tmp_path: Path) -> None:
    found = compared(Plant(QUIET, arms=("base",)), tmp_path)
    assert found.comparisons == ()
    assert found.headlines[0].startswith("base: no other arm to compare with")


def statuses(comparison: Comparison, name: str) -> list[tuple[str, str]]:
    return [(item.arm, item.status) for item in comparison.checks if item.name == name]


def test_needed_retries_that_vanish_fail_the_check(tmp_path: Path) -> None:
    effects = {("overlap", "base"): Effect(retries=1.0), ("overlap", "v1"): Effect(retries=0.4)}
    found = compared(Plant(OVERLAP, effects=effects), tmp_path / "a")
    assert statuses(found, "needed_retries") == [("v1", "failed")]
    assert "needed_retries FAILED" in found.headlines[0]
    effects["overlap", "v1"] = Effect(retries=0.6)
    assert statuses(compared(Plant(OVERLAP, effects=effects), tmp_path / "b"), "needed_retries") == [("v1", "held")]


def test_an_overlap_without_retries_covers_nothing(tmp_path: Path) -> None:
    found = compared(Plant(OVERLAP), tmp_path)
    assert statuses(found, "needed_retries") == [("v1", "not covered")]
    assert "not covered" in found.headlines[0]


def test_a_check_without_a_cell_is_not_covered(tmp_path: Path) -> None:
    assert statuses(compared(Plant(QUIET), tmp_path), "needed_retries") == [("", "not covered")]


def test_controls_with_retries_fail(tmp_path: Path) -> None:
    cells = (*QUIET, cell("other", "other-process"))
    found = compared(Plant(cells, effects={("other", "v1"): Effect(retries=0.002)}), tmp_path)
    assert statuses(found, "controls") == [("base", "held"), ("v1", "held"), ("base", "held"), ("v1", "failed")]


def test_kernel_log_fails_on_a_warning_that_base_has_not(tmp_path: Path) -> None:
    known = "[    1.200000] WARNING: CPU: 0 PID: 7 at a.c:1 f+0x1/0x2"
    again = "[    9.900000] WARNING: CPU: 1 PID: 9 at a.c:1 f+0x1/0x2"
    fresh = "BUG: sleeping function called from invalid context"
    effects = {("quiet", "base"): Effect(warnings=(known,)), ("quiet", "v1"): Effect(warnings=(again, fresh))}
    found = compared(Plant(QUIET, effects=effects), tmp_path)
    results = [item for item in found.checks if item.name == "kernel_log"]
    assert [(item.arm, item.status, item.why) for item in results] == [
        ("base", "failed", known),
        ("v1", "failed", fresh),
    ]


def test_a_recording_of_another_trial_is_refused(tmp_path: Path) -> None:
    plant = Plant(QUIET)
    results = simulate.simulate(plant, tmp_path)
    (tmp_path / "000" / "recording.bin").write_bytes((tmp_path / "001" / "recording.bin").read_bytes())
    with pytest.raises(RecordingError, match="is of arm 'v1'"):
        simulate.analyse(
            simulate.experiment(plant), results, [], tmp_path, run="r", accel="icount", planned=2
        )  # fmt: skip


def test_an_empty_recording_is_refused(tmp_path: Path) -> None:
    plant = Plant(QUIET)
    results = simulate.simulate(plant, tmp_path)
    (tmp_path / "000" / "recording.bin").write_bytes(simulate.recording_bytes(latencies=[np.empty(0, np.uint64)]))
    with pytest.raises(RecordingError, match="no fault at all"):
        simulate.analyse(simulate.experiment(plant), results, [], tmp_path, run="r", accel="icount", planned=2)


def test_report_says_how_sure_it_is(tmp_path: Path) -> None:
    exact = " ".join(compared(Plant(QUIET), tmp_path / "a").sure)
    assert "exact and repeatable for this one seed" in exact and "says nothing about other seeds" in exact
    few = " ".join(compared(Plant(QUIET, accel="tcg", boots=6, noise=0.02), tmp_path / "b").sure)
    assert "Smallest p that 6 boots can reach: 0.031; 9 boots reach 5 % corrected." in few
    assert "In 7 of 7 comparisons these boots can call no change, however large." in few
    many = " ".join(compared(Plant(QUIET, accel="tcg", boots=10, noise=0.02), tmp_path / "c").sure)
    assert "Smallest change this run could have called, in its least sensitive cell: mean " in many
    seeds = " ".join(compared(Plant(QUIET, boots=6), tmp_path / "d").sure)
    assert "the 6 seeds (start delay, storm phase, page order) are the sample" in seeds


def test_a_mean_never_stands_alone(tmp_path: Path) -> None:
    """In a cell's sentence and in the headline a tail stands beside it, moved or not."""
    found = compared(Plant(QUIET, faults=20_000, effects={("quiet", "v1"): Effect(scale=1.1)}), tmp_path)
    steady = {"verdict": "equivalent", "ratio": 1.0}
    metrics = [
        item if item.metric == "mean" else replace(item, **steady)  # type: ignore[arg-type]
        for item in found.comparisons
    ]
    cell_line = wording.cell_verdict("quiet", "v1", metrics)
    assert cell_line.verdict == "regressed" and "mean +10" in cell_line.summary and "p99.9 ±0 %" in cell_line.summary
    headline = wording.plain(wording.headline(found.arms[1], metrics, [cell_line], found.checks, []))
    assert "(mean +10" in headline and "p99.9 ±0 %" in headline
    # Four that moved further than the tail must not push it out of the sentence.
    ratios = {"mean": 1.5, "p50": 1.4, "p90": 1.3, "p99": 1.001, "p99_9": 1.1, "max": 1.05}
    metrics = [replace(item, ratio=ratios.get(item.metric, 1.0)) for item in found.comparisons]
    assert "p99.9 +10" in wording.cell_verdict("quiet", "v1", metrics).summary


def test_why_counts_the_slow_faults_inside_windows(tmp_path: Path) -> None:
    effects = {("outside", "base"): Effect(retries=0.2, stall_cycles=9_000_000)}
    found = compared(Plant(OUTSIDE, effects=effects), tmp_path)
    assert found.why[0].startswith("outside: of the 100 slowest faults in base, 12 overlap an invalidation in progress")
