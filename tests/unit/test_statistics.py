"""Estimates, tests and corrections against scipy, brute force and hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orchestrator.analysis import power, statistics
from orchestrator.analysis.sequential import FIXED, Stage, boundaries
from orchestrator.analysis.statistics import Estimate


@pytest.mark.parametrize("pairs", [2, 6, 12, 13, 25])
def test_the_interval_is_the_wider_of_scipys_bootstrap_and_students(pairs: int) -> None:
    rows = np.random.default_rng(pairs).normal(0.2, 1.0, (3, pairs))
    level = 1 - 2 * stats.norm.sf(math.sqrt(pairs / (pairs - 1)) * stats.t.ppf(0.975, pairs - 1))
    for row, found in zip(rows, statistics.paired_rows(rows), strict=True):
        theirs = stats.bootstrap(
            (row,), np.mean, confidence_level=level, n_resamples=statistics.RESAMPLES, method="percentile",
            random_state=np.random.default_rng(statistics.SEED),
        ).confidence_interval  # fmt: skip
        student = stats.ttest_1samp(row, 0.0).confidence_interval(0.95)
        wider = min(theirs.low, student.low), max(theirs.high, student.high)
        assert (found.low, found.high) == pytest.approx(wider, rel=1e-9)


@pytest.mark.parametrize("pairs", [2, 3, 6, 7, 12])
def test_the_p_value_is_scipys_permutation_test(pairs: int) -> None:
    for seed in range(20):
        row = np.random.default_rng(seed).normal(0.5, 1.0, pairs)
        theirs = stats.permutation_test(
            (row, np.zeros(pairs)), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples",
            vectorized=True, n_resamples=10**6,
        )  # fmt: skip
        assert statistics.sign_flip_p(row[np.newaxis])[0] == pytest.approx(theirs.pvalue)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9))
def test_ties_and_zeros_are_counted_by_hand(values: list[int]) -> None:
    flips = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in
             itertools.product((1, -1), repeat=len(values))]  # fmt: skip
    by_hand = sum(abs(flip) >= abs(sum(values)) for flip in flips) / len(flips)
    # Tenths are not exact in binary: sums that differ by rounding only must count as equal.
    assert statistics.sign_flip_p(np.array([values]) / 10)[0] == pytest.approx(by_hand)


def test_many_pairs_take_random_flips_and_say_much_the_same() -> None:
    row = np.random.default_rng(4).normal(0.3, 1.0, statistics.EXACT_PAIRS + 1)
    found, smallest = statistics.sign_flip_p(np.array([row, np.abs(row)]))
    assert found == pytest.approx(stats.ttest_1samp(row, 0.0).pvalue, rel=0.2)
    assert smallest == statistics.smallest_p(len(row)) == 1e-5


def test_holm_by_hand() -> None:
    holm = statistics.holm
    assert holm([0.01, None, 0.04, 0.03]) == (pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06))
    assert holm([]) == ()
    assert holm([0.01, 0.02], others=3) == (pytest.approx(0.05), pytest.approx(0.08))


def test_how_many_pairs_a_level_takes() -> None:
    assert statistics.smallest_p(6) == 2 / 2**6
    for tests in (1, 7, 35, 42):
        needed = statistics.pairs_for(0.05 / tests)
        assert statistics.smallest_p(needed) * tests <= 0.05 < statistics.smallest_p(needed - 1) * tests


def test_interval_of_few_pairs_covers_the_truth_as_often_as_it_says() -> None:
    rows = np.random.default_rng(7).normal(0.3, 1.0, (400, 8))
    hits = sum(found.low <= 0.3 <= found.high for found in statistics.paired_rows(rows))
    assert hits >= 360  # 95 % nominal; 90 % is more than four standard errors below


def test_equal_differences_have_no_spread() -> None:
    found = statistics.paired(np.full(7, 0.1))
    assert (found.value, found.low, found.high, found.spread) == (0.1, 0.1, 0.1, 0.0)
    assert statistics.paired(np.zeros(7)).p_value == 1.0


# --- ratios of means --------------------------------------------------------------------------------------------------


def gamma(rng: np.random.Generator, ratio: float, spread: float, pairs: int = 12) -> tuple[statistics.Floats, ...]:
    """Two samples whose means have this ratio, with a standard deviation of ``spread`` times the mean."""
    shape = 1 / spread**2
    return rng.gamma(shape, 1 / shape, pairs), ratio * rng.gamma(shape, 1 / shape, pairs)


@pytest.mark.parametrize("ratio", [0.05, 1.0, 5.0])
def test_the_interval_of_a_ratio_ends_where_the_difference_cannot_be_0(ratio: float) -> None:
    """So it holds 1 exactly if the interval of the difference, which decides the verdict, holds 0."""
    rng = np.random.default_rng(11)
    for _ in range(20):
        base, values = gamma(rng, ratio, 0.4)
        low, high = statistics.ratio_interval(base, values)
        within = [low + (high - low) * share for share in (0.002, 0.5, 0.998)]
        beyond = [low - (high - low) * 0.002, high + (high - low) * 0.002]
        rows = np.array([values - item * base for item in (*within, *beyond)])
        held = [found.low <= 0 <= found.high for found in statistics.paired_rows(rows)]
        assert held == [True, True, True, False, False]


@pytest.mark.parametrize("ratio", [0.05, 0.5, 2.0, 5.0])
def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says(ratio: float) -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        low, high = statistics.ratio_interval(*gamma(rng, ratio, 0.5))
        hits += low <= ratio <= high
    # 95 % nominal; neither fewer than 91 % nor more than 99 % by luck.
    assert 364 <= hits <= 396


def test_a_ratio_over_a_base_that_may_be_0_has_no_upper_end() -> None:
    rare, often = np.array([0.0] * 11 + [0.2]), np.full(12, 0.1) + np.arange(12) / 100
    low, high = statistics.ratio_interval(rare, often)
    assert 0 < low < often.mean() / rare.mean() and math.isinf(high)
    assert statistics.ratio_interval(rare, rare[::-1].copy())[0] == 0.0
    assert statistics.ratio_interval(often, np.zeros(12)) == (0.0, 0.0)


def test_the_same_ratio_in_every_pair_is_exact() -> None:
    base = np.array([0.1, 0.3, 0.7, 0.2, 0.9, 0.4])
    assert statistics.ratio_interval(base, base) == (1.0, 1.0)
    assert statistics.ratio_interval(base, base * 0.3) == pytest.approx((0.3, 0.3), rel=1e-12)


def test_a_wider_interval_for_a_smaller_level() -> None:
    samples = gamma(np.random.default_rng(2), 0.5, 0.4)
    wide, narrow = (statistics.ratio_interval(*samples, alpha) for alpha in (0.005, 0.05))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


# --- looks ------------------------------------------------------------------------------------------------------------


def test_boundaries_are_those_of_the_tables() -> None:
    """Lan-DeMets bounds of five equal looks at 5 %: Pocock's spending function, and O'Brien and Fleming's."""
    times = np.arange(1, 6) / 5
    pocock = 0.05 * np.log(1 + (math.e - 1) * times)
    assert boundaries(pocock, times) == pytest.approx((2.438, 2.427, 2.410, 2.397, 2.386), abs=5e-4)
    fleming = 4 * stats.norm.sf(stats.norm.isf(0.05 / 4) / np.sqrt(times))
    assert boundaries(fleming, times) == pytest.approx((4.877, 3.357, 2.680, 2.290, 2.031), abs=5e-4)


