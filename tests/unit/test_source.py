"""Trees from folders, tarballs and git: checked, cached by content, never half there, never written to."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toykernel import TOY, snapshot

from orchestrator.errors import SourceError
from orchestrator.experiment import DebianSource, GitSource, Source, TarballSource, TreeSource
from orchestrator.kernel import debian, source
from orchestrator.kernel.source import KernelTree, fetch

Fetch = Callable[..., KernelTree]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    shutil.copytree(TOY, tmp_path / "origin")
    return tmp_path / "origin"


def get(cache: Path, *sources: Source) -> KernelTree:
    return fetch(sources, cache, lambda line: None)


def reason(cache: Path, *sources: Source) -> str:
    with pytest.raises(SourceError) as caught:
        get(cache, *sources)
    left = [path.name for path in cache.glob("sources/*") if path.name not in {".lock", "stamps", "names"}]
    assert left == [], "a failed fetch leaves nothing in the cache"
    return caught.value.what


def contents(tree: Path) -> dict[str, bytes]:
    return {name: content for name, (_, _, content) in snapshot(tree).items()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tarball(path: Path, *members: tarfile.TarInfo | tuple[str, str], tree: Path | None = None) -> TarballSource:
    """A tarball of ``tree`` under linux-5.10/ and of ``members`` (name and text, or a header alone)."""
    with tarfile.open(path, "w:xz") as archive:
        if tree is not None:
            archive.add(tree, "linux-5.10")
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1].encode()))
    return TarballSource(sha256=sha256(path), path=path)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


# --- An existing tree ---------------------------------------------------------------------------------------------


def test_a_tree_is_copied_with_its_times(cache: Path, origin: Path) -> None:
    tree = get(cache, TreeSource(origin))
    assert snapshot(tree.path) == snapshot(origin)
    assert (tree.release, tree.identity) == ("5.10.7-toy", f"tree {origin}")
    assert tree.path.is_relative_to(cache)
    assert get(cache, TreeSource(origin)) == tree


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "mmu.c").write_text("x"),
        lambda tree: (tree / "new.c").write_text(""),
        lambda tree: (tree / "mmu.c").unlink(),
        lambda tree: (tree / "mmu.c").rename(tree / "mmv.c"),
        lambda tree: (tree / "mmu.c").chmod(0o755),
        lambda tree: (tree / "link").symlink_to("mmu.c"),
    ],
    ids=["edited", "added", "removed", "renamed", "executable", "link"],
)
def test_a_changed_tree_has_another_id(cache: Path, origin: Path, change: Callable[[Path], object]) -> None:
    before = get(cache, TreeSource(origin))
    change(origin)
    after = get(cache, TreeSource(origin))
    assert after.content_id != before.content_id
    assert contents(after.path) == contents(origin)


def test_an_edit_of_the_same_size_and_time_is_seen(cache: Path, origin: Path) -> None:
    before = get(cache, TreeSource(origin))
    path = origin / "mmu.c"
    state = path.stat()
    path.write_text(path.read_text().replace("return 1", "return 8"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert get(cache, TreeSource(origin)).content_id != before.content_id


def test_a_touched_or_copied_tree_has_the_same_id(cache: Path, origin: Path, tmp_path: Path) -> None:
    before = get(cache, TreeSource(origin))
    os.utime(origin / "mmu.c")
    shutil.copytree(origin, tmp_path / "copy")
    (tmp_path / "copy" / ".git").mkdir()
    (tmp_path / "copy" / ".git" / "HEAD").write_text("ref")
    assert get(cache, TreeSource(origin)) == before
    assert get(cache, TreeSource(tmp_path / "copy")) == before
    assert not (before.path / ".git").exists()


def test_a_tree_that_was_built_in_is_refused(cache: Path, origin: Path) -> None:
    (origin / ".config").write_text("")
    assert f"make -C {origin} mrproper" in reason(cache, TreeSource(origin))


@pytest.mark.parametrize("file", ["Makefile", "Kconfig"])
def test_what_is_no_kernel_tree(cache: Path, origin: Path, file: str) -> None:
    (origin / file).unlink()
    assert f"{origin} is no kernel tree" in reason(cache, TreeSource(origin))


# --- A tarball ----------------------------------------------------------------------------------------------------


def test_a_tarball_without_its_top_folder(cache: Path, origin: Path, tmp_path: Path) -> None:
    wanted = tarball(tmp_path / "linux.tar.xz", link("linux-5.10/link", "mmu.c"), tree=origin)
    tree = get(cache, wanted)
    assert tree.content_id == wanted.sha256 and tree.identity == "tarball linux.tar.xz"
    assert contents(tree.path) == contents(origin) | {"link": (origin / "mmu.c").read_bytes()}
    (tmp_path / "linux.tar.xz").unlink()
    assert get(cache, wanted) == tree, "once cached, the file is not needed"


def test_a_tarball_without_a_top_folder(cache: Path, origin: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "flat.tar", "w") as archive:
        for path in sorted(origin.iterdir()):
            archive.add(path, path.name)
    flat = TarballSource(sha256=sha256(tmp_path / "flat.tar"), path=tmp_path / "flat.tar")
    assert contents(get(cache, flat).path) == contents(origin)


def test_another_sha256_is_refused_before_anything_is_unpacked(cache: Path, origin: Path, tmp_path: Path) -> None:
    good = tarball(tmp_path / "linux.tar.xz", tree=origin)
    wrong = TarballSource(sha256="0" * 64, path=good.path)
    assert f"its SHA-256 is {good.sha256}, expected {'0' * 64}" in reason(cache, wrong)


@pytest.mark.parametrize(
    "member",
    [
        ("../escaped", "x"),
        ("linux-5.10/../../escaped", "x"),
        link("linux-5.10/out", "../../escaped"),
        link("linux-5.10/out", "/etc/passwd"),
        link("linux-5.10/hard", "../escaped", tarfile.LNKTYPE),
        link("linux-5.10/device", "", tarfile.CHRTYPE),
        link("linux-5.10/pipe", "", tarfile.FIFOTYPE),
    ],
    ids=["parent", "inner parent", "link out", "link to root", "hard link out", "device", "pipe"],
)
def test_a_member_that_leaves_the_folder_is_refused(
    cache: Path, origin: Path, tmp_path: Path, member: tarfile.TarInfo | tuple[str, str]
) -> None:
    assert "refused or damaged" in reason(cache, tarball(tmp_path / "evil.tar.xz", member, tree=origin))
    assert not list(tmp_path.rglob("escaped"))


def test_a_file_through_a_link_stays_inside(cache: Path, origin: Path, tmp_path: Path) -> None:
    evil = tarball(
        tmp_path / "evil.tar.xz", link("linux-5.10/a", "b"), ("linux-5.10/a/../../escaped", "x"), tree=origin
    )
    assert "refused or damaged" in reason(cache, evil)
    assert not list(tmp_path.rglob("escaped"))


def test_a_truncated_tarball(cache: Path, origin: Path, tmp_path: Path) -> None:
    whole = tarball(tmp_path / "linux.tar.xz", tree=origin)
    assert whole.path
    whole.path.write_bytes(whole.path.read_bytes()[:-100])
    cut = TarballSource(sha256=sha256(whole.path), path=whole.path)
    assert "refused or damaged" in reason(cache, cut)


class _Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = lambda *args: _Server(*args, directory=str(tmp_path))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_a_tarball_by_url(cache: Path, origin: Path, tmp_path: Path, server: str) -> None:
    local = tarball(tmp_path / "linux.tar.xz", tree=origin)
    said: list[str] = []
    tree = fetch([TarballSource(sha256=local.sha256, url=f"{server}/linux.tar.xz")], cache, said.append)
    assert contents(tree.path) == contents(origin) and tree.identity == "tarball linux.tar.xz"
    assert any(line.startswith("downloading: ") for line in said)


def test_a_url_that_is_not_there(cache: Path, server: str) -> None:
    assert "HTTP Error 404" in reason(cache, TarballSource(sha256="0" * 64, url=f"{server}/none.tar.xz"))


# --- git ----------------------------------------------------------------------------------------------------------


def git(repository: Path, *words: str) -> str:
    command = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(origin: Path) -> Path:
    git(origin, "init", "-q", "-b", "main")
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "one")
    git(origin, "tag", "-a", "v1", "-m", "one")
    (origin / "mmu.c").write_text("int two;\n")
    git(origin, "commit", "-qam", "two")
    (origin / "untracked.c").write_text("")
    return origin


@pytest.mark.parametrize("address", ["{}", "file://{}"], ids=["folder", "remote"])
def test_a_tag_and_a_branch(cache: Path, repository: Path, address: str) -> None:
    name = address.format(repository)
    tag, branch = get(cache, GitSource(name, "v1")), get(cache, GitSource(name, "main"))
    assert contents(tag.path) == contents(TOY)
    assert (branch.path / "mmu.c").read_text() == "int two;\n" and not (branch.path / "untracked.c").exists()
    assert tag.identity == f"git v1 ({git(repository, 'rev-parse', 'v1^{commit}')[:12]})"
    commit = git(repository, "rev-parse", "main")
    assert get(cache, GitSource(name, commit)).path == branch.path
    git(repository, "commit", "-q", "--allow-empty", "-m", "three")
    assert get(cache, GitSource(name, "main")).content_id != branch.content_id


def test_a_ref_that_is_not_there(cache: Path, repository: Path) -> None:
    assert "has no commit v9" in reason(cache, GitSource(str(repository), "v9"))
    assert "has no tag or branch v9" in reason(cache, GitSource(f"file://{repository}", "v9"))


@pytest.mark.parametrize(
    ("address", "ref"),
    [("--upload-pack=touch escaped", "main"), ("ext::sh -c touch% escaped", "main"), ("{}", "--output=escaped")],
)
def test_nothing_of_a_repository_becomes_an_option_or_a_command(
    cache: Path, repository: Path, address: str, ref: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    # The experiment's own types refuse these already; this is the second lock.
    evil = object.__new__(GitSource)
    object.__setattr__(evil, "repository", address.format(repository))
    object.__setattr__(evil, "ref", ref)
    assert "not a repository address or ref" in reason(cache, evil)
    assert not list(repository.rglob("escaped"))


def test_gits_environment_does_not_redirect(
    cache: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert get(cache, GitSource(str(repository), "v1")).release == "5.10.7-toy"


# --- Several sources ----------------------------------------------------------------------------------------------


def test_sources_are_tried_in_order_and_each_failure_is_told(cache: Path, origin: Path, tmp_path: Path) -> None:
    missing = TarballSource(sha256="0" * 64, path=tmp_path / "none.tar")
    said: list[str] = []
    tree = fetch([TreeSource(tmp_path / "nowhere"), missing, TreeSource(origin)], cache, said.append)
    assert tree.identity == f"tree {origin}"
    assert len(said) == 3 and "nowhere failed: " in said[0] and "none.tar failed: " in said[1]
    what = reason(tmp_path / "other", TreeSource(tmp_path / "nowhere"), missing)
    assert f"- tree {tmp_path}/nowhere: " in what and f"- tarball {tmp_path}/none.tar: cannot read" in what


def test_a_debian_package_is_fetched_once(
    cache: Path, origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def download(source: DebianSource, folder: Path, say: object) -> debian.Package:
        calls.append(source.suite)
        (folder / "x.deb").write_bytes(b"the package")
        return debian.Package(folder / "x.deb", "5.10.262-1")

    def unpack(package: debian.Package, name: str, folder: Path, say: object) -> None:
        shutil.copytree(origin, folder, dirs_exist_ok=True)

    monkeypatch.setattr(debian, "download", download)
    monkeypatch.setattr(debian, "unpack", unpack)
    wanted = DebianSource("linux-source-5.10", "bullseye-security")
    tree = get(cache, wanted)
    assert tree.identity == "Debian linux-source-5.10 5.10.262-1"
    assert tree.content_id == hashlib.sha256(b"the package").hexdigest()
    assert get(cache, wanted) == tree and calls == ["bullseye-security"]
    # The same package in another suite is asked for, and not unpacked twice.
    monkeypatch.setattr(debian, "unpack", lambda *_: pytest.fail("unpacked again"))
    assert get(cache, DebianSource("linux-source-5.10", "bullseye")) == tree


def test_a_failure_while_unpacking_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def extract(tar: Path, folder: Path) -> None:
        (folder / "Makefile").write_text("VERSION = 5\n")
        raise SourceError("the disk is full")

    monkeypatch.setattr(source, "extract", extract)
    assert "the disk is full" in reason(cache, tarball(tmp_path / "x.tar.xz", ("a/b", "c")))
