"""The history as files: text for people, CSV for programs, a plot for each metric."""

from __future__ import annotations

import csv
import io
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.analysis.wording import LABELS
from orchestrator.errors import printable
from orchestrator.nights import plots
from orchestrator.nights.history import FALSE_ALARMS, History, Series
from orchestrator.nights.words import change_text, date_of, unit, value_text
from orchestrator.report.plots import Plot
from orchestrator.store import make_folder, write_atomic

WIDTH = 100


@dataclass(frozen=True)
class Written:
    """Where a history went."""

    text: Path
    values: Path
    drawn: tuple[Plot, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.text, self.values, *(path for plot in self.drawn for path in (plot.svg, plot.png)))


def write(history: History, folder: Path) -> Written:
    """history.txt, history.csv and the plots, into ``folder`` (made if need be)."""
    make_folder(folder)
    text, values = folder / "history.txt", folder / "history.csv"
    write_atomic(text, render(history).encode())
    write_atomic(values, render_csv(history).encode())
    return Written(text, values, plots.draw(history, folder))


def render(history: History) -> str:
    """The changes, the runs that are in and that are not, and a table for each metric."""
    first, last = (date_of(history.runs[at].manifest.started) for at in (0, -1))
    count = len(history.runs)
    lines = [
        f"{history.name}, {history.runs[-1].manifest.accel}: {count} run{'s' if count > 1 else ''}, {first} to {last}"
    ]
    lines += ["", *_changes(history), "", *_basis(history)]
    for metric in history.metrics if history.cells else ():
        lines += ["", f"{LABELS[metric]}, {unit(metric)}", *_table(history, metric)]
    lines += ["", *_runs(history)]
    return "\n".join(part for line in lines for part in _wrap(printable(line))) + "\n"


def render_csv(history: History) -> str:
    """A row for each run, cell, arm and metric: latencies in ns, retries per fault; an empty value did not end well."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["run", "started", "cell", "arm", "metric", "value", "change"])
    for index, run in enumerate(history.runs):
        for series in history.series:
            value = series.values[index]
            change = next((item.direction for item in series.changes if item.index == index), "")
            rows.writerow(
                [run.name, run.manifest.started, series.cell, series.arm, series.metric,
                 "" if value is None else repr(value), change]
            )  # fmt: skip
    return out.getvalue()


def _changes(history: History) -> Iterator[str]:
    yield "Changes, the latest first" if history.changes else "No change of level in any cell, arm or metric."
    for index in dict.fromkeys(change.index for _, change in history.changes):
        run, before = history.runs[index], history.runs[index - 1]
        yield f"  since {date_of(run.manifest.started)}, {run.name} ({run.tree_text})"
        yield f"    after {before.name} ({before.tree_text})"
        for series, change in history.changes:
            if change.index == index:
                yield f"    {series.cell}, {series.arm}: {change_text(series, change)}"


def _basis(history: History) -> Iterator[str]:
    margin = f"±{history.margin * 100:g} %"
    if history.exact:
        yield f"Time is counted in instructions: there is no noise, every difference is the kernel's. Margin {margin}."
        return
    yield (
        f"If nothing ever changed, {FALSE_ALARMS * 100:g} % of such histories would show a change somewhere, whatever"
        f" the noise. Margin {margin}."
    )


def _table(history: History, metric: str) -> Iterator[str]:
    rows = [series for series in history.series if series.metric == metric]
    names = [f"{series.cell}, {series.arm}" for series in rows]
    wide = max([20, *(len(name) for name in names)])
    yield f"  {'':{wide}}{'runs':>6}{'lowest':>10}{'highest':>10}{'last':>10}  levels (runs)"
    for name, series in zip(names, rows, strict=True):
        known = [value for value in series.values if value is not None]
        shown = (min(known), max(known), known[-1]) if known else (None, None, None)
        figures = "".join(f"{value_text(series.metric, value):>10}" for value in shown)
        yield f"  {name:{wide}}{len(known):>6}{figures}  {_levels(series)}"


def _levels(series: Series) -> str:
    """``5.374 (30) → 5.643 (30)``; one level is not written, it is what lowest and highest say."""
    if not series.changes:
        return "one"
    edges = [0, *(change.index for change in series.changes), len(series.values)]
    counts = [sum(value is not None for value in series.values[low:high]) for low, high in itertools.pairwise(edges)]
    return " → ".join(
        f"{value_text(series.metric, level)} ({count})" for level, count in zip(series.levels, counts, strict=True)
    )


def _runs(history: History) -> Iterator[str]:
    yield "Runs"
    for number, run in enumerate(history.runs, 1):
        status = "" if run.comparison.status == "complete" else f", {run.comparison.status}"
        yield f"  {number:>4}  {date_of(run.manifest.started)}  {run.name}  {run.tree_text}{status}"
    if history.left_out:
        yield "Left out"
        for why in dict.fromkeys(item.why for item in history.left_out):
            names = sorted(item.run for item in history.left_out if item.why == why)
            yield f"  {names[0] if len(names) == 1 else f'{len(names)} runs, {names[0]} to {names[-1]}'}: {why}"


def _wrap(line: str) -> list[str]:
    """Tables keep their columns; sentences are broken."""
    indent = " " * (len(line) - len(line.lstrip()))
    if len(line) <= WIDTH or "  " in line.strip():
        return [line.rstrip()]
    return textwrap.wrap(line, WIDTH, subsequent_indent=f"{indent}    ", break_on_hyphens=False)
