"""Why each fault of a traced boot took as long as it did: its attempts, what they met, and who had the CPU.

A guest faults once for each attempt (``kvm:kvm_page_fault``), on the thread of its vCPU and inside the interval that
the guest timed, so attempt and fault are matched by address and time. An attempt that another one of the same fault
follows was in vain, from its beginning to that of the next one. Either it mapped the page (``kvm_mmu_spte_requested``)
and the mapping was *taken* away before the guest had used it; or KVM threw it away, which is a retry, exactly as KVM's
counters give their number. A retry is *needed* if an invalidation over the faulting page was in progress meanwhile,
*spurious* if only others were. KVM's own question, in mmu_notifier_retry(), is a moment inside that time; an
invalidation is counted from the entry of invalidate_range_start() to the return of _end(), which contains the time in
which KVM's count is above 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.causes import CAUSES
from orchestrator.analysis.spans import Faults, Ints, Invalidations, OffCpu
from orchestrator.errors import RecordingError
from orchestrator.hosttrace import EXIT, INSTALL, PAGE_FAULT, Trace
from orchestrator.recording import Header, Recording

HANDLED, UNRELATED, NEEDED, OTHER, TAKEN, PREEMPTED, BLOCKED = range(len(CAUSES))
PAGE_SHIFT = 12
IN_VAIN = (NEEDED, UNRELATED, OTHER, TAKEN)


@dataclass(frozen=True)
class Retries:
    """Every attempt of a boot that was in vain; arrays of shape (retries,).

    ``fault`` is the index of its fault, ``start`` and ``end`` its time, ``kind`` one of :data:`IN_VAIN`.
    ``invalidation`` is the index of one that it met, of one over the page if there was one, else of the one that began
    last; -1 for none.
    """

    fault: Ints
    start: Ints
    end: Ints
    kind: NDArray[np.uint8]
    invalidation: Ints


@dataclass(frozen=True)
class Explained:
    """A traced boot, fault by fault; arrays over faults have shape (faults,).

    ``covered``: the fault ended before the trace lost its first event or lacks half an invalidation, and everything
    about it is known. ``parts`` has
    shape (causes, faults), cycles, in the order of :data:`~orchestrator.analysis.causes.CAUSES`; each column adds up to
    that fault's latency. ``cause`` is what happened to it (:class:`~orchestrator.analysis.causes.SlowFault`).
    ``last_retry`` is the index in ``retries`` of each fault's last, -1 for none; ``windows`` the index in the recording
    of the window in which each invalidation lies, -1 for none. ``exits`` counts VM exits of vCPUs in the measured time.
    """

    faults: Faults
    covered: NDArray[np.bool_]
    attempts: Ints
    parts: Ints
    cause: NDArray[np.uint8]
    last_retry: Ints
    retries: Retries
    invalidations: Invalidations
    windows: Ints
    exits: int

    @cached_property
    def retry_window(self) -> Ints:
        """Of each retry, the index in the recording of the window that it met, -1 for none; shape (retries,)."""
        return _pick(self.windows, self.retries.invalidation)

    @property
    def window(self) -> Ints:
        """Of each fault, the window that its last retry met, -1 for none; shape (faults,)."""
        return _pick(self.retry_window, self.last_retry)

    def retries_of(self, kind: int) -> Ints:
        """How many attempts in vain of one kind each fault had; shape (faults,)."""
        return count_by_fault(self.retries, kind, len(self.attempts))


def _pick(values: Ints, index: Ints) -> Ints:
    """``values[index]``, and -1 where the index is -1."""
    return np.append(values, -1)[index]


def count_by_fault(retries: Retries, kind: int, faults: int) -> Ints:
    """How many attempts in vain of one kind each of so many faults had."""
    return np.bincount(retries.fault[retries.kind == kind], minlength=faults).astype(np.int64)


def explain(recording: Recording, trace: Trace) -> Explained:
    """Lay a trace over its recording. Raises :class:`RecordingError` if they are not of one boot."""
    faults = Faults.of(recording)
    attempts = trace.of(PAGE_FAULT)
    tids = _vcpu_threads(attempts, faults, recording.header)
    fault = np.full(len(attempts), -1, np.int64)
    for vcpu, tid in tids.items():
        own = np.flatnonzero(attempts["tid"] == tid)
        fault[own] = _fault_of(attempts[own], faults, recording.header, vcpu)
    inside = np.flatnonzero(fault >= 0)
    # By fault, and by time within it: events come by time, and this sort is stable.
    inside = inside[np.argsort(fault[inside], kind="stable")]
    fault, tsc = fault[inside], attempts["tsc"][inside].astype(np.int64)
    invalidations = Invalidations.of(trace)
    retries = _retries(fault, tsc, _mapped(attempts, trace)[inside], faults, invalidations, recording.header)
    parts = _parts(faults, retries, {vcpu: OffCpu.of(trace, tid) for vcpu, tid in tids.items()})
    last = np.full(len(faults.start), -1, np.int64)
    last[retries.fault] = np.arange(len(retries.fault))
    return Explained(
        faults=faults,
        covered=faults.end <= min(trace.whole_until_tsc, invalidations.whole_until_tsc),
        attempts=np.bincount(fault, minlength=len(faults.start)).astype(np.int64),
        parts=parts,
        cause=_cause(parts, retries),
        last_retry=last,
        retries=retries,
        invalidations=invalidations,
        windows=invalidations.windows(recording),
        exits=_exits(trace, tids, recording.header),
    )


def _vcpu_threads(attempts: NDArray[np.void], faults: Faults, header: Header) -> dict[int, int]:
    """The thread of each vCPU: the one whose page faults fit that vCPU's samples best, each thread once."""
    fits = {
        (vcpu, tid): int((_fault_of(attempts[attempts["tid"] == tid], faults, header, vcpu) >= 0).sum())
        for vcpu in np.unique(faults.vcpu).tolist()
        for tid in np.unique(attempts["tid"]).tolist()
    }
    found: dict[int, int] = {}
    for vcpu, tid in sorted(fits, key=lambda pair: -fits[pair]):
        if fits[vcpu, tid] and vcpu not in found and tid not in found.values():
            found[vcpu] = tid
    if not found and len(attempts) and len(faults.start):
        raise RecordingError("no page fault of the trace fits a fault of the recording: they are not of one boot")
    return found


