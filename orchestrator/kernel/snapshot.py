"""An existing kernel tree: what it contains, as one hash, and a copy that stays as it is."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from orchestrator import proc
from orchestrator.cache import publish
from orchestrator.errors import SourceError
from orchestrator.store import file_sha256, write_atomic

# git's own folder is no part of what is compiled (and LOCALVERSION_AUTO, which asks it, is off).
IGNORED = {".git"}


def content_id(tree: Path, cache: Path) -> str:
    """SHA-256 over path, type, executable bit and content of every file of ``tree``.

    Contents and not times, nor git's idea of a clean tree: a touched or freshly checked-out file must not cost a
    build of minutes, and an edited, untracked or ignored one must never be missed. Reading 1 GB at each start would
    take seconds, so the answer is remembered under a hash of all paths, sizes, inodes, mtimes and ctimes (as git's
    index does it): an unchanged tree costs one walk, half a second.
    """
    stamp = stat_id(tree)
    remembered = cache / "sources" / "stamps" / stamp
    if remembered.is_file():
        return remembered.read_text(encoding="ascii").strip()
    digest = hashlib.sha256()
    for name, state in _walk(tree):
        path = tree / name
        if stat.S_ISLNK(state.st_mode):
            kind, content = "link", hashlib.sha256(os.fsencode(path.readlink())).hexdigest()
        else:
            kind, content = "exec" if state.st_mode & 0o100 else "file", file_sha256(path)
        if not content:
            raise SourceError(f"cannot read {path}")
        digest.update(f"{kind} {content} ".encode() + os.fsencode(name) + b"\0")
    if stat_id(tree) != stamp:
        raise SourceError(f"{tree} was changed while it was read", hint="run this again")
    remembered.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(remembered, digest.hexdigest().encode())
    return digest.hexdigest()


def stat_id(tree: Path) -> str:
    """A hash that changes whenever a file of ``tree`` is written, replaced, added or removed."""
    digest = hashlib.sha256(os.fsencode(tree.resolve()) + b"\0")
    for name, state in _walk(tree):
        numbers = (state.st_mode, state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
        digest.update(os.fsencode(name) + f"\0{numbers}\0".encode())
    return digest.hexdigest()


def copy(tree: Path, final: Path) -> None:
    """Copy ``tree`` without git's folder to ``final``, times kept. :class:`SourceError` if it changes meanwhile.

    A copy and no hard links: an editor that writes in place would change those under a running build.
    """
    stamp = stat_id(tree)
    entries = sorted(entry for entry in tree.iterdir() if entry.name not in IGNORED)
    with publish(final) as temporary:
        proc.run(["cp", "-a", "--reflink=auto", "-t", temporary, "--", *entries], deadline_s=1800)
        if stat_id(tree) != stamp:
            raise SourceError(f"{tree} was changed while it was copied", hint="run this again")


def _walk(tree: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Files and symbolic links below ``tree`` by relative name, in a fixed order."""
    for folder, folders, files in os.walk(tree, onerror=_fail):
        folders[:] = sorted(name for name in folders if name not in IGNORED)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted(files + links):
            if name not in IGNORED:  # In a work tree of `git worktree`, .git is a file.
                path = os.path.join(folder, name)  # noqa: PTH118 - 80,000 times; Path would double the walk's time
                yield os.path.relpath(path, tree), os.lstat(path)


def _fail(error: OSError) -> None:
    raise SourceError(f"cannot read {error.filename}: {error.strerror}")
