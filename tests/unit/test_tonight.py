"""nights/tonight.py: which runs a night is held against, where time is exact and where it is noisy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nightruns import Past, write

from orchestrator.analysis.levels import MIN_NIGHTS
from orchestrator.analysis.model import METRICS, CheckResult, Comparison, Metric
from orchestrator.experiment import Experiment
from orchestrator.manifest import Manifest
from orchestrator.nights import catalogue
from orchestrator.nights.catalogue import ACCEPTED, WORSE, Accepted
from orchestrator.nights.tonight import Judged, judge

replace = dataclasses.replace
CELLS, ARMS = ("cell0", "cell1"), ("base", "v1")
HERE = "testbed"


def tcg(item: Manifest) -> Manifest:
    return replace(item, accel="tcg", host=replace(item.host, node=HERE))


def noisy(past: Past, number: int, spread: float = 0.01, more: float = 1.0, **night: object) -> Path:
    """A night whose values all have the same factor; ``more`` is one on the times of v1 in cell1."""
    factor = float(np.exp(np.random.default_rng(number).normal(0, spread)))
    factors: dict[tuple[str, str, Metric], float] = {
        (cell, arm, metric): factor * (more if (cell, arm) == ("cell1", "v1") else 1.0)
        for cell in CELLS for arm in ARMS for metric in METRICS
    }  # fmt: skip
    return past.night(number, factors, **({"manifest": tcg} | night))  # type: ignore[arg-type]


def judged(past: Past, folder: Path) -> Judged:
    return judge(catalogue.open_run(folder), past.results)


def accept(folder: Path) -> None:
    write(folder / ACCEPTED, Accepted("2026-10-01T08:00:00+00:00"))


# --- where time is exact ----------------------------------------------------------------------------------------------


def crept(past: Past, number: int, factor: float) -> Path:
    return past.night(number, {("cell0", "base", "p50"): factor})


def test_a_creep_within_the_margin_from_night_to_night_is_found_by_the_anchor(past: Past) -> None:
    states = []
    for number in range(5):
        found = judged(past, folder := crept(past, number, 1.008**number))
        states.append((bool(found.worse), found.reference, found.anchor))
    names = [path.parent.name for path in sorted(past.results.glob("*/manifest.json"))]
    assert states[:3] == [(False, "", ""), (False, names[0], names[0]), (False, names[1], names[0])]
    assert states[3:] == [(True, names[2], names[0])] * 2, "2.4 % from the first, and the worse ones are no reference"
    assert found.worse == (f"cell0, base: p50 +3.2 % since the anchor, {names[0]}",)
    assert (folder / WORSE).exists()


def test_what_is_worse_than_the_last_good_run_is_not_told_twice(past: Past) -> None:
    first = crept(past, 0, 1.0)
    judged(past, crept(past, 1, 1.01))
    found = judged(past, crept(past, 2, 1.10))
    assert found.worse == ("cell0, base: p50 +8.9 %",) and found.anchor == first.name


def test_the_run_that_was_accepted_last_is_the_anchor(past: Past) -> None:
    for number in range(4):
        judged(past, folder := crept(past, number, 1.008**number))
    accept(folder)
    found = judged(past, crept(past, 4, 1.008**4))
    assert (found.worse, found.reference, found.anchor) == ((), folder.name, folder.name)


def test_other_seeds_are_no_reference_under_icount(past: Past) -> None:
    past.night(0, manifest=lambda item: replace(item, seeds=(7,)))
    assert judged(past, past.night(1)).no_reference.endswith(
        "is not like it: other seeds, which are the sample under icount"
    )


# --- where it is noisy ------------------------------------------------------------------------------------------------


def test_while_the_noise_between_nights_is_not_known_nothing_is_claimed(past: Past) -> None:
    for number in range(MIN_NIGHTS):
        found = judged(past, noisy(past, number, more=1.5 if number == MIN_NIGHTS - 1 else 1.0))
    assert (
        found.no_reference
        == f"noise between nights not known yet: {MIN_NIGHTS - 1} of {MIN_NIGHTS} nights on this machine"
    )
    assert (found.worse, found.better, found.nights, found.reference) == ((), (), 0, "")


def test_a_night_is_held_against_all_good_nights_of_the_machine(past: Past) -> None:
    for number in range(10):
        last = noisy(past, number)
    found = judged(past, noisy(past, 10))
    assert (found.worse, found.better, found.nights, found.reference, found.anchor) == ((), (), 10, last.name, "")
    assert found.sees.startswith("of one night alone a p50 is called worse from +") and "(cell0, base)" in found.sees


def test_a_shift_is_worse_until_it_is_gone_and_the_slow_nights_leave_no_mark(past: Past) -> None:
    for number in range(10):
        noisy(past, number)
    began = noisy(past, 10, more=1.2)
    found = judged(past, began)
    assert len(found.worse) == 1 and found.worse[0].startswith("cell1, v1: mean +") and " over " not in found.worse[0]
    found = judged(past, noisy(past, 11, more=1.2))
    assert found.worse[0].endswith(f", over 2 nights since {began.name}") and "p50 +1" in found.worse[0]
    assert not (began / WORSE).exists()
    found = judged(past, noisy(past, 12))
    assert found.worse == () and any(
        f"a change since {began.name} that this night does not show" in n for n in found.notes
    )


def test_a_shift_that_is_accepted_is_the_new_level(past: Past) -> None:
    for number in range(10):
        noisy(past, number)
    began = noisy(past, 10, more=1.2)
    accept(began)
    assert judged(past, noisy(past, 11, more=1.2)).worse == ()
    assert judged(past, noisy(past, 12, more=1.4)).worse != ()


def test_slow_nights_of_before_are_not_left_out(past: Past) -> None:
    """By the rule of before, a mark on each; nights differ by 5 % here, and one that is 6 % off is nothing."""
    for number in range(12):
        folder = noisy(past, number, spread=0.05)
        write(folder / WORSE, catalogue.Worse("x", ("y",)))
    found = judged(past, noisy(past, 12, spread=0, more=1.06))
    assert found.nights == 12 and found.worse == ()


def elsewhere(item: Manifest) -> Manifest:
    return replace(tcg(item), host=replace(item.host, node="elsewhere"))


def test_nights_of_another_machine_are_no_reference(past: Past) -> None:
    for number in range(8):
        noisy(past, number, manifest=elsewhere)
    assert judged(past, noisy(past, 8)).no_reference.endswith("is not like it: host: elsewhere | testbed")
    assert judged(past, noisy(past, 9)).no_reference.startswith("noise between nights not known yet: 1 of ")


def failing(item: Comparison) -> Comparison:
    return replace(item, checks=(CheckResult("controls", "v1", "cell0", "failed", "3 retries"), *item.checks[1:]))


def test_a_check_that_fails_is_worse_at_once_and_its_night_is_no_reference(past: Past) -> None:
    noisy(past, 0)
    found = judged(past, noisy(past, 1, comparison=failing))
    assert found.worse == ("check controls (cell0, v1) failed: 3 retries",)
    assert judged(past, noisy(past, 2)).no_reference.startswith("noise between nights not known yet: 1 of ")


def test_an_arm_that_is_new_has_no_noise_yet(past: Past) -> None:
    def without(item: Comparison) -> Comparison:
        return replace(item, summaries=tuple(one for one in item.summaries if one.arm != "v1"))

    for number in range(8):
        noisy(past, number, comparison=without)
    found = judged(past, noisy(past, 8))
    assert found.nights == 8
    assert f"cell0, v1: noise between nights not known yet: 0 of {MIN_NIGHTS} nights" in found.notes


def test_without_cells_only_checks_are_compared(past: Past) -> None:
    def bare(item: Comparison) -> Comparison:
        return replace(item, summaries=())

    def none(item: Experiment) -> Experiment:
        return replace(item, cells=())

    for number in range(2):
        folder = noisy(past, number, comparison=bare, experiment=none)
    found = judged(past, folder)
    assert (found.no_reference, found.worse, found.nights) == ("", (), 0) and found.reference


@pytest.mark.parametrize("change", [tcg, lambda item: item])
def test_the_first_run_has_none_before_it(past: Past, change: Callable[[Manifest], Manifest]) -> None:
    assert judged(past, past.night(0, manifest=change)).no_reference == "it is the first"
