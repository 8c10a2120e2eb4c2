"""plan.py: pure, seeded, balanced."""

from __future__ import annotations

import itertools
import operator
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.experiment import Arm, Cell, Experiment, Guest, KernelSpec, ReportSpec, Schedule, TargetSpec
from orchestrator.plan import Plan, boot_seed, make_plan
from orchestrator.store import load_json, to_json


def experiment(arms: int = 2, cells: int = 2, **schedule: object) -> Experiment:
    return Experiment(
        name="x",
        description="",
        path=Path("/x.yaml"),
        kernel=KernelSpec((), ()),
        arms=tuple(Arm(f"arm{index}", ()) for index in range(arms)),
        target=TargetSpec("qemu"),
        cells=tuple(Cell(f"cell{index}", Guest(), None) for index in range(cells)),
        schedule=Schedule(**schedule),  # type: ignore[arg-type]
        checks=(),
        report=ReportSpec(),
    )


def test_abba_turns_the_arms_in_every_other_pass() -> None:
    plan = make_plan(experiment(boots=4))
    assert [[trial.arm for trial in block.trials] for block in plan.blocks if block.cell == "cell0"] == [
        ["arm0", "arm1"], ["arm1", "arm0"], ["arm0", "arm1"], ["arm1", "arm0"],
    ]  # fmt: skip
    assert [block.cell for block in plan.blocks] == ["cell0", "cell1"] * 4


def test_abab_keeps_them() -> None:
    plan = make_plan(experiment(boots=3, order="abab"))
    assert all([trial.arm for trial in block.trials] == ["arm0", "arm1"] for block in plan.blocks)


def test_random_throws_a_coin_for_each_block() -> None:
    """Not for each pass: cells that turned together would all be hit together by what the machine does meanwhile."""
    plan = make_plan(experiment(boots=200, order="random", seed=3))
    turned = {
        cell: [block.trials[0].arm == "arm1" for block in plan.blocks if block.cell == cell]
        for cell in ("cell0", "cell1")
    }
    for coins in turned.values():
        assert 70 < sum(coins) < 130
        assert 70 < sum(one != two for one, two in itertools.pairwise(coins)) < 130, "no coin knows the one before it"
    assert 70 < sum(map(operator.ne, *turned.values())) < 130
    assert make_plan(experiment(boots=200, order="random", seed=3)) == plan
    assert all(block.trials[0].seed == block.trials[1].seed for block in plan.blocks)


def test_a_random_block_keeps_the_second_boot_of_the_base_beside_the_first() -> None:
    plan = make_plan(experiment(arms=3, boots=20, order="random", aa=True))
    orders = {tuple((trial.arm, trial.boot >= 20) for trial in block.trials) for block in plan.blocks}
    ahead = (("arm0", False), ("arm0", True), ("arm1", False), ("arm2", False))
    assert orders == {ahead, ahead[::-1]}


def test_ids_count_up_in_the_order_of_the_run_and_are_padded() -> None:
    assert [trial.id for trial in make_plan(experiment(boots=1)).trials] == ["000", "001", "002", "003"]
    ids = [trial.id for trial in make_plan(experiment(boots=251)).trials]
    assert ids[0] == "0000" and ids[-1] == "1003" and ids == sorted(ids)


def test_a_block_shares_its_seed_and_no_two_boots_do() -> None:
    plan = make_plan(experiment(arms=3, boots=50))
    for block in plan.blocks:
        assert {(trial.seed, trial.block, trial.cell.name) for trial in block.trials} == {
            (plan.seeds[block.trials[0].boot], block.index, block.cell)
        }
    assert len(set(plan.seeds)) == 50


def test_the_seed_decides_and_nothing_else_does() -> None:
    assert make_plan(experiment(seed=5)) == make_plan(experiment(seed=5))
    assert make_plan(experiment(seed=5)).seeds != make_plan(experiment(seed=6)).seeds
    # Written down: a change here changes every result that was ever published.
    assert [boot_seed(1, 0), boot_seed(1, 1)] == [185554580919832, 258458508410149]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.sampled_from(["abba", "abab", "random"]))
