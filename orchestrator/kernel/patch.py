"""Hold patches against a tree: they apply, are applied already, or conflict; apply them all or not at all; revert.

Application is exact: no fuzz ever, an offset only if the hunk fits in one place. It is done in memory first, for the
whole series, so a conflict in the last patch leaves the tree untouched. ``git apply`` was not used because what it does
depends on the repository, environment and configuration around it, and of several places it takes the nearest;
``tests/unit/test_patch_git.py`` holds the two against each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.errors import PatchError, printable
from orchestrator.kernel.diff import FileDiff, Hunk
from orchestrator.kernel.mailtext import decode, encode
from orchestrator.kernel.paths import inside
from orchestrator.kernel.series import Patch, read_series

__all__ = ["Applicability", "Applied", "Changed", "Conflict", "Patch", "apply", "check", "read_series", "revert"]


@dataclass(frozen=True)
class Conflict:
    """Why one hunk (0: the whole file) does not fit: what the patch expects and what the tree has nearest to it."""

    patch: str
    file: str
    hunk: int
    header: str
    reason: str
    expected: tuple[str, ...]
    found: tuple[str, ...]
    found_line: int  # tree line of found[0], from 1

    def render(self) -> str:
        """Some lines of text for a terminal."""
        where = f"{self.patch}: {self.file}" + (f": hunk {self.hunk} {self.header}" if self.hunk else "")
        lines = [f"{where}: {self.reason}"]
        if self.expected:
            lines += ["  the patch expects:", *(f"    | {line}" for line in self.expected)]
            lines += [f"  the tree has, from line {self.found_line}:", *(f"    | {line}" for line in self.found)]
        return "\n".join(printable(line) for line in lines)


@dataclass(frozen=True)
class Applicability:
    """What :func:`check` found. ``offsets`` names hunks that fit away from where they were made."""

    kind: Literal["applies", "already applied", "conflicts"]
    conflicts: tuple[Conflict, ...] = ()
    offsets: tuple[str, ...] = ()

    def render(self) -> str:
        """Text for a terminal."""
        return "\n".join([self.kind, *self.offsets, *(conflict.render() for conflict in self.conflicts)])


@dataclass(frozen=True)
class Changed:
    """A file of the tree as it was before :func:`apply`; ``old`` is None for a file that was created."""

    path: str
    old: bytes | None
    old_mode: int  # permission bits
    old_mtime_ns: int
    new_sha256: str  # "" for a file that was deleted


@dataclass(frozen=True)
class Applied:
    """Everything that :func:`revert` needs. ``folders`` were created, deepest last."""

    tree: Path
    files: tuple[Changed, ...]
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class _Content:
    lines: tuple[str, ...]  # with their ends
    mode: int


class _ConflictsError(Exception):
    def __init__(self, conflicts: tuple[Conflict, ...]) -> None:
        super().__init__("conflicts")
        self.conflicts = conflicts


def check(patches: Sequence[Patch], tree: Path) -> Applicability:
    """Say whether the whole series applies to ``tree``; nothing is written.

    Raises :class:`PatchError` for a path that leaves the tree or a file that cannot be read.
    """
    view = _View(tree)
    try:
        view.apply_all(patches)
    except _ConflictsError as error:
        if _reverses(patches, tree):
            return Applicability("already applied")
        return Applicability("conflicts", error.conflicts)
    return Applicability("applies", offsets=tuple(view.offsets))


def apply(patches: Sequence[Patch], tree: Path) -> Applied:
    """Apply the whole series to ``tree``, or leave it as it was.

    A changed file is a new file under the old name, so another tree that shares the old one by a hard link keeps it.
    Raises :class:`PatchError` for anything but "applies", and if a file cannot be written.
    """
    state = check(patches, tree)
    if state.kind != "applies":
        names = ", ".join(patch.name for patch in patches)
        raise PatchError(f"{names}: {state.render()}", hint=f"orch patch check PATCH --tree {tree}")
    view = _View(tree)
    view.apply_all(patches)
    changes = [(path, content) for path, content in sorted(view.contents.items()) if content != view.originals[path]]
    before = tuple(_remember(tree, path, content) for path, content in changes)
    folders: list[Path] = []
    try:
        for path, content in changes:
            folders += _make_folders(tree, inside(tree, path).parent)
            _write(inside(tree, path), content)
    except BaseException as error:
        _restore(Applied(tree, before, tuple(folders)))
        if isinstance(error, OSError):
            raise PatchError(f"cannot write to {tree}: {error.strerror or error}; nothing was changed") from error
        raise
    return Applied(tree, before, tuple(folders))


def revert(applied: Applied) -> None:
    """Put the tree back as it was before :func:`apply`: contents, permission bits and modification times.

    With the old times back, make takes objects that were built from the patched files for newer than their sources:
    the caller must build what it built last with other times, or touch the files.
    Raises :class:`PatchError`, and changes nothing, if a file was changed by somebody else meanwhile.
    """
    for file in applied.files:
        path = inside(applied.tree, file.path)
        now = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
        if now != file.new_sha256:
            raise PatchError(f"{path} was changed since the patch was applied; not reverted")
    _restore(applied)


def _reverses(patches: Sequence[Patch], tree: Path) -> bool:
    try:
        _View(tree).apply_all(patches, reverse=True)
    except _ConflictsError:
        return False
    return True


class _View:
    """The tree as the patches so far leave it; only touched files are read, nothing is written."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.originals: dict[str, _Content | None] = {}
        self.contents: dict[str, _Content | None] = {}
        self.offsets: list[str] = []

    def apply_all(self, patches: Sequence[Patch], *, reverse: bool = False) -> None:
        """Apply the series; raises :class:`_ConflictsError` with every conflict of the first patch that has one."""
        for patch in reversed(patches) if reverse else patches:
            conflicts: list[Conflict] = []
            for diff in reversed(patch.diffs) if reverse else patch.diffs:
                self._apply_file(patch.name, diff.reversed() if reverse else diff, conflicts)
            if conflicts:
                raise _ConflictsError(tuple(conflicts))

    def _get(self, path: str) -> _Content | None:
        if path not in self.contents:
            self.originals[path] = self.contents[path] = _read(self.tree, path)
        return self.contents[path]

    def _apply_file(self, patch: str, diff: FileDiff, conflicts: list[Conflict]) -> None:
        old = self._get(diff.old) if diff.old is not None else None
        if diff.old is not None and old is None:
            conflicts.append(_whole(patch, diff.old, "the tree has no such file"))
            return
        if diff.new is not None and diff.new != diff.old and self._get(diff.new) is not None:
            conflicts.append(_whole(patch, diff.new, "the patch creates it, and the tree has it already"))
            return
        lines, found, offsets = apply_hunks(patch, diff, old.lines if old else ())
        conflicts.extend(found)
        self.offsets.extend(offsets)
        if diff.new is None:
            if lines and not found:
                conflicts.append(_whole(patch, diff.path, "the patch deletes it, and the tree's has more lines"))
            self.contents[diff.path] = None
            return
        if diff.old is not None and diff.old != diff.new and not diff.copied:
            self.contents[diff.old] = None
        mode = old.mode if old else 0o644
        if diff.new_mode is not None and diff.new_mode != diff.old_mode:
            mode = 0o755 if diff.new_mode == "100755" else 0o644
        self.contents[diff.new] = _Content(lines, mode)


