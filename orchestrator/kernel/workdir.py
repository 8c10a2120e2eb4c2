"""The folder in which kernels of one tree and one config are built: always at the same paths, safe against any kill.

    build/KEY/
        .lock         held while anything below is written, also by make's children
        src/          the tree, hard links to the pristine one; a patched file is a new file under the old name
        obj/          the object directory (its paths are in every command, so a copy elsewhere would rebuild all)
        base/         obj as the base arm's build left it
        base.json     written after base/ is complete: the files that the base's own patches changed
        base-CONFIG/, base-CONFIG.json      the same with another config, see Workdir.variant
        touched.json  written before a series is applied: what must be put back

Each arm starts from base/ and from the pristine tree, whatever happened before: what an earlier arm, or a killed run,
left in src/ or obj/ never reaches a kernel. Putting the sources' old times back without putting the objects back would
not do: make would take an earlier arm's objects for newer than their sources.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import proc
from orchestrator.cache import publish, remove
from orchestrator.kernel import patch
from orchestrator.kernel.paths import plain
from orchestrator.store import file_sha256, load_json, to_json, write_atomic

# A kill can leave an object that the compiler has finished and objtool has not seen, which make takes for done.
# objtool follows within milliseconds; everything this much older than the newest object is complete.
DOUBTFUL_NS = 60 * 10**9
OBJECTS = {".o", ".a", ".so", ".dbg"}


@dataclass(frozen=True)
class Touched:
    """touched.json: paths that a series may have changed, created or removed."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class BaseFile:
    """A file that the base's own patches changed, as base/ was built from it."""

    path: str
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Base:
    """base.json."""

    files: tuple[BaseFile, ...]


@dataclass(frozen=True)
class Workdir:
    """See the module. Every function here expects the lock to be held.

    ``variant`` names another config of the same tree and base, empty for the folder's own: one that adds the drivers of
    some machine. Its base is made from the objects of one that is there, of which make rebuilds what the differing
    options are read by (Kbuild's fixdep notes them for each object).
    """

    path: Path
    pristine: Path
    variant: str = ""

    @property
    def source(self) -> Path:
        return self.path / "src"

    @property
    def objects(self) -> Path:
        return self.path / "obj"

    @property
    def has_base(self) -> bool:
        return self._record.is_file()

    @property
    def _base(self) -> Path:
        return self.path / (f"base-{self.variant}" if self.variant else "base")

    @property
    def _record(self) -> Path:
        return self._base.with_name(f"{self._base.name}.json")

    def _others(self) -> tuple[Workdir, ...]:
        """This folder with the variants that have a base, the folder's own config first."""
        names = sorted(path.stem.partition("-")[2] for path in self.path.glob("base*.json"))
        return tuple(Workdir(self.path, self.pristine, name) for name in names if name != self.variant)

    @contextlib.contextmanager
    def patched(self, series: Sequence[patch.Patch]) -> Iterator[tuple[str, ...]]:
        """The tree with ``series`` applied, for as long as the block runs; yields the paths that it touches.

        Raises :class:`PatchError` if the series does not apply; the tree is then pristine.
        """
        self._restore()
        paths = touched(series)
        # start_arm gives some files of the base times of their own.
        journal = {*paths, *(file.path for file in self._base_files())}
        write_atomic(self.path / "touched.json", to_json(Touched(tuple(sorted(journal)))))
        try:
            if series:
                patch.apply(series, self.source)
            yield paths
        finally:
            self._restore()

    def start_base(self) -> None:
        """Prepare obj/ for the base arm.

        From another variant's base if there is one: arms may have been built since, and their objects are newer than
        the sources that are put back. Else as an interrupted build left it, less what that may have left half done.
        """
        self.objects.mkdir(parents=True, exist_ok=True)
        for other in self._others():
            other.start_arm()
            return
        files = [path for path in self.objects.rglob("*") if path.suffix in OBJECTS and path.is_file()]
        times = {path: path.stat().st_mtime_ns for path in files}
        newest = max(times.values(), default=0)
        for path, mtime_ns in times.items():
            if mtime_ns >= newest - DOUBTFUL_NS:
                path.unlink()

    def keep_base(self, paths: Iterable[str]) -> None:
        """Declare obj/ to be what every later arm starts from; ``paths`` were changed by the base's own patches."""
        with publish(self._base) as temporary:
            synchronize(self.objects, temporary)
        files = [(name, self.source / name) for name in paths if (self.source / name).is_file()]
        states = tuple(BaseFile(name, file_sha256(path), path.stat().st_mtime_ns) for name, path in files)
        write_atomic(self._record, to_json(Base(states)))

    def start_arm(self) -> None:
        """Prepare obj/ and the times in src/ (patched already) so that make builds what differs from the base, only."""
        synchronize(self._base, self.objects)
        for file in self._base_files():
            path = self.source / file.path
            if not path.is_file():
                continue
            _own(path)
            # Any other content gets the present time: base/ holds objects of the base's.
            mtime_ns = file.mtime_ns if file_sha256(path) == file.sha256 else time.time_ns()
            os.utime(path, ns=(mtime_ns, mtime_ns))

    def _base_files(self) -> tuple[BaseFile, ...]:
        return load_json(self._record, Base).files if self.has_base else ()

    def _restore(self) -> None:
        """Make src/ pristine again: the very same inodes, so contents and times are right by construction."""
        journal = self.path / "touched.json"
        if not self.source.is_dir():
            # Removed first: a kill in between must not leave a journal of another tree's state.
            journal.unlink(missing_ok=True)
            with publish(self.source) as temporary:
                proc.run(["cp", "-al", "-T", "--", self.pristine, temporary], deadline_s=600)
        if not journal.is_file():
            return
        for name in load_json(journal, Touched).paths:
            _relink(self.pristine / name, self.source / name)
            self._prune(Path(name).parent)
        journal.unlink()

    def _prune(self, folder: Path) -> None:
        """Remove what a kill in the middle of a write left in ``folder``, and folders that only a patch created."""
        if (self.source / folder).is_dir():
            for leftover in (self.source / folder).glob(".orch-*"):
                leftover.unlink()
        while folder != Path() and not (self.pristine / folder).exists():
            with contextlib.suppress(OSError):  # Absent, or another created file is still in it and comes next.
                (self.source / folder).rmdir()
            folder = folder.parent


