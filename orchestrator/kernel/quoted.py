"""What is left of a patch in a quoted mail: files and hunks with their mail lines, remarks dropped.

The depth of quoting is that of the ``diff --git`` (or ``---``) line; what stands less deep is somebody's remark.
Nothing here looks at a kernel tree; :mod:`orchestrator.kernel.locate` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from orchestrator.errors import MailError, printable
from orchestrator.kernel.mailtext import Message, iso_date, strip_reply

MARK = re.compile(r"> ?")
BARE_MARK = re.compile(r">")
MARKS = re.compile(r"(?:> ?)*")
GIT_HEADER = re.compile(r"diff --git (\S+) (\S+)\s*$")
OLD_FILE = re.compile(r"--- (\S+)")
NEW_FILE = re.compile(r"\+\+\+ (\S+)")
HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@ ?(.*)")
FILE_MODE = re.compile(r"(new file|deleted file) mode (\d+)$")
REFUSED = re.compile(r"(rename (from|to)|copy (from|to)|old mode|new mode|GIT binary patch|Binary files )")
FILE_HEADER = re.compile(r"(diff --git|index|---|\+\+\+|new file mode|deleted file mode|Index:|=+$)\s*")
DIFFSTAT = re.compile(r"\s*(\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?\s*$")
IN_BODY = re.compile(r"(From|Date|Subject): *(.+)")
ATTRIBUTION = re.compile(
    r"On (?P<date>.*?\d{4}(?:,? (?:at )?\d{1,2}:\d\d(?::\d\d)?(?: ?[AP]M)?)?(?: [-+]\d{4})?),? (?P<author>.+?) wrote:$"
)
WRAP_COLUMN = 60  # mailers wrap at 72 or later; a line this short was not cut by one


@dataclass(frozen=True)
class MailLine:
    """A line of a hunk as the mail has it, quoting removed; ``index`` counts the body's lines from 0."""

    index: int
    text: str


@dataclass(frozen=True)
class DamagedHunk:
    """A hunk header and every line at its depth up to the next header; the counts say which of them are its own."""

    path: str
    number: int  # within the file, from 1
    index: int  # of the header in the body
    old_start: int
    old_count: int
    new_start: int
    new_count: int
    heading: str
    lines: tuple[MailLine, ...]


@dataclass(frozen=True)
class DamagedFile:
    """A file of the patch. ``mode`` is the octal mode of a new or deleted file, "" for a changed one."""

    path: str
    index: int
    change: str  # changed, new, deleted
    mode: str
    hunks: tuple[DamagedHunk, ...]


@dataclass(frozen=True)
class QuotedPatch:
    """Everything of a patch that the mail still holds."""

    message: Message
    depth: int
    subject: str
    author: str
    date: str
    description: tuple[str, ...]
    files: tuple[DamagedFile, ...]
    remarks: int  # lines dropped
    stat: tuple[int, int, int] | None = None  # files, insertions, deletions, where the mail has a diffstat


def read_quoted(message: Message) -> QuotedPatch:
    """Find the patch in ``message``. Raises :class:`MailError` if there is none or it is of a refused form."""
    lines = message.lines
    start = _first_header(lines)
    if start is None:
        raise MailError("the mail holds no patch: no line `diff --git` or `--- a/…`, quoted or not")
    depth = level(lines[start])
    # Some mailers quote with ">" alone: there a blank behind it is the diff's own.
    mark = BARE_MARK if re.match(r">+[^> ]", lines[start]) else MARK
    stripped = [_strip(line, depth, mark) if level(line) >= depth else None for line in lines]
    _refuse_wrapped(message, stripped, start)
    files = _read_files(message, stripped, start)
    described = _describe(message, stripped, start, depth)
    remarks = sum(1 for line, text in zip(lines, stripped, strict=True) if text is None and line.strip())
    stats = [found for text in stripped[:start] if text is not None and (found := DIFFSTAT.match(text))]
    numbers = [int(group or 0) for group in stats[-1].groups()] if stats else []
    stat = (numbers[0], numbers[1], numbers[2]) if numbers else None
    return replace(described, files=files, remarks=remarks, stat=stat)