def _fault_of(attempts: NDArray[np.void], faults: Faults, header: Header, vcpu: int) -> Ints:
    """The index of the fault that each attempt belongs to, by time and address; -1 for none."""
    first = int(np.searchsorted(faults.vcpu, vcpu, side="left"))
    behind = int(np.searchsorted(faults.vcpu, vcpu, side="right"))
    tsc = attempts["tsc"].astype(np.int64)
    place = np.searchsorted(faults.start[first:behind], tsc, side="right") - 1
    index = first + np.maximum(place, 0)
    # A flat guest: gva and gpa are the same, so it does not matter which of them the tracepoint gives.
    offset = attempts["a"].astype(np.int64) - header.mem_gpa
    fits = (
        (place >= 0) & (tsc <= faults.end[index]) & (offset >= 0) & (offset // header.page_bytes == faults.page[index])
    )
    return np.where(fits, index, -1)


def _mapped(attempts: NDArray[np.void], trace: Trace) -> NDArray[np.bool_]:
    """Whether each attempt came so far as to map its page: before its thread's next attempt, for the same page."""
    mapped = np.zeros(len(attempts), np.bool_)
    installs = trace.of(INSTALL)
    for tid in np.unique(attempts["tid"]):
        own = np.flatnonzero(attempts["tid"] == tid)
        done = installs[installs["tid"] == tid]
        place = np.searchsorted(attempts["tsc"][own], done["tsc"], side="right") - 1
        owner = own[np.maximum(place, 0)]
        same = (place >= 0) & (done["a"] == attempts["a"][owner] >> np.uint64(PAGE_SHIFT))
        mapped[owner[same]] = True
    return mapped


def _retries(
    fault: Ints, tsc: Ints, mapped: NDArray[np.bool_], faults: Faults, invalidations: Invalidations, header: Header
) -> Retries:
    """Every attempt that another one of the same fault follows; the first three arrays are the attempts', sorted."""
    again = np.flatnonzero(fault[1:] == fault[:-1])
    start, end = tsc[again], tsc[again + 1]
    owner = fault[again]
    pair, met = invalidations.meeting(start, end)
    hva = header.mem_hva + faults.page[owner[pair]] * header.page_bytes
    over = (invalidations.hva[met] <= hva) & (hva < invalidations.behind[met])
    any_one, over_page = np.full(len(again), -1, np.int64), np.full(len(again), -1, np.int64)
    np.maximum.at(any_one, pair, met)
    np.maximum.at(over_page, pair[over], met[over])
    thrown = np.where(over_page >= 0, NEEDED, np.where(any_one >= 0, UNRELATED, OTHER))
    kind = np.where(mapped[again], TAKEN, thrown).astype(np.uint8)
    return Retries(owner, start, end, kind, np.where(over_page >= 0, over_page, any_one))


def _parts(faults: Faults, retries: Retries, off_cpu: dict[int, OffCpu]) -> Ints:
    """The time of each fault by cause, shape (causes, faults), whole cycles."""
    parts = np.zeros((len(CAUSES), len(faults.start)), np.int64)
    spun = retries.end - retries.start
    of_vcpu = faults.vcpu[retries.fault]
    for vcpu, off in off_cpu.items():
        own = faults.vcpu == vcpu
        parts[PREEMPTED, own], parts[BLOCKED, own] = off.within(faults.start[own], faults.end[own])
        mine = of_vcpu == vcpu
        spun[mine] -= sum(off.within(retries.start[mine], retries.end[mine]))
    for kind in IN_VAIN:
        ours = retries.kind == kind
        np.add.at(parts[kind], retries.fault[ours], spun[ours])
    parts[HANDLED] = faults.end - faults.start - parts.sum(axis=0)
    return parts


def _cause(parts: Ints, retries: Retries) -> NDArray[np.uint8]:
    """What happened to each fault; where two kinds of attempts in vain are as many, the first of :data:`IN_VAIN`."""
    count = np.stack([count_by_fault(retries, kind, parts.shape[1]) for kind in IN_VAIN])
    off = np.where(parts[PREEMPTED] >= parts[BLOCKED], PREEMPTED, BLOCKED)
    without = np.where(parts[PREEMPTED] + parts[BLOCKED] > parts[HANDLED], off, HANDLED)
    return np.where(count.any(axis=0), np.array(IN_VAIN)[np.argmax(count, axis=0)], without).astype(np.uint8)


def _exits(trace: Trace, tids: dict[int, int], header: Header) -> int:
    exits = trace.of(EXIT)
    measured = (exits["tsc"] >= header.start_tsc) & (exits["tsc"] <= header.end_tsc)
    return int((measured & np.isin(exits["tid"], list(tids.values()))).sum())
