"""Patches in, in any form people send them: diff, mail, mailbox, folder, quilt series, git range."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import proc
from orchestrator.errors import MailError, PatchError, QuotedMailError, printable
from orchestrator.experiment.values import GIT_RANGE_PREFIX
from orchestrator.kernel.diff import FileDiff, find_diff, parse_diff
from orchestrator.kernel.mailtext import Message, encode, read_file, read_messages
from orchestrator.kernel.paths import inside
from orchestrator.kernel.quoted import level

GIT_RANGE = re.compile(r"[\w./~^@{}+-]*\.\.[\w./~^@{}+-]*")
PART = re.compile(r"\[[^]]*?\b(\d{1,4})/(\d{1,4})\b[^]]*\]")
PATCH_SUFFIXES = {".patch", ".diff", ".mbox", ".eml"}
GIT_ENV = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS")


@dataclass(frozen=True)
class Patch:
    """One patch, read and checked for form, not yet held against a tree."""

    name: str  # file name, with n/m for one of a mailbox
    text: bytes  # the diff alone: from its first header to its last line
    subject: str  # without Re:, "" for a bare diff
    sha256: str  # of text: the same change has the same hash, whoever forwarded it
    files: tuple[str, ...]
    diffs: tuple[FileDiff, ...]


def read_series(paths: Iterable[Path | str]) -> tuple[Patch, ...]:
    """All patches of ``paths``, in the order in which they apply.

    A path is a diff, a mail, a mailbox (ordered by its n/m, cover letter and replies skipped), a quilt ``series``
    file, a folder (by its ``series`` file, else its patches by name), or ``git:REPOSITORY#BASE..TIP``.

    Raises :class:`QuotedMailError` for a mail that must be recovered first, :class:`MailError` for a series with a
    part missing, and :class:`PatchError` for a form that is refused.
    """
    patches: list[Patch] = []
    for path in paths:
        if str(path).startswith(GIT_RANGE_PREFIX):
            patches.extend(_from_git(str(path)))
        else:
            patches.extend(_from_path(Path(path)))
    return tuple(patches)


def _from_path(path: Path) -> tuple[Patch, ...]:
    if path.name == "series" and not path.is_dir():
        return _from_quilt(path)
    if not path.is_dir():
        return _from_file(path, lone=True)
    if (path / "series").is_file():
        return _from_quilt(path / "series")
    return _from_folder(path)


def _from_folder(folder: Path) -> tuple[Patch, ...]:
    files = sorted(file for file in folder.iterdir() if file.suffix in PATCH_SUFFIXES and file.is_file())
    patches = tuple(patch for file in files for patch in _from_file(file, lone=False))
    if not patches:
        raise PatchError(f"{folder} holds no patch: no `series`, no {', '.join(sorted(PATCH_SUFFIXES))}")
    return patches


def _from_quilt(series: Path) -> tuple[Patch, ...]:
    """A quilt series file: a patch a line, ``#`` comments, no option but ``-p1``, which all patches here are."""
    patches: list[Patch] = []
    for number, line in enumerate(read_file(series).decode("utf-8", "replace").split("\n"), 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        if words[1:] not in ([], ["-p1"]):
            raise PatchError(f"{series}:{number}: only -p1 is supported, found {printable(' '.join(words[1:]))}")
        file = inside(series.parent, words[0])
        if not file.is_file():
            raise PatchError(f"{series}:{number}: there is no {file}")
        patches.extend(_from_path(file))
    if not patches:
        raise PatchError(f"{series} lists no patch")
    return tuple(patches)


def _from_git(text: str) -> tuple[Patch, ...]:
    """``git:REPOSITORY#BASE..TIP`` through ``git format-patch``; the files go to a private folder, never a shell."""
    repository, _, span = text.removeprefix(GIT_RANGE_PREFIX).partition("#")
    if (
        not repository
        or repository.startswith("-")
        or span.startswith("-")
        or "..." in span
        or not GIT_RANGE.fullmatch(span)
    ):
        raise PatchError(f"`{printable(text)}`: expected git:REPOSITORY#BASE..TIP")
    if not Path(repository).is_dir():
        raise PatchError(f"`{printable(text)}`: there is no folder {repository}")
    with tempfile.TemporaryDirectory(prefix="orch-series-") as folder:
        # Git's variables of a hook that we may be run from would name another repository.
        argv = ["env", *(f"--unset={name}" for name in GIT_VARIABLES), "git", "-c", "core.fsmonitor=false"]
        # The user's configuration must neither run a program nor change the form of the diff.
        argv += ["-C", repository, "format-patch", "--quiet", "--no-ext-diff", "--no-textconv", "--no-color"]
        argv += ["--no-signature", "--no-cover-letter", "--no-attach", "--numbered", "--suffix=.patch"]
        argv += ["--src-prefix=a/", "--dst-prefix=b/", "--output-directory", folder, span, "--"]
        proc.run(argv, env=GIT_ENV, deadline_s=120, hint=f"git -C {repository} log --oneline {span}")
        if not any(Path(folder).iterdir()):
            raise PatchError(f"the range {span} of {repository} holds no commit")
        return _from_folder(Path(folder))


def _from_file(file: Path, *, lone: bool) -> tuple[Patch, ...]:
    """The patches of a file by their n/m, if they have one; every part must be there exactly once.

    ``lone``: the file was named by itself, so that it must hold a patch; beside others it may be a cover letter.
    """
    messages = read_messages(read_file(file))
    lone = lone and len(messages) == 1
    parts: list[tuple[int, int, Patch]] = []
    for message in messages:
        found = PART.search(message.subject)
        number, total = (int(found[1]), int(found[2])) if found else (0, 0)
        if (message.is_reply and len(messages) > 1) or _is_letter(
            file, message, lone, found is not None and not number
        ):
            continue
        label = f"{file.name}:{number}/{total}" if found and len(messages) > 1 else file.name
        parts.append((number, total, _patch(label, message)))
    if len(messages) > 1:
        _refuse_gaps(file, [(number, total) for number, total, _ in parts])
    return tuple(patch for _, _, patch in sorted(parts, key=lambda part: part[0]))


def _refuse_gaps(file: Path, parts: Sequence[tuple[int, int]]) -> None:
    """A mailbox must hold one whole series, or mails without numbers, which are taken in their order."""
    if not parts:
        raise MailError(f"{file} holds no patch")
    totals = sorted({total for _, total in parts})
    numbers = sorted(number for number, _ in parts)
    if totals == [0] or (len(totals) == 1 and numbers == list(range(1, totals[0] + 1))):
        return
    missing = ", ".join(f"{part}/{totals[-1]}" for part in range(1, totals[-1] + 1) if part not in numbers)
    found = ", ".join(f"{number}/{total}" for number, total in sorted(parts))
    raise MailError(f"{file} is not one whole series: it holds {found}" + (f"; missing {missing}" if missing else ""))


def _is_letter(file: Path, message: Message, lone: bool, is_cover: bool) -> bool:
    """True for a cover letter; an error for any other mail without a patch that can be used."""
    if find_diff(message.lines) is not None:
        return False
    if is_cover and not lone:
        return True
    if any(level(line) and "diff --git " in line for line in message.lines):
        hint = f"orch patch recover {file} --tree TREE --out FILE"
        raise QuotedMailError(f"{file} quotes a patch; it must be recovered first", hint=hint)
    raise MailError(f"{file} holds no patch")


def _patch(name: str, message: Message) -> Patch:
    start = find_diff(message.lines)
    if start is None:
        raise AssertionError("only called for a mail with a diff")
    body = message.lines[start:]
    diffs, end = parse_diff(name, body)
    text = encode("".join(f"{line}\n" for line in body[:end]))
    files = tuple(dict.fromkeys(diff.path for diff in diffs))
    return Patch(name, text, message.subject, hashlib.sha256(text).hexdigest(), files, diffs)
