"""A small version of ``make statistics``: the verdicts err no more often than stated, and find what they should."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import aa, errorrates
from benchmarks.errorrates import DECIDED, FIXED, TIGHT, Row
from benchmarks.worlds import NOISES, World, measure
from orchestrator.experiment import load

ROOT = Path(__file__).parents[2]
COUNT = 40
# With a true rate of 5 %, more than 8 of 40 come up once in 5,000 times; with one of 80 %, fewer than 22 as rarely.
MOST_OF_5, LEAST_OF_80 = 8, 22


def hits(world: World, ask: errorrates.Ask) -> float:
    return sum(errorrates.answer((world, ask, 7, number)) for number in range(COUNT))


@pytest.mark.parametrize("noise", NOISES)
def test_without_an_effect_hardly_anything_is_called(noise: str) -> None:
    world = World(noise, cells=2, margin=TIGHT, schedule=FIXED)  # type: ignore[arg-type]
    assert hits(world, errorrates.any_call) <= MOST_OF_5


def test_nor_if_every_look_is_taken() -> None:
    world = World("log-normal", cells=1, margin=TIGHT, schedule=DECIDED)
    assert hits(world, errorrates.call_at_any_look) <= MOST_OF_5


@pytest.mark.parametrize("schedule", [FIXED, DECIDED])
def test_an_effect_as_large_as_stated_is_called(schedule: errorrates.Schedule) -> None:
    world = World(cells=1, schedule=schedule)
    sizes = [errorrates.answer((world, partial(errorrates.smallest, "p50"), 8, number)) for number in range(20)]
    planted = World(cells=1, shift=float(np.mean(sizes)), schedule=schedule)
    assert 0.02 < planted.shift < 0.1
    assert hits(planted, partial(errorrates.called, "p50")) >= LEAST_OF_80


def test_a_shift_of_the_tail_alone_is_found_and_is_not_seen_elsewhere() -> None:
    assert hits(World(tail=0.8, cells=1), errorrates.tail_alone) >= LEAST_OF_80


def test_drift_is_cancelled_by_turning_the_order_and_by_nothing_else() -> None:
    drifting = World(size=0.005, cells=1, drift=0.01, margin=TIGHT)
    assert hits(drifting, errorrates.any_call) <= MOST_OF_5
    fixed_order = World(
        size=0.005, cells=1, drift=0.01, margin=TIGHT, schedule=errorrates.Schedule(boots=12, order="abab")
    )
    assert hits(fixed_order, errorrates.any_call) >= LEAST_OF_80


def test_groups_of_boots_are_seen_where_there_are_some() -> None:
    for noise, least, most in (("bimodal", LEAST_OF_80, COUNT), ("log-normal", 0, MOST_OF_5)):
        world = World(noise, cells=1, schedule=errorrates.Schedule(boots=24))  # type: ignore[arg-type]
        assert least <= hits(world, errorrates.grouped) <= most


def test_a_world_is_the_same_each_time_and_its_effects_are_what_it_says() -> None:
    world = World(shift=0.5, tail=1.0, retries=2.0, size=0.001, cells=1)
    found, again = (measure(world, np.random.default_rng(3)) for _ in range(2))
    assert found == again
    base, arm = (found.boots["cell0", name] for name in ("base", "v1"))
    assert len(base) == len(arm) == 12
    assert arm[0].latency.p50 / base[0].latency.p50 == pytest.approx(1.5, rel=0.01)
    assert arm[0].latency.p99_9 / base[0].latency.p99_9 > 2
    assert arm[0].retries / base[0].retries == pytest.approx(3.0, rel=0.5)  # type: ignore[operator]


def test_a_line_of_the_table() -> None:
    row = Row("", "12 boots", World(), errorrates.any_call, at_most=0.05)
    assert errorrates.line(row, [0.0] * 99 + [1.0]) == "| 12 boots | 1.0 % (0.0 to 5.4) | ≤ 5 % | yes |"
    assert errorrates.line(row, [0.0] * 94 + [1.0] * 6).endswith("| ≤ 5 % | **no** |")


def test_the_table_in_the_documentation_is_one_that_the_command_writes() -> None:
    """Its rows are those of this version; the figures take minutes and are not made again here."""
    text = (ROOT / "docs" / "statistics.md").read_text()
    table = text.partition(errorrates.BEGIN)[2].partition(errorrates.END)[0]
    said = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    written = [line for line in said if line not in ("experiment", "---")]
    assert [line.split(":")[0] for line in written] == [
        row.text.split(":")[0] for row in errorrates.rows(lambda metric, world: 0.0)
    ]


@pytest.mark.parametrize("name", ["quickstart", "parallel"])
def test_an_experiment_against_itself_differs_in_the_arms_and_the_seed_alone(tmp_path: Path, name: str) -> None:
    config = ROOT / "configs" / f"{name}.yaml"
    original, derived = load(config), load(aa.derive(config, tmp_path, 7, [], None))
    assert [arm.patches for arm in derived.arms] == [(), ()]
    assert (derived.cells, derived.kernel, derived.target) == (original.cells, original.kernel, original.target)
    assert derived.schedule.seed == 7 and derived.schedule.most == original.schedule.most
    few = load(aa.derive(config, tmp_path, 7, ["quiet"], 2))
    assert {cell.name.split(",")[0] for cell in few.cells} == {"quiet"} and few.schedule.most == 2
    with pytest.raises(SystemExit, match="has no cell loud"):
        aa.derive(config, tmp_path, 7, ["loud"], None)
    assert yaml.safe_load(config.read_text())["name"] == name
