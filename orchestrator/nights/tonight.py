"""One run against the nights before it: against one run where time is exact, against all of them where it is noisy.

Under icount every difference is the kernel's. A run is held against the last good one, so that a change is seen in the
night that it comes, and against an anchor, so that a creep is seen that stays within the margin from night to night.

Elsewhere two nights differ without any change, and by how much only many nights can tell: the run is held against all
good nights of this machine since the last change of level (:mod:`orchestrator.analysis.levels`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from orchestrator.analysis import levels
from orchestrator.analysis.levels import MIN_NIGHTS, PATIENCE, Call, Series
from orchestrator.analysis.model import METRICS, Metric
from orchestrator.analysis.wording import LABELS, percent
from orchestrator.nights import catalogue, compare
from orchestrator.nights.catalogue import Run
from orchestrator.nights.history import difference, value_of
from orchestrator.nights.sameness import examine

Key = tuple[str, str, Metric]


@dataclass(frozen=True)
class Judged:
    """What a run came to against those before it.

    ``reference`` is the last good run; ``anchor`` the one that a creep is measured from, empty where time is noisy;
    there ``nights`` counts the good nights that stand behind the verdict. ``no_reference`` says why there is none.
    ``worse`` and ``better`` are changes, a line for each cell and arm; ``sees`` what it takes to be one.
    """

    reference: str = ""
    anchor: str = ""
    nights: int = 0
    no_reference: str = ""
    worse: tuple[str, ...] = ()
    better: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sees: str = ""


def judge(ran: Run, results: Path) -> Judged:
    """Hold a run against the good ones before it that are like it. A worse one is marked, if time is exact."""
    before = [item for item in catalogue.find(results, ran.comparison.name).runs if _order(item) < _order(ran)]
    good = [item for item in before if catalogue.is_good(item)]
    unlike = [(item, why) for item in good if (why := _unlike(item, ran))]
    others = {item.name for item, _ in unlike}
    alike = [item for item in good if item.name not in others]
    if alike:
        return _exact(ran, alike) if catalogue.is_exact(ran) else _noisy(ran, alike)
    if unlike:
        last, why = unlike[-1]
        return Judged(no_reference=f"the last good run, {last.name}, is not like it: {why}")
    return Judged(no_reference="no run before it was good" if before else "it is the first")


def _order(item: Run) -> tuple[str, str]:
    return item.manifest.started, item.name


def _unlike(run: Run, ran: Run) -> str:
    nodes = run.manifest.host.node, ran.manifest.host.node
    if not catalogue.is_exact(ran) and ran.manifest.accel != "ssh" and nodes[0] != nodes[1]:
        return f"host: {nodes[0]} | {nodes[1]}"
    return difference(run, ran)


def _notes(last: Run, ran: Run) -> tuple[str, ...]:
    """In what the run differs from the last good one and may."""
    sameness = examine(last, ran)
    return (*(item.render() for item in sameness.compared), *sameness.notes, *compare.only(last, ran))


# --- where time is exact ----------------------------------------------------------------------------------------------


def _exact(ran: Run, alike: Sequence[Run]) -> Judged:
    last = alike[-1]
    anchor = next((item for item in reversed(alike) if catalogue.is_accepted(item)), alike[0])
    found = compare.versus(last, ran)
    worse = found.worse
    if anchor is not last:
        known = {(item.cell, item.arm, item.metric) for item in found.metrics if item.verdict == "regressed"}
        crept = compare.versus(anchor, ran)
        fresh = tuple(item for item in crept.metrics if (item.cell, item.arm, item.metric) not in known)
        lines = replace(crept, metrics=fresh, failed=()).worse
        worse = (*worse, *(f"{line} since the anchor, {anchor.name}" for line in lines))
    if worse:
        catalogue.mark_worse(ran, last if found.worse else anchor, worse)
    return Judged(last.name, anchor.name, worse=worse, better=found.better, notes=_notes(last, ran))


# --- where it is noisy ------------------------------------------------------------------------------------------------


def _noisy(ran: Run, alike: Sequence[Run]) -> Judged:
    last = alike[-1]
    checks = tuple(f"check {compare.where(item)} failed: {item.why}" for item in compare.turned(last, ran))
    judged = Judged(last.name, worse=checks, notes=_notes(last, ran))
    runs, keys = (*alike, ran), _keys(ran)
    if not keys:
        return judged
    series = _series(runs, keys)
    call = levels.replay(series, [catalogue.is_accepted(item) for item in runs])[-1]
    if not (call.nights > 0).any():
        why = f"{_unknown(_fewest(series, range(len(keys))))} on this machine"
        return replace(judged, reference="", no_reference=why)
    return replace(
        judged,
        nights=int(call.nights.max()),
        worse=(*_moved(runs, keys, call, 1), *checks),
        better=tuple(_moved(runs, keys, call, -1)),
        notes=(*judged.notes, *_open(runs, keys, call), *_new(series, keys, call)),
        sees=_sees(keys, levels.least(series, call)),
    )


def _keys(ran: Run) -> tuple[Key, ...]:
    """What is judged: every metric of every cell and arm, but for the slowest fault of a single boot."""
    return tuple(
        (item.cell, item.arm, metric)
        for item in ran.comparison.summaries
        if item.latency is not None
        for metric in METRICS
        if metric != "max" or item.boots > 1
    )


def _series(runs: Sequence[Run], keys: Sequence[Key]) -> Series:
    values = np.array([[_scaled(value_of(run, *key), key) for key in keys] for run in runs])
    relative = np.array([metric != "retries_per_fault" for _, _, metric in keys])
    return Series(values, relative, runs[-1].experiment.report.margin)


def _scaled(value: float | None, key: Key) -> float:
    """Times as logarithms; nan for what is not known, or has none."""
    if value is None:
        return math.nan
    if key[2] == "retries_per_fault":
        return value
    return math.log(value) if value > 0 else math.nan


def _moved(runs: Sequence[Run], keys: Sequence[Key], call: Call, sign: int) -> Iterator[str]:
    """A line for each cell, arm and beginning: ``quiet, v1: p50 +10.1 %, p90 +9.8 %, over 3 nights since RUN``."""
    hits = [index for index in range(len(keys)) if call.called[index] == sign]
    for group in dict.fromkeys((*keys[index][:2], int(call.since[index])) for index in hits):
        cell, arm, since = group
        ours = [index for index in hits if (*keys[index][:2], int(call.since[index])) == group]
        nights = len(runs) - since
        over = f", over {nights} nights since {runs[since].name}" if nights > 1 else ""
        yield f"{cell}, {arm}: {', '.join(_size(keys[index], call, index) for index in ours)}{over}"


def _size(key: Key, call: Call, index: int) -> str:
    label, shift, level = LABELS[key[2]], float(call.shift[index]), float(call.level[index])
    if key[2] != "retries_per_fault":
        return f"{label} {percent(math.expm1(shift))}"
    return f"{label} {percent(shift / level)}" if level else f"{label} 0 → {shift:.3g}"


def _open(runs: Sequence[Run], keys: Sequence[Key], call: Call) -> Iterator[str]:
    """Shifts that stand and are not seen tonight: their nights are not in the reference."""
    waiting = [index for index in range(len(keys)) if call.since[index] >= 0 and not call.called[index]]
    for cell, arm, since in dict.fromkeys((*keys[index][:2], int(call.since[index])) for index in waiting):
        yield (
            f"{cell}, {arm}: there was a change since {runs[since].name} that this night does not show;"
            f" after {PATIENCE} such nights it counts as the machine's"
        )


def _new(series: Series, keys: Sequence[Key], call: Call) -> Iterator[str]:
    """Cells and arms that too few of the nights have."""
    places: dict[tuple[str, str], list[int]] = {}
    for index, (cell, arm, _) in enumerate(keys):
        places.setdefault((cell, arm), []).append(index)
    for (cell, arm), indices in places.items():
        if not (call.nights[indices] > 0).any():
            yield f"{cell}, {arm}: {_unknown(_fewest(series, indices))}"


def _fewest(series: Series, indices: Sequence[int]) -> int:
    """How many nights before this one have any value of these series."""
    return int((~np.isnan(series.values[:-1, list(indices)])).sum(axis=0).max())


def _unknown(nights: int) -> str:
    return f"noise between nights not known yet: {nights} of {MIN_NIGHTS} nights"


def _sees(keys: Sequence[Key], least: levels.Floats) -> str:
    found = [(math.expm1(size), *key[:2]) for key, size in zip(keys, least, strict=True)
             if key[2] == "p50" and not math.isnan(size)]  # fmt: skip
    if not found:
        return ""
    low, high = min(found), max(found)
    ends = f"{percent(low[0])} ({low[1]}, {low[2]})"
    if len(found) > 1:
        ends += f" to {percent(high[0])} ({high[1]}, {high[2]})"
    return f"of one night alone a p50 is called worse from {ends}; a smaller change takes more nights"
