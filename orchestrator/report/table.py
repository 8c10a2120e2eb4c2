"""Arms × cells as Markdown and as one picture: what each version of a patch wins, costs and breaks.

``orch table RUN --output FILE.md`` writes both, for a page of documentation or a cover letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.analysis.findings import PAGING, CaseFinding, arm_lines, case_findings
from orchestrator.analysis.model import CellSummary, Comparison, Metric
from orchestrator.errors import UserError
from orchestrator.report import matrix
from orchestrator.report.style import clean, microseconds, per_fault
from orchestrator.store import write_atomic

BEGIN, END = "<!-- orch table: begin -->", "<!-- orch table: end -->"
COLUMNS: tuple[tuple[Metric, str], ...] = (
    ("retries_per_fault", "Retries per fault"),
    ("p50", "p50, µs"),
    ("p99_9", "p99.9, µs"),
    ("max", "Slowest fault, µs"),
    ("mean", "Mean, µs"),
)


def write_table(comparison: Comparison, output: Path) -> tuple[Path, ...]:
    """Write the tables into ``output`` (between its two marks, if the file is there) and the picture beside it.

    Raises :class:`UserError` if the file is there and has no marks: it is not ours to overwrite.
    """
    picture = output.with_suffix(".svg")
    text = render(comparison, picture.name)
    if output.exists():
        before, begin, rest = output.read_text("utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise UserError(
                f"{output} is there, and has no lines '{BEGIN}' and '{END}' to write between",
                hint="give another --output, or put the two lines where the table goes",
            )
        text = f"{before}{BEGIN}\n{text}{END}{after}"
    else:
        text = f"{BEGIN}\n{text}{END}\n"
    matrix.draw(comparison, picture)
    write_atomic(output, text.encode())
    return output, picture


def render(comparison: Comparison, picture: str) -> str:
    """The Markdown: the picture, a table for each metric (a row a cell, a column an arm), and what the checks say."""
    parts = [f"![Arms by cells: {_cell(comparison.name)}]({picture})\n"]
    for metric, title in COLUMNS if comparison.cells else ():
        rows = [
            [cell.name, *(_value(comparison, cell.name, arm.name, metric) for arm in comparison.arms)]
            for cell in comparison.cells
        ]
        parts.append(_markdown([title, *(arm.name for arm in comparison.arms)], rows))
    if comparison.stale:
        parts.append(_cases(comparison))
    parts.append("Which check fails which arm:\n\n" + "".join(f"- {_cell(line)}\n" for line in arm_lines(comparison)))
    sources = ", ".join(dict.fromkeys(arm.release for arm in comparison.arms if arm.release))
    parts.append(
        f"Run `{_cell(comparison.run)}`, {comparison.accel}, Linux {_cell(sources)}; `orch table` wrote this.\n"
    )
    return "\n".join(parts)


def _value(comparison: Comparison, cell: str, arm: str, metric: Metric) -> str:
    found = comparison.summary(cell, arm)
    value = shown(found, metric)
    change = comparison.metrics(cell, arm).get(metric)
    if change is None or not change.decides or change.verdict == "equivalent":
        return value
    return f"**{value}**" if change.verdict == "improved" else f"_{value}_ ({change.verdict})"


def shown(found: CellSummary, metric: Metric) -> str:
    """A cell's value with its unit left to the heading, or how its trials ended."""
    if found.latency is None:
        return found.outcome
    if metric == "retries_per_fault":
        return per_fault(found.retries_per_fault)
    return microseconds(getattr(found.latency, metric))


def _cases(comparison: Comparison) -> str:
    by_arm = {arm.name: case_findings(comparison, arm.name) for arm in comparison.arms}
    kinds = dict.fromkeys((item.case, item.tdp) for found in by_arm.values() for item in found)
    rows = [
        [f"{case}, {PAGING[tdp]}", *(case_text(_pick(found, case, tdp)) for found in by_arm.values())]
        for case, tdp in kinds
    ]
    return _markdown(["Stale of covered rounds", *by_arm], rows)


def _pick(found: Sequence[CaseFinding], case: str, tdp: bool) -> CaseFinding | None:
    return next((item for item in found if (item.case, item.tdp) == (case, tdp)), None)


def case_text(item: CaseFinding | None) -> str:
    """``0 of 30``, in bold what is stale; that nothing was covered is said."""
    if item is None or item.covered == 0:
        return "not covered"
    text = f"{item.stale} of {item.covered}"
    return f"**{text}**" if item.stale else text


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """Names may hold what Markdown or HTML would take for markup."""
    safe = clean(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;")
    return safe.replace("|", "\\|").replace("`", "'").replace("[", "\\[")
