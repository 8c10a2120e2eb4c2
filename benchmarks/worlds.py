"""Worlds with known truth: boots of two arms with planted noise and planted effects, as a trial would measure them.

Every boot draws its faults, from a sharp mode, a slower one and a Pareto tail, and is reduced to the figures that
``analysis/measure.py`` takes from a recording. What differs from boot to boot is the world's noise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.latency import QUANTILES
from orchestrator.analysis.measure import Measured
from orchestrator.analysis.model import Latency
from orchestrator.analysis.stopping import Measurements
from orchestrator.experiment import Arm, Cell, Experiment, Guest, KernelSpec, ReportSpec, Schedule, TargetSpec
from orchestrator.plan import is_turned

Noise = Literal["normal", "log-normal", "pareto", "bimodal"]
NOISES: tuple[Noise, ...] = ("normal", "log-normal", "pareto", "bimodal")
FAULTS = 2000  # a boot: p99.9 is the second slowest but one
BASE, ARM = "base", "v1"
SLOWEST = 100.0
RETRIES = 0.05  # per fault, in base
WAVE_TRIALS = 4  # as long as A B B A


@dataclass(frozen=True)
class World:
    """One kind of experiment. Noise is that of the log of a boot's own factor:

    * ``normal``: standard deviation ``size``;
    * ``log-normal``: skewed, a few boots are much slower (the log-normal's own sigma is 1, scaled to ``size``);
    * ``pareto``: tail index 1.5, scaled to ``size``, and cut where a boot is :data:`SLOWEST` times slower: without the
      cut its variance would be infinite;
    * ``bimodal``: one boot in two is slower by ten times ``size``, beside normal noise.

    ``drift`` is what each trial is slower than the one before it; ``wave`` the amplitude of a load that comes and goes
    with a period of four trials, from anywhere in it on. Effects are those of the arm, as fractions: ``shift``
    of every latency, ``tail`` of the slowest 0.5 %, ``retries`` of the retries. ``luck`` is the standard deviation of
    gamma noise of a boot's retries, as a share of them: how many faults a storm meets differs more than a latency does.
    """

    noise: Noise = "normal"
    size: float = 0.02
    cells: int = 3
    drift: float = 0.0
    wave: float = 0.0
    shift: float = 0.0
    tail: float = 0.0
    retries: float = 0.0
    luck: float = 0.0
    margin: float = 0.02
    schedule: Schedule = Schedule(boots=12)  # noqa: RUF009 - frozen


def experiment(world: World) -> Experiment:
    """The experiment that a world's boots are boots of."""
    return Experiment(
        name="simulated",
        description="",
        path=Path("/simulated.yaml"),
        kernel=KernelSpec((), ()),
        arms=(Arm(BASE, ()), Arm(ARM, ())),
        target=TargetSpec("qemu"),
        cells=tuple(Cell(f"cell{index}", Guest(), None) for index in range(world.cells)),
        schedule=world.schedule,
        checks=(),
        report=ReportSpec(margin=world.margin),
    )


def measure(world: World, rng: np.random.Generator) -> Measurements:
    """All boots of one experiment."""
    most, cells = world.schedule.most, world.cells
    shape = (cells, 2, most)
    schedule = world.schedule
    if schedule.order == "random":
        schedule = dataclasses.replace(schedule, seed=int(rng.integers(2**32)))
    turned = np.array([[is_turned(schedule, f"cell{cell}", boot) for boot in range(most)] for cell in range(cells)])
    # When each trial runs: pass by pass, cell by cell, arms in turned order.
    place = np.stack([turned, ~turned], axis=1).astype(float)
    time = 2 * cells * np.arange(most) + 2 * np.arange(cells)[:, np.newaxis, np.newaxis] + place
    factor = np.exp(_noise(world, shape, rng) + world.drift * time)
    if world.wave:
        factor *= np.exp(world.wave * np.sin(2 * np.pi * (time / WAVE_TRIALS + rng.random())))
    factor[:, 1] *= 1 + world.shift
    sorted_ns = _faults((*shape, FAULTS), rng)
    slowest = FAULTS - FAULTS // 200
    sorted_ns[:, 1, :, slowest:] *= 1 + world.tail
    sorted_ns.sort(axis=-1)
    sorted_ns *= factor[..., np.newaxis]
    wanted = RETRIES * FAULTS * factor
    wanted[:, 1] *= (1 + world.retries) / (1 + world.shift)
    if world.luck:
        wanted *= rng.gamma(world.luck**-2, world.luck**2, wanted.shape)
    counted = rng.poisson(wanted)
    names = [(f"cell{cell}", arm) for cell in range(cells) for arm in (BASE, ARM)]
    boots = {
        (name, arm): _boots(sorted_ns[index // 2, index % 2], counted[index // 2, index % 2])
        for index, (name, arm) in enumerate(names)
    }
    return Measurements(boots, {}, {name: most for name, _ in names})


def _noise(world: World, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    if world.noise == "normal":
        drawn = rng.standard_normal(shape)
    elif world.noise == "log-normal":
        drawn = rng.lognormal(0.0, 1.0, shape)
    elif world.noise == "pareto":
        drawn = np.minimum(rng.pareto(1.5, shape), np.log(SLOWEST) / world.size)
    else:
        drawn = rng.standard_normal(shape) + 10 * rng.integers(0, 2, shape)
    return np.asarray(world.size * drawn, np.float64)


def _faults(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Latencies in ns, ascending along the last axis."""
    ns = 5400 + 30 * rng.standard_normal(shape, np.float32).astype(np.float64)
    ns[..., ::64] += 8500  # a page table is allocated
    tail = max(1, shape[-1] // 250)
    ns[..., 1 : 1 + tail] += 10_000 * (1 + rng.pareto(2.5, (*shape[:-1], tail)))
    ns.sort(axis=-1)
    return ns


def _boots(sorted_ns: NDArray[np.float64], retries: NDArray[np.int64]) -> list[Measured]:
    ranks = {name: int(np.ceil(quantile * FAULTS - 1e-9)) - 1 for name, quantile in QUANTILES.items()}
    means = sorted_ns.mean(axis=-1)
    return [
        Measured(
            trial=f"{boot:03}",
            boot=boot,
            block=boot,
            faults=FAULTS,
            latency=Latency(
                mean=float(means[boot]),
                max=float(ns[-1]),
                **{name: float(ns[rank]) for name, rank in ranks.items()},
            ),
            retries=int(retries[boot]),
        )
        for boot, ns in enumerate(sorted_ns)
    ]
