"""Sentences that the text and the page share: where the run stands, and what it could have seen."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.analysis.model import CellComparison, Comparison, Metric, MetricComparison, Said
from orchestrator.analysis.wording import LABELS, percent

SEEN: tuple[Metric, ...] = ("p50", "p99_9", "max", "retries_per_fault")


def standing(comparison: Comparison) -> tuple[str, ...]:
    """What limits every verdict of this run, most important first; empty for a whole run that decided something."""
    return tuple(piece.text for piece in limits(comparison))


def limits(comparison: Comparison) -> tuple[Said, ...]:
    """The same, each with the section of the page that has its figures."""
    said = []
    moved = dict.fromkeys(item.cell for item in comparison.aa if item.verdict in ("improved", "regressed"))
    if moved:
        text = f"DO NOT TRUST the verdicts of {', '.join(moved)}: there the base differs from itself."
        said.append(Said(text, section="checks"))
    done, planned = comparison.done, comparison.planned
    broken = [arm.name for arm in comparison.arms if arm.build == "failed"]
    if done < planned:
        why = f" ({', '.join(broken)} did not build)" if broken else ""
        text = f"Not whole: {done} of {planned} trials have run{why}; what is missing is missing below."
        said.append(Said(text, section="trials" if comparison.trials else "environment"))
    # A trial that found a stale mapping did its work: what it found is a failed check.
    bad = sum(item.outcome != "stale" for item in comparison.failures)
    if bad and comparison.status == "failed":
        said.append(Said(f"Nothing was measured: none of {done} trials ended well.", section="failures"))
    elif bad:
        said.append(
            Said(f"{bad} of {done} trials did not end well; the figures are of the others.", section="failures")
        )
    verdicts = [item.verdict for item in comparison.verdicts]
    open_ = verdicts.count("inconclusive")
    if verdicts and open_ == len(verdicts):
        text = "Undecided: no cell has a verdict. This run shows neither a change nor that there is none."
        said.append(Said(text, section="verdicts"))
    elif open_:
        text = f"{open_} of {len(verdicts)} verdicts are inconclusive: they say neither changed nor the same."
        said.append(Said(text, section="verdicts"))
    return tuple(said)


def smallest(metrics: Mapping[Metric, MetricComparison]) -> str:
    """The smallest change that would have been called: ``2.0 % in p50, 5.0 % in max and retries``, or just ``2.0 %``.

    Of the metrics that decide; ``none`` is said of one of which no change could have been called. Empty if nothing was
    compared. Retries are left out where the base has none: their share of nothing is no share.
    """
    sizes: dict[str, list[str]] = {}
    for name in SEEN:
        item = metrics.get(name)
        if item is None or item.value is None or not item.decides or item.base_value == 0:
            continue
        sizes.setdefault(size(item), []).append(LABELS[name])
    if len(sizes) == 1:
        return next(iter(sizes))
    return ", ".join(f"{text} in {_joined(names)}" for text, names in sizes.items())


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def size(item: MetricComparison) -> str:
    """The smallest change that one metric could have been called for."""
    if item.smallest_effect is None:
        return "none"
    if item.metric == "retries_per_fault" and not item.base_value:
        return f"{item.smallest_effect:.2g} a fault"
    return percent(item.smallest_effect)[1:]


def parts(verdict: CellComparison) -> tuple[tuple[str, ...], str]:
    """A verdict's sentence as its figures and its reason: ``("p50 +0.4 %", "max −3 %"), "one pair"``."""
    figures, _, reason = verdict.summary.partition(": ")
    if not any(mark in figures for mark in (" %", " → ", " n/a")):
        return (), verdict.summary
    return tuple(figures.split(", ")), reason
