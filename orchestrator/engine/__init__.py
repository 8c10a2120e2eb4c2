"""Where trials execute: in this process (``local``), or on the workers of a Dask cluster (``cluster``).

:mod:`orchestrator.engine.cluster` is imported by whoever asks for it: Dask takes half a second that no other run needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from orchestrator.engine.local import LocalRunner, OnResult, choose_jobs, execute, units
from orchestrator.plan import Plan, Trial
from orchestrator.results import TrialResult

__all__ = ["LocalRunner", "OnResult", "Runner", "choose_jobs", "execute", "units"]


class Runner(Protocol):
    """Runs the trials of one run, with everything that they need, and stores what comes of them."""

    def runs(self, item: Trial) -> bool:
        """Whether what a trial needs was built: all others go on without it."""

    def resume(self, plan: Plan, done: Sequence[TrialResult]) -> Sequence[TrialResult]:
        """Which results of an earlier part of a run stand: the others are of blocks that run again as a whole."""

    def execute(self, plan: Plan, finished: Iterable[str], accel: str, jobs: int | None, on_result: OnResult) -> None:
        """Run every trial of ``plan`` whose id is not in ``finished``; ``on_result`` sees each, stored, in this thread.

        At most ``jobs`` units at once, None for as many as there is room for.
        """

    def close(self) -> None:
        """Give back what was taken for longer than a block."""
