"""How often a history finds a planted change, and one that is not there: `python -m benchmarks.changepoints`.

Seeded histories of 60 runs, each with the series of an experiment of two cells and two arms (28 with all metrics),
looked at as `orch history` does: 1,000 of each kind of noise without any change, and 200 in which one series has a
step of +5 % at a random run between the 10th and the 50th. Then, how many nights after such a step it is seen. The
tables are in docs/nightly.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.changepoints import find_noisy
from orchestrator.nights.history import FALSE_ALARMS

QUIET, PLANTED, RUNS, SERIES = 1000, 200, 60, 28
BEFORE, NIGHTS = 40, range(3, 11)
STEP, NEAR = 1.05, 2

Noise = Callable[[np.random.Generator], NDArray[np.float64]]
SHAPE = (SERIES, RUNS)


def normal(spread: float) -> Noise:
    return lambda draw: draw.normal(0, spread, SHAPE)


NOISES: dict[str, Noise] = {
    "normal, 0.5 % from run to run": normal(0.005),
    "normal, 1 %": normal(0.01),
    "normal, 2 %": normal(0.02),
    "normal, 3 %": normal(0.03),
    "heavy tails (Student's t, 2 degrees, scale 0.7 %)": lambda draw: 0.007 * draw.standard_t(2, SHAPE),
    "one run in ten slower by 10 %, else normal, 1 %": lambda draw: (
        draw.normal(0, 0.01, SHAPE) + 0.10 * (draw.random(SHAPE) < 0.1)
    ),
    "two modes 3 % apart, by chance": lambda draw: draw.normal(0, 0.004, SHAPE) + 0.03 * (draw.random(SHAPE) < 0.5),
    "slow drift: random walk of 0.3 % a run": lambda draw: draw.normal(0, 0.003, SHAPE).cumsum(axis=1),
}


def main() -> None:
    print("| noise of a run | no step: any alarm | planted step found within 2 runs | and nothing elsewhere |")
    print("| --- | --- | --- | --- |")
    for name, noise in NOISES.items():
        alarms = sum(any(look(series) for series in history(noise, seed)) for seed in range(QUIET))
        ends = [planted(noise, seed) for seed in range(PLANTED)]
        found, clean = sum(hit for hit, _ in ends), sum(hit and alone for hit, alone in ends)
        print(f"| {name} | {alarms} of {QUIET} | {found} of {PLANTED} | {clean} of {PLANTED} |")
    print()
    print(f"| nights since a step after {BEFORE} runs | {' | '.join(map(str, NIGHTS))} |")
    print("| --- |" + " --- |" * len(NIGHTS))
    for name, noise in list(NOISES.items())[:3]:
        seen = [sum(bool(look(stepped(noise, seed)[: BEFORE + night])) for seed in range(PLANTED)) for night in NIGHTS]
        print(f"| seen, {name} | {' | '.join(f'{100 * count / PLANTED:.0f} %' for count in seen)} |")


def history(noise: Noise, seed: int) -> NDArray[np.float64]:
    """Latencies in ns, shape (SERIES, RUNS)."""
    return np.exp(noise(np.random.default_rng(seed))) * 5_000


def planted(noise: Noise, seed: int) -> tuple[bool, bool]:
    """Whether the planted step was found near its place, and whether it was the only thing found."""
    draw = np.random.default_rng((1, seed))
    place, which = int(draw.integers(10, 51)), int(draw.integers(SERIES))
    values = history(noise, QUIET + seed)
    values[which, place:] *= STEP
    hits = look(values[which])
    others = any(look(series) for index, series in enumerate(values) if index != which)
    return any(abs(at - place) <= NEAR for at in hits), len(hits) == 1 and not others


def stepped(noise: Noise, seed: int) -> NDArray[np.float64]:
    """One series with a step after ``BEFORE`` runs."""
    values = history(noise, seed)[0]
    values[BEFORE:] *= STEP
    return values


def look(series: NDArray[np.float64]) -> tuple[int, ...]:
    return find_noisy([float(value) for value in series], FALSE_ALARMS / SERIES)


if __name__ == "__main__":
    main()
