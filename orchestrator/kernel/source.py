"""From the sources that an experiment lists to one pristine kernel tree in the cache.

    sources/CONTENT_ID/{source.json, tree/}     published by one rename, never written again
    sources/names/NAME                          content id that a package of a suite had when it was fetched
    sources/stamps/STAMP                        content id of an existing tree (see snapshot.py)

A tree of a named suite is fetched once and then kept, so that results stay comparable; ``fetch(update=True)``, which a
nightly does, asks the suite again. A git ref is resolved each time. A run that goes on keeps its tree (``take_tree``).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cache import lock, publish, remove
from orchestrator.errors import OrchError, SourceError
from orchestrator.experiment import DebianSource, GitSource, Source, TarballSource, TreeSource
from orchestrator.kernel import debian, gitref, snapshot
from orchestrator.store import file_sha256, load_json, to_json, write_atomic

Say = Callable[[str], None]

LOCK_WAIT_S = 1800.0
URL_DEADLINE_S = 1800.0
URL_STALL_S = 60.0
BLOCK_BYTES = 1 << 18


@dataclass(frozen=True)
class KernelTree:
    """A kernel tree in the cache that nobody writes to.

    ``identity`` is for people ("Debian linux-source-5.10 5.10.262-1"); ``content_id`` is the SHA-256 of what was
    fetched (package, tarball), of the git commit's name, or of an existing tree's contents; ``release`` is the
    version in the tree's Makefile; ``commit`` is the full name of a git commit, empty for other sources.
    """

    path: Path
    identity: str
    content_id: str
    release: str
    commit: str = ""


@dataclass(frozen=True)
class _Record:
    """source.json."""

    identity: str
    content_id: str
    release: str
    commit: str = ""


def fetch(sources: Sequence[Source], cache: Path, progress: Say, *, update: bool = False) -> KernelTree:
    """The first of ``sources`` that can be had. Raises :class:`SourceError` that says why each of them failed.

    ``update``: also ask a Debian suite for a newer package than the one in the cache.
    """
    failures: list[str] = []
    for source in sources:
        try:
            return _fetch(source, cache, progress, update)
        except (OrchError, OSError) as error:
            what = error.what if isinstance(error, OrchError) else str(error)
            hint = f" ({error.hint})" if isinstance(error, OrchError) and error.hint else ""
            failures.append(f"{describe(source)}: {what}{hint}")
            progress(f"{describe(source)} failed: {what.splitlines()[0]}")
    if not failures:
        raise SourceError("the experiment lists no kernel source")
    raise SourceError("no kernel source could be had:\n" + "\n".join(f"  - {line}" for line in failures))


def cached(cache: Path, content_id: str) -> KernelTree | None:
    """The tree with this content, if the cache still has it."""
    folder = cache / "sources" / content_id
    if not (folder / "source.json").is_file():
        return None
    record = load_json(folder / "source.json", _Record)
    return KernelTree(folder / "tree", record.identity, record.content_id, record.release, record.commit)


def describe(source: Source) -> str:
    """A source in a few words."""
    match source:
        case DebianSource():
            return f"{source.package} of Debian {source.suite}"
        case TreeSource():
            return f"tree {source.path}"
        case TarballSource():
            return f"tarball {source.path or source.url}"
        case GitSource():
            return f"git {source.repository} {source.ref}"


def _fetch(source: Source, cache: Path, say: Say, update: bool) -> KernelTree:
    with lock(cache / "sources" / ".lock", wait_s=LOCK_WAIT_S, say=say):
        match source:
            case DebianSource():
                return _debian(source, cache, say, update)
            case TreeSource():
                return _tree(source, cache, say)
            case TarballSource():
                return _tarball(source, cache, say)
            case GitSource():
                return _git(source, cache, say)


def _debian(source: DebianSource, cache: Path, say: Say, update: bool) -> KernelTree:
    name = cache / "sources" / "names" / f"debian {source.package} {source.suite}".replace("/", "_")
    if not update and name.is_file() and (known := cached(cache, name.read_text(encoding="ascii").strip())):
        return known
    with _scratch(cache) as scratch:
        offered = cached(cache, debian.offered_sha256(source, scratch / "offered", say)) if update else None
        tree = offered or _debian_download(source, cache, scratch, say)
    name.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(name, tree.content_id.encode())
    return tree


def _debian_download(source: DebianSource, cache: Path, scratch: Path, say: Say) -> KernelTree:
    package = debian.download(source, scratch, say)
    content_id = file_sha256(package.path)
    identity = f"Debian {source.package} {package.version}"
    return cached(cache, content_id) or _publish(
        cache, identity, content_id, lambda folder: debian.unpack(package, source.package, folder, say)
    )


def _tree(source: TreeSource, cache: Path, say: Say) -> KernelTree:
    _release(source.path)
    for leftover in (".config", "include/config"):
        if (source.path / leftover).exists():
            raise SourceError(
                f"{source.path} was built in (it has {leftover}); a build out of tree refuses it",
                hint=f"make -C {source.path} mrproper",
            )
    content_id = snapshot.content_id(source.path, cache)
    if known := cached(cache, content_id):
        return known
    say(f"copying {source.path} into the cache")
    return _publish(cache, f"tree {source.path}", content_id, lambda folder: snapshot.copy(source.path, folder))


def _tarball(source: TarballSource, cache: Path, say: Say) -> KernelTree:
    if known := cached(cache, source.sha256):
        return known
    with _scratch(cache) as scratch:
        file = source.path
        if file is None:
            file = scratch / "download"
            _download(source.url or "", file, say)
        found = file_sha256(file)
        if not found:
            raise SourceError(f"cannot read {file}")
        if found != source.sha256:
            raise SourceError(f"its SHA-256 is {found}, expected {source.sha256}; nothing of it was used")
        say(f"unpacking {file.name if source.path else source.url}")
        identity = f"tarball {(source.url or str(file)).rsplit('/', 1)[-1]}"
        return _publish(cache, identity, source.sha256, lambda folder: extract(file, folder))


def _git(source: GitSource, cache: Path, say: Say) -> KernelTree:
    commit = gitref.resolve(source)
    content_id = hashlib.sha256(f"git commit {commit}".encode()).hexdigest()
    if known := cached(cache, content_id):
        return known
    with _scratch(cache) as scratch:
        say(f"fetching {source.ref} of {source.repository}")
        tar = gitref.archive(source, commit, scratch)
        identity = f"git {source.ref} ({commit[:12]})"
        return _publish(cache, identity, content_id, lambda folder: extract(tar, folder), commit)


def extract(tar: Path, folder: Path) -> None:
    """Unpack a tarball into ``folder`` without its top folder, if it has a single one.

    Member names, links, devices and permission bits are vetted by tarfile's ``data`` filter (PEP 706).
    Raises :class:`SourceError` for a member that would leave ``folder`` and for a damaged file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inner = folder / "unpacked"
    try:
        with tarfile.open(tar) as archive:
            archive.extractall(inner, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SourceError(f"{tar.name}: refused or damaged: {error}") from error
    entries = list(inner.iterdir())
    top = entries[0] if len(entries) == 1 and entries[0].is_dir() else inner
    # Renamed first: the top folder may hold an entry of the name that is being emptied.
    moved = top.rename(folder.with_name(f"{folder.name}.top"))
    if inner.exists():
        inner.rmdir()
    folder.rmdir()
    moved.rename(folder)


def _download(url: str, file: Path, say: Say) -> None:
    """Fetch an http(s) address; the whole may take ``URL_DEADLINE_S``, a silence ``URL_STALL_S``."""
    if not re.match(r"https?://", url):
        raise SourceError(f"{url}: not an http or https address")
    deadline = time.monotonic() + URL_DEADLINE_S
    try:
        with urllib.request.urlopen(url, timeout=URL_STALL_S) as answer, file.open("wb") as stream:
            total = int(answer.headers.get("Content-Length") or 0)
            done = told = 0
            while block := answer.read(BLOCK_BYTES):
                stream.write(block)
                done += len(block)
                if total and done * 10 // total > told:
                    told = done * 10 // total
                    say(f"downloading: {done >> 20} of {total >> 20} MiB")
                if time.monotonic() > deadline:
                    raise SourceError(f"{url}: no end after {URL_DEADLINE_S:.0f} s")
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise SourceError(f"{url}: {error}") from error
    if total and done != total:
        raise SourceError(f"{url}: ended after {done} of {total} bytes")


@contextlib.contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """An empty folder on the cache's file system. Under the lock, so what is there already is a killed run's."""
    folder = cache / "sources" / ".scratch"
    remove(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove(folder)


def _publish(cache: Path, identity: str, content_id: str, fill: Callable[[Path], None], commit: str = "") -> KernelTree:
    final = cache / "sources" / content_id
    with publish(final) as temporary:
        (temporary / "tree").mkdir()
        fill(temporary / "tree")
        record = _Record(identity, content_id, _release(temporary / "tree"), commit)
        write_atomic(temporary / "source.json", to_json(record))
    return KernelTree(final / "tree", identity, content_id, record.release, commit)


def _release(tree: Path) -> str:
    """``VERSION.PATCHLEVEL.SUBLEVEL EXTRAVERSION`` of a kernel's Makefile; :class:`SourceError` if it is no kernel."""
    try:
        text = (tree / "Makefile").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SourceError(f"{tree} is no kernel tree: {error.strerror}: Makefile") from error
    found: dict[str, str] = dict(
        re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(\S*)[ \t]*$", text, re.MULTILINE)
    )
    if not {"VERSION", "PATCHLEVEL"} <= found.keys() or not (tree / "Kconfig").is_file():
        raise SourceError(f"{tree} is no kernel tree: no VERSION in its Makefile, or no Kconfig")
    return ".".join(found.get(key) or "0" for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL")) + found.get(
        "EXTRAVERSION", ""
    )
