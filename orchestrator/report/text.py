"""report.txt: at most 72 columns of plain ASCII, to paste into a reply on a list. What takes too many lines for a mail
is counted here and told in full in report.html."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from orchestrator.analysis.causes import CAUSES, TracedBoot
from orchestrator.analysis.findings import arm_lines
from orchestrator.analysis.model import CellComparison, CheckResult, Comparison, FailedTrial
from orchestrator.analysis.why import IN_VAIN
from orchestrator.analysis.wording import change
from orchestrator.report.causes import HEADS as HEADS_OF_CAUSES
from orchestrator.report.causes import cost_of
from orchestrator.report.guestside import guest_figures
from orchestrator.report.said import parts, smallest, standing
from orchestrator.report.style import clean, microseconds, per_fault
from orchestrator.report.verdicts import where
from orchestrator.results import Provenance

WIDTH = 72
# Mails on the kernel's lists are read in fonts and tools of every age.
ASCII = str.maketrans({"−": "-", "–": "-", "±": "+/-", "→": "->", "µ": "u", "×": "x", "…": "...", "’": "'"})
TRACE_LINES = 6
COLUMNS = ("p50", "p99", "p99_9", "max", "mean")
# A value has a blank before it, however long it is.
HEADS = (("p50", 7), ("p99", 7), ("p99.9", 7), ("max", 9), ("mean", 8), ("retries", 9))
GUEST_HEADS = (("p50", 7), ("p99", 7), ("max", 7), ("wakeups", 7), ("missed", 6), ("steal", 7), ("minor", 6))
NAME = 16
# With more arms than this beside the base, a verdict is said once for all that share it, with its strongest figures.
ARMS_IN_FULL, STRONGEST = 2, 2


def render(comparison: Comparison, provenance: Provenance) -> str:
    """The whole text; ends with a newline."""
    sections = (
        _head(comparison),
        _table(comparison),
        _guest_side(comparison),
        _section("Why", comparison.why),
        _traced(comparison),
        _stale(comparison),
        _section("The kernel's own KVM selftests", comparison.selftest_notes),
        _checks(comparison),
        _failures(comparison.failures),
        _kernels(comparison),
        _section("How sure", comparison.sure),
        _again(provenance),
    )
    lines = [line for part in sections if part for line in (*part, "")]
    return "\n".join(fit(line) for line in lines[:-1]) + "\n"


def _head(comparison: Comparison) -> list[str]:
    title = f"{comparison.name}: run {comparison.run}, {comparison.accel}, {comparison.status}"
    said = (*standing(comparison), *comparison.headlines)
    rule = "=" * WIDTH
    return [rule, *wrap(title, "", "    "), rule, *(line for text in said for line in wrap(text, "", "    "))]


def _table(comparison: Comparison) -> list[str]:
    if not comparison.cells:
        return []
    lines = ["Latency of a guest page fault in us; retries per fault"]
    lines += ["(sees: the smallest change that would have been called)"] if comparison.verdicts else []
    lines.append("-" * WIDTH)
    lines.append(f"  {'':{NAME}}" + "".join(f" {head:>{width}}" for head, width in HEADS))
    for cell in comparison.cells:
        lines += [*wrap(f"{cell.name}: {where(cell)}", "", "    ")]
        for arm in comparison.arms:
            lines += _row(comparison, cell.name, arm.name)
        lines += _verdicts(comparison, cell.name)
    return lines


def _row(comparison: Comparison, cell: str, arm: str) -> list[str]:
    found = comparison.summary(cell, arm)
    if found.latency is None:
        return wrap(f"{arm:{NAME}} {found.outcome}", "  ", "    ")
    values = [microseconds(getattr(found.latency, name)) for name in COLUMNS]
    values.append(per_fault(found.retries_per_fault))
    cells = "".join(f" {value:>{width}}" for value, (_, width) in zip(values, HEADS, strict=True))
    note = [] if found.outcome == "ok" else wrap(f"({found.boots} good boots, others: {found.outcome})", "    ", "    ")
    name = clean(arm).translate(ASCII)
    # A long name gets a line of its own, so that columns stay columns.
    head = [f"  {name:{NAME}}{cells}"] if len(name) <= NAME else [f"  {name}", f"  {'':{NAME}}{cells}"]
    return head + note


def _verdicts(comparison: Comparison, cell: str) -> list[str]:
    ours = [item for item in comparison.verdicts if item.cell == cell]
    if len(ours) <= ARMS_IN_FULL:
        said = [f"{item.arm} {item.verdict}: {item.summary}{_sees(comparison, item)}" for item in ours]
        return [line for text in said for line in wrap(text, "  => ", "     ")]
    groups: dict[tuple[str, str], list[CellComparison]] = {}
    for item in ours:
        groups.setdefault((item.verdict, _sees(comparison, item)), []).append(item)
    lines = []
    for (verdict, sees), group in groups.items():
        arms = ", ".join(f"{item.arm}{_figures(item)}" for item in group)
        lines += wrap(f"{verdict}: {arms}{sees}", "  => ", "     ")
    return lines


def _figures(item: CellComparison) -> str:
    figures, reason = parts(item)
    if item.verdict == "equivalent":
        return ""
    shown = figures[:STRONGEST] if not reason else (*figures[:STRONGEST], reason)
    return f" ({', '.join(shown)})" if shown else ""


def _sees(comparison: Comparison, item: CellComparison) -> str:
    seen = smallest(comparison.metrics(item.cell, item.arm))
    return f"; sees {seen}" if seen else ""


def _guest_side(comparison: Comparison) -> list[str]:
    """What Linux guests see besides the fault: each arm's lateness and steal time, and how it moved."""
    if not any(item.symptoms for item in comparison.summaries):
        return []
    lines = [
        "In the Linux guests: how late the timer woke, in us, storm still on, and",
        "the periods that it missed while it was late; steal time (ms) and the",
        "guest's own minor faults of the measured rounds",
    ]
    lines += ["-" * WIDTH, f"  {'':{NAME}}" + "".join(f" {head:>{width}}" for head, width in GUEST_HEADS)]
    for cell in comparison.cells:
        rows = [item for item in comparison.summaries if item.cell == cell.name and item.symptoms is not None]
        lines += wrap(cell.name, "", "    ") if rows else []
        for item in rows:
            values = guest_figures(item)[: len(GUEST_HEADS)]
            cells = "".join(f" {value:>{width}}" for value, (_, width) in zip(values, GUEST_HEADS, strict=True))
            lines.append(f"  {clean(item.arm).translate(ASCII):{NAME}}{cells}")
        for arm in comparison.arms[1:]:
            moved = [item for item in comparison.symptoms if (item.cell, item.arm) == (cell.name, arm.name)]
            said = ", ".join(f"{change(item)} {item.verdict}" for item in moved)
            lines += wrap(f"{arm.name}: {said}", "  => ", "     ") if said else []
    return lines


