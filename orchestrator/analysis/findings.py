"""What the checks found in each arm, in a line each: which check and case fails it, and where it waits without need.

Of mutants this is the table "which check kills which mutant".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis.correctness import CheckStatus, StaleCount
from orchestrator.analysis.model import CheckResult, Comparison

# The case in which a range-aware kernel lets the fault pass and one that is not makes it wait: never a failure.
FAR = "far"
_SAID = re.compile(r"Bad page state|Bad rss-counter|KASAN|WARNING|suspicious|BUG: (?!Bad)[\w -]+")
PAGING = {True: "TDP", False: "shadow paging"}


@dataclass(frozen=True)
class CaseFinding:
    """One case of the stale-mapping check under one kind of paging, over operations and guest page sizes.

    ``sizes`` are the guest page sizes and operations in which it failed, if these are not all; else empty.
    """

    arm: str
    case: str
    tdp: bool
    stale: int
    covered: int
    blocked: int
    status: CheckStatus
    sizes: tuple[str, ...]


def case_findings(comparison: Comparison, arm: str) -> tuple[CaseFinding, ...]:
    """An arm's cases in the order of the run, TDP first."""
    ours = [item for item in comparison.stale if item.arm == arm]
    return tuple(
        _merged([item for item in ours if (item.case, item.tdp) == (case, tdp)])
        for case in dict.fromkeys(item.case for item in ours)
        for tdp in (True, False)
        if any((item.case, item.tdp) == (case, tdp) for item in ours)
    )


def _merged(counts: Sequence[StaleCount]) -> CaseFinding:
    failed = [item for item in counts if item.status == "failed"]
    missed = any(item.status == "not covered" for item in counts)
    first = counts[0]
    return CaseFinding(
        first.arm,
        first.case,
        first.tdp,
        sum(item.stale for item in counts),
        sum(item.covered for item in counts),
        sum(item.blocked for item in counts),
        "failed" if failed else "not covered" if missed else "held",
        tuple(f"{item.page} by {item.op}" for item in failed) if len(failed) < len(counts) else (),
    )


def failing(comparison: Comparison, arm: str) -> tuple[str, ...]:
    """The checks that fail on an arm, each with its cases; empty if none does."""
    ours = case_findings(comparison, arm)
    cases = [_case_text([item for item in ours if item.case == case]) for case in dict.fromkeys(i.case for i in ours)]
    labels = {item.label for item in comparison.stale if item.arm == arm}
    failed = [item for item in comparison.checks if item.arm == arm and item.status == "failed"]
    others = [_check_text(item) for item in failed if item.cell not in labels]
    trials = [f"{item.outcome} in {item.cell}" for item in comparison.failures if item.arm == arm]
    ended = [text for text in dict.fromkeys(trials) if not text.startswith("stale ")]
    return tuple(text for text in dict.fromkeys([*cases, *others, *ended]) if text)


def _case_text(findings: Sequence[CaseFinding]) -> str:
    """``end-edge 60 of 60``, with what it is restricted to, or empty where the case does not fail."""
    failed = [item for item in findings if item.status == "failed"]
    if not failed:
        return ""
    text = f"{failed[0].case} {sum(item.stale for item in failed)} of {sum(item.covered for item in failed)}"
    limits = [PAGING[failed[0].tdp]] if len(failed) < len(findings) else []
    limits += dict.fromkeys(size for item in failed for size in item.sizes)
    return f"{text} ({', '.join(limits)} only)" if limits else text


def _check_text(item: CheckResult) -> str:
    """Of a stale-mapping boot, what the kernel itself said; its cases have lines of their own."""
    if item.name == "stale_mapping":
        return f"kernel log: {', '.join(dict.fromkeys(_SAID.findall(item.why)))}"
    return f"{item.name}{f' in {item.cell}' if item.cell else ''}"


def arm_lines(comparison: Comparison) -> tuple[str, ...]:
    """A line for each arm: the checks that it fails, or that it fails none, and where *far* makes it wait."""
    lines = []
    for arm in comparison.arms:
        if arm.build == "failed":
            lines.append(f"{arm.name}: does not compile")
            continue
        found = failing(comparison, arm.name)
        far = [item for item in case_findings(comparison, arm.name) if item.case == FAR and item.blocked]
        waits = f"; far waits ({' and '.join(PAGING[item.tdp] for item in far)})" if far else ""
        lines.append(f"{arm.name}: {'; '.join(found) if found else 'no check fails'}{waits}")
    return tuple(lines)
