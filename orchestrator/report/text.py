"""report.txt: at most 72 columns of plain ASCII, to paste into a reply on a list."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from orchestrator.analysis.causes import CAUSES, Cause, TraceCost, TracedBoot
from orchestrator.analysis.findings import arm_lines
from orchestrator.analysis.model import CellInfo, Comparison, FailedTrial, StaleCount
from orchestrator.analysis.why import IN_VAIN
from orchestrator.report.style import clean, microseconds, per_fault
from orchestrator.results import Provenance

WIDTH = 72
# Mails on the kernel's lists are read in fonts and tools of every age.
ASCII = str.maketrans({"−": "-", "–": "-", "±": "+/-", "→": "->", "µ": "u", "×": "x", "…": "...", "’": "'"})
TRACE_LINES = 6
CAUSE_HEADS: dict[Cause, str] = {
    "handled": "handled", "unrelated": "spun", "needed": "needed", "other": "other", "taken": "taken",
    "preempted": "no CPU", "blocked": "asleep",
}  # fmt: skip
COLUMNS = ("p50", "p99", "p99_9", "max", "mean")


def render(comparison: Comparison, provenance: Provenance) -> str:
    """The whole text; ends with a newline."""
    parts = (
        _head(comparison),
        _table(comparison),
        _section("Why", comparison.why),
        _traced(comparison),
        _stale(comparison),
        _section("Which check fails which arm", arm_lines(comparison) if comparison.stale else ()),
        _section("The kernel's own KVM selftests", comparison.selftest_notes),
        _checks(comparison),
        _failures(comparison.failures),
        _kernels(comparison),
        _section("How sure", comparison.sure),
        _again(provenance),
    )
    lines = [line for part in parts if part for line in (*part, "")]
    return "\n".join(_fit(line) for line in lines[:-1]) + "\n"


def _head(comparison: Comparison) -> list[str]:
    title = f"{comparison.name}: run {comparison.run}, {comparison.accel}, {comparison.status}"
    done = comparison.done if comparison.done < comparison.planned else 0
    unfinished = [f"{done} of {comparison.planned} trials have run; the rest is missing below."] if done else []
    wrapped = [line for text in (*comparison.headlines, *unfinished) for line in _wrap(text, "", "    ")]
    rule = "=" * WIDTH
    return [rule, *_wrap(title, "", "    "), rule, *wrapped]


def _table(comparison: Comparison) -> list[str]:
    if not comparison.cells:
        return []
    lines = ["Latency of a guest page fault in us, retries per fault", "-" * WIDTH]
    heads = ["p50", "p99", "p99.9", "max", "mean", "retries"]
    for cell in comparison.cells:
        lines += [*_wrap(f"{cell.name}: {_where(cell)}", "", "    ")]
        lines.append(f"  {'':10}" + "".join(f"{head:>10}" for head in heads))
        for arm in comparison.arms:
            lines += _row(comparison, cell.name, arm.name)
        for verdict in comparison.verdicts:
            if verdict.cell == cell.name:
                lines += _wrap(f"{verdict.arm} {verdict.verdict}: {verdict.summary}", "  => ", "     ")
        lines.append("")
    return lines[:-1]


def _where(cell: CellInfo) -> str:
    return cell.storm + ("" if cell.tdp else "; shadow paging")


def _row(comparison: Comparison, cell: str, arm: str) -> list[str]:
    found = comparison.summary(cell, arm)
    if found.latency is None:
        return _wrap(f"{arm:10} {found.outcome}", "  ", "    ")
    values = [microseconds(getattr(found.latency, name)) for name in COLUMNS]
    cells = "".join(f"{value:>10}" for value in (*values, per_fault(found.retries_per_fault)))
    note = [] if found.outcome == "ok" else [f"    ({arm}: {found.boots} good boots, others: {found.outcome})"]
    name = clean(arm).translate(ASCII)
    # A long name gets a line of its own, so that columns stay columns.
    head = [f"  {name:10}{cells}"] if len(name) <= 10 else [f"  {name}", f"  {'':10}{cells}"]
    return head + note


def _traced(comparison: Comparison) -> list[str]:
    """What the time went to, in percent: of all faults, and of the slowest; and retries by kind."""
    if not comparison.traced:
        return []
    slowest = max(len(boot.slowest) for boot in comparison.traced)
    lines = [f"Traced boots: what all faults, and the {slowest} slowest, spent their time on"]
    lines += ["(observed by the host kernel's tracepoints)", "-" * WIDTH]
    lines.append(f"{'% of time':16}" + "".join(f"{CAUSE_HEADS[cause]:>8}" for cause in CAUSES))
    for cell in dict.fromkeys(boot.cell for boot in comparison.traced):
        lines += _wrap(cell, "", "    ")
        lines += [line for boot in comparison.traced if boot.cell == cell for line in _traced_rows(boot)]
    return lines + [line for note in comparison.traced_notes for line in _wrap(note, "  ", "    ")]


def _traced_rows(boot: TracedBoot) -> list[str]:
    if not boot.covered:
        return _wrap(f"{boot.arm}: no fault is covered", "  ", "    ")
    rows = {
        "all": [f"{part * 100:.1f}" for part in boot.of_all],
        "slowest": [f"{part * 100:.1f}" for part in boot.of_slowest],
        "count": [str(item.retries) if item.cause in IN_VAIN else "" for item in boot.shares],
    }
    name = boot.arm if len(boot.arm) <= 6 else ""
    head = [] if name else [f"  {boot.arm}"]
    cost = [] if boot.cost is None else [_traced_cost(boot.cost)]
    lines = [
        f"  {name if nr == 0 else '':6} {label:7}" + "".join(f"{value:>8}" for value in values)
        for nr, (label, values) in enumerate(rows.items())
    ]
    return [*head, *lines, *cost]


def _traced_cost(cost: TraceCost) -> str:
    """The measured boot's figures and the traced one's: what differs is what the tracing does."""
    p50 = " -> ".join(f"{value:,.0f}" for value in cost.p50_ns)
    retries = " -> ".join("n/a" if value is None else f"{value:,}" for value in cost.retries)
    return f"  {'':6} {'tracing':9}p50 {p50} ns, retries {retries}"


def _stale(comparison: Comparison) -> list[str]:
    """Arms side by side: of each case, how many rounds were stale, and how many say anything at all."""
    if not comparison.stale:
        return []
    lines = ["Stale mappings: rounds after which the guest still read a page", "that had been taken away", "-" * WIDTH]
    heads = ("stale", "covered", "blocked", "passed", "rounds")
    lines.append(f"  {'':28}" + "".join(f"{head:>8}" for head in heads))
    for label in dict.fromkeys(item.label for item in comparison.stale):
        lines.append(f"  {label}")
        lines += [_stale_row(item) for item in comparison.stale if item.label == label]
    return lines + [line for note in comparison.stale_notes for line in _wrap(note, "  ", "    ")]


def _stale_row(item: StaleCount) -> str:
    name = f"    {item.arm} " + {"failed": "STALE", "held": "", "not covered": "NOT COVERED"}[item.status]
    values = (item.stale, item.covered, item.blocked, item.passed, item.rounds)
    return f"{name:30}" + "".join(f"{value:>8}" for value in values)


def _checks(comparison: Comparison) -> list[str]:
    if not comparison.checks:
        return []
    lines = ["Checks", "-" * WIDTH]
    for name in dict.fromkeys(item.name for item in comparison.checks):
        ours = [item for item in comparison.checks if item.name == name]
        held = sum(item.status == "held" for item in ours)
        lines.append(f"  {name}: held in {held} of {len(ours)}")
        for item in ours:
            if item.status != "held":
                where = ", ".join(part for part in (item.cell, item.arm) if part)
                lines += _wrap(f"{item.status.upper()} {where}: {item.why}", "    ", "      ")
    return lines


def _failures(failures: Sequence[FailedTrial]) -> list[str]:
    if not failures:
        return []
    lines = ["Trials that did not end well", "-" * WIDTH]
    alike: dict[tuple[str, ...], list[FailedTrial]] = {}
    for item in failures:
        alike.setdefault((item.cell, item.arm, item.outcome, item.reason), []).append(item)
    for item, *others in alike.values():
        more = f" (and so in trials {', '.join(other.trial for other in others)})" if others else ""
        lines += _wrap(f"{item.trial} {item.cell}, {item.arm}: {item.outcome}: {item.reason}{more}", "  ", "    ")
        shown = item.trace or item.console_tail
        lines += [f"    | {line}" for line in shown[:TRACE_LINES]]
        lines += _wrap(f"log: {item.console}", "    ", "      ")
        lines += _command(item.rerun, "    again: ")
    return lines


def _kernels(comparison: Comparison) -> list[str]:
    lines = ["Kernels", "-" * WIDTH]
    for arm in comparison.arms:
        what = ", ".join(arm.patches) or "no patch"
        state = arm.release if arm.build == "ok" else f"build {arm.build}" if arm.build == "failed" else "not built"
        lines += _wrap(f"{arm.name}: {state}; {what}", "  ", "    ")
        if arm.vmlinux_sha256:
            lines.append(f"    vmlinux {arm.vmlinux_sha256[:16]}")
        lines += [f"    | {line}" for line in arm.error.splitlines()]
    return lines


def _again(provenance: Provenance) -> list[str]:
    lines = ["To repeat", "-" * WIDTH, *_command(provenance.command, "  ")]
    for label, value in provenance.rows:
        lines += _wrap(f"{label}: {value}", "  ", "    ")
    return lines


def _section(title: str, texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    return [title, "-" * WIDTH, *(line for text in texts for line in _wrap(text, "  ", "    "))]


def _command(command: str, indent: str) -> list[str]:
    """A command over several lines, each but the last ended by a backslash, so that it can still be pasted."""
    words = clean(command).translate(ASCII)
    lines = textwrap.wrap(
        words, WIDTH - 2, initial_indent=indent, subsequent_indent="      ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return [*(f"{line} \\" for line in lines[:-1]), *lines[-1:]]


def _wrap(text: str, first: str, later: str) -> list[str]:
    # No break between a figure and its percent sign.
    flat = re.sub(r"(?<=\d) %", "%", clean(text.replace("\n", " ")).translate(ASCII))
    return textwrap.wrap(flat, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def _fit(line: str) -> str:
    """The last word on width and alphabet: console lines are cut, anything outside ASCII becomes a question mark."""
    safe = clean(line).expandtabs(8).translate(ASCII).encode("ascii", "replace").decode("ascii").rstrip()
    return safe if len(safe) <= WIDTH else safe[: WIDTH - 3] + "..."
