"""A clean patch out of a quoted, white-space-damaged review mail.

The mail gives the words, the tree gives the white space: context and removed lines take the tree's own text, added
lines are indented as their surroundings are (:mod:`orchestrator.kernel.indent`). Whatever cannot be known is an error
that names file, hunk and mail line; nothing is guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from orchestrator.errors import MailError, PatchError, printable
from orchestrator.kernel.indent import TAB_COLUMNS, Layout, columns, leading, shape, width
from orchestrator.kernel.locate import Located, ReadLine, key, locate
from orchestrator.kernel.mailtext import Message, decode, encode, read_file, read_messages
from orchestrator.kernel.paths import inside
from orchestrator.kernel.quoted import DamagedFile, QuotedPatch, read_quoted

C_SUFFIXES = {".c", ".h"}
HASH_DIGITS = 12  # what the kernel's own mails show


@dataclass(frozen=True)
class RecoveredPatch:
    """A patch that ``git apply`` takes at the tree's own line numbers, without fuzz or offset."""

    text: bytes
    author: str  # as the mail has it, archives mask addresses; "" if it does not say
    date: str  # YYYY-MM-DD of the posting, "" if unknown
    subject: str
    files: tuple[str, ...]
    hunks: int
    notes: tuple[str, ...]  # what was restored, one sentence each


def recover(mail: Path, tree: Path) -> RecoveredPatch:
    """Restore the patch that ``mail`` quotes, against the kernel ``tree``.

    Raises :class:`MailError` for a mail that holds no patch, or one that cannot be restored without guessing, and
    :class:`PatchError` for a path that leaves the tree.
    """
    messages = read_messages(read_file(mail))
    if len(messages) > 1:
        raise MailError(f"{mail} is a mailbox of {len(messages)} mails; give the one to recover the patch from")
    try:
        quoted = read_quoted(messages[0])
        restored = tuple(_restore_file(quoted, file, tree) for file in quoted.files)
        restored = _settle(quoted, restored)
        _compare_with_diffstat(quoted, restored)
    except (MailError, PatchError) as error:
        raise type(error)(f"{mail}: {error.what}", hint=error.hint) from error
    text = _header(quoted) + "".join(_diff_of(file) for file in restored)
    return RecoveredPatch(
        text=encode(text),
        author=quoted.author,
        date=quoted.date,
        subject=quoted.subject,
        files=tuple(file.damaged.path for file in restored),
        hunks=sum(len(file.hunks) for file in restored),
        notes=_notes(quoted, restored),
    )


@dataclass(frozen=True)
class _File:
    """A file of the patch beside the tree's own text."""

    damaged: DamagedFile
    lines: tuple[str, ...]  # of the tree's file, without line ends; () for a new one
    ends_with_newline: bool
    mode: str
    located: tuple[Located, ...]
    hunks: tuple[tuple[ReadLine, ...], ...] = ()  # restored
    inferred: int = 0  # added lines whose indentation was inferred


def _restore_file(quoted: QuotedPatch, damaged: DamagedFile, tree: Path) -> _File:
    """Place every hunk of ``damaged`` in the tree's file."""
    path = inside(tree, damaged.path)
    where = f"{quoted.message.where(damaged.index)}: {printable(damaged.path)}"
    if (damaged.change == "new") == path.exists():
        raise MailError(
            f"{where}: the patch {damaged.change} file is {'already' if path.exists() else 'not'} in {tree}"
        )
    data = b""
    if damaged.change != "new":
        try:
            data = path.read_bytes()
        except OSError as error:
            raise MailError(f"{where}: cannot read {path}: {error.strerror}") from error
    lines = decode(data).split("\n")
    ends = lines[-1] == ""
    lines = lines[:-1] if ends else lines
    keys = [key(line) for line in lines]
    located = tuple(locate(quoted.message, hunk, keys) for hunk in damaged.hunks)
    for before, after in pairwise(located):
        if after.position < before.position + before.hunk.old_count:
            raise MailError(f"{where}: hunk {after.hunk.number} stands before the end of hunk {before.hunk.number}")
    executable = damaged.change != "new" and path.stat().st_mode & 0o100
    mode = damaged.mode or ("100755" if executable else "100644")
    return _File(damaged, tuple(lines), ends, mode, located)


