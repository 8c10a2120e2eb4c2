"""What the user sees while it runs: bars with the time left on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text

from orchestrator.errors import printable

PLAIN_EVERY_S = 15.0


class Stage(Protocol):
    """One step of a run that counts to a total."""

    def update(self, done: int, total: int | None, text: str) -> None:
        """``done`` of ``total`` (None: unknown) things are finished; ``text`` is what happens now."""


class Reporter:
    """Writes to ``stream`` (standard error by default); a bar only if that is a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line of its own. Nothing in ``text`` is taken for markup or a control sequence."""
        self._console.print(Text("\n".join(printable(line) for line in text.split("\n"))))

    @contextmanager
    def stage(self, name: str, total: int | None, *, lines: bool = True) -> Iterator[Stage]:
        """A stage; what it yields takes the progress. ``lines=False``: a bar or nothing, the caller says lines."""
        if not self._console.is_terminal:
            yield _Lines(self, name) if lines else _Quiet()
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeLeft(),
            TextColumn("{task.fields[now]}", markup=False),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            yield _Bar(progress, name, total)


class _Bar:
    """A bar of rich's."""

    def __init__(self, progress: Progress, name: str, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=total, now="")

    def update(self, done: int, total: int | None, text: str) -> None:
        room = max(10, self._progress.console.width - 80)
        self._progress.update(self._task, completed=done, total=total, now=printable(text)[:room])


class _Quiet:
    """Nothing: what there is to say is said by lines of the caller's."""

    def update(self, done: int, total: int | None, text: str) -> None:
        return


class _Lines:
    """A line now and then, for a log file: at most one every :data:`PLAIN_EVERY_S` seconds."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter = reporter
        self._name = name
        self._last = time.monotonic()

    def update(self, done: int, total: int | None, text: str) -> None:
        now = time.monotonic()
        if now - self._last < PLAIN_EVERY_S:
            return
        self._last = now
        of = f" of {total}" if total else ""
        self._reporter.say(f"{self._name}: {done}{of} {text}")
