"""progress.py: lines for a log, bars for a terminal, and nothing from outside that drives the terminal."""

from __future__ import annotations

import io

import pytest

from orchestrator import progress
from orchestrator.progress import Reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock: list[float]) -> None:
    stream = io.StringIO()
    with Reporter(stream).stage("kernels", None) as stage:
        for second in range(60):
            clock[0] += 1
            stage.update(second, 1400 if second > 20 else None, f"base: CC file{second}.o")
    lines = stream.getvalue().splitlines()
    assert lines == [
        "kernels: 14 base: CC file14.o",
        "kernels: 29 of 1400 base: CC file29.o",
        "kernels: 44 of 1400 base: CC file44.o",
        "kernels: 59 of 1400 base: CC file59.o",
    ]


def test_neither_markup_nor_control_sequences_pass(clock: list[float]) -> None:
    stream = io.StringIO()
    reporter = Reporter(stream)
    reporter.say("[bold red]x[/] \x1b[2J\x07 [link=http://x]y[/link]\ntwo lines")
    with reporter.stage("trials", 3) as stage:
        clock[0] += 100
        stage.update(1, 3, "[red]\x1b]0;x\x07")
    replaced = "\N{REPLACEMENT CHARACTER}"
    assert stream.getvalue() == (
        f"[bold red]x[/] {replaced}[2J{replaced} [link=http://x]y[/link]\ntwo lines\n"
        f"trials: 1 of 3 [red]{replaced}]0;x{replaced}\n"
    )


def test_a_long_line_is_not_broken() -> None:
    stream = io.StringIO()
    Reporter(stream).say("/a/very/long/path" * 30)
    assert stream.getvalue() == "/a/very/long/path" * 30 + "\n"


def test_a_terminal_gets_a_bar_with_the_count_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    reporter = Reporter(stream)
    with reporter.stage("trials", 14) as stage:
        stage.update(5, 14, "quiet [bold]v1 \x1b[2J")
        reporter.say("trial 004: ok")
    shown = stream.getvalue()
    assert "5/14" in shown and "left" in shown and "trial 004: ok" in shown
    assert "quiet [bold]v1 \N{REPLACEMENT CHARACTER}[2J" in shown