def touched(series: Sequence[patch.Patch]) -> tuple[str, ...]:
    """All paths that a series can change, create or remove. Raises :class:`PatchError` for one that leaves the tree."""
    names = sorted({name for one in series for diff in one.diffs for name in (diff.old, diff.new) if name})
    return tuple("/".join(plain(name)) for name in names)


def synchronize(origin: Path, copy: Path) -> None:
    """Make ``copy`` the same as ``origin``: contents, times, links; only what differs is written."""
    copy.mkdir(parents=True, exist_ok=True)
    wanted = {entry.name: entry for entry in os.scandir(origin)}
    for entry in os.scandir(copy):
        other = wanted.get(entry.name)
        if other is None or _kind(other) != _kind(entry):
            remove(Path(entry.path))
    for name, entry in wanted.items():
        target = copy / name
        if entry.is_dir(follow_symlinks=False):
            synchronize(Path(entry.path), target)
        elif entry.is_symlink() or not _same(entry, target):
            target.unlink(missing_ok=True)
            shutil.copy2(entry.path, target, follow_symlinks=False)


def _kind(entry: os.DirEntry[str]) -> str:
    return "link" if entry.is_symlink() else "folder" if entry.is_dir() else "file"


def _same(entry: os.DirEntry[str], target: Path) -> bool:
    """By size, mode and mtime, which copy2 sets last: a file whose copying was killed differs."""
    if not target.exists():
        return False
    one, other = entry.stat(), target.stat()
    return (one.st_size, one.st_mode, one.st_mtime_ns) == (other.st_size, other.st_mode, other.st_mtime_ns)


def _relink(pristine: Path, path: Path) -> None:
    if not pristine.exists():
        path.unlink(missing_ok=True)
    elif not path.exists() or not path.samefile(pristine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.link(pristine, path)


def _own(path: Path) -> None:
    """Break a hard link, so that a time can be set without touching the pristine tree's file."""
    if path.stat().st_nlink > 1:
        copy = path.with_name(f".orch-{path.name}")
        shutil.copy2(path, copy)
        copy.replace(path)
