"""A build that is killed at any moment, and two at once: no kernel is ever made of what was left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from toykernel import Toy, compiled, snapshot

from orchestrator import cache
from orchestrator.errors import StoreError
from orchestrator.kernel import build
from orchestrator.kernel.build import Progress
from orchestrator.kernel.workdir import synchronize

CHILD = """
import sys
from pathlib import Path
from toykernel import Toy
toy = Toy(Path(sys.argv[1]))
toy.build({"base": [], "slow": [Path(sys.argv[2])]})
"""


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


STOPS = "1200\n"  # tenths of a second, in NAME.slow: until go(), which every test calls
PASSES = "0\n"


def slow(toy: Toy, how: str = STOPS) -> Path:
    """A patch whose build stops in the middle, with kvm.c changed and compiled."""
    return toy.patch("slow", {"kvm.c": lambda text: text.replace("(seq)", "(seq + 5)"), "kvm.slow": how})


def go(toy: Toy) -> None:
    """Let what has stopped go on, whoever runs it: a compiler's shell outlives its killed run, and keeps the lock."""
    for started in toy.cache.glob("build/*/obj/*.started"):
        started.with_suffix(".go").touch()


@contextmanager
def started(toy: Toy, patch: Path, *markers: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run of its own process that has got to all ``markers`` in the object directory."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", CHILD, str(toy.folder), str(patch)], env=env) as child:
        try:
            deadline = time.monotonic() + 100
            while not all(list(toy.cache.glob(f"build/*/obj/{marker}")) for marker in markers):
                assert child.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            yield child
        finally:
            child.kill()


def test_a_kill_in_the_patched_state_leaves_nothing_behind(toy: Toy, tmp_path: Path) -> None:
    patch = slow(toy)
    pristine = snapshot(toy.tree().path)
    with started(toy, patch, "kvm.started") as child:
        child.send_signal(signal.SIGKILL)
    assert "(seq + 5)" in (toy.work() / "src" / "kvm.c").read_text()  # It was killed where this test wants it.
    go(toy)
    v1 = toy.patch("v1", {"mmu.c": lambda text: text.replace("return 1", "return 2")})
    kernels = toy.build({"base": [], "v1": [v1]})
    assert kernels["base"].cached and compiled(kernels["v1"]) == ["mmu.o"]
    assert snapshot(toy.work() / "src") == pristine
    (tmp_path / "other").mkdir()
    clean = Toy(tmp_path / "other").build({"base": [], "v1": [v1]})
    assert {arm: kernel.vmlinux_sha256 for arm, kernel in kernels.items()} == {
        arm: kernel.vmlinux_sha256 for arm, kernel in clean.items()
    }


def test_a_kill_in_the_base_continues_without_its_last_objects(toy: Toy) -> None:
    """An object may be compiled and not yet post-processed when the kill comes; it must not be taken for finished."""
    toy.origin.joinpath("kvm.slow").write_text(STOPS)
    toy.origin.joinpath("mmu.slow").write_text(PASSES)  # mmu.o is compiled beside it, and must be whole.
    with started(toy, slow(toy, PASSES), "kvm.started", "mmu.started") as child:
        child.send_signal(signal.SIGKILL)
    go(toy)
    objects = toy.work() / "obj"
    (objects / "kvm.o").write_bytes(b"half an object")
    old = objects / "mmu.o"
    os.utime(old, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns + 1))
    base = toy.build({"base": []})["base"]
    assert base.build == "ok" and "kvm.o" in compiled(base)