def level(line: str) -> int:
    """How deep ``line`` is quoted."""
    found = MARKS.match(line)
    return found.group().count(">") if found else 0


def _strip(line: str, depth: int, mark: re.Pattern[str] = MARK) -> str:
    position = 0
    for _ in range(depth):
        found = mark.match(line, position)
        position = found.end() if found else position
    return line[position:]


def _first_header(lines: tuple[str, ...]) -> int | None:
    """Index of the first line of the diff."""
    bare = [_strip(line, level(line)) for line in lines]
    for index, text in enumerate(bare):
        following = bare[index + 1] if index + 1 < len(bare) else ""
        if GIT_HEADER.match(text) or (OLD_FILE.match(text) and NEW_FILE.match(following)):
            return index
    return None


def _refuse_wrapped(message: Message, stripped: list[str | None], start: int) -> None:
    """An unquoted line right below a long added line may be a remark, or that line's end: only the writer knows."""
    for index in range(start + 1, len(stripped)):
        above, line = stripped[index - 1], message.lines[index]
        if (
            stripped[index] is None
            and line.strip()
            and above is not None
            and above.startswith("+")
            and len(message.lines[index - 1]) >= WRAP_COLUMN
            and not HUNK.match(line)
        ):
            raise MailError(
                f"{message.where(index)}: remark or the wrapped end of the added line above it? `{printable(line)}`",
                hint="join the two lines in the mail, or put an empty line between them",
            )


def _read_files(message: Message, stripped: list[str | None], start: int) -> tuple[DamagedFile, ...]:
    """Split the body from line ``start`` into files and hunks."""
    at_depth = [MailLine(index, text) for index, text in enumerate(stripped) if text is not None and index >= start]
    heads = [position for position in range(len(at_depth)) if _begins_file(at_depth, position)]
    if not heads or heads[0] != 0:
        raise MailError(f"{message.where(start)}: no hunk follows the file's header")
    files = tuple(
        _read_file(message, at_depth[begin:end]) for begin, end in zip(heads, [*heads[1:], len(at_depth)], strict=True)
    )
    paths = [file.path for file in files]
    for file in files:
        if paths.count(file.path) > 1:
            raise MailError(f"{message.where(file.index)}: {file.path} stands in the mail more than once")
    return files


def _begins_file(lines: list[MailLine], position: int) -> bool:
    if GIT_HEADER.match(lines[position].text):
        return True
    following = lines[position + 1 : position + 3]
    if not OLD_FILE.match(lines[position].text) or len(following) < 2 or not NEW_FILE.match(following[0].text):
        return False
    # Below a git header the pair belongs to it.
    for line in reversed(lines[max(0, position - 8) : position]):
        if GIT_HEADER.match(line.text):
            return False
        if HUNK.match(line.text):
            break
    return HUNK.match(following[1].text) is not None


def _read_file(message: Message, lines: list[MailLine]) -> DamagedFile:
    starts = [position for position, line in enumerate(lines) if HUNK.match(line.text)]
    head = lines[: starts[0]] if starts else lines
    change, mode = "changed", ""
    names: dict[str, str] = {}
    for line in head:
        if starts and REFUSED.match(line.text):
            raise MailError(f"{message.where(line.index)}: cannot be recovered: `{printable(line.text)}`")
        for key, pattern in (("old", OLD_FILE), ("new", NEW_FILE)):
            if found := pattern.match(line.text):
                names[key] = found[1]
        if found := FILE_MODE.match(line.text):
            change, mode = ("new" if found[1] == "new file" else "deleted"), found[2]
    if found := GIT_HEADER.match(head[0].text):
        names = {"old": found[1], "new": found[2], **names}
    path = _path_of(message, head[0], names)
    if not starts:
        raise MailError(f"{message.where(head[0].index)}: {path}: no hunk follows (binary, mode or rename?)")
    change = "new" if names.get("old") == "/dev/null" else "deleted" if names.get("new") == "/dev/null" else change
    if change != "changed" and mode not in ("", "100644", "100755"):
        raise MailError(f"{message.where(head[0].index)}: {path}: file mode {mode} is refused (symlink or submodule)")
    _refuse_stray(message, path, head)
    ends = [*starts[1:], len(lines)]
    hunks = tuple(
        _read_hunk(path, number, lines[begin:end])
        for number, (begin, end) in enumerate(zip(starts, ends, strict=True), 1)
    )
    _refuse_missing_hunk(message, hunks)
    return DamagedFile(path, head[0].index, change, mode, hunks)


