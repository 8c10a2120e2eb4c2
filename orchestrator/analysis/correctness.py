"""What the stale-mapping check and the selftests come to, as the comparison keeps it. Nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CheckStatus = Literal["held", "failed", "not covered"]
SelftestState = Literal["pass", "fail", "skip", "timeout", "lost", "not built", "not run"]
SelftestFinding = Literal["same", "regression", "warning", "flaky", "better", "changed", "not run"]


@dataclass(frozen=True)
class StaleCount:
    """One case of the stale-mapping check by one operation, for one arm, paging mode and guest page size, all boots.

    ``covered`` are the rounds in which the fault provably met an invalidation in progress: only they say something.
    Of the covered ones, in ``blocked`` the kernel retried and in ``passed`` it let the guest go on; ``stale`` are
    those after which the guest could still read a page that had been taken away. ``first`` describes the first stale
    round, ``rerun`` replays it. ``cell`` is that of its trials.
    """

    arm: str
    case: str
    op: str
    tdp: bool
    page: str
    rounds: int
    covered: int
    blocked: int
    passed: int
    stale: int
    status: CheckStatus
    first: str
    rerun: str
    cell: str = ""

    @property
    def label(self) -> str:
        """The case with everything but the arm, as a name."""
        return f"{self.case},op={self.op},tdp={'on' if self.tdp else 'off'},page={self.page}"


@dataclass(frozen=True)
class SelftestRow:
    """One of the kernel's own selftests on one arm: its state in each boot, and what that is against the base.

    ``lost``: the kernel died under it. ``reason`` says why it did not pass (of several boots, the first that did not);
    ``seconds`` are of the guest's clock, the longest boot. ``warnings`` are the kernel's during it; of an arm, those
    that the base does not have. ``cell`` is that of its trials.
    """

    test: str
    arm: str
    states: tuple[SelftestState, ...]
    reason: str
    seconds: float
    finding: SelftestFinding
    warnings: tuple[str, ...]
    cell: str = ""

    @property
    def shown(self) -> str:
        """The states in a word or two: ``pass``, or ``pass/fail`` where boots differ."""
        return "/".join(dict.fromkeys(self.states))
