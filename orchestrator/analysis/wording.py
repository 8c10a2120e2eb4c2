"""The sentences of a report: headlines, why, how sure. Figures come from the comparison, none is computed twice."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.analysis.model import (
    ArmSummary,
    CellComparison,
    CellInfo,
    CellSummary,
    CellVerdict,
    CheckResult,
    CiKind,
    FailedTrial,
    Metric,
    MetricComparison,
    PlotTitles,
    Said,
    Verdict,
)
from orchestrator.experiment import Storm

LABELS: dict[Metric, str] = {
    "mean": "mean", "p50": "p50", "p90": "p90", "p99": "p99", "p99_9": "p99.9", "max": "max",
    "retries_per_fault": "retries", "jitter_p50": "timer p50", "jitter_p99": "timer p99", "jitter_max": "timer max",
    "steal": "steal",
}  # fmt: skip
CALLS = {
    "madvise_dontneed": "madvise(DONTNEED)", "madvise_free": "madvise(FREE)", "madvise_pageout": "madvise(PAGEOUT)",
    "munmap": "munmap+mmap", "mprotect": "mprotect", "mremap": "mremap",
}  # fmt: skip
PLACES = {
    "outside": "outside every memslot", "disjoint": "in a memslot, away from the faults",
    "adjacent": "next to the faulting pages", "overlap": "over the faulting pages",
    "other-process": "in another process",
}  # fmt: skip
CI_NAMES: dict[CiKind, str] = {"interval": "95 % interval", "range": "range over seeds"}
SHOWN_METRICS = 3


def storm_text(storm: Storm | None) -> str:
    """A cell's storm in words."""
    if storm is None:
        return "quiet host"
    mib, left = divmod(storm.size_kib, 1024)
    size = f"{storm.size_kib} KiB" if left or not mib else f"{mib} MiB"
    words = [f"{CALLS[storm.op]} of {size} {PLACES[storm.placement]}"]
    if storm.threads > 1:
        words.append(f"{storm.threads} threads")
    if storm.period_us:
        words.append(f"every {storm.period_us} µs")
    if storm.preempted:
        words.append("preempted")
    if storm.hogs:
        words.append(f"{storm.hogs} hog{'s' if storm.hogs > 1 else ''}")
    return ", ".join(words)


def change(item: MetricComparison) -> str:
    """``p50 +0.4 %``, ``retries -98.1 %``, ``retries 0 -> 0.01``, ``p50 n/a``."""
    label = LABELS[item.metric]
    if item.base_value is None or item.value is None:
        return f"{label} n/a"
    if item.ratio is None:
        return f"{label} 0 → {item.value:.3g}"
    return f"{label} {percent(item.ratio - 1)}"


def percent(fraction: float) -> str:
    """A change as ``+0.4 %``, ``−98.1 %`` or ``±0 %``, with a real minus."""
    if fraction == 0:
        return "±0 %"
    size = abs(fraction) * 100
    if size < 0.05:
        digits = f"{size:.2g}" if size >= 0.01 else "0.00"
    elif fraction > -1 and 99.95 <= size < 100:
        digits = f"{math.floor(size * 100) / 100:.2f}"  # Something is left of it: never rounded to all.
    else:
        digits = f"{size:.1f}" if size < 100 else f"{size:.0f}"
    return f"{'+' if fraction > 0 else '−'}{digits} %"


def cell_verdict(cell: str, arm: str, metrics: Sequence[MetricComparison]) -> CellComparison:
    """One verdict for a cell: of the metrics that decide, any improved or regressed (both: mixed), else all equal."""
    deciding = [item for item in metrics if item.decides]
    kinds = {item.verdict for item in deciding}
    verdict: CellVerdict
    if "improved" in kinds and "regressed" in kinds:
        verdict = "mixed"
    elif "improved" in kinds:
        verdict = "improved"
    elif "regressed" in kinds:
        verdict = "regressed"
    else:
        verdict = "equivalent" if kinds == {"equivalent"} else "inconclusive"
    if not deciding:
        return CellComparison(cell, arm, verdict, metrics[0].reason)
    moved = sorted((item for item in metrics if item.verdict in ("improved", "regressed")), key=_weight, reverse=True)
    worse = [item for item in moved if item.verdict == "regressed"]
    better = [item for item in moved if item.verdict == "improved"]
    # What got worse is never left out in favour of what got better.
    shown = better[: SHOWN_METRICS - min(len(worse), 2)] + worse[:SHOWN_METRICS]
    by_metric = {item.metric: item for item in metrics}
    # A change of the tail alone says little without the middle, and the other way round.
    shown += [by_metric[name] for name in ("p50", "p99_9") if by_metric[name] not in moved]
    retries = by_metric["retries_per_fault"]
    if retries not in moved and (retries.base_value or retries.value):
        shown.insert(0, retries)
    shown += _beside_mean(shown, by_metric["p99_9"])
    text = ", ".join(change(item) for item in shown)
    if verdict == "inconclusive":
        open_ = [item for item in deciding if item.verdict == "inconclusive"]
        text += f": {min({item.reason for item in open_}, key=len)}{_more(open_)}"
    return CellComparison(cell, arm, verdict, text)