def _traced(comparison: Comparison) -> list[str]:
    """What the time went to, in percent: of all faults, and of the slowest; and retries by kind."""
    if not comparison.traced:
        return []
    slowest = max(len(boot.slowest) for boot in comparison.traced)
    lines = [f"Traced boots: what all faults, and the {slowest} slowest, spent their time on"]
    lines += ["(observed by the host kernel's tracepoints)", "-" * WIDTH]
    lines.append(f"{'% of time':16}" + "".join(f"{HEADS_OF_CAUSES[cause]:>8}" for cause in CAUSES))
    for cell in dict.fromkeys(boot.cell for boot in comparison.traced):
        lines += wrap(cell, "", "    ")
        lines += [line for boot in comparison.traced if boot.cell == cell for line in _traced_rows(boot)]
    return lines + [line for note in comparison.traced_notes for line in wrap(note, "  ", "    ")]


def _traced_rows(boot: TracedBoot) -> list[str]:
    if not boot.covered:
        return wrap(f"{boot.arm}: no fault is covered", "  ", "    ")
    rows = {
        "all": [f"{part * 100:.1f}" for part in boot.of_all],
        "slowest": [f"{part * 100:.1f}" for part in boot.of_slowest],
        "count": [str(item.retries) if item.cause in IN_VAIN else "" for item in boot.shares],
    }
    name = boot.arm if len(boot.arm) <= 6 else ""
    head = [] if name else [f"  {boot.arm}"]
    cost = [f"  {'':6} {'tracing':9}{cost_of(boot)}"] if boot.cost is not None else []
    lines = [
        f"  {name if nr == 0 else '':6} {label:7}" + "".join(f"{value:>8}" for value in values)
        for nr, (label, values) in enumerate(rows.items())
    ]
    return [*head, *lines, *cost]


def _stale(comparison: Comparison) -> list[str]:
    """A line for each arm: the cases in which it is stale; of the first, the page and how to see it again."""
    if not comparison.stale:
        return []
    lines = ["Stale mappings, of covered rounds", "-" * WIDTH]
    for arm, said in zip(comparison.arms, arm_lines(comparison), strict=True):
        first = next((item for item in comparison.stale if item.arm == arm.name and item.status == "failed"), None)
        mark = f"{arm.name}: " if first is None else f"{arm.name} STALE: "
        lines += wrap(mark + said.removeprefix(f"{arm.name}: "), "  ", "    ")
        if first is not None:
            lines += wrap(f"first: {first.label}, {first.first}", "    ", "      ")
            lines += _command(first.rerun, "    again: ")
    missed = sum(item.status == "not covered" for item in comparison.stale)
    if missed:
        lines += wrap(f"NOT COVERED: {missed} of {len(comparison.stale)} cases of all arms", "  ", "    ")
    names = tuple(f"{arm.name} " for arm in comparison.arms)
    many = len(names) > ARMS_IN_FULL + 1
    # What is said of an arm is in its line already, but for the count.
    notes = [note for note in comparison.stale_notes if not (many and note.startswith(names))]
    return lines + [line for note in notes for line in wrap(note, "  ", "    ")]


