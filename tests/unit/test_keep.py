"""kernel/keep.py: a run that goes on keeps its tree, a nightly's new run takes the newest."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from toykernel import TOY

from orchestrator.experiment import DebianSource, GitSource, Source, TreeSource
from orchestrator.kernel import debian, keep
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.source import KernelTree, fetch
from orchestrator.store import Store

DEBIAN = DebianSource("linux-source-5.10", "bullseye-security")


class Trees:
    """Runs in a folder, and what they were told about their trees."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, [""]
        self.cache = folder / "cache"

    def take(self, run: str, source: Source, *, begun: bool = True, update: bool = False) -> KernelTree:
        (self.folder / run).mkdir(exist_ok=True)
        store = Store(self.folder / run, None)
        return keep.take_tree(store, [source], self.cache, self.said.append, begun=begun, update=update)


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    shutil.copytree(TOY, tmp_path / "origin")
    git(tmp_path / "origin", "init", "-q", "-b", "main")
    commit(tmp_path / "origin", "one")
    return tmp_path / "origin"


def git(repository: Path, *words: str) -> str:
    command = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(repository: Path, text: str) -> str:
    (repository / "mmu.c").write_text(f"int {text};\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", text)
    return git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("update", [False, True])
def test_a_run_goes_on_with_its_tree_after_the_branch_moved(trees: Trees, repository: Path, update: bool) -> None:
    source = GitSource(str(repository), "main")
    first = trees.take("a", source, update=update)
    second = commit(repository, "two")
    assert trees.take("a", source, update=update) == first and first.commit != second
    assert trees.said[-1] == f"kernel tree: {first.identity}, with which this run began"
    assert trees.take("b", source, update=update).commit == second, "a new run takes the new commit"


def test_a_run_without_trials_takes_what_is_there_now(trees: Trees, repository: Path) -> None:
    source = GitSource(str(repository), "main")
    trees.take("a", source)
    second = commit(repository, "two")
    assert trees.take("a", source, begun=False).commit == second
    assert trees.take("a", source).commit == second


def test_a_changed_folder_is_looked_at_again_but_not_by_a_nightly(trees: Trees, repository: Path) -> None:
    source = TreeSource(repository)
    shutil.rmtree(repository / ".git")
    first = trees.take("a", source)
    (repository / "mmu.c").write_text("int changed;\n")
    assert trees.take("a", source, update=True) == first
    assert trees.take("a", source).content_id != first.content_id


def test_a_tree_that_the_cache_lost_is_fetched_again(trees: Trees, repository: Path) -> None:
    first = trees.take("a", GitSource(str(repository), "main"))
    shutil.rmtree(trees.cache)
    assert trees.take("a", GitSource(str(repository), "main")) == first
    assert (first.path / "mmu.c").read_text() == "int one;\n"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the Debian suite offers: the last entry. Downloads are counted by the copies of it in ``downloads``."""
    offered = [b"5.10.1"]
    monkeypatch.setattr(debian, "offered_sha256", lambda *_: hashlib.sha256(offered[-1]).hexdigest())

    def download(source: DebianSource, folder: Path, say: object) -> debian.Package:
        (folder / "x.deb").write_bytes(offered[-1])
        offered.insert(0, b"downloaded")
        return debian.Package(folder / "x.deb", offered[-1].decode())

    def unpack(package: debian.Package, name: str, folder: Path, say: object) -> None:
        shutil.copytree(TOY, folder, dirs_exist_ok=True)

    monkeypatch.setattr(debian, "download", download)
    monkeypatch.setattr(debian, "unpack", unpack)
    return offered


def test_only_an_update_asks_the_suite_again_and_downloads_only_what_is_new(trees: Trees, suite: list[bytes]) -> None:
    assert trees.take("a", DEBIAN).identity.endswith("5.10.1") and suite.count(b"downloaded") == 1
    assert trees.take("b", DEBIAN, update=True).identity.endswith("5.10.1") and suite.count(b"downloaded") == 1
    suite.append(b"5.10.2")
    assert trees.take("c", DEBIAN).identity.endswith("5.10.1"), "a plain run keeps to what is there"
    assert trees.take("d", DEBIAN, update=True).identity.endswith("5.10.2") and suite.count(b"downloaded") == 2
    assert trees.take("a", DEBIAN, update=True).identity.endswith("5.10.1"), "an old run goes on with its own"
    assert fetch([DEBIAN], trees.cache, lambda line: None).identity.endswith("5.10.2"), "what was new is now known"


def test_an_arms_configuration_is_kept_if_there_is_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "run", None)
    (tmp_path / "config").write_text("CONFIG_KVM=y\n")
    kernel = BuiltKernel(
        "base", "ok", "5.10", tmp_path, "", tmp_path / "config", "", None, "", 0.0, False, tmp_path, ""
    )  # fmt: skip
    keep.keep_config(store, kernel)
    assert (tmp_path / "run" / keep.config_name("base")).read_text() == "CONFIG_KVM=y\n"
    failed = BuiltKernel("broken", "failed", "", None, "", None, "", None, "", 0.0, False, tmp_path, "no")
    keep.keep_config(store, failed)
    assert not (tmp_path / "run" / keep.config_name("broken")).exists()