def _more(open_: Sequence[MetricComparison]) -> str:
    """How many boots would decide what is open, where noise is known at all."""
    known = [item.boots_needed for item in open_ if item.boots_needed is not None]
    if not known:
        return "" if all(item.p_value is None for item in open_) else "; more boots would hardly decide it"
    some = "" if len(known) == len(open_) else f" {len(known)} of {len(open_)} metrics"
    return f"; about {max(known)} boots would decide{some}"


def _beside_mean(shown: Sequence[MetricComparison], tail: MetricComparison) -> list[MetricComparison]:
    """What a mean needs beside it: one slow fault in a thousand moves it as much as a slower kernel does."""
    names = {item.metric for item in shown}
    return [tail] if "mean" in names and not names & {"p99", "p99_9", "max"} else []


def _weight(item: MetricComparison) -> tuple[bool, float]:
    """Order of mention: retries first (the mechanism), then by size of change."""
    size = math.inf if not item.ratio else abs(math.log(item.ratio))
    return item.metric == "retries_per_fault", size


def headline(
    arm: ArmSummary,
    metrics: Sequence[MetricComparison],
    verdicts: Sequence[CellComparison],
    checks: Sequence[CheckResult],
    failures: Sequence[FailedTrial],
) -> tuple[Said, ...]:
    """One arm in one line: how many cells improved and regressed, the strongest figures, the checks."""
    if arm.build != "ok":
        state = "build failed" if arm.build == "failed" else "not built"
        return (Said(f"{arm.name}: "), Said(f"{state}, nothing measured", section="environment"))
    ours = [item for item in verdicts if item.arm == arm.name]
    parts: list[list[Said]] = []
    for kind in ("improved", "mixed", "regressed"):
        cells = [item.cell for item in ours if item.verdict == kind]
        if cells or (ours and kind != "mixed"):
            figures = _strongest([item for item in metrics if item.arm == arm.name and item.cell in cells], kind)
            parts.append([_of_cells(f"{kind} {_count(len(cells), 'cell')}", cells), *figures])
    for kind in ("equivalent", "inconclusive"):
        cells = [item.cell for item in ours if item.verdict == kind]
        if cells:
            parts.append([_of_cells(f"{kind} {len(cells)}", cells)])
    # A stale mapping is a failed check, and said there.
    bad = [item for item in failures if item.arm == arm.name and item.outcome != "stale"]
    if bad:
        kinds = ", ".join(dict.fromkeys(item.outcome for item in bad))
        parts.append([Said(f"{_count(len(bad), 'trial')} did not end well ({kinds})", section="failures")])
    measured = [*_joined(parts), Said("; ")] if parts else []
    return (Said(f"{arm.name}: "), *measured, *of_checks(checks, arm.name))


def of_checks(checks: Sequence[CheckResult], arm: str) -> tuple[Said, ...]:
    """What the checks came to, as the end of a headline."""
    return Said("checks: "), Said(checks_text(checks, arm), section="checks")


def plain(sentence: Sequence[Said]) -> str:
    """A sentence without its links."""
    return "".join(piece.text for piece in sentence)


def _of_cells(text: str, cells: Sequence[str]) -> Said:
    return Said(text, cell=cells[0]) if len(cells) == 1 else Said(text, section="verdicts")


def _joined(parts: Sequence[Sequence[Said]]) -> list[Said]:
    found = [piece for part in parts for piece in (Said(", "), *part)]
    return found[1:]