@pytest.mark.parametrize("overall", [0.05, 0.0012])
def test_all_looks_together_err_as_often_as_stated(overall: float) -> None:
    looks = (6, 8, 10, 12)
    bounds = [stats.norm.isf(Stage(looks, number).level(overall) / 2) for number in range(1, 5)]
    rng = np.random.default_rng(1)
    crossed = 0
    for _ in range(10):
        sums = np.cumsum(rng.standard_normal((40_000, 12)), axis=1)
        seen = np.abs(sums[:, [look - 1 for look in looks]]) / np.sqrt(looks)
        crossed += int((seen > bounds).any(axis=1).sum())
    count = 400_000
    assert abs(crossed - overall * count) < 4 * math.sqrt(overall * count)


def test_an_overall_p_value_is_the_inverse_of_a_level() -> None:
    looks = (12, 16, 20, 24)
    for number in (1, 3, 4):
        stage = Stage(looks, number)
        for overall in (0.2, 0.05, 0.001, 1e-6):
            assert stage.overall(stage.level(overall)) == pytest.approx(overall, rel=0.01)
        assert stage.overall(0.9) == 1.0 and stage.overall(0.01) > 0.01
    assert FIXED.overall(0.03) == 0.03 and FIXED.level(0.03) == 0.03
    levels = [Stage(looks, number).alpha for number in range(1, 5)]
    assert levels == sorted(levels) and sum(levels) > 0.05 > levels[-1]


# --- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pairs", "tests"), [(9, 7), (12, 42), (14, 42), (24, 42)])
def test_the_permutation_test_finds_what_it_is_said_to_find(pairs: int, tests: int) -> None:
    level = 0.05 / tests
    # The reach is in estimated spreads, which come out a little too small.
    shift = power.test_reach(pairs, level, 0.8) / (1 + 1 / (4 * (pairs - 1)))
    rng = np.random.default_rng(pairs)
    found = sum(p_value <= level for p_value in statistics.sign_flip_p(rng.normal(shift, 1.0, (600, pairs))))
    assert 0.8 * 600 - 4 * 9.8 < found < 0.8 * 600 + 4 * 9.8


def test_what_no_number_of_boots_can_call() -> None:
    found = Estimate(0.5, 0.4, 0.6, 0.03, 0.1, 6)
    assert power.smallest_effect(found, 0.02, FIXED, tests=42) is None
    assert power.smallest_effect(found, 0.02, FIXED, tests=1) is not None
    assert power.boots_needed(found, (-0.02, 0.02), FIXED, tests=42) == 11


def test_boots_needed_grow_with_the_noise_and_near_the_margin() -> None:
    def needed(value: float, spread: float) -> int | None:
        return power.boots_needed(Estimate(value, 0, 0, 1.0, spread, 12), (-0.02, 0.02), FIXED, 7)

    quiet, noisy = needed(0.0, 0.02), needed(0.0, 0.06)
    assert quiet is not None and noisy is not None and 12 < quiet < noisy
    assert needed(0.0199, 0.06) is None and needed(0.0201, 0.06) is None
    out = needed(0.05, 0.06)
    assert out is not None and out > 12
