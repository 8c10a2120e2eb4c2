"""How often a night is called worse without a change, and how soon with one: `python -m benchmarks.nights`.

Seeded histories of the nights of one experiment on a noisy target: three cells, two arms, seven metrics (42 series).
A night's value is that of 14 boots, which differ by 2 % each, times what the machine was like in that night, which is
common to everything measured in it (or each series' own, where said so). Every history goes through the code that
judges a night. Margin 5 %. First 300 histories of 60 nights without any change, then 200 in which one arm in one cell
is 10 % slower in every time from the 25th night on. The tables are in docs/nightly.md.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.levels import MIN_NIGHTS, Call, Series, replay

QUIET, CHANGED, NIGHTS, BEFORE = 300, 200, 60, 24
CELLS, ARMS, METRICS = 3, 2, 7
SERIES = CELLS * ARMS * METRICS
BOOTS, BOOT_NOISE, MARGIN, STEP = 14, 0.02, 0.05, 1.10
AFTER = (1, 2, 3, 4, 6, 8, 10, 14)
SHIFTED = METRICS - 1  # The times of the first arm in the first cell; the seventh metric is not a time.

Floats = NDArray[np.float64]
Noise = Callable[[np.random.Generator], Floats]  # of nights, as logarithms: shape (NIGHTS, 1) or (NIGHTS, SERIES)


def common(spread: float) -> Noise:
    return lambda draw: draw.normal(0, spread, (NIGHTS, 1))


def own(spread: float) -> Noise:
    return lambda draw: draw.normal(0, spread, (NIGHTS, SERIES))


NOISES: dict[str, Noise] = {
    "none": common(0),
    "2 %": common(0.02),
    "3 %": common(0.03),
    "5 %": common(0.05),
    "2 %, each series its own": own(0.02),
    "3 %, each series its own": own(0.03),
    "5 %, each series its own": own(0.05),
}
OTHERS: dict[str, Noise] = {
    "heavy tails (Student's t, 3 degrees, scale 2 %)": lambda draw: 0.02 * draw.standard_t(3, (NIGHTS, 1)),
    "one night in ten slower by 10 %, else 2 %": lambda draw: (
        draw.normal(0, 0.02, (NIGHTS, 1)) + 0.10 * (draw.random((NIGHTS, 1)) < 0.1)
    ),
    "slow drift: random walk of 0.5 % a night": lambda draw: draw.normal(0, 0.005, (NIGHTS, 1)).cumsum(axis=0),
}


ALL = NOISES | OTHERS


def main() -> None:
    with ProcessPoolExecutor() as pool:
        tables(pool)


def tables(pool: ProcessPoolExecutor) -> None:
    print("| nights differ by (sd) | nights that turned red | red nights | histories with a red night |")
    print("| --- | --- | --- | --- |")
    for name in ALL:
        red = np.array(list(pool.map(partial(quiet, name), range(QUIET), chunksize=10)))[:, MIN_NIGHTS:]
        turned = red & ~np.roll(red, 1, axis=1)
        turned[:, 0] = red[:, 0]
        print(f"| {name} | {share(turned)} | {share(red)} | {int(red.any(axis=1).sum())} of {QUIET} |")
    print()
    print(f"| red by the Nth night with the change, N | {' | '.join(map(str, AFTER))} | red of the 5th to the 30th |")
    print("| --- |" + " --- |" * (len(AFTER) + 1))
    for name in list(NOISES)[:4]:
        red = np.array(list(pool.map(partial(changed, name), range(CHANGED), chunksize=10)))[:, BEFORE:]
        by = [f"{100 * red[:, :night].any(axis=1).mean():.0f} %" for night in AFTER]
        print(f"| {name} | {' | '.join(by)} | {100 * red[:, 4:30].mean():.0f} % |")


def share(found: NDArray[np.bool_]) -> str:
    return f"{int(found.sum())} of {found.size} ({100 * found.mean():.2f} %)"


def quiet(name: str, seed: int) -> NDArray[np.bool_]:
    return reds(history(ALL[name], seed))


def changed(name: str, seed: int) -> NDArray[np.bool_]:
    return reds(slowed(ALL[name], seed), ours=True)


def history(noise: Noise, seed: int) -> Floats:
    """Logarithms of a night's values, shape (NIGHTS, SERIES)."""
    draw = np.random.default_rng(seed)
    return np.log(5_000) + noise(draw) + draw.normal(0, BOOT_NOISE / np.sqrt(BOOTS), (NIGHTS, SERIES))


def slowed(noise: Noise, seed: int) -> Floats:
    """The same with the change from night ``BEFORE`` on."""
    values = history(noise, QUIET + seed)
    values[BEFORE:, :SHIFTED] += np.log(STEP)
    return values


def reds(values: Floats, ours: bool = False) -> NDArray[np.bool_]:
    """Which nights are called worse; with ``ours`` by the series that are slower alone."""
    calls = look(values)
    return np.array([bool((call.called[: SHIFTED if ours else SERIES] > 0).any()) for call in calls])


def look(values: Floats) -> tuple[Call, ...]:
    return replay(Series(values, np.ones(values.shape[1], bool), MARGIN), [False] * len(values))


if __name__ == "__main__":
    main()