def test_objects_that_are_old_enough_are_not_compiled_again(toy: Toy) -> None:
    toy.origin.joinpath("start.slow").write_text(STOPS)
    toy.origin.joinpath("mmu.slow").write_text(PASSES)
    with started(toy, slow(toy, PASSES), "start.started", "mmu.started") as child:
        child.send_signal(signal.SIGKILL)
    go(toy)
    objects = toy.work() / "obj"
    hour_ago = time.time() - 3600
    for path in (toy.work() / "src").glob("*.c"):
        os.utime(path, (hour_ago - 3600, hour_ago - 3600))
    for path in (objects / ".config", objects / "mmu.o", *(toy.work() / "src" / "include").glob("*")):
        os.utime(path, (hour_ago, hour_ago))
    base = toy.build({"base": []})["base"]
    assert "mmu.o" not in compiled(base) and "start.o" in compiled(base)


def test_what_a_killed_run_started_keeps_the_lock(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(toy, slow(toy), "kvm.started") as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    monkeypatch.setattr(build, "LOCK_WAIT_S", 0.0)
    v1 = toy.patch("v1", {"mmu.c": lambda text: text.replace("return 1", "return 2")})
    with pytest.raises(StoreError, match=rf"in use by a process that {child.pid} \(.*\) had started"):
        toy.build({"base": [], "v1": [v1]})
    go(toy)
    monkeypatch.setattr(build, "LOCK_WAIT_S", 300.0)
    assert compiled(toy.build({"base": [], "v1": [v1]})["v1"]) == ["mmu.o"]


def test_a_second_run_waits_and_builds_nothing(toy: Toy) -> None:
    patch = slow(toy)
    said: list[str] = []

    def hear(step: Progress) -> None:
        said.append(step.line)
        go(toy)

    with started(toy, patch, "kvm.started") as child:
        kernels = toy.build({"base": [], "slow": [patch]}, hear)
        assert child.wait(300) == 0
    assert [kernel.cached for kernel in kernels.values()] == [True, True]
    assert len(said) == 1 and said[0].startswith(f"waiting for process {child.pid} (")


def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        cache.lock(tmp_path / "lock", wait_s=0, say=said.append),
        pytest.raises(StoreError, match=rf"in use by process {os.getpid()} \(.*pytest"),
        cache.lock(tmp_path / "lock", wait_s=0.2, say=said.append),
    ):
        pass
    assert len(said) == 1
    with cache.lock(tmp_path / "lock", wait_s=0, say=said.append) as descriptor:
        assert os.fstat(descriptor).st_size > 0


def test_a_waiting_lock_is_got_when_it_is_free(tmp_path: Path) -> None:
    release = threading.Event()

    def hold() -> None:
        with cache.lock(tmp_path / "lock", wait_s=0, say=print):
            release.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    while not (tmp_path / "lock").exists() or not (tmp_path / "lock").stat().st_size:
        time.sleep(0.01)
    with cache.lock(tmp_path / "lock", wait_s=120, say=lambda text: release.set()):
        assert release.is_set()
    holder.join()


def test_publish_is_all_or_nothing(tmp_path: Path) -> None:
    final = tmp_path / "kernel"
    with cache.publish(final) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), cache.publish(final) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["kernel", "a"]
    with cache.publish(final) as folder:
        (folder / "c").write_text("3")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c", "kernel"]


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "x"))
    assert cache.cache_dir() == tmp_path / "x"
    monkeypatch.delenv("ORCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / "orch"


def test_synchronize_makes_the_same_and_writes_what_differs(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "sub").mkdir(parents=True)
    for name in ("same", "changed", "sub/deep"):
        (one / name).write_text(name)
    (one / "link").symlink_to("same")
    synchronize(one, two)
    kept = (two / "same").stat().st_ino
    (two / "changed").write_text("CHANGED")
    (two / "extra").mkdir()
    (two / "extra" / "file").write_text("")
    (two / "link").unlink()
    (two / "link").write_text("no link")
    (two / "sub" / "deep").unlink()
    (two / "sub" / "deep").mkdir()
    synchronize(one, two)
    assert snapshot(one) == snapshot(two)
    assert (two / "link").readlink() == Path("same") and not (two / "extra").exists()
    assert (two / "same").stat().st_ino == kept