def apply_hunks(
    patch: str, diff: FileDiff, lines: tuple[str, ...]
) -> tuple[tuple[str, ...], list[Conflict], list[str]]:
    """``lines`` with the hunks of ``diff`` applied; the hunks that fit nowhere; and notes on those with an offset."""
    result: list[str] = []
    conflicts: list[Conflict] = []
    notes: list[str] = []
    done = offset = 0
    for hunk in diff.hunks:
        wanted = max(hunk.old_start - 1, 0) if hunk.old else hunk.old_start
        places = _places(hunk, lines, done)
        if wanted + offset in places:
            at = wanted + offset
        elif len(places) == 1:
            at = places[0]
        else:
            conflicts.append(_conflict(patch, diff.path, hunk, lines, places, wanted + offset))
            continue
        offset = at - wanted
        if offset:
            notes.append(f"{patch}: {diff.path}: hunk {hunk.number} fits at line {at + 1}, {offset:+d} from its header")
        result.extend(lines[done:at])
        result.extend(hunk.new)
        done = at + len(hunk.old)
    return (*result, *lines[done:]), conflicts, notes


def _places(hunk: Hunk, lines: tuple[str, ...], first: int) -> list[int]:
    """Where the hunk's old lines stand, from line ``first`` on. As for git, a hunk made for the file's first line fits
    only there, and one without context behind its last change only at the end."""
    count = len(hunk.old)
    if hunk.old_start <= 1:
        candidates: Iterable[int] = [0] if first == 0 else []
    else:
        candidates = range(first, len(lines) - count + 1)
    return [
        at
        for at in candidates
        if lines[at : at + count] == hunk.old and (hunk.ends_with_context or at + count == len(lines))
    ]


