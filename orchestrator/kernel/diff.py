"""A well-formed unified diff as frozen files and hunks; forms that cannot be applied safely are refused.

Reading is unidiff's; this module adds what a patch from the outside needs: paths that stay in the tree, no symlinks,
no binary hunks, and no line that is silently left over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from unidiff.errors import UnidiffParseError
from unidiff.patch import Hunk as ParsedHunk
from unidiff.patch import PatchedFile, PatchSet

from orchestrator.errors import PatchError, printable
from orchestrator.kernel.paths import plain

MODES = ("100644", "100755")
GIT_START = re.compile(r"diff --git ")
OLD_START = re.compile(r"--- \S")
NEW_START = re.compile(r"\+\+\+ \S")
EXTENDED_HEADER = re.compile(r"(new|deleted|old) (file )?mode |(similarity|dissimilarity|rename|copy|index) ")
EPOCH = re.compile(r"19(70-01-01|69-12-31) ")  # how GNU diff -N dates a file that is not there
NO_NEWLINE = "\\"


@dataclass(frozen=True)
class Hunk:
    """``old`` and ``new`` are lines with their ends ("\\n"; "" for a last line without one)."""

    number: int  # within the file, from 1
    header: str
    old_start: int  # line in the old file, from 1; 0 if it is empty
    old: tuple[str, ...]
    new: tuple[str, ...]
    ends_with_context: bool

    def reversed(self, new_start: int) -> Hunk:
        """The hunk that undoes this one."""
        return replace(self, old_start=new_start, old=self.new, new=self.old)


@dataclass(frozen=True)
class FileDiff:
    """Change of one file; paths are relative to the tree, None for a file that is created or deleted."""

    old: str | None
    new: str | None
    old_mode: str | None  # 100644 or 100755, None if the diff does not say
    new_mode: str | None
    copied: bool  # the old file stays
    hunks: tuple[Hunk, ...]
    new_starts: tuple[int, ...]  # line of each hunk in the new file

    @property
    def path(self) -> str:
        """The file's name in the tree that the patch leaves, or in the one that it meets."""
        return self.new or self.old or ""

    def reversed(self) -> FileDiff:
        """The change that undoes this one; a copy is undone by deleting it."""
        return FileDiff(
            old=self.new,
            new=None if self.copied else self.old,
            old_mode=self.new_mode,
            new_mode=self.old_mode,
            copied=False,
            hunks=tuple(hunk.reversed(start) for hunk, start in zip(self.hunks, self.new_starts, strict=True)),
            new_starts=tuple(hunk.old_start for hunk in self.hunks),
        )


def find_diff(lines: tuple[str, ...]) -> int | None:
    """Index of the first line that belongs to a diff."""
    for index, line in enumerate(lines):
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if GIT_START.match(line) or (OLD_START.match(line) and NEW_START.match(following)):
            return index
    return None


def parse_diff(name: str, lines: tuple[str, ...]) -> tuple[tuple[FileDiff, ...], int]:
    """Files of the diff that ``lines`` (without ends) begin with, and how many of the lines are the diff's own.

    Raises :class:`PatchError` that names ``name`` for a malformed diff and for a refused form.
    """
    hint = f"if a mailer damaged it: orch patch recover {name} --tree TREE --out FILE"
    ended = [line + "\n" for line in lines]
    try:
        parsed = PatchSet(iter(ended))
    except (UnidiffParseError, ValueError, AttributeError, IndexError) as error:
        raise PatchError(f"{name} is not a well-formed diff: {printable(str(error).strip())}", hint=hint) from error
    if not parsed:
        raise PatchError(f"{name} holds no diff", hint=hint)
    end = 0
    for file in parsed:
        for hunk in file:
            end = max(end, max((line.diff_line_no or 0 for line in hunk), default=0))
            _refuse_surplus(name, ended, end, hint)
    end = _end_of_diff(ended, end)
    try:
        return tuple(_file(file) for file in parsed), end
    except PatchError as error:
        raise PatchError(f"{name}: {error.what}") from error


def _end_of_diff(lines: list[str], end: int) -> int:
    """Past the marker of a missing newline, and past headers of files that have no hunk (new and empty, renamed)."""
    while end < len(lines) and lines[end].startswith(NO_NEWLINE):
        end += 1
    for index in range(end, len(lines)):
        if GIT_START.match(lines[index]) or (index == end and EXTENDED_HEADER.match(lines[index])):
            end = index + 1
    return end


def _refuse_surplus(name: str, lines: list[str], end: int, hint: str) -> None:
    """unidiff passes over what follows a hunk; a line that looks like its own means that the counts are wrong."""
    following = lines[end] if end < len(lines) else ""
    if following[:1] in ("+", "-", " ") and following.strip() and not re.match(r"(--|---|\+\+\+)( |$)", following):
        text = printable(following.rstrip("\n"))
        raise PatchError(f"{name}: a hunk has more lines than its header counts: `{text}`", hint=hint)


def _file(file: PatchedFile) -> FileDiff:
    info = [line.rstrip("\n") for line in file.patch_info or ()]
    shown = printable(file.path)
    if file.is_binary_file or any(line.startswith(("GIT binary patch", "Binary file")) for line in info):
        raise PatchError(f"{shown}: binary changes are refused")
    for mode in (file.source_mode, file.target_mode):
        if mode not in (None, *MODES):
            raise PatchError(f"{shown}: file mode {mode} is refused (symbolic link or submodule)")
    moved = {line.split()[0] for line in info if re.match(r"(rename|copy) from ", line)}
    old, new = _strip(file.source_file), _strip(file.target_file)
    if EPOCH.match(file.source_timestamp or ""):
        old = None
    if EPOCH.match(file.target_timestamp or ""):
        new = None
    if old is None and new is None:
        raise PatchError("a file that is neither before nor after the patch")
    if old and new and old != new and not moved:
        raise PatchError(f"the header names two files, {printable(old)} and {printable(new)}, but no rename")
    for path in (old, new):
        if path is not None:
            plain(path)
    hunks = tuple(_hunk(number, hunk) for number, hunk in enumerate(file, 1))
    starts = tuple(hunk.target_start for hunk in file)
    return FileDiff(old, new, file.source_mode, file.target_mode, "copy" in moved, hunks, starts)


def _strip(name: str) -> str | None:
    """``a/x`` as ``x``: patches for the kernel are made for ``-p1``."""
    if name == "/dev/null":
        return None
    if name.startswith(('"', "/")) or "/" not in name:
        raise PatchError(f"the path `{printable(name)}` is refused: expected a/PATH or b/PATH, unquoted")
    return name.split("/", 1)[1]


def _hunk(number: int, hunk: ParsedHunk) -> Hunk:
    entries: list[tuple[str, str]] = []
    for line in hunk:
        if line.line_type == NO_NEWLINE and entries:
            kind, text = entries[-1]
            entries[-1] = (kind, text.removesuffix("\n"))
        elif line.line_type in (" ", "+", "-"):
            entries.append((line.line_type, line.value))
    heading = f" {hunk.section_header}" if hunk.section_header else ""
    counts = f"-{hunk.source_start},{hunk.source_length} +{hunk.target_start},{hunk.target_length}"
    return Hunk(
        number=number,
        header=f"@@ {counts} @@{heading}",
        old_start=hunk.source_start,
        old=tuple(text for kind, text in entries if kind != "+"),
        new=tuple(text for kind, text in entries if kind != "-"),
        ends_with_context=bool(entries) and entries[-1][0] == " ",
    )
