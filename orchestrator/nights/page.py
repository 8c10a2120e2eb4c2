"""The page of all nights, as HTML and as text: what the last night came to, since when, and every night before.

What comes from a config, a patch, a kernel or a guest is made harmless by :mod:`orchestrator.report.templates`. No
script, and nothing from outside.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from orchestrator.errors import OrchError, UserError
from orchestrator.nights import chronicle
from orchestrator.nights.chronicle import Written
from orchestrator.nights.history import History, collect
from orchestrator.nights.nightly import Entry, Records, State, nights_folder, read_nights
from orchestrator.nights.words import date_of, moved
from orchestrator.report import templates
from orchestrator.report.plots import Plot
from orchestrator.report.style import clean
from orchestrator.report.svg import cut, sample
from orchestrator.store import write_atomic

WIDTH = 100
STRIP_NIGHTS = 60
SHOWN_CHANGES = 5
SHOWN_LINES = 12
SIGNS: Mapping[State, str] = {
    "fine": "✓", "worse": "✗", "gate closed": "!", "stage failed": "×", "mistake": "?",
}  # fmt: skip
WORDS: Mapping[State, str] = {
    "gate closed": "an arm regressed against its base, or a check failed",
    "stage failed": "a stage failed",
    "mistake": "the config, a patch or a path cannot work",
}


@dataclass(frozen=True)
class Drawing:
    """One history plot in the page; ``key`` is a sample of the line and a name for each arm."""

    title: str
    caption: str
    shared: Markup
    key: tuple[tuple[Markup, str], ...]
    panels: tuple[Markup, ...]
    columns: int


@dataclass(frozen=True)
class Day:
    """One experiment in one night, in the strip and in the table.

    ``report`` is empty if the run is gone; ``ended`` is False of the last experiment of a night that was interrupted,
    or goes on.
    """

    date: str
    entry: Entry
    sign: str
    report: str
    ended: bool


@dataclass(frozen=True)
class Since:
    """What changed with one run."""

    head: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Chapter:
    """One experiment: its last night first, what changed since when, its plots; ``lost`` says why these are missing."""

    name: str
    days: tuple[Day, ...]
    since: tuple[Since, ...] = ()
    more: int = 0
    figures: tuple[Drawing, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    lost: str = ""

    @property
    def last(self) -> Day:
        return self.days[0]


def write(results: Path) -> tuple[Path, Path]:
    """Make the histories and the two forms of the page again from what is on disk; returns HTML and text."""
    folder = nights_folder(results)
    records = read_nights(results)
    names = dict.fromkeys(entry.experiment for night in records.nights for entry in night.entries)
    chapters = tuple(_chapter(results, name, records) for name in names)
    page, text = folder / "index.html", folder / "index.txt"
    write_atomic(text, render_text(records, chapters).encode())
    write_atomic(page, render_html(records, chapters).encode())
    return page, text


def render_html(records: Records, chapters: Sequence[Chapter]) -> str:
    """The page."""
    environment = templates.environment("orchestrator.nights")
    return environment.get_template("nights.html").render(
        nights=records.nights,
        damaged=records.damaged,
        chapters=chapters,
        days=sorted((day for chapter in chapters for day in chapter.days), key=lambda day: day.date, reverse=True),
        css=templates.stylesheet(environment, "report.css", "nights.css"),
        words=in_words,
        basis=basis,
        lines=SHOWN_LINES,
        strip=STRIP_NIGHTS,
    )


def _chapter(results: Path, name: str, records: Records) -> Chapter:
    days = tuple(
        Day(_minute(night.started), entry, SIGNS[entry.state], _report(results, entry), bool(night.ended))
        for night in records.nights
        for entry in night.entries
        if entry.experiment == name
    )
    try:
        history = collect(results, name)
        written = chronicle.write(history, nights_folder(results) / name)
    except UserError:  # It has never come as far as a run.
        return Chapter(name, days)
    except OrchError as error:
        return Chapter(name, days, lost=error.what)
    since = tuple(_since(history))
    files = tuple((path.name, f"{name}/{path.name}") for path in written.paths if path.suffix != ".png")
    return Chapter(
        name, days, since[:SHOWN_CHANGES], max(0, len(since) - SHOWN_CHANGES), _figures(history, written), files
    )


def _report(results: Path, entry: Entry) -> str:
    path = f"{entry.run}/report.html"
    return f"../{path}" if entry.run and (results / path).exists() else ""


def _since(history: History) -> Iterator[Since]:
    """All changes, the latest first."""
    for index in dict.fromkeys(change.index for _, change in history.changes):
        run = history.runs[index]
        yield Since(f"since {date_of(run.manifest.started)}, {run.name} ({run.tree_text})", moved(history, index))


def _figures(history: History, written: Written) -> tuple[Drawing, ...]:
    """The median and, if they changed, the retries; if not the median but something else did, that."""
    changed = [series.metric for series, _ in history.changes]
    others = [metric for metric in changed if metric == "retries_per_fault" or "p50" not in changed]
    wanted = {f"{history.name}-{metric}" for metric in ("p50", *others[:1])}
    return tuple(_drawing(plot, history.arms) for plot in written.drawn if plot.name in wanted)


def _drawing(plot: Plot, arms: Sequence[str]) -> Drawing:
    parts = cut(plot, tuple(str(escape(clean(f"{plot.title}, {panel.cell}"))) for panel in plot.panels))
    key = tuple((Markup(sample(index)), arm) for index, arm in enumerate(arms))
    # Markup: drawn by us; names in it are outlines of glyphs, and escaped in its labels.
    panels = tuple(Markup(panel) for panel in parts.panels)
    return Drawing(plot.title, plot.caption, Markup(parts.shared), key, panels, plot.columns)


def _minute(started: str) -> str:
    """``2026-11-22 01:00`` of a time in ISO 8601."""
    return started[:16].replace("T", " ")


# --- as text ----------------------------------------------------------------------------------------------------------


def render_text(records: Records, chapters: Sequence[Chapter]) -> str:
    """The same for a terminal or a mail."""
    nights = records.nights
    lines = [f"{len(nights)} night{'s' if len(nights) != 1 else ''} on record; times are UTC"]
    lines += [f"record damaged, and left out: {item.path}: {item.why}" for item in records.damaged]
    for chapter in chapters:
        lines += ["", *_text_of(chapter)]
    lines += ["", "All nights, the latest first"]
    for night in nights:
        unfinished = "" if night.ended else " (has not ended: it was interrupted, or goes on)"
        lines.append(f"  {_minute(night.started)}{unfinished}")
        lines += [f"    {entry.state:13} {entry.experiment}  {entry.run}".rstrip() for entry in night.entries]
    return "\n".join(part for line in lines for part in _wrap(clean(line))) + "\n"


def _text_of(chapter: Chapter) -> Iterator[str]:
    entry = chapter.last.entry
    yield f"{chapter.name}: {entry.state.upper()}, {chapter.last.date}: {in_words(entry)}"
    yield from (f"  {line}" for line in facts(entry))
    for title, found in (("worse", entry.worse), ("better", entry.better), ("gate", entry.closed)):
        yield from (f"  {title}: {line}" for line in found[:SHOWN_LINES])
        if len(found) > SHOWN_LINES:
            yield f"  {title}: and {len(found) - SHOWN_LINES} more, see the report"
    yield from (f"  {line}" for line in entry.error.splitlines())
    for since in chapter.since:
        yield f"  {since.head}"
        yield from (f"    {line}" for line in since.lines[:SHOWN_LINES])
        if len(since.lines) > SHOWN_LINES:
            yield f"    and {len(since.lines) - SHOWN_LINES} more, see history.txt"
    if chapter.more:
        yield f"  and {chapter.more} earlier, see history.txt"
    if chapter.lost:
        yield f"  no history: {chapter.lost}"


def in_words(entry: Entry) -> str:
    """A state in a few words."""
    if entry.state == "fine" and not entry.reference:
        return f"it ran well; {entry.no_reference or 'there is no run to compare it with'}"
    if entry.state == "fine":
        return f"nothing is worse than in {_reference(entry)}"
    return f"worse than {_reference(entry)}" if entry.state == "worse" else WORDS[entry.state]


def _reference(entry: Entry) -> str:
    return f"the last {entry.nights} good nights" if entry.nights else "the last good run"


def basis(entry: Entry) -> str:
    """What it was held against, in words."""
    if entry.nights:
        return f"{_reference(entry)} of this machine, to {entry.reference}"
    if entry.reference:
        also = f", and the anchor, {entry.anchor}" if entry.anchor and entry.anchor != entry.reference else ""
        return f"the last good run, {entry.reference}{also}"
    return f"no other run: {entry.no_reference}" if entry.no_reference else ""


def facts(entry: Entry) -> Iterator[str]:
    """What ran, and against what."""
    if entry.run:
        yield f"run {entry.run}, {entry.tree}, {entry.seconds:.0f} s"
    if basis(entry):
        yield "; ".join([f"against {basis(entry)}", *entry.notes])
    if entry.sees:
        yield entry.sees


def _wrap(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()))
    # A path stays in one piece, however long.
    return textwrap.wrap(
        line, WIDTH, subsequent_indent=f"{indent}    ", break_on_hyphens=False, break_long_words=False
    ) or [""]
