"""What the traced boots come to: frozen dataclasses of the saved comparison. Nothing here computes.

The time of a fault is divided, to the cycle, into what the vCPU was doing (:data:`CAUSES`):

``handled``     in the guest or in KVM, handling the fault; interrupts of the host while the vCPU had the CPU included
``unrelated``   in attempts that were thrown away while an invalidation of another range was in progress
``needed``      in attempts that were thrown away while an invalidation of the faulting page was in progress
``other``       in attempts that were thrown away with none in progress: a hole in the VMM's mapping, another vCPU
``taken``       in attempts that mapped the page, and the mapping was gone before the guest had used it
``preempted``   it could have run, and another thread had the CPU
``blocked``     it slept: for the mmap lock, for a page
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

Cause = Literal["handled", "unrelated", "needed", "other", "taken", "preempted", "blocked"]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)


@dataclass(frozen=True)
class CauseShare:
    """One cause over all faults, and over the slowest ones.

    Faults are counted by what happened to them (:class:`SlowFault`), time by what it was spent on, in whatever fault.
    Both columns add up to the boot's, and they are two questions. ``retries`` are those of this kind.
    """

    cause: Cause
    faults: int
    retries: int
    time_ns: float
    slowest: int
    slowest_retries: int
    slowest_ns: float


@dataclass(frozen=True)
class SlowFault:
    """One of the slowest faults. ``parts_ns`` are in the order of :data:`CAUSES` and add up to ``latency_ns``.

    ``cause`` is what happened to it: of one that took several attempts, what most of the others came to (where they
    are as many, ``needed`` before ``unrelated``, ``other``, ``taken``); else ``preempted`` or ``blocked``, whichever
    took longer, if both together took longer than handling it; else ``handled``.

    ``start_ns`` is since the measured rounds began. ``attempts`` counts how often the guest faulted for it. Of the
    invalidation that its last retry met (one over the page if there was one): the range, and the index in the recording
    of the storm's window that it lies in; None where there was none.
    """

    start_ns: float
    latency_ns: float
    vcpu: int
    page: int
    cause: Cause
    parts_ns: tuple[float, ...]
    attempts: int
    hva: int | None
    size_bytes: int | None
    window: int | None


@dataclass(frozen=True)
class TraceCost:
    """The traced boot beside the untraced one of the same arm, cell and seed: what the tracing itself costs."""

    untraced: str
    mean_ns: tuple[float, float]
    p50_ns: tuple[float, float]
    p99_9_ns: tuple[float, float]
    max_ns: tuple[float, float]
    retries: tuple[int | None, int | None]


@dataclass(frozen=True)
class TracedBoot:
    """One traced boot of one arm in one cell.

    ``covered`` of ``faults`` faults ended before anything is missing; all figures below are of those, and of all if the
    trace is ``whole``: ``lost`` events did not fit its buffers; ``missed`` times a probe did not see an invalidation
    begin or end, None if the trace does not say; ``unended`` invalidations have no end, ``unbegun`` ends no beginning.
    ``attempts`` is how often the guest faulted for them, ``faulting`` how many of them did so at all:
    ``attempts`` = ``faulting`` + ``retries`` + ``taken``. Retries are attempts that KVM threw away: ``retries`` =
    ``spurious`` + ``needed`` + ``other``; ``taken`` are mappings that were gone before the guest had used them.
    ``in_window`` of the spurious retries met an invalidation that lies in one of the storm's recorded windows.
    ``counted`` are the retries by KVM's own counters, ``exits`` and ``exits_counted`` the VM exits by trace and by
    counter; None where they cannot be had.

    Of ``storm_calls`` recorded calls of the storm, ``storm_met`` made KVM's notifier run, which it does for the VMM's
    memory only: ``storm_invalidations`` of it lie inside these calls, in time and range. ``placement`` is the storm's,
    empty without one.
    """

    trial: str
    cell: str
    arm: str
    events: int
    lost: int
    faults: int
    covered: int
    attempts: int
    faulting: int
    retries: int
    taken: int
    spurious: int
    needed: int
    other: int
    in_window: int
    counted: int | None
    exits: int
    exits_counted: int | None
    total_ns: float
    shares: tuple[CauseShare, ...]
    slowest: tuple[SlowFault, ...]
    cost: TraceCost | None
    placement: str = ""
    storm_calls: int = 0
    storm_met: int = 0
    storm_invalidations: int = 0
    missed: int | None = None
    unended: int = 0
    unbegun: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is missing of the trace, as far as that can be told."""
        return not (self.lost or self.missed or self.unended or self.unbegun)

    def share(self, cause: Cause) -> CauseShare:
        """One cause's share; there is one for each."""
        return next(item for item in self.shares if item.cause == cause)

    @property
    def of_all(self) -> tuple[float, ...]:
        """What part of the time in all faults each cause took, in the order of :data:`CAUSES`."""
        return tuple(item.time_ns / self.total_ns if self.total_ns else 0.0 for item in self.shares)

    @property
    def of_slowest(self) -> tuple[float, ...]:
        """What part of the time in the slowest faults each cause took, in the order of :data:`CAUSES`."""
        total_ns = sum(fault.latency_ns for fault in self.slowest)
        return tuple(item.slowest_ns / total_ns if total_ns else 0.0 for item in self.shares)