def _settle(quoted: QuotedPatch, files: Sequence[_File]) -> tuple[_File, ...]:
    """Decide what the mail kept of the white space, hunk by hunk, and restore all lines."""
    pairs = [_pairs(file, located) for file in files for located in file.located]
    kept = [_kept(hunk_pairs) for hunk_pairs in pairs]
    overall = _overall(kept, files)
    marked = _marks_indentation(pair for hunk_pairs in pairs for pair in hunk_pairs)
    verdicts = iter(kept)
    return tuple(
        _restore_hunks(quoted.message, file, [next(verdicts) or overall for _ in file.located], marked)
        for file in files
    )


def _compare_with_diffstat(quoted: QuotedPatch, files: Sequence[_File]) -> None:
    """A diffstat in the mail tells of files and hunks that were cut out of it."""
    kinds = [line.kind for file in files for hunk in file.hunks for line in hunk]
    counted = (len(files), kinds.count("+"), kinds.count("-"))
    if quoted.stat is not None and quoted.stat != counted:
        counts = ["{} files, {} insertions, {} deletions".format(*numbers) for numbers in (quoted.stat, counted)]
        raise MailError(f"the diffstat counts {counts[0]}, the mail holds {counts[1]}: a part is missing")


def _pairs(file: _File, located: Located) -> list[tuple[ReadLine, str]]:
    """Old lines of a hunk, each with the tree's text."""
    old = (line for line in located.reading if line.kind != "+")
    return list(zip(old, file.lines[located.position :], strict=False))


def _kept(pairs: list[tuple[ReadLine, str]]) -> str:
    """What the mail kept of a hunk's indentation: "verbatim", "width" (tabs became blanks), "lost"; "" if unknown."""
    indented = [(line, text) for line, text in pairs if leading(text) and text.strip()]
    if not indented:
        return ""
    if all(line.text == text for line, text in indented):
        return "verbatim"
    if all(width(leading(line.text)) == width(leading(text)) for line, text in indented):
        return "width"
    return "lost"


def _overall(kept: list[str], files: Sequence[_File]) -> str:
    """What to believe of a hunk that has no indented old line: what the others show, else the added lines' tabs."""
    for verdict in ("lost", "width", "verbatim"):
        if verdict in kept:
            return verdict
    added = (line.text for file in files for located in file.located for line in located.reading if line.kind == "+")
    return "verbatim" if any(text.startswith("\t") for text in added) else "lost"


def _marks_indentation(pairs: Iterable[tuple[ReadLine, str]]) -> bool:
    """True if removed lines show that the mail left one blank where there was indentation, and none where not."""
    removed = [(line.text[:1] == " ", bool(leading(text))) for line, text in pairs if line.kind == "-" and text.strip()]
    return any(indented for _, indented in removed) and all(blank == indented for blank, indented in removed)


def _restore_hunks(message: Message, file: _File, kept: list[str], marked: bool) -> _File:
    """Walk through the file as it will be, restoring each hunk's lines on the way."""
    layout, done, inferred = Layout(), 0, 0
    hunks = []
    for located, verdict in zip(file.located, kept, strict=True):
        for line in file.lines[done : located.position]:
            layout.feed(line)
        restorer = _Restorer(message, file, located, verdict, marked, layout)
        hunks.append(restorer.run())
        inferred += restorer.inferred
        done = located.position + located.hunk.old_count
    return _File(file.damaged, file.lines, file.ends_with_newline, file.mode, file.located, tuple(hunks), inferred)


