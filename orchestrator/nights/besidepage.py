"""The page of runs side by side, as HTML and for a mail.

What comes from a config, a patch, a kernel or a guest is made harmless by :mod:`orchestrator.report.templates`. No
script, and nothing from outside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from orchestrator.analysis.model import MetricComparison
from orchestrator.analysis.wording import CI_NAMES, LABELS
from orchestrator.nights.beside import Beside, Column, Row
from orchestrator.report import templates
from orchestrator.report.figures import metric_row
from orchestrator.report.style import clean
from orchestrator.report.text import WIDTH, fit, wrap
from orchestrator.store import make_folder, write_atomic

PAGE, TEXT = "beside.html", "beside.txt"
NAME = 20  # columns of a run's label in the text


def write(found: Beside, folder: Path) -> tuple[Path, Path]:
    """Write both forms into ``folder``; returns HTML and text. Raises :class:`StoreError`."""
    make_folder(folder)
    write_atomic(folder / TEXT, render_text(found).encode())
    write_atomic(folder / PAGE, render_html(found, folder).encode())
    return folder / PAGE, folder / TEXT


def render_html(found: Beside, folder: Path) -> str:
    """The page; its links lead from ``folder`` to each run's own report."""
    environment = templates.environment("orchestrator.nights")
    environment.tests["alarming"] = _alarming
    return environment.get_template("beside.html").render(
        found=found,
        sentences=found.sentences,
        hrefs=[_href(column, folder) for column in found.columns],
        icount=any(column.found.accel == "icount" for column in found.columns),
        labels=LABELS,
        as_text=metric_row,
        css=templates.stylesheet(environment, "report.css", "beside.css"),
    )


def _alarming(line: str) -> bool:
    return "DIFFER IN MORE" in line or "OPPOSITE" in line


def _href(column: Column, folder: Path) -> str:
    report = column.run.folder / "report.html"
    return quote(os.path.relpath(report, folder)) if report.exists() else ""


# --- as text ----------------------------------------------------------------------------------------------------------


def render_text(found: Beside) -> str:
    """At most 72 columns of plain ASCII; ends with a newline."""
    rule = "=" * WIDTH
    title = f"{found.name}: {len(found.columns)} run{'' if len(found.columns) == 1 else 's'} side by side"
    lines = [rule, *wrap(title, "", "    "), rule]
    lines += [part for line in found.sentences for part in wrap(line, "", "    ")]
    for item in found.absent:
        lines += [*wrap(f"{item.config}: NO RUN THAT HAS ENDED", "", "    ")]
        lines += [f"  | {line}" for line in item.why.splitlines()]
    lines += ["", "Runs (times of one are on its own clock)", "-" * WIDTH]
    lines += [part for column in found.columns for part in _run(column)]
    for row in found.rows:
        lines += ["", *_row(found, row)]
    if found.checks:
        lines += ["", "Checks", "-" * WIDTH]
    for check in found.checks:
        said = [_counted(*counts) for counts in check.counts]
        lines.append(f"  {check.name}")
        lines += [f"    {_label(column)} {text}" for column, text in zip(found.columns, said, strict=True)]
    return "\n".join(fit(line) for line in [*lines, *_differences(found)]) + "\n"


def _run(column: Column) -> Iterator[str]:
    bad = len(column.found.failures)
    said = f"{column.found.done} of {column.found.planned} trials" + (f", {bad} not well" if bad else "")
    failed = f"; {column.checks} checks FAILED" if column.checks else ""
    yield from wrap(f"{column.label}: {column.run.name}, {said}{failed}", "  ", "    ")


def _row(found: Beside, row: Row) -> Iterator[str]:
    yield from wrap(f"{row.cell}: {row.arm}", "", "    ")
    yield "-" * WIDTH
    everything = zip(found.columns, row.verdicts, row.missing, row.outcomes, strict=True)
    for column, verdict, missing, outcomes in everything:
        said = verdict.verdict if verdict else f"no verdict: {missing}"
        yield from wrap(f"{column.label}: {said}{f' ({outcomes})' if outcomes else ''}", "  => ", "     ")
    for metric, items in row.metrics:
        if not any(items):
            continue
        unit = "per fault" if metric == "retries_per_fault" else "us"
        kinds = {item.ci_kind for item in items if item is not None} - {None}
        head = CI_NAMES["range" if kinds == {"range"} else "interval"]
        yield f"  {f'{LABELS[metric]}, {unit}':{NAME + 2}} {'base':>8} {'change':>8} {'verdict':12} {head}"
        for column, item in zip(found.columns, items, strict=True):
            yield from _figure(column, item, len(kinds) > 1)


def _figure(column: Column, item: MetricComparison | None, mixed: bool) -> Iterator[str]:
    if item is None:
        yield f"    {_label(column)} {'n/a':>8}"
        return
    said = metric_row(item)
    change, interval = said.change.replace(" %", "%"), said.interval.replace(" %", "%").replace(" to ", "..")
    shown = "exact" if interval == change else interval
    yield f"    {_label(column)} {said.base:>8} {change:>8} {item.verdict:12} {shown}"
    if mixed and item.ci_kind == "range" and shown != "exact":
        yield f"({CI_NAMES['range']})".rjust(WIDTH)


def _label(column: Column) -> str:
    """At one length, for columns to stay columns."""
    name = clean(column.label)
    return f"{name if len(name) <= NAME else name[: NAME - 3] + '...':{NAME}}"


def _counted(failed: int, missed: int, total: int) -> str:
    if not total:
        return "not asked"
    if failed:
        return f"FAILED in {failed} of {total}"
    return f"not covered in {missed} of {total}" if missed else f"held, all {total}"


def _differences(found: Beside) -> Sequence[str]:
    lines = ["", "What differs", "-" * WIDTH]
    for item in found.differences:
        note = "   (NOT of the target)" if item.aloud else ""
        lines += wrap(f"{item.key}{note}", "  ", "    ")
        for column, value in zip(found.columns, item.values, strict=True):
            lines += wrap(f"{column.label}: {value}", "    ", "      ")
    return lines if found.differences else []