def _checks(comparison: Comparison) -> list[str]:
    if not comparison.checks:
        return []
    lines = ["Checks", "-" * WIDTH]
    told = {item.label for item in comparison.stale}
    for name in dict.fromkeys(item.name for item in comparison.checks):
        ours = [item for item in comparison.checks if item.name == name]
        held = sum(item.status == "held" for item in ours)
        failed = sum(item.status == "failed" for item in ours)
        lines.append(f"  {name}: held in {held} of {len(ours)}{f', FAILED in {failed}' if failed else ''}")
        open_ = [item for item in ours if item.status != "held" and item.cell not in told]
        lines += [line for group in _alike(open_) for line in _check_lines(group)]
    return lines


def _alike(results: Sequence[CheckResult]) -> list[list[CheckResult]]:
    """Results that say the same, whatever the arm; then those of one arm together."""
    same: dict[tuple[str, str], list[CheckResult]] = {}
    for item in results:
        same.setdefault((item.status, item.why), []).append(item)
    groups: dict[tuple[str, tuple[str, ...]], list[CheckResult]] = {}
    for (status, _), items in same.items():
        groups.setdefault((status, tuple(dict.fromkeys(item.arm for item in items))), []).extend(items)
    return list(groups.values())


def _check_lines(group: Sequence[CheckResult]) -> list[str]:
    first, arms = group[0], list(dict.fromkeys(item.arm for item in group if item.arm))
    place = ", ".join(part for part in (first.cell, *arms) if part)
    more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
    return wrap(f"{first.status.upper()} {place}: {first.why}{more}", "    ", "      ")


def _failures(failures: Sequence[FailedTrial]) -> list[str]:
    alike: dict[tuple[str, ...], list[FailedTrial]] = {}
    for item in failures:
        # One that found a stale mapping did its work; it is told of there.
        if item.outcome != "stale":
            alike.setdefault((item.cell, item.arm, item.outcome, item.reason), []).append(item)
    lines = ["Trials that did not end well", "-" * WIDTH] if alike else []
    for item, *others in alike.values():
        more = f" (and so in trials {', '.join(other.trial for other in others)})" if others else ""
        lines += wrap(f"{item.trial} {item.cell}, {item.arm}: {item.outcome}: {item.reason}{more}", "  ", "    ")
        shown = item.trace or item.console_tail
        lines += [f"    | {line}" for line in shown[:TRACE_LINES]]
        lines += wrap(f"log: {item.console}", "    ", "      ")
        lines += _command(item.rerun, "    again: ")
    return lines


def _kernels(comparison: Comparison) -> list[str]:
    lines = ["Kernels", "-" * WIDTH]
    for arm in comparison.arms:
        what = ", ".join(arm.patches) or "no patch"
        state = arm.release if arm.build == "ok" else f"build {arm.build}" if arm.build == "failed" else "not built"
        lines += wrap(f"{arm.name}: {state}; {what}", "  ", "    ")
        if arm.vmlinux_sha256:
            lines.append(f"    vmlinux {arm.vmlinux_sha256[:16]}")
        lines += [f"    | {line}" for line in arm.error.splitlines()]
    return lines


def _again(provenance: Provenance) -> list[str]:
    lines = ["To repeat", "-" * WIDTH, *_command(provenance.command, "  ")]
    for label, value in provenance.rows:
        lines += wrap(f"{label}: {value}", "  ", "    ")
    return lines


def _section(title: str, texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    return [title, "-" * WIDTH, *(line for text in texts for line in wrap(text, "  ", "    "))]


def _command(command: str, indent: str) -> list[str]:
    """A command over several lines, each but the last ended by a backslash, so that it can still be pasted."""
    words = clean(command).translate(ASCII)
    lines = textwrap.wrap(
        words, WIDTH - 2, initial_indent=indent, subsequent_indent="      ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return [*(f"{line} \\" for line in lines[:-1]), *lines[-1:]]


def wrap(text: str, first: str, later: str) -> list[str]:
    """A paragraph in lines of the width, foreign text made harmless; ``first`` and ``later`` are their indents."""
    # No break between a figure and its percent sign.
    flat = re.sub(r"(?<=\d) %", "%", clean(text.replace("\n", " ")).translate(ASCII))
    return textwrap.wrap(flat, WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def fit(line: str) -> str:
    """The last word on width and alphabet: console lines are cut, anything outside ASCII becomes a question mark."""
    safe = clean(line).expandtabs(8).translate(ASCII).encode("ascii", "replace").decode("ascii").rstrip()
    return safe if len(safe) <= WIDTH else safe[: WIDTH - 3] + "..."
