"""The slowest few of very many faults, found piece by piece."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Slowest:
    """The ``keep`` slowest of all faults that :meth:`add` was given, slowest first; of equals, those given first.

    ``cycles`` has shape (at most keep,), dtype u64; ``notes`` is what was given beside each of them.
    """

    def __init__(self, keep: int, note: type[np.generic]) -> None:
        self.keep = keep
        self.cycles: NDArray[np.uint64] = np.empty(0, np.uint64)
        self.notes: NDArray[np.generic] = np.empty(0, note)

    def add(self, cycles: NDArray[np.uint64], notes: NDArray[np.generic]) -> None:
        """``cycles`` and ``notes`` of shape (faults,): the next ones."""
        full = len(self.cycles) == self.keep
        # One comparison a fault: next to none is slower than the slowest so far.
        found = np.flatnonzero(cycles > self.cycles[-1]) if full else np.arange(len(cycles))
        all_cycles = np.concatenate((self.cycles, cycles[found]))
        if len(all_cycles) > 4 * self.keep:
            # The first piece: all but the slowest and their equals go before anything is sorted.
            least = np.partition(all_cycles, len(all_cycles) - self.keep)[len(all_cycles) - self.keep]
            found = found[all_cycles[len(self.cycles) :] >= least]
            all_cycles = np.concatenate((self.cycles, cycles[found]))
        order = np.argsort(~all_cycles, kind="stable")[: self.keep]
        self.cycles = all_cycles[order]
        self.notes = np.concatenate((self.notes, notes[found]))[order]
