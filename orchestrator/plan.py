"""Experiment to ordered blocks of trials. Pure: the same experiment gives the same plan, always and everywhere.

A block is one cell booted once with every arm, all with the same seed, so that arms can be compared pairwise. Blocks
come pass by pass: every cell has its first block before any has its second, so a run that is cut short still says
something about each cell. ``abba`` reverses the arms in every other pass: a machine that warms up or fills up slowly
then favours no arm (A B … B A), where ``abab`` would always give the later arm the warmer machine. ``random`` throws a
coin of the schedule's seed for each block: no load of the machine, whatever its rhythm, can keep in step with that, and
the permutation test (``analysis/statistics.py``) is exact by what was done, not by what is assumed of the noise.

With ``aa`` a block has a second boot of the base next to the first (A A' B … B A' A). With ``until: decided`` the plan
has all boots up to ``at_most``; which of them are needed follows from the results (``analysis/stopping.py``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from orchestrator.experiment import Cell, Experiment, PlannedCell, Schedule, StaleCell

SEED_BITS = 48  # Exact in a JSON reader that only knows doubles, and wide enough never to repeat.
MIN_ID_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """One boot of one arm for one cell.

    ``id`` names its folder; ``boot`` counts from 0 within arm and cell, second boots of the base (``aa``) from
    ``schedule.most``.
    """

    id: str
    arm: str
    cell: PlannedCell
    boot: int
    block: int
    seed: int


@dataclass(frozen=True, slots=True)
class Block:
    """One cell with one seed: a trial of every arm, to be run on one machine, one after the other.

    In the block of the selftests the base runs more often than the others: what differs between its runs is flaky.
    """

    index: int
    cell: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All blocks, in the order in which they run; ids of trials count up in that order."""

    blocks: tuple[Block, ...]

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(trial for block in self.blocks for trial in block.trials)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, one a pass, in order."""
        return tuple(dict.fromkeys(block.trials[0].seed for block in self.blocks))


def make_plan(experiment: Experiment) -> Plan:
    """Blocks for all boots of every arm in every cell, and ``schedule.boots`` boots of the stale-mapping check."""
    schedule, arms = experiment.schedule, len(experiment.arms)
    measured = (arms + schedule.aa) * len(experiment.cells) * schedule.most
    stale = arms * len(experiment.stale_cells) * schedule.boots
    traced = arms * len(experiment.traced_cells)
    digits = max(MIN_ID_DIGITS, len(str(measured + stale + traced + selftest_trials(experiment) - 1)))
    blocks: list[Block] = []
    first = 0
    for boot in range(schedule.most):
        seed = boot_seed(schedule.seed, boot)
        cells: tuple[Cell | StaleCell, ...] = experiment.cells
        if boot < schedule.boots:
            cells += experiment.stale_cells
        for cell in cells:
            index = len(blocks)
            trials = tuple(
                Trial(f"{first + place:0{digits}}", arm, cell, number, index, seed)
                for place, (arm, number) in enumerate(_order(experiment, boot, cell))
            )
            blocks.append(Block(index, cell.name, trials))
            first += len(trials)
    blocks += _traced_blocks(experiment, len(blocks), first, digits)
    return Plan((*blocks, *_selftest_block(experiment, len(blocks), first + traced, digits)))


def _order(experiment: Experiment, boot: int, cell: Cell | StaleCell) -> list[tuple[str, int]]:
    """The boots of one block as (arm, number of the boot)."""
    schedule = experiment.schedule
    order = [(arm.name, boot) for arm in experiment.arms]
    if schedule.aa and isinstance(cell, Cell):
        order.insert(1, (experiment.base.name, schedule.most + boot))
    return order[::-1] if is_turned(schedule, cell.name, boot) else order


def is_turned(schedule: Schedule, cell: str, boot: int) -> bool:
    """Whether the arms of a block come in reversed order."""
    if schedule.order == "random":
        return hashlib.sha256(f"{schedule.seed}/{boot}/{cell}".encode()).digest()[0] % 2 == 1
    return schedule.order == "abba" and boot % 2 == 1


def _traced_blocks(experiment: Experiment, index: int, first: int, digits: int) -> list[Block]:
    """One more boot of each traced cell, with the seed of the cell's first one, so that the two can be compared."""
    seed, arms = boot_seed(experiment.schedule.seed, 0), len(experiment.arms)
    return [
        Block(
            index + nr,
            cell.name,
            tuple(
                Trial(f"{first + nr * arms + place:0{digits}}", arm.name, cell, 0, index + nr, seed)
                for place, arm in enumerate(experiment.arms)
            ),
        )
        for nr, cell in enumerate(experiment.traced_cells)
    ]


def selftest_trials(experiment: Experiment) -> int:
    """How many trials the selftests take: boots of the base, and of every other arm."""
    spec = experiment.selftests
    return 0 if spec is None else spec.base_runs + spec.runs * (len(experiment.arms) - 1)


def _selftest_block(experiment: Experiment, index: int, first: int, digits: int) -> tuple[Block, ...]:
    """The last block: nothing that it learns would help the measuring trials, and it may take the longest."""
    cell, spec = experiment.selftest_cell, experiment.selftests
    if cell is None or spec is None:
        return ()
    runs = [(boot, arm.name) for boot in range(spec.runs) for arm in experiment.arms[1:]]
    # The base's boots stand on either side of the others', so that a machine that changes meanwhile shows in them.
    half = (spec.base_runs + 1) // 2
    base = [(boot, experiment.base.name) for boot in range(spec.base_runs)]
    seed = boot_seed(experiment.schedule.seed, 0)
    trials = tuple(
        Trial(f"{first + place:0{digits}}", arm, cell, boot, index, seed)
        for place, (boot, arm) in enumerate([*base[:half], *runs, *base[half:]])
    )
    return (Block(index, cell.name, trials),)


def boot_seed(seed: int, boot: int) -> int:
    """The seed of a pass. Every pass has its own: under icount a repeat with the same seed would be the same run."""
    digest = hashlib.sha256(f"{seed}/{boot}".encode()).digest()
    return int.from_bytes(digest, "little") % (1 << SEED_BITS)
