"""``make statistics``: how often the verdicts err, on simulated targets with known truth, as a table.

Each row is a thousand experiments or so that go through the code of every report (``stopping.judge_run``), from boots
with planted noise and effects (``worlds.py``). Seeds are fixed: the table is the same on every machine.
"""

from __future__ import annotations

import os

# Small matrices: more threads would only wait for each other. Read by numpy when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import stats

from benchmarks.worlds import ARM, NOISES, World, experiment, measure
from orchestrator.analysis import compare, modes, stopping
from orchestrator.analysis.compare import Context
from orchestrator.analysis.model import METRICS, Metric, MetricComparison
from orchestrator.analysis.sequential import Stage
from orchestrator.analysis.statistics import ALPHA
from orchestrator.analysis.stopping import Measurements
from orchestrator.analysis.wording import LABELS
from orchestrator.experiment import Schedule

EXPERIMENTS = 1000
CALIBRATION = 200
BEGIN, END = "<!-- errorrates -->", "<!-- end of errorrates -->"
FIXED = Schedule(boots=12)
DECIDED = Schedule(boots=12, until="decided", at_most=24)
ORDERS: dict[Literal["abba", "random"], str] = {"abba": "A B B A", "random": "random order"}
RATIOS, LUCKS = (0.05, 0.5, 1.0, 2.0, 5.0), (0.3, 0.6)  # of retries: arm to base, and from boot to boot
TIGHT = 0.001  # A margin that catches nothing: the tests alone must hold the error rate.

Ask = Callable[[World, Measurements], float]


@dataclass(frozen=True)
class Row:
    """One line of the table: what is asked of each experiment in a world (0 or 1, or a number), and the bar."""

    group: str
    text: str
    world: World
    ask: Ask
    at_most: float | None = None
    at_least: float | None = None


# --- questions, of one experiment -------------------------------------------------------------------------------------


def verdicts(world: World, found: Measurements) -> tuple[MetricComparison, ...]:
    return stopping.judge_run(experiment(world), found, deterministic=False).metrics


def any_call(world: World, found: Measurements) -> float:
    """Whether any comparison of the whole report is called a change."""
    return any(item.verdict in ("improved", "regressed") for item in verdicts(world, found))


def call_at_any_look(world: World, found: Measurements) -> float:
    """Whether anything is called at any look, if no cell ever ended: more than what any stopping rule can do."""
    chosen, looks = experiment(world), world.schedule.look_boots
    for number, boots in enumerate(looks, 1):
        effects = []
        for cell in chosen.cells:
            base, arm = (
                [item for item in found.boots[cell.name, name] if item.boot < boots] for name in (chosen.base.name, ARM)
            )
            effects += compare.effects_of(cell.name, ARM, base, arm, world.margin, "")
        judged = compare.judge(effects, chosen.base.name, Context(deterministic=False, stage=Stage(looks, number)))
        if any(item.verdict in ("improved", "regressed") for item in judged):
            return True
    return False


def called(metric: Metric, world: World, found: Measurements) -> float:
    return _first(verdicts(world, found), metric).verdict == "regressed"


def equivalent(metric: Metric, world: World, found: Measurements) -> float:
    return _first(verdicts(world, found), metric).verdict == "equivalent"


def covered(world: World, found: Measurements) -> float:
    """Whether the interval of p50 holds the true ratio, 1."""
    low, high = _first(verdicts(world, found), "p50").ci
    return low is not None and high is not None and low <= 1 + world.shift <= high


def covered_retries(world: World, found: Measurements) -> float:
    """Whether the interval of the ratio of retries holds the true one."""
    low, high = _first(verdicts(world, found), "retries_per_fault").ci
    return low is not None and low <= 1 + world.retries and (high is None or 1 + world.retries <= high)


def tail_alone(world: World, found: Measurements) -> float:
    """Whether p99.9 is called, and p50 and p90 are not."""
    judged = verdicts(world, found)
    middle = {_first(judged, metric).verdict for metric in ("p50", "p90")}
    return _first(judged, "p99_9").verdict == "regressed" and not middle & {"improved", "regressed"}


def grouped(world: World, found: Measurements) -> float:
    """Whether boots of any metric of any cell and arm are said to fall in two groups."""
    return bool(modes.find([(cell, arm, boots) for (cell, arm), boots in found.boots.items()]))


def boots_used(world: World, found: Measurements) -> float:
    ended = stopping.judge_run(experiment(world), found, deterministic=False).stops
    return float(np.mean([item.boots for item in ended]))


def smallest(metric: Metric, world: World, found: Measurements) -> float:
    size = _first(verdicts(world, found), metric).smallest_effect
    return np.nan if size is None else size


def _first(judged: tuple[MetricComparison, ...], metric: Metric) -> MetricComparison:
    return next(item for item in judged if item.metric == metric)


# --- the table --------------------------------------------------------------------------------------------------------


