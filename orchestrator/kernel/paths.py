"""Paths out of a mail or a patch: kept inside the tree, whatever they say."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from orchestrator.errors import PatchError, printable


def plain(name: str) -> tuple[str, ...]:
    """The components of a relative path that stays below where it starts.

    Raises :class:`PatchError` for an absolute path, ``..``, a control character, a backslash, or git's own folder.
    """
    parts = tuple(name.split("/"))
    if not name or name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise PatchError(f"the path `{printable(name)}` leaves the tree or is not a plain path; refused")
    if not name.isprintable() or "\\" in name or any(part.lower() == ".git" for part in parts):
        raise PatchError(f"the path `{printable(name)}` is refused")
    return parts


def inside(tree: Path, name: str) -> Path:
    """``tree``/``name``, after making sure that it cannot be anywhere else; it need not exist.

    Raises :class:`PatchError` for what :func:`plain` refuses, for a component or a file that is a symbolic link, and
    for a component that is not a folder.
    """
    parts = plain(name)
    path = tree
    for number, part in enumerate(parts, 1):
        path = path / part
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            raise PatchError(f"the path `{printable(name)}`: {os.strerror(error.errno or 0)}") from error
        if stat.S_ISLNK(mode):
            raise PatchError(f"the path `{printable(name)}` goes through the symbolic link {path}; refused")
        last = number == len(parts)
        if not (stat.S_ISREG(mode) if last else stat.S_ISDIR(mode)):
            raise PatchError(f"the path `{printable(name)}`: {path} is not a {'file' if last else 'folder'}; refused")
    return path