class _Restorer:
    """Restores the lines of one hunk; ``layout`` stands at its first line and is moved past its last."""

    def __init__(
        self, message: Message, file: _File, located: Located, kept: str, marked: bool, layout: Layout
    ) -> None:
        self.message, self.file, self.located = message, file, located
        self.kept, self.marked, self.layout = kept, marked, layout
        self.inferred = 0
        self.above = ""  # the line above, as it will be
        self.is_c = PurePosixPath(file.damaged.path).suffix in C_SUFFIXES

    def run(self) -> tuple[ReadLine, ...]:
        restored: list[ReadLine] = []
        position = self.located.position
        sibling: str | None = None  # the old line at the place where the block's first added line stands
        in_block = False
        for line in self.located.reading:
            if not in_block or line.kind == " ":
                sibling = self.file.lines[position] if position < len(self.file.lines) else None
            in_block = line.kind != " "
            if line.kind == "+":
                text = self._added(line, sibling)
                sibling = None
            else:
                text = self.file.lines[position]
                position += 1
            if line.kind != "-":
                self.layout.feed(text)
                self.above = text
            restored.append(ReadLine(line.kind, text, line.index, self._lacks_newline(line, position)))
        self._refuse_lost_change(restored)
        return tuple(restored)

    def _lacks_newline(self, line: ReadLine, position: int) -> bool:
        if line.kind == "+":
            return line.no_newline
        return position == len(self.file.lines) and not self.file.ends_with_newline

    def _added(self, line: ReadLine, sibling: str | None) -> str:
        """An added line with its indentation."""
        if self.kept == "verbatim":
            return line.text
        text = line.text.strip()
        if self.kept == "width":
            return self._under_backslash((columns(width(leading(line.text))) + text).rstrip())
        if not text:
            return ""
        if self.marked and not line.text.startswith(" "):
            return text  # the mail shows that it stood in column 0
        self.inferred += 1
        lead = self._lead(line, text, sibling)
        if self.marked and not lead:
            if shape(text) != "label":
                raise self._error(line, "stands indented in the mail, but nothing around it says how far")
            lead = " "  # a label that is kept out of column 0, so that diff does not take it for a function
        return self._under_backslash(lead + text)

    def _lead(self, line: ReadLine, text: str, sibling: str | None) -> str:
        if sibling is not None and sibling.strip() and shape(sibling) == shape(text):
            return leading(sibling)
        if self.is_c:
            return self.layout.lead(text)
        old = [self.file.lines[self.located.position + at] for at in range(self.located.hunk.old_count)]
        leads = {leading(text) for text in old if text.strip()}
        if len(leads) != 1:
            raise self._error(line, "lost its indentation, which cannot be inferred outside C code")
        return leads.pop()

    def _under_backslash(self, text: str) -> str:
        """A macro's line whose backslash stands under the one above it; any other line as it is."""
        if not text.endswith("\\") or not self.above.endswith("\\"):
            return text
        code, target = text[:-1].rstrip(), width(self.above[:-1])
        while width(code) < target:
            code += "\t" if target % TAB_COLUMNS == 0 else " "
        return code + ("\\" if width(code) == target else " \\")

    def _refuse_lost_change(self, restored: Sequence[ReadLine]) -> None:
        """A change of nothing but white space cannot be recovered from a mail that lost the white space."""
        if self.kept == "verbatim":
            return
        block: list[ReadLine] = []
        for line in (*restored, ReadLine(" ", "", 0)):
            if line.kind != " ":
                block.append(line)
                continue
            old = [entry.text for entry in block if entry.kind == "-"]
            if block and old == [entry.text for entry in block if entry.kind == "+"]:
                raise self._error(block[0], "changes only white space, and the mail lost it")
            block.clear()

    def _error(self, line: ReadLine, what: str) -> MailError:
        where = f"hunk {self.located.hunk.number} ({self.message.where(line.index)})"
        return MailError(f"{printable(self.file.damaged.path)}: {where}: `{printable(line.text.strip())}` {what}")