def test_every_arm_meets_every_cell_equally_often(arms: int, cells: int, boots: int, order: str) -> None:
    plan = make_plan(experiment(arms, cells, boots=boots, order=order))
    seen = [(trial.arm, trial.cell.name, trial.boot) for trial in plan.trials]
    assert len(seen) == len(set(seen)) == arms * cells * boots
    if order == "abba" and boots % 2 == 0:
        # A drift that is linear in time adds the same to each arm.
        for cell in {block.cell for block in plan.blocks}:
            mine = [trial for trial in plan.trials if trial.cell.name == cell]
            assert len({sum(int(t.id) for t in mine if t.arm == arm) for arm in {t.arm for t in mine}}) == 1


def test_a_hundred_thousand_trials_are_planned_fast_and_small() -> None:
    big = experiment(arms=2, cells=10, boots=5000)
    started = time.process_time()
    plan = make_plan(big)
    assert time.process_time() - started < 5
    assert len(plan.trials) == 100_000
    tracemalloc.start()
    kept = make_plan(experiment(arms=2, cells=10, boots=500))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept.trials) == 10_000 and used < 50 * 2**20


def test_until_decided_lays_out_all_boots_and_checks_mappings_as_often_as_boots_says() -> None:
    plan = make_plan(experiment(boots=6, until="decided", at_most=12, looks=3))
    assert len(plan.blocks) == 2 * 12
    # A longer run begins like a shorter one: what has run is never another trial.
    assert plan.blocks[: 2 * 6] == make_plan(experiment(boots=6)).blocks


@pytest.mark.parametrize(
    ("boots", "at_most", "looks", "expected"),
    [(12, 24, 4, (12, 16, 20, 24)), (14, 28, 4, (14, 18, 24, 28)), (6, 12, 2, (6, 12)), (6, 12, 4, (6, 8, 10, 12))],
)
def test_looks_are_even_and_spread_from_boots_to_at_most(
    boots: int, at_most: int, looks: int, expected: tuple[int, ...]
) -> None:
    schedule = Schedule(boots=boots, until="decided", at_most=at_most, looks=looks)
    assert schedule.look_boots == expected and schedule.most == at_most
    assert Schedule(boots=boots).look_boots == (boots,)


def test_aa_boots_the_base_twice_in_a_block() -> None:
    chosen = experiment(arms=3, cells=1, boots=4, aa=True)
    plan = make_plan(chosen)
    assert [[(trial.arm, trial.boot) for trial in block.trials] for block in plan.blocks[:2]] == [
        [("arm0", 0), ("arm0", 4), ("arm1", 0), ("arm2", 0)],
        [("arm2", 1), ("arm1", 1), ("arm0", 5), ("arm0", 1)],
    ]
    twins = [trial for trial in plan.trials if chosen.schedule.is_twin(trial.boot)]
    assert [trial.arm for trial in twins] == ["arm0"] * 4
    assert [trial.id for trial in plan.trials] == [f"{index:03}" for index in range(16)]
    # Linear drift adds the same to the base's first and second boots.
    firsts = [trial for trial in plan.trials if trial.arm == "arm0" and trial not in twins]
    assert sum(int(trial.id) for trial in firsts) == sum(int(trial.id) for trial in twins)


def test_json_round_trip(tmp_path: Path) -> None:
    plan = make_plan(experiment(boots=3))
    path = tmp_path / "plan.json"
    path.write_bytes(to_json(plan))
    assert load_json(path, Plan) == plan


@pytest.mark.parametrize("boots", [1, 2])
def test_one_arm_is_a_plan_too(boots: int) -> None:
    assert [trial.arm for trial in make_plan(experiment(arms=1, cells=1, boots=boots)).trials] == ["arm0"] * boots