def rows(stated: Callable[[Metric, World], float]) -> Iterator[Row]:
    """All rows; ``stated`` gives the mean smallest effect that reports of a world without effects state."""
    yield from _false_calls()
    group = "An effect as large as the stated smallest one is called (power)"
    for text, metric, world in _powers():
        size = stated(metric, world)
        if metric == "p99_9":
            planted = dataclasses.replace(world, tail=size)
        elif metric == "retries_per_fault":
            planted = dataclasses.replace(world, retries=size)
        else:
            planted = dataclasses.replace(world, shift=size)
        text = f"{text}: {LABELS[metric]} +{size * 100:.1f} %"
        yield Row(group, text, planted, partial(called, metric), at_least=0.8)
    group = "Only the tail moves: p99.9 is called, p50 and p90 are not"
    for text, schedule in (("12 boots", FIXED), ("until decided", DECIDED)):
        world = World(tail=0.8, schedule=schedule)
        yield Row(group, f"{text}, slowest 0.5 % +80 %", world, tail_alone, at_least=0.8)
    yield from _drifts()
    group = "A change as large as the margin is called equivalent"
    for text, schedule in (("12 boots", FIXED), ("until decided", DECIDED)):
        world = World(size=0.004, cells=1, shift=0.02, schedule=schedule)
        yield Row(group, f"{text}, p50 +2 %", world, partial(equivalent, "p50"), at_most=ALPHA)
    group = "The interval of p50 holds the truth"
    for noise in NOISES:
        yield Row(group, f"12 boots, {noise} noise", World(noise, cells=1), covered, at_least=0.94)
    yield Row(group, "until decided, normal noise", World(cells=1, schedule=DECIDED), covered, at_least=0.95)
    yield from _groups()
    group = "Boots of each arm that a run of at most 24 takes (mean)"
    yield Row(group, "no effect, normal noise", World(schedule=DECIDED), boots_used)
    yield Row(group, "all +30 %", World(shift=0.3, schedule=DECIDED), boots_used)
    yield from _orders()
    yield from _ratios_of_retries()


def _false_calls() -> Iterator[Row]:
    settings: tuple[tuple[str, Schedule, float, Ask], ...] = (
        ("12 boots, margin 2 %", FIXED, 0.02, any_call),
        ("12 boots, margin 0.1 %", FIXED, TIGHT, any_call),
        ("until decided (12 to 24), margin 2 %", DECIDED, 0.02, any_call),
        ("every look to 24 taken, margin 0.1 %", DECIDED, TIGHT, call_at_any_look),
    )
    for text, schedule, margin, ask in settings:
        for noise in NOISES:
            world = World(noise, margin=margin, schedule=schedule)
            yield Row("No effect, and yet something is called (false positives of a whole report)",
                      f"{text}, {noise} noise", world, ask, at_most=ALPHA)  # fmt: skip


def _powers() -> tuple[tuple[str, Metric, World], ...]:
    return (
        ("12 boots, normal noise", "p50", World()),
        ("12 boots, log-normal noise", "p50", World("log-normal")),
        ("12 boots, Pareto noise", "p50", World("pareto")),
        ("12 boots, bimodal noise", "p50", World("bimodal")),
        ("12 boots, normal noise", "p99_9", World()),
        ("12 boots, normal noise", "retries_per_fault", World()),
        ("24 boots, normal noise", "p50", World(schedule=Schedule(boots=24))),
        ("until decided, normal noise", "p50", World(schedule=DECIDED)),
    )


def _drifts() -> Iterator[Row]:
    group = "The machine slows down by 1 % a trial, and yet something is called"
    for margin in (0.02, TIGHT):
        world = World(size=0.005, cells=1, drift=0.01, margin=margin)
        yield Row(group, f"12 boots, A B B A, margin {margin * 100:g} %", world, any_call, at_most=ALPHA)
    turned = Schedule(boots=12, order="abab")
    world = World(size=0.005, cells=1, drift=0.01, margin=TIGHT, schedule=turned)
    yield Row(group, f"12 boots, A B A B, margin {TIGHT * 100:g} % (why the order turns)", world, any_call)


def _orders() -> Iterator[Row]:
    """Behind all others: a row's number is part of its seeds."""
    group = "A load comes and goes every four trials (±5 %), and yet something is called"
    for order, name in ORDERS.items():
        for text, schedule in (("12 boots", FIXED), ("until decided", DECIDED)):
            schedule = dataclasses.replace(schedule, order=order)
            world = World(size=0.005, cells=1, wave=0.05, margin=TIGHT, schedule=schedule)
            bar = ALPHA if order == "random" else None
            yield Row(group, f"{text}, {name}, margin {TIGHT * 100:g} %", world, any_call, at_most=bar)
    group = "The machine slows down by 1 % a trial, and yet something is called, in random order"
    random = dataclasses.replace(FIXED, order="random")
    world = World(size=0.005, cells=1, drift=0.01, margin=TIGHT, schedule=random)
    yield Row(group, f"12 boots, margin {TIGHT * 100:g} %", world, any_call, at_most=ALPHA)
    group = "What random order costs: an effect as large as A B B A could have called, on a machine that slows down"
    for order, name in ORDERS.items():
        world = World(size=0.02, drift=0.01, shift=0.05, schedule=dataclasses.replace(FIXED, order=order))
        yield Row(group, f"12 boots, {name}: p50 +5 %", world, partial(called, "p50"))