def _header(quoted: QuotedPatch) -> str:
    """The head of a patch as ``git am`` reads it; only fields that the mail has. The day of posting stands below the
    ``---``: git wants a time in a Date header, and the mail has none."""
    subject = quoted.subject if quoted.subject.startswith("[") else f"[PATCH] {quoted.subject}"
    lines = [f"From: {quoted.author}"] if quoted.author else []
    lines += [f"Subject: {subject}"] if quoted.subject else []
    lines += ["", *quoted.description] if quoted.description else []
    lines += ["---"] if lines else []
    if quoted.date:
        lines.append(f"Posted on {quoted.date}; recovered from a mail that quotes it.")
    return "".join(f"{line}\n" for line in [*lines, ""]) if lines else ""


def _diff_of(file: _File) -> str:
    """One file's part of the patch, with the line numbers and blob hashes of the tree that it was made for."""
    path, change = file.damaged.path, file.damaged.change
    old, new = _blob(_old_text(file)), _blob(_new_text(file))
    head = [f"diff --git a/{path} b/{path}"]
    if change == "changed":
        head.append(f"index {old}..{new} {file.mode}")
    else:
        none = "0" * HASH_DIGITS
        head.append(f"{change} file mode {file.mode}")
        head.append(f"index {none}..{new}" if change == "new" else f"index {old}..{none}")
    head.append("--- /dev/null" if change == "new" else f"--- a/{path}")
    head.append("+++ /dev/null" if change == "deleted" else f"+++ b/{path}")
    body, shift = "", 0
    for located, lines in zip(file.located, file.hunks, strict=True):
        hunk = located.hunk
        start = located.position + (hunk.old_count > 0)
        new_start = located.position + shift + (hunk.new_count > 0)
        heading = f" {hunk.heading}" if hunk.heading else ""
        body += f"@@ -{_range(start, hunk.old_count)} +{_range(new_start, hunk.new_count)} @@{heading}\n"
        for line in lines:
            body += f"{line.kind}{line.text}\n" + ("\\ No newline at end of file\n" if line.no_newline else "")
        shift += hunk.new_count - hunk.old_count
    return "".join(f"{line}\n" for line in head) + body


def _range(start: int, count: int) -> str:
    return str(start) if count == 1 else f"{start},{count}"


def _old_text(file: _File) -> str:
    text = "\n".join(file.lines)
    return text + "\n" if file.lines and file.ends_with_newline else text


def _new_text(file: _File) -> str:
    """The file as the patch leaves it."""
    lines: list[str] = []
    done = 0
    unended = not file.ends_with_newline
    for located, hunk in zip(file.located, file.hunks, strict=True):
        lines.extend(file.lines[done : located.position])
        lines.extend(line.text for line in hunk if line.kind != "-")
        done = located.position + located.hunk.old_count
        if done == len(file.lines):
            unended = bool(hunk) and next((line.no_newline for line in reversed(hunk) if line.kind != "-"), False)
    lines.extend(file.lines[done:])
    text = "\n".join(lines)
    return text if unended or not lines else text + "\n"


def _blob(text: str) -> str:
    """git's name for a file with this content, shortened."""
    data = encode(text)
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()[:HASH_DIGITS]


def _notes(quoted: QuotedPatch, files: Sequence[_File]) -> tuple[str, ...]:
    hunks = sum(len(file.hunks) for file in files)
    added = sum(1 for file in files for hunk in file.hunks for line in hunk if line.kind == "+")
    inferred = sum(file.inferred for file in files)
    notes = [f"{hunks} hunks in {len(files)} files, each found in the tree exactly once, white space ignored"]
    if quoted.depth:
        notes.append(f"quoting of depth {quoted.depth} stripped, {quoted.remarks} lines of remarks dropped")
    notes.append(f"{added} added lines, {inferred} of them indented as their surroundings are")
    if inferred:
        notes.append("white space inside an added line, behind its first word, is as the mail has it")
    if not quoted.author:
        notes.append("the mail does not name the author")
    return tuple(notes)