def checks_text(checks: Sequence[CheckResult], arm: str) -> str:
    """``all 12 held``, or what failed and what was not covered; the base's own and the run's count for every arm."""
    failed = list(dict.fromkeys(item.name for item in checks if item.status == "failed"))
    ours = [item for item in checks if item.arm in ("", arm)]
    open_ = sum(item.status == "not covered" for item in ours)
    if not checks:
        return "none asked for"
    if failed:
        mine = [name for name in failed if any(item.name == name and item.status == "failed" for item in ours)]
        return f"{', '.join(mine)} FAILED" if mine else f"held here, {', '.join(failed)} FAILED in another arm"
    return f"{_count(open_, 'check')} not covered, the others held" if open_ else f"all {len(ours)} held"


def _strongest(metrics: Sequence[MetricComparison], kind: str) -> list[Said]:
    """The largest change of retries and of the largest other metric that moved this way, in brackets."""
    moved = [item for item in metrics if item.verdict == kind or (kind == "mixed" and item.verdict == "regressed")]
    best: dict[bool, MetricComparison] = {}
    for item in sorted(moved, key=_weight, reverse=True):
        best.setdefault(item.metric == "retries_per_fault", item)
    chosen = [best[key] for key in (True, False) if key in best]
    for item in [item for item in chosen if item.metric == "mean"]:
        here = (other for other in metrics if (other.cell, other.arm) == (item.cell, item.arm))
        chosen += _beside_mean(chosen, next(other for other in here if other.metric == "p99_9"))
    shown = [[Said(change(item), cell=item.cell)] for item in chosen]
    return [Said(" ("), *_joined(shown), Said(")")] if shown else []


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def share(fraction: float) -> str:
    """A share as ``0.1 %`` or ``41 %``."""
    size = fraction * 100
    return f"{size:.0f} %" if size >= 10 or size == 0 else f"{size:.1f} %" if size >= 0.05 else "<0.1 %"


def tenths(part: float, whole: float, *, up: bool = False) -> str:
    """A share to a tenth of a percent, as ``94.9``, never rounded to the other side of a limit.

    That is down for a limit that it must reach, ``up`` for one that it must not pass.
    """
    found = (math.ceil if up else math.floor)(1000 * part / whole)
    return f"{found // 10}.{found % 10}"


def plot_titles(
    metrics: Sequence[MetricComparison],
    summaries: Sequence[CellSummary],
    cells: Sequence[CellInfo],
    arms: Sequence[str],
) -> PlotTitles:
    """What each plot shows, as one line: verdicts counted over cells, the slow faults counted over windows."""
    slow = []
    # A storm in another process is on nobody's way: it would only dilute the count.
    own = {cell.name for cell in cells if cell.control != "other-process"}
    for arm in arms:
        sums = [item.attribution for item in summaries if item.arm == arm and item.cell in own and item.attribution]
        sums = [item for item in sums if item.windows]
        inside = sum(item.slowest_unrelated + item.slowest_needed for item in sums)
        slow.append(f"{arm} {inside} of {sum(item.slowest for item in sums)}")
    return PlotTitles(
        tail=f"Slowest faults: {_tally(metrics, ('max', 'p99_9'), arms)}",
        percentiles=f"Typical faults: {_tally(metrics, ('p50',), arms)}",
        timeline=f"Of the 100 slowest faults a cell, in a storm window: {', '.join(slow)}",
        retries=f"Retries per fault: {_tally(metrics, ('retries_per_fault',), arms)}",
    )


def _tally(metrics: Sequence[MetricComparison], names: Sequence[Metric], arms: Sequence[str]) -> str:
    """``v1: max better in 3 of 7 cells, p99.9 equivalent in all 7 cells``."""
    parts = []
    for arm in arms[1:]:
        said = []
        for name in names:
            counted = _counted([item.verdict for item in metrics if (item.arm, item.metric) == (arm, name)])
            said.append(counted if name == "retries_per_fault" else f"{LABELS[name]} {counted}")
        parts.append(f"{arm} {'; '.join(said)}")
    return "; ".join(parts) or f"{arms[0]} alone"


def _counted(verdicts: Sequence[Verdict]) -> str:
    """``better in 3 of 7 cells, worse in 1`` or ``equivalent in all 7 cells``; an equivalent rest goes unsaid."""
    words: dict[Verdict, str] = {"improved": "better", "regressed": "worse", "inconclusive": "undecided"}
    if not verdicts:
        return "not measured"
    total = _count(len(verdicts), "cell")
    if len(set(verdicts)) == 1:
        word = words.get(verdicts[0], "equivalent")
        return f"{word} in {'all ' if len(verdicts) > 1 else ''}{total}"
    said = [f"{word} in {verdicts.count(kind)}" for kind, word in words.items() if kind in verdicts]
    return ", ".join([f"{said[0]} of {total}", *said[1:]])