def _refuse_stray(message: Message, path: str, head: list[MailLine]) -> None:
    """Between a file's header and its first hunk stands nothing, unless that hunk's header is lost."""
    for line in head:
        if line.text.strip() and not FILE_HEADER.match(line.text):
            what = "neither a header nor part of a hunk; is a hunk's header missing?"
            raise MailError(f"{message.where(line.index)}: {path}: `{printable(line.text)}` is {what}")


def _path_of(message: Message, line: MailLine, names: dict[str, str]) -> str:
    """The one path that the header names, a/ and b/ removed."""
    paths = {re.sub(r"^[ab]/", "", name) for name in names.values() if name != "/dev/null"}
    if len(paths) != 1:
        raise MailError(f"{message.where(line.index)}: the header names {printable(' and '.join(sorted(paths)))}")
    return paths.pop()


def _read_hunk(path: str, number: int, lines: list[MailLine]) -> DamagedHunk:
    found = HUNK.match(lines[0].text)
    if found is None:
        raise AssertionError("a hunk begins with its header")
    old, new = (1 if found[group] is None else int(found[group]) for group in (2, 4))
    heading = " ".join(found[5].split())
    return DamagedHunk(path, number, lines[0].index, int(found[1]), old, int(found[3]), new, heading, tuple(lines[1:]))


def _refuse_missing_hunk(message: Message, hunks: tuple[DamagedHunk, ...]) -> None:
    """The headers count lines of the whole file: a hunk that was cut out leaves a gap between old and new numbers."""
    shift = 0
    for hunk in hunks:
        if hunk.old_count and hunk.new_count and hunk.new_start - hunk.old_start != shift:
            where = f"{printable(hunk.path)}: hunk {hunk.number} ({message.where(hunk.index)})"
            moved = hunk.new_start - hunk.old_start
            raise MailError(
                f"{where} says {moved:+d} lines so far, the hunks above it make {shift:+d}: is one missing?"
            )
        shift += hunk.new_count - hunk.old_count


def _describe(message: Message, stripped: list[str | None], start: int, depth: int) -> QuotedPatch:
    """Author, date, subject and commit message, as far as the mail quotes them."""
    author, date, subject = ("", "", message.subject) if depth else (message.author, message.date, message.subject)
    first = next(index for index, text in enumerate(stripped) if text is not None)
    if depth:
        above = " ".join(_strip(line, level(line)) for line in message.lines[max(0, first - 3) : first] if line.strip())
        if found := ATTRIBUTION.search(above[above.rfind("On ") :]):
            author, date = found["author"], iso_date(found["date"])
    body: list[str] = []
    for text in stripped[first:start]:
        if text is None:
            continue
        found = None if any(body) else IN_BODY.match(text)
        if text.rstrip() == "---":
            break
        if not any(body) and strip_reply(text) == message.subject:
            continue
        if found is None:
            body.append(text.rstrip())
        elif found[1] == "From":
            author = found[2].strip()
        elif found[1] == "Date":
            date = iso_date(found[2])
        else:
            subject = strip_reply(found[2])
    return QuotedPatch(message, depth, subject, author, date, _tidy(body), (), 0)


def _tidy(lines: list[str]) -> tuple[str, ...]:
    """Without empty lines at both ends, and never two in a row."""
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    while kept and not kept[-1]:
        kept.pop()
    return tuple(kept)
