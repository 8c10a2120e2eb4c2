"""analysis/changepoints.py: planted changes are found, and nothing is found where nothing changed."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import changepoints as benchmark
from orchestrator.analysis.changepoints import MIN_RUNS, fewest_runs, find_exact, find_noisy, normal_scores, penalty

RATE = 0.01 / 28  # what `orch history` takes for two cells and two arms


def latencies(seed: int, runs: int = 60, noise: float = 0.01) -> list[float]:
    return [float(value) for value in np.exp(np.random.default_rng(seed).normal(0, noise, runs)) * 5_000]


# --- with noise -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [10, 20, 33, 47, 50])
@pytest.mark.parametrize("seed", range(8))
def test_a_planted_step_of_5_percent_is_found_within_two_runs_and_nothing_else(seed: int, place: int) -> None:
    values = latencies(seed)
    (found,) = find_noisy([value * 1.05 if at >= place else value for at, value in enumerate(values)], RATE)
    assert abs(found - place) <= 2


def test_a_step_that_was_taken_back_is_two_changes() -> None:
    values = [value * 1.05 if 20 <= at < 40 else value for at, value in enumerate(latencies(1))]
    first, second = find_noisy(values, RATE)
    assert abs(first - 20) <= 2 and abs(second - 40) <= 2


def test_alarms_where_nothing_changed_are_as_rare_as_stated() -> None:
    draw = np.random.default_rng(7)
    # The shape of the noise must not matter: normal, heavy tails, a few very slow runs.
    noises = (draw.normal(0, 0.01, (1000, 60)), 0.01 * draw.standard_t(2, (1000, 60)),
              draw.normal(0, 0.01, (1000, 60)) + (draw.random((1000, 60)) < 0.05))  # fmt: skip
    for noise in noises:
        alarms = sum(bool(find_noisy([float(value) for value in row], 0.01)) for row in noise)
        assert 1 <= alarms <= 22, "10 are expected; 22 have a probability of 0.0005"


def test_only_the_order_of_the_values_counts() -> None:
    values = latencies(3)
    values[30:] = [value * 1.05 for value in values[30:]]
    assert find_noisy([value**9 for value in values], RATE) == find_noisy(values, RATE) != ()


def test_one_or_two_wild_runs_are_no_change() -> None:
    values = latencies(4)
    values[30:32] = [50_000.0, 60_000.0]
    assert find_noisy(values, RATE) == ()


def test_constant_values_and_short_series_have_no_change() -> None:
    assert find_noisy([5.0] * 60, 0.5) == ()
    assert find_noisy([1.0, 1.1, 5.0, 5.1], 0.5) == () and find_noisy([], 0.5) == ()


def test_ties_share_their_rank() -> None:
    s = 0.6289  # of rank 3.5 among 4: norm.ppf((3.5 - 0.375) / 4.25), from a table
    assert normal_scores(np.array([2.0, 1.0, 2.0, 1.0])).tolist() == pytest.approx([s, -s, s, -s], abs=1e-4)


def test_the_penalty_is_the_gain_that_random_orders_exceed_as_often_as_stated() -> None:
    assert penalty(30, 0.01) < penalty(30, 0.001) < penalty(60, 0.001)
    assert penalty(30, 0.01) == penalty.__wrapped__(30, 0.01), "the same in every process"
    draw = np.random.default_rng(1)
    scores = normal_scores(np.arange(30.0))
    gains = []
    for _ in range(3000):
        order = draw.permutation(scores)
        cuts = range(MIN_RUNS, 30 - MIN_RUNS + 1)
        gains.append(max(at * order[:at].mean() ** 2 + (30 - at) * order[at:].mean() ** 2 for at in cuts))
    beyond = np.mean(np.array(gains) > penalty(30, 0.01))
    assert 0.005 < beyond < 0.016


def test_too_few_runs_cannot_show_a_change_however_clear() -> None:
    few = fewest_runs(RATE)
    clear = [1.0 + 0.001 * at for at in range(40)] + [9.0 + 0.001 * at for at in range(40)]
    assert find_noisy(clear[40 - few // 2 + 1 : 40 + few // 2 - 1], RATE) == ()
    assert find_noisy(clear[40 - few // 2 - 1 : 40 + few // 2 + 1], RATE) == (few // 2 + 1,)


# --- without noise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([7.0] * 20, ()),
        ([7.0], ()),
        ([7.0, 7.9], ()),
        ([7.0, 8.1], (1,)),
        ([7.0] * 10 + [8.1], (10,)),
        ([7.0] * 10 + [8.5] + [7.0] * 10, (10, 11)),
        ([7.0] * 10 + [7.9] + [7.0] * 10, ()),
        ([7.0] * 10 + [7.3] * 10, ()),
        ([7.0] * 10 + [7.4] * 10, (10,)),
    ],
    ids=["constant", "one", "below the margin", "above it", "the last run", "one run", "one run below", "small",
         "small but lasting"],
)  # fmt: skip
def test_without_noise_what_exceeds_the_margin_is_a_change(values: list[float], found: tuple[int, ...]) -> None:
    assert find_exact(values) == found


# --- what docs/nightly.md states --------------------------------------------------------------------------------------


def test_the_measurement_of_the_documentation_plants_what_it_looks_for() -> None:
    assert len(benchmark.NOISES) == 8
    assert benchmark.planted(benchmark.normal(0.01), 0) == (True, True)
    series = benchmark.stepped(benchmark.normal(0.0), 0)
    assert (series[: benchmark.BEFORE] == 5_000).all() and series[benchmark.BEFORE :] == pytest.approx(5_250)
    drifting = benchmark.history(list(benchmark.NOISES.values())[-1], 0)
    assert any(benchmark.look(series) for series in drifting)
