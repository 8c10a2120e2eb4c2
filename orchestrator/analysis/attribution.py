"""Why a fault was slow: which of the storm's system calls it overlapped, and whether they were over its page.

Both are on the host's clock (the reader takes the vCPU's TSC offset off), so overlap is a comparison of numbers. A
window is the whole system call as its thread saw it, time off the CPU included; KVM's own interval between
invalidate_range_start() and _end() lies inside it. Overlap is therefore necessary for a retry, not sufficient: the
share of time that windows cover is reported beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.model import Attribution
from orchestrator.recording import Recording

SLOWEST = 100

NONE, UNRELATED, NEEDED = 0, 1, 2
KINDS = ("none", "unrelated", "needed")


@dataclass(frozen=True)
class Attributed:
    """One boot's sums, and its slowest faults for merging with those of other boots.

    ``kind`` has shape (faults,), values :data:`NONE`, :data:`UNRELATED`, :data:`NEEDED`; ``slowest_ns`` and
    ``slowest_kind`` have shape (min(100, faults),), slowest first.
    """

    sums: Attribution
    kind: NDArray[np.uint8]
    slowest_ns: NDArray[np.float64]
    slowest_kind: NDArray[np.uint8]


def overlapping(
    start: NDArray[np.uint64], end: NDArray[np.uint64], window_start: NDArray[np.uint64], window_end: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """How many windows overlap each interval [start, end], shape (faults,).

    Those that began before the interval's end, less those that were over by its start: exact for windows that
    overlap one another as well (several threads), in O((faults + windows) log windows).
    """
    begun = np.searchsorted(np.sort(window_start), end, side="left")
    over = np.searchsorted(np.sort(window_end), start, side="right")
    return (begun - over).astype(np.int64)


def classify(recording: Recording, placement: str) -> NDArray[np.uint8]:
    """Each fault's kind, shape (faults,): :data:`NONE`, :data:`UNRELATED` or :data:`NEEDED`.

    ``placement`` is the storm's. One of ``other-process`` is never over a page: its addresses are of another mm, and
    after fork() they may well be the same numbers.

    A window is over a fault's page if its range shares a byte with [page, page + page_bytes) in the VMM's address
    space, which is how mmu_notifier_retry_hva() sees it. Ranges that do not touch guest memory are never looked at
    page by page, so the loop below runs once for each distinct range of an overlap or adjacent storm.
    """
    header, windows = recording.header, recording.windows
    start = recording.start_tsc
    end = start + recording.latency_cycles
    busy = overlapping(start, end, windows["start_tsc"], windows["end_tsc"]) > 0
    kind = np.where(busy, UNRELATED, NONE).astype(np.uint8)
    if placement == "other-process":
        return kind
    touching = windows[
        (windows["hva"] < header.mem_hva + header.mem_bytes) & (windows["hva"] + windows["bytes"] > header.mem_hva)
    ]
    page_hva = np.uint64(header.mem_hva) + recording.page.astype(np.uint64) * np.uint64(header.page_bytes)
    for hva, size in np.unique(touching[["hva", "bytes"]]):
        same = touching[(touching["hva"] == hva) & (touching["bytes"] == size)]
        inside = np.flatnonzero(busy & (page_hva < hva + size) & (page_hva + np.uint64(header.page_bytes) > hva))
        hit = overlapping(start[inside], end[inside], same["start_tsc"], same["end_tsc"]) > 0
        kind[inside[hit]] = NEEDED
    return kind


def attribute(recording: Recording, placement: str) -> Attributed:
    """Sort one boot's faults by :func:`classify` and add up."""
    kind = classify(recording, placement)
    latency_ns = recording.latency_ns()
    top = min(SLOWEST, len(latency_ns))
    # argpartition, not a sort: 100 of 100 million.
    slow = np.argpartition(latency_ns, len(latency_ns) - top)[len(latency_ns) - top :] if top else np.empty(0, np.intp)
    slow = slow[np.lexsort((slow, -latency_ns[slow]))]
    sums = Attribution(
        faults=len(kind),
        unrelated=int((kind == UNRELATED).sum()),
        needed=int((kind == NEEDED).sum()),
        total_ns=float(latency_ns.sum()),
        unrelated_ns=float(latency_ns[kind == UNRELATED].sum()),
        needed_ns=float(latency_ns[kind == NEEDED].sum()),
        slowest=top,
        slowest_unrelated=int((kind[slow] == UNRELATED).sum()),
        slowest_needed=int((kind[slow] == NEEDED).sum()),
        windows=len(recording.windows),
        window_share=_window_share(recording),
    )
    return Attributed(sums, kind, latency_ns[slow], kind[slow])


def merge(boots: list[Attributed]) -> Attribution:
    """The sums over several boots; the slowest faults are those of all boots together."""
    latency = np.concatenate([boot.slowest_ns for boot in boots])
    kind = np.concatenate([boot.slowest_kind for boot in boots])
    kind = kind[np.argsort(-latency, kind="stable")][:SLOWEST]
    sums = [boot.sums for boot in boots]
    return Attribution(
        faults=sum(item.faults for item in sums),
        unrelated=sum(item.unrelated for item in sums),
        needed=sum(item.needed for item in sums),
        total_ns=sum(item.total_ns for item in sums),
        unrelated_ns=sum(item.unrelated_ns for item in sums),
        needed_ns=sum(item.needed_ns for item in sums),
        slowest=len(kind),
        slowest_unrelated=int((kind == UNRELATED).sum()),
        slowest_needed=int((kind == NEEDED).sum()),
        windows=sum(item.windows for item in sums),
        window_share=sum(item.window_share for item in sums) / len(sums),
    )


def merged_windows(recording: Recording) -> NDArray[np.float64]:
    """The storm's windows with overlapping ones joined, clipped to the measured time: shape (n, 2), ns since start."""
    windows = np.sort(recording.windows, order="start_tsc")
    if len(windows) == 0:
        return np.empty((0, 2))
    start = recording.since_start_ns(windows["start_tsc"])
    reach = np.maximum.accumulate(recording.since_start_ns(windows["end_tsc"]))
    first = np.flatnonzero(np.concatenate(([True], start[1:] > reach[:-1])))
    last = np.concatenate((first[1:] - 1, [len(start) - 1]))
    length = (recording.header.end_tsc - recording.header.start_tsc) * 1e9 / recording.header.tsc_hz
    joined = np.clip(np.column_stack((start[first], reach[last])), 0.0, max(length, 0.0))
    kept: NDArray[np.float64] = joined[joined[:, 1] > joined[:, 0]]
    return kept


def _window_share(recording: Recording) -> float:
    header = recording.header
    length = (header.end_tsc - header.start_tsc) * 1e9 / header.tsc_hz
    joined = merged_windows(recording)
    return float((joined[:, 1] - joined[:, 0]).sum() / length) if length > 0 else 0.0