def _ratios_of_retries() -> Iterator[Row]:
    """Behind all others as well. Of what the interval is too wide at one end and too narrow at the other, if it takes
    the base's mean for known."""
    group = "The interval of the ratio of retries holds the truth"
    for luck in LUCKS:
        for ratio in RATIOS:
            world = World(cells=1, retries=ratio - 1, luck=luck)
            text = f"12 boots, retries of a boot ±{luck * 100:g} %, true ratio {ratio:g}"
            yield Row(group, text, world, covered_retries, at_least=0.94)
    for ratio in (RATIOS[0], RATIOS[-1]):
        world = World(cells=1, retries=ratio - 1, luck=LUCKS[0], schedule=DECIDED)
        text = f"until decided, retries of a boot ±{LUCKS[0] * 100:g} %, true ratio {ratio:g}"
        yield Row(group, text, world, covered_retries, at_least=0.95)


def _groups() -> Iterator[Row]:
    group = "Boots are said to fall in two groups"
    for boots in (12, 24):
        for noise in NOISES:
            world = World(noise, cells=1, schedule=Schedule(boots=boots))
            two = noise == "bimodal"
            # 12 boots a side are few for the dip test: no bar, only the figure.
            bars = {"at_least": 0.8 if boots == 24 else None} if two else {"at_most": ALPHA}
            where = ", 20 % apart" if two else ""
            yield Row(group, f"{boots} boots, {noise} noise{where}", world, grouped, **bars)


# --- running it -------------------------------------------------------------------------------------------------------


def answer(job: tuple[World, Ask, int, int]) -> float:
    """One experiment's answer; the seed follows from the row's and the experiment's number alone."""
    world, ask, row, number = job
    return float(ask(world, measure(world, np.random.default_rng([row, number]))))


def line(row: Row, answers: list[float]) -> str:
    """One row of the table, with Clopper and Pearson's 95 % interval of a share."""
    count, mean = len(answers), float(np.mean(answers))
    if row.ask is boots_used:
        return f"| {row.text} | {mean:.1f} | | |"
    found = round(mean * count)
    low = float(stats.beta.ppf(0.025, found, count - found + 1)) if found else 0.0
    high = float(stats.beta.ppf(0.975, found + 1, count - found)) if found < count else 1.0
    bar = met = ""
    if row.at_most is not None:
        bar, met = f"≤ {row.at_most * 100:g} %", "yes" if mean <= row.at_most else "**no**"
    elif row.at_least is not None:
        bar, met = f"≥ {row.at_least * 100:g} %", "yes" if mean >= row.at_least else "**no**"
    return f"| {row.text} | {mean * 100:.1f} % ({low * 100:.1f} to {high * 100:.1f}) | {bar} | {met} |"


def table(experiments: int, processes: int, say: Callable[[str], None]) -> str:
    """Run everything; the table as Markdown."""
    lines: list[str] = []
    with multiprocessing.Pool(processes) as pool:

        def ask_all(world: World, ask: Ask, row: int, count: int) -> list[float]:
            return pool.map(answer, [(world, ask, row, number) for number in range(count)], chunksize=10)

        def stated(metric: Metric, world: World) -> float:
            sizes = ask_all(world, partial(smallest, metric), 999, min(CALIBRATION, experiments))
            return float(np.nanmean(sizes))

        group = ""
        for number, row in enumerate(rows(stated)):
            if row.group != group:
                group = row.group
                lines += [
                    "",
                    f"**{group}**",
                    "",
                    "| experiment | found (95 % interval) | bar | met |",
                    "| --- | --- | --- | --- |",
                ]
            lines.append(line(row, ask_all(row.world, row.ask, number, experiments)))
            say(f"{group}: {lines[-1]}")
    tests = World().cells * len(METRICS)
    head = (
        f"{experiments:,} experiments a row; two arms, {World().cells} cells and {tests} comparisons in a report where"
        " nothing else is said (drift, equivalence, intervals and groups: one cell)."
    )
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.errorrates", description=__doc__)
    parser.add_argument("--write", type=Path, help="put the table between the marks of this file")
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS, help="a row (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: %(default)s")
    asked = parser.parse_args()
    began = time.monotonic()
    made = table(asked.experiments, asked.processes, print)
    print(f"{time.monotonic() - began:.0f} s")
    if asked.write is None:
        print(made)
        return
    before, _, rest = asked.write.read_text("utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{asked.write} has no {BEGIN} … {END}")
    asked.write.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
