"""The sentences that say why faults are slow. Of a measured boot this is inferred, from what overlapped in time; of a
traced one it was observed. Each sentence says which."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.analysis.causes import Cause, TracedBoot
from orchestrator.analysis.model import Attribution, CellInfo, CellSummary
from orchestrator.analysis.wording import percent, share, tenths

# What happened to a fault.
HAPPENED: dict[Cause, str] = {
    "unrelated": "spun on an unrelated invalidation",
    "needed": "spun on one over their page",
    "other": "were retried without one",
    "taken": "lost their mapping before its first use",
    "preempted": "lost the CPU",
    "blocked": "slept",
    "handled": "did none of this",
}
RETRIED: tuple[Cause, ...] = ("unrelated", "needed", "other")
IN_VAIN: tuple[Cause, ...] = (*RETRIED, "taken")


def lines(
    cells: Sequence[CellInfo], arms: Sequence[str], summaries: Sequence[CellSummary], traced: Sequence[TracedBoot]
) -> tuple[str, ...]:
    """For each cell with a storm what the slowest faults of each arm had in common, by time and by trace."""
    found = {(item.cell, item.arm): item.attribution for item in summaries}
    said = []
    for cell in cells:
        parts: list[str] = []
        for arm in arms:
            sums = found.get((cell.name, arm))
            if sums is not None and sums.windows and cell.control != "other-process":
                parts.append(_overlap(arm, sums, first=not parts))
        if parts:
            said.append(f"{cell.name}: {'; '.join(parts)}.")
        boots = [boot for boot in traced if boot.cell == cell.name and boot.covered]
        if any(boot.retries or boot.slowest[0].cause != "handled" for boot in boots):
            said.append(f"{cell.name}, observed in traced boots: {'; '.join(map(_observed, boots))}.")
    return tuple(said)


def _overlap(arm: str, sums: Attribution, first: bool) -> str:
    time = share((sums.unrelated_ns + sums.needed_ns) / sums.total_ns)
    windows = share(sums.window_share)
    several = f", {sums.several} faults overlap more than one" if sums.several else ""
    if not first:
        return f"{arm}: {sums.slowest_unrelated} and {sums.slowest_needed}, {time}, {windows}{several}"
    return (
        f"of the {sums.slowest} slowest faults in {arm}, {sums.slowest_unrelated} overlap an invalidation in progress"
        f" that is unrelated to their page, {sums.slowest_needed} one over it; faults that overlap one took {time} of"
        f" all time in faults, and windows cover {windows} of the run{several}"
    )


def _observed(boot: TracedBoot) -> str:
    """One boot: its slowest faults by what happened to them, and the time that retries and the scheduler took."""
    shares = sorted((item for item in boot.shares if item.slowest), key=lambda item: item.cause == "handled")
    tail = [f"{item.slowest} {HAPPENED[item.cause]}{_times(item.slowest_retries)}" for item in shares]
    spun = sum(boot.share(cause).time_ns for cause in IN_VAIN)
    off = boot.share("preempted").time_ns + boot.share("blocked").time_ns
    whole = "" if boot.covered == boot.faults else f" (of the {boot.covered} that its trace covers)"
    return (
        f"of the {len(boot.slowest)} slowest faults in {boot.arm}{whole}, {', '.join(tail)}; of all time in faults,"
        f" attempts in vain took {share(spun / boot.total_ns)} and other threads {share(off / boot.total_ns)}"
    )


def _times(retries: int) -> str:
    return "" if not retries else f" ({'once' if retries == 1 else f'{retries:,} times'})"


def traced_notes(boots: Sequence[TracedBoot], accel: str) -> tuple[str, ...]:
    """What is missing of the traced boots, whether their sums agree, and what the tracing itself cost.

    ``accel`` is what the trials ran on: only under icount is the difference of two boots the tracing's alone.
    """
    arms = tuple(dict.fromkeys(boot.arm for boot in boots))
    whole = {arm: [boot for boot in boots if boot.arm == arm and boot.whole] for arm in arms}
    sums = [_sums(arm, whole[arm]) for arm in arms]
    storm = [_storm(arm, whole[arm]) for arm in arms]
    return tuple(note for note in (*map(_missing, boots), *sums, *storm, _cost(boots, accel)) if note)


def _missing(boot: TracedBoot) -> str:
    if boot.whole:
        return ""
    return (
        f"{boot.cell}, {boot.arm}: the trace is INCOMPLETE: {'; '.join(lacks(boot))};"
        f" what is said of this boot is of the first {boot.covered:,} of {boot.faults:,} faults."
    )


def lacks(boot: TracedBoot) -> tuple[str, ...]:
    """What is missing of a boot's trace; empty if it is whole."""
    said = (
        (boot.lost, "event{s} did not fit its buffers"),
        (boot.missed or 0, "time{s} a probe missed an invalidation, nobody knows when"),
        (boot.unended, "invalidation{s} without an end, though the thread went on"),
        (boot.unbegun, "end{s} of an invalidation without its beginning"),
    )
    return tuple(f"{count:,} {what.format(s='' if count == 1 else 's')}" for count, what in said if count)


def _sums(arm: str, boots: Sequence[TracedBoot]) -> str:
    """An arm's retries over all its whole traces, by trace and by counter."""
    counted = [boot.counted for boot in boots if boot.counted is not None]
    if len(counted) < len(boots) or not boots:
        return ""
    spurious, inside = sum(boot.spurious for boot in boots), sum(boot.in_window for boot in boots)
    where = f", {tenths(inside, spurious)} % of them during a recorded call of the storm" if spurious else ""
    needed, other, taken = (sum(getattr(boot, kind) for boot in boots) for kind in ("needed", "other", "taken"))
    return (
        f"{arm}: {sum(boot.retries for boot in boots):,} retries by trace, {sum(counted):,} by KVM's own counters;"
        f" {spurious:,} spurious{where}; {needed:,} needed, {other:,} without an invalidation. Not retries: {taken:,}"
        " mappings that were taken away before the guest had used them."
    )


def _storm(arm: str, boots: Sequence[TracedBoot]) -> str:
    """Whose memory an arm's storms took away, over all its whole traces: KVM's notifier runs for the VMM's mm only."""
    parts = []
    for elsewhere, who in ((False, "in the VMM"), (True, "in another process")):
        ours = [boot for boot in boots if boot.storm_calls and (boot.placement == "other-process") == elsewhere]
        calls, met = sum(boot.storm_calls for boot in ours), sum(boot.storm_met for boot in ours)
        if ours:
            parts.append(f"{met:,} of {calls:,} calls of the storm {who}")
    events = sum(boot.storm_invalidations for boot in boots)
    return f"{arm}: {' and '.join(parts)} invalidated the VMM's memory ({events:,} events of its mm)." if parts else ""


def _cost(boots: Sequence[TracedBoot], accel: str) -> str:
    """The tracing's own cost: the typical fault beside that of the measured boot with the same kernel and seed."""
    slower = [boot.cost.p50_ns[1] / boot.cost.p50_ns[0] - 1 for boot in boots if boot.cost is not None]
    if not slower:
        return "There is no measured boot to tell the cost of the tracing from." if boots else ""
    least, most = percent(min(slower)), percent(max(slower))
    noise = "" if accel == "icount" else ", the noise of two single boots included"
    return (
        f"Tracing itself changes the p50 of a fault by {least}{'' if least == most else f' to {most}'}, against the"
        f" measured boot with the same kernel and seed{noise}. So a traced boot tells causes; its times decide nothing."
    )
