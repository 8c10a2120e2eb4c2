"""analysis/levels.py: what is called of a night, when a shift is over, and which nights are the reference."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import nights
from orchestrator.analysis.levels import ALPHA, MIN_NIGHTS, PATIENCE, Call, Series, least, replay

Floats = NDArray[np.float64]
MARGIN = 0.05


def steady(count: int, spread: float = 0.01, series: int = 3, seed: int = 1) -> Floats:
    """Logarithms of nights without a change."""
    return np.log(5_000) + np.random.default_rng(seed).normal(0, spread, (count, series))


def judged(values: Floats, accepted: tuple[int, ...] = (), relative: bool = True) -> tuple[Call, ...]:
    flags = [night in accepted for night in range(len(values))]
    return replay(Series(values, np.full(values.shape[1], relative), MARGIN), flags)


def called(values: Floats, accepted: tuple[int, ...] = (), series: int = 0) -> list[int]:
    """What each night came to in one series."""
    return [int(call.called[series]) for call in judged(values, accepted)]


def test_too_few_nights_call_nothing_however_large_the_shift() -> None:
    values = steady(MIN_NIGHTS)
    values[-1] += np.log(10)
    last = judged(values)[-1]
    assert not last.called.any() and (last.nights == 0).all() and np.isnan(least(_series(values), last)).all()
    values = steady(MIN_NIGHTS + 1)
    values[-1] += np.log(10)
    last = judged(values)[-1]
    assert (last.called == 1).all() and (last.nights == MIN_NIGHTS).all()


def _series(values: Floats) -> Series:
    return Series(values, np.ones(values.shape[1], bool), MARGIN)


def test_a_shift_stays_red_until_it_is_gone_and_names_where_it_began_and_its_size() -> None:
    values = steady(60)
    values[30:45, 0] += np.log(1.10)
    assert called(values) == [0] * 30 + [1] * 15 + [0] * 15
    assert called(values, series=1) == [0] * 60
    standing = judged(values)[40]
    assert standing.since[0] == 30 and np.expm1(standing.shift[0]) == pytest.approx(0.10, abs=0.01)


def test_a_shift_below_what_one_night_shows_is_found_by_several() -> None:
    values = steady(60, spread=0.03)
    values[30:, 0] += np.log(1.12)
    found = called(values)
    assert found[:30] == [0] * 30
    first = found.index(1)
    assert 30 <= first <= 36 and sum(found[first:]) >= 0.8 * (60 - first)


def test_one_slow_night_is_not_held_against_the_next_and_counts_after_a_while() -> None:
    values = steady(60)
    values[30] += np.log(1.3)
    calls = judged(values)
    assert [int(call.called[0]) for call in calls] == [0] * 30 + [1] + [0] * 29
    assert calls[32].since[0] == 30 and calls[31].error[0] == calls[30].error[0], "it waits outside"
    later = 31 + PATIENCE
    assert calls[later].since[0] == -1 and calls[later].error[0] > 3 * calls[30].error[0], "and then it counts"


def test_what_is_accepted_is_the_new_level_without_a_second_wait() -> None:
    values = steady(60)
    values[30:, 0] += np.log(1.10)
    values[40:, 0] += np.log(1.15)
    found = called(values, accepted=(33,))
    assert found == [0] * 30 + [1] * 4 + [0] * 6 + [1] * 20
    assert called(values, accepted=(20,)) == [0] * 30 + [1] * 30, (
        "in a night without a change there is nothing to accept"
    )


def test_an_improvement_that_lasts_is_the_new_level_by_itself() -> None:
    values = steady(60)
    values[30:40, 0] += np.log(0.85)
    found = called(values)
    assert found[30:33] == [-1, -1, -1] and found[33:40] == [0] * 7
    assert found[40:] == [1] * 20, "and its loss is a regression"


def test_a_lucky_night_does_not_become_the_measure_of_the_others() -> None:
    values = steady(60)
    values[30] += np.log(0.8)
    assert called(values) == [0] * 30 + [-1] + [0] * 29


def test_a_shift_within_the_margin_is_not_called() -> None:
    values = steady(60, spread=0.001)
    values[30:, 0] += np.log(1 + MARGIN - 0.005)
    assert called(values) == [0] * 60
    values[30:, 0] += np.log(1.02)
    assert called(values)[30] == 1


def test_retries_have_a_margin_of_their_own_and_may_be_0() -> None:
    values = np.zeros((20, 2))
    values[15:, 0] = 0.0009
    assert not any(call.called.any() for call in judged(values, relative=False))
    values = np.zeros((20, 2))
    values[15:, 0] = 0.0011
    calls = judged(values, relative=False)
    assert [int(call.called[0]) for call in calls] == [0] * 15 + [1] * 5 and not any(c.called[1] for c in calls)


def test_nights_without_a_value_are_passed_over() -> None:
    values = steady(60)
    values[5:20:2, 0] = np.nan
    values[:40, 1] = np.nan
    values[30:, 0] += np.log(1.10)
    values[35, 0] = np.nan
    calls = judged(values)
    found = [int(call.called[0]) for call in calls]
    assert found == [0] * 30 + [1] * 5 + [0] + [1] * 24
    assert calls[45].nights[1] == 0 and calls[46].nights[1] == MIN_NIGHTS


def test_equal_nights_have_no_noise_at_all() -> None:
    values = np.full((20, 1), np.log(7_919.3))
    values[12:] += np.log(1.06)
    calls = judged(values)
    assert [int(call.called[0]) for call in calls] == [0] * 12 + [1] * 8
    assert calls[11].error[0] == 0 and calls[11].shift[0] == 0


def test_the_least_shift_is_called_and_less_is_not() -> None:
    values = steady(30, spread=0.02)
    size = least(_series(values), judged(values)[-1])[0]
    values[-1, 0] = values[:-1, 0].mean() + 1.01 * size
    assert called(values)[-1] == 1
    values[-1, 0] = values[:-1, 0].mean() + 0.97 * size
    assert called(values)[-1] == 0


@pytest.mark.parametrize("noise", ["none", "3 %", "2 %, each series its own"])
def test_without_a_change_fewer_nights_turn_red_than_the_rate(noise: str) -> None:
    """`python -m benchmarks.nights` in small."""
    red = np.array([nights.reds(nights.history(nights.NOISES[noise], seed)) for seed in range(10)])
    assert red.mean() <= ALPHA


def test_a_change_of_a_tenth_is_found_in_the_first_nights() -> None:
    red = [nights.reds(nights.slowed(nights.NOISES["2 %"], seed), ours=True)[nights.BEFORE :] for seed in range(10)]
    assert sum(bool(found[:3].any()) for found in red) >= 8
    assert np.array([found[4:30].mean() for found in red]).mean() > 0.9
