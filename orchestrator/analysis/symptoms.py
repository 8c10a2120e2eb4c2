"""What a Linux guest sees besides the fault, as the comparison keeps it. Nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

Symptom = Literal["jitter_p50", "jitter_p99", "jitter_max", "steal"]
SYMPTOMS: Final[tuple[Symptom, ...]] = get_args(Symptom)


@dataclass(frozen=True)
class Symptoms:
    """Of one boot, or of all boots of an arm in a cell; times in ns, None where they were not measured.

    ``jitter_*``: how late the guest's timer thread woke, over ``wakeups`` wakeups. ``steal``: time in which the vCPUs
    could have run and did not, during the measured rounds. ``minor_faults`` of the guest itself in these rounds.
    ``missed``: periods that had passed before the thread slept again after a late wakeup; None in recordings from
    before they were skipped.
    """

    jitter_p50: float | None
    jitter_p99: float | None
    jitter_max: float | None
    jitter_mean: float | None
    wakeups: int
    steal: float | None
    minor_faults: int
    missed: int | None = None
