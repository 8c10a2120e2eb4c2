"""What one run of ``guests/ktest_runner`` leaves: how each of the kernel's selftests went. The one reader.

The runner writes KTAP whose foreign lines are all numbered, so a test cannot speak for another one. A report that
ends early (the kernel died under a test) is read as far as it goes: the test that had begun is ``lost``, the later
ones did not run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.errors import RecordingError, printable

State = Literal["pass", "fail", "skip", "timeout", "lost"]

VERSION_LINE = "KTAP version 1"
PLAN = re.compile(r"1\.\.(\d{1,3})")
END = re.compile(r"# end (\d+)")
NOTE = re.compile(r"# (\d+) (begin|out|log)(?: (.*))?")
RESULT = re.compile(
    r"(?P<not>not )?ok (?P<number>\d+) (?P<name>[^#]+) #(?P<skip> SKIP)?"
    r"(?: (?P<timeout>TIMEOUT)| exit=(?P<exit>\d{1,3})| signal=(?P<signal>\d{1,3})) seconds=(?P<seconds>\d+\.\d{3})"
)
# test_assert() in lib/assert.c of the selftests: the headline, then lines with two blanks before them.
ASSERTION = "==== Test Assertion Failure ===="
ASSERTION_DETAIL = re.compile(r"  pid=\d+ tid=|  \(stack trace empty\)| +\d+\t")  # differs from run to run
# print_skip() of lib/test_util.c, and what tests print by hand: "... not supported", "skipping", "Skipping test".
SKIP_WORDS = re.compile(r"skip|not (?:supported|enabled|available)|requires? |need|must be", re.IGNORECASE)
ACCESS_DENIED = "Access denied - Exiting"  # lib/assert.c turns EACCES into a skip.
SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE"}
EXIT_NO_PROGRAM = 127


@dataclass(frozen=True)
class TestRun:
    """One test. ``reason`` says in one line why it did not pass; ``seconds`` are the guest's own (0 if ``lost``).

    ``output`` is what it printed, ``kernel_log`` what the kernel logged meanwhile, without time stamps.
    """

    name: str
    state: State
    reason: str
    seconds: float
    output: tuple[str, ...]
    kernel_log: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A run. ``complete``: it came to its end; ``planned`` tests were to run, ``tests`` are those that began."""

    complete: bool
    planned: int
    tests: tuple[TestRun, ...]


def read(path: Path) -> Report:
    """Read a report. Raises :class:`RecordingError` if it is none, or contradicts itself."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise RecordingError(f"cannot read the report {path}: {error.strerror}") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> Report:
    """:func:`read` on text; ``name`` stands for the file in messages. A last line without its end is left out."""
    lines = [printable(line) for line in text.split("\n")[:-1]]
    if len(lines) < 2 or lines[0] != VERSION_LINE:
        raise RecordingError(f"{name} is no report of ktest_runner: it does not begin with {VERSION_LINE!r} and a plan")
    plan = PLAN.fullmatch(lines[1])
    if plan is None or plan.group(1) == "0":
        raise RecordingError(f"{name}: expected the plan 1..N, found {lines[1]!r}")
    reader = _Reader(name, int(plan.group(1)))
    for number, line in enumerate(lines[2:], 3):
        reader.take(number, line)
    return reader.report()


class _Reader:
    """Takes line after line of a report."""

    def __init__(self, name: str, planned: int) -> None:
        self._name = name
        self._planned = planned
        self._done: list[TestRun] = []
        self._running: str | None = None
        self._notes: dict[str, list[str]] = {"out": [], "log": []}
        self._complete = False

    def take(self, number: int, line: str) -> None:
        """One line, ``number`` of the file. Raises :class:`RecordingError` for one that cannot stand there."""
        known = not self._complete and (self._note(line) or self._result(line) or self._end(line))
        if not known:
            raise RecordingError(f"{self._name}:{number}: {line[:80]!r} cannot stand here")

    def report(self) -> Report:
        tests = list(self._done)
        if self._running is not None:
            tests.append(self._test(self._running, "lost", "the report ends while it runs", 0.0))
        return Report(self._complete, self._planned, tuple(tests))

    def _note(self, line: str) -> bool:
        found = NOTE.fullmatch(line)
        if found is None or self._all_done() or int(found.group(1)) != len(self._done) + 1:
            return False
        kind, text = found.group(2), found.group(3) or ""
        if (kind == "begin") != (self._running is None):
            return False
        if kind == "begin":
            self._running = text
            self._notes = {"out": [], "log": []}
        else:
            self._notes[kind].append(text)
        return True

    def _result(self, line: str) -> bool:
        found = RESULT.fullmatch(line)
        if found is None or self._running is None or found["name"] != self._running:
            return False
        if int(found["number"]) != len(self._done) + 1:
            return False
        state, reason = _judge(found, self._notes["out"])
        self._done.append(self._test(self._running, state, reason, float(found["seconds"])))
        self._running = None
        return True

    def _end(self, line: str) -> bool:
        found = END.fullmatch(line)
        if found is None or self._running is not None or int(found.group(1)) != len(self._done) or not self._all_done():
            return False
        self._complete = True
        return True

    def _all_done(self) -> bool:
        return len(self._done) == self._planned

    def _test(self, name: str, state: State, reason: str, seconds: float) -> TestRun:
        return TestRun(name, state, reason, seconds, tuple(self._notes["out"]), tuple(self._notes["log"]))


def _judge(found: re.Match[str], output: Sequence[str]) -> tuple[State, str]:
    """State and reason by exit code first: what a test printed only explains it."""
    if found["timeout"]:
        return "timeout", f"ended after {float(found['seconds']):.0f} s; {_last(output)}"
    if found["skip"]:
        return "skip", _skip_reason(output)
    if found["signal"]:
        number = int(found["signal"])
        return "fail", f"died of {SIGNALS.get(number, f'signal {number}')}; {_last(output)}"
    if found["not"] is None:
        return "pass", ""
    return "fail", _failure(int(found["exit"]), output)


def _skip_reason(output: Sequence[str]) -> str:
    if any(ACCESS_DENIED in line for line in output):
        return "access denied"
    said = next((line for line in reversed(output) if SKIP_WORDS.search(line)), "") or (output[-1] if output else "")
    return " ".join(said.split()).removesuffix(", skipping test") or "it gives no reason"


def _failure(code: int, output: Sequence[str]) -> str:
    """The assertion that failed and its message; without one, the exit code and the last line."""
    start = next((index for index, line in enumerate(output) if ASSERTION in line), None)
    block: list[str] = []
    for line in output[start + 1 :] if start is not None else ():
        if not line.startswith("  "):
            break  # What the test had printed before comes later: it was buffered.
        if not ASSERTION_DETAIL.match(line):
            block.append(line.strip())
    # FILE:LINE: EXPRESSION, then the message, if there is one.
    return ": ".join(dict.fromkeys((block[0], block[-1]))) if block else f"exit code {code}; {_last(output)}"


def _last(output: Sequence[str]) -> str:
    said = next((line.strip() for line in reversed(output) if line.strip()), "")
    return f"last line: {said}" if said else "it printed nothing"
