"""Find a damaged hunk in the target tree, ignoring white space; exactly one place, or an error.

A line of a damaged mail may read two ways: ``--count;`` is a removed ``-count;`` or a context line whose marker was
lost. All readings that agree with the hunk header's counts are tried, and exactly one of them must fit the tree in
exactly one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.errors import MailError, printable
from orchestrator.kernel.mailtext import Message
from orchestrator.kernel.quoted import DamagedHunk, MailLine

MAX_READINGS = 256


@dataclass(frozen=True)
class ReadLine:
    """A hunk line with its meaning: ``kind`` is " ", "-" or "+"; ``text`` is without the marker."""

    kind: str
    text: str
    index: int  # in the mail's body
    no_newline: bool = False


Reading = tuple[ReadLine, ...]


@dataclass(frozen=True)
class Located:
    """A hunk whose place is certain: its old lines are the file's lines from ``position`` (from 0)."""

    hunk: DamagedHunk
    reading: Reading
    position: int


def key(text: str) -> str:
    """``text`` without any white space: what survives every mailer."""
    return "".join(text.split())


def locate(message: Message, hunk: DamagedHunk, keys: Sequence[str]) -> Located:
    """Place ``hunk`` in a file whose lines have these ``keys``.

    Raises :class:`MailError` naming file, hunk and mail line if the hunk is incomplete, not found, or ambiguous.
    """
    known = set(keys)
    readings = []
    for reading in _readings(hunk, known):
        readings.append(reading)
        if len(readings) > MAX_READINGS:
            raise _error(message, hunk, hunk.index, "can be read in too many ways")
    if not readings:
        raise _miscounted(message, hunk)
    found = [(reading, position) for reading in readings for position in _positions(reading, keys)]
    if not found:
        raise _not_found(message, hunk, readings[0], keys)
    if len(found) > 1:
        places = ", ".join(str(position + 1) for position in sorted({position for _, position in found}))
        raise _error(message, hunk, hunk.index, f"is ambiguous: it fits {len(found)} times, at tree line {places}")
    reading, position = found[0]
    _refuse_surplus(message, hunk, reading)
    return Located(hunk, reading, position)


def _options(line: MailLine, known: set[str]) -> list[tuple[str, str]]:
    """The meanings that a line can have, the likely one first."""
    text = line.text
    marker = text[:1]
    if marker not in ("+", "-"):
        return [(" ", text[1:] if marker == " " else text)]
    options = [] if text.rstrip() == "--" and key(text[1:]) not in known else [(marker, text[1:])]
    if key(text) in known:
        options.append((" ", text))
    return options


def _readings(hunk: DamagedHunk, known: set[str]) -> Iterator[Reading]:
    """Every way to read the hunk in which the lines agree with the header's counts."""
    stack: list[tuple[int, int, int, Reading]] = [(0, 0, 0, ())]
    while stack:
        at, old, new, done = stack.pop()
        line = hunk.lines[at] if at < len(hunk.lines) else None
        if line is not None and done and line.text.startswith("\\ No newline"):
            last = done[-1]
            stack.append((at + 1, old, new, (*done[:-1], ReadLine(last.kind, last.text, last.index, True))))
        elif (old, new) == (hunk.old_count, hunk.new_count):
            yield done
        elif line is not None:
            for kind, text in reversed(_options(line, known)):
                counts = (old + (kind != "+"), new + (kind != "-"))
                if counts[0] <= hunk.old_count and counts[1] <= hunk.new_count:
                    stack.append((at + 1, *counts, (*done, ReadLine(kind, text, line.index))))


def _positions(reading: Reading, keys: Sequence[str]) -> list[int]:
    old = [key(line.text) for line in reading if line.kind != "+"]
    if not old:
        return [0] if not keys else []
    return [
        at for at in range(len(keys) - len(old) + 1) if keys[at] == old[0] and list(keys[at : at + len(old)]) == old
    ]


def _refuse_surplus(message: Message, hunk: DamagedHunk, reading: Reading) -> None:
    """Below the hunk, up to the signature, nothing may look like a change: a lost header would hide it."""
    last = reading[-1].index if reading else hunk.index
    for line in hunk.lines:
        if line.index <= last:
            continue
        if line.text.rstrip() == "--":
            return
        if line.text[:1] in ("+", "-"):
            raise _error(message, hunk, line.index, "has more lines than its header counts, or the next header is lost")


def _miscounted(message: Message, hunk: DamagedHunk) -> MailError:
    """Say how far the plain reading comes against the header."""
    old = new = 0
    at = hunk.index
    for line in hunk.lines:
        kind = line.text[:1]
        if kind == "\\":
            continue
        if line.text.rstrip() == "--" or (old, new) == (hunk.old_count, hunk.new_count):
            break
        old, new, at = old + (kind != "+"), new + (kind != "-"), line.index
        if old > hunk.old_count or new > hunk.new_count:
            break
    promised = f"the header counts {hunk.old_count} old and {hunk.new_count} new lines"
    return _error(message, hunk, at, f"is incomplete or damaged: {promised}, the mail has {old} and {new} up to here")


def _not_found(message: Message, hunk: DamagedHunk, reading: Reading, keys: Sequence[str]) -> MailError:
    """Name the first mail line that the tree lacks, at the place that fits best."""
    old = [line for line in reading if line.kind != "+"]
    if not old:
        return _error(message, hunk, hunk.index, "adds a file that the tree has already")
    wanted = [key(line.text) for line in old]
    best, best_score = 0, -1
    for at in range(max(1, len(keys) - len(wanted) + 1)):
        score = sum(1 for mine, theirs in zip(wanted, keys[at : at + len(wanted)], strict=False) if mine == theirs)
        if score > best_score:
            best, best_score = at, score
    for offset, line in enumerate(old):
        theirs = keys[best + offset] if best + offset < len(keys) else None
        if theirs != wanted[offset]:
            what = f"is not in the tree: `{printable(line.text.strip())}`"
            return _error(message, hunk, line.index, f"{what} does not match tree line {best + offset + 1}")
    return _error(message, hunk, hunk.index, "is not in the tree")


def _error(message: Message, hunk: DamagedHunk, index: int, what: str) -> MailError:
    return MailError(f"{printable(hunk.path)}: hunk {hunk.number} ({message.where(index)}) {what}")