def _conflict(patch: str, file: str, hunk: Hunk, lines: tuple[str, ...], places: list[int], wanted: int) -> Conflict:
    """Describe a misfit beside the tree's most similar lines, the nearest of them if several are alike."""
    count = len(hunk.old)
    if places:
        reason = "fits in several places: tree lines " + ", ".join(str(at + 1) for at in places)
        best = min(places, key=lambda at: abs(at - wanted))
    else:
        reason = "does not fit"
        best = max(
            range(max(1, len(lines) - count + 1)),
            key=lambda at: (
                sum(mine == theirs for mine, theirs in zip(hunk.old, lines[at : at + count], strict=False)),
                -abs(at - wanted),
            ),
        )
    expected = tuple(line.rstrip("\n") for line in hunk.old)
    found = tuple(line.rstrip("\n") for line in lines[best : best + count])
    return Conflict(patch, file, hunk.number, hunk.header, reason, expected, found, best + 1)


def _whole(patch: str, file: str, reason: str) -> Conflict:
    return Conflict(patch, file, 0, "", reason, (), (), 0)


def _read(tree: Path, name: str) -> _Content | None:
    path = inside(tree, name)
    try:
        data = path.read_bytes()
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PatchError(f"cannot read {path}: {error.strerror or error}") from error
    lines = decode(data).split("\n")
    ended = tuple(line + "\n" for line in lines[:-1]) + ((lines[-1],) if lines[-1] else ())
    return _Content(ended, mode)


def _bytes(content: _Content) -> bytes:
    return encode("".join(content.lines))


def _remember(tree: Path, name: str, content: _Content | None) -> Changed:
    path = inside(tree, name)
    new = hashlib.sha256(_bytes(content)).hexdigest() if content else ""
    if not path.exists():
        return Changed(name, None, 0, 0, new)
    state = path.stat()
    return Changed(name, path.read_bytes(), state.st_mode & 0o777, state.st_mtime_ns, new)


def _make_folders(tree: Path, folder: Path) -> list[Path]:
    missing = []
    while folder != tree and not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir()
    return missing[::-1]


def _write(path: Path, content: _Content | None) -> None:
    if content is None:
        path.unlink()
    else:
        _replace(path, _bytes(content), content.mode)


def _replace(path: Path, data: bytes, mode: int, mtime_ns: int | None = None) -> None:
    """Put a new file in the place of ``path``, whole or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=".orch-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), mode)
        if mtime_ns is not None:
            os.utime(name, ns=(mtime_ns, mtime_ns))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _restore(applied: Applied) -> None:
    for file in applied.files:
        path = inside(applied.tree, file.path)
        if file.old is None:
            path.unlink(missing_ok=True)
        else:
            _replace(path, file.old, file.old_mode, file.old_mtime_ns)
    for folder in reversed(applied.folders):
        with contextlib.suppress(OSError):  # something else was put there meanwhile: not ours to remove
            folder.rmdir()
