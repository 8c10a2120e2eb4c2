"""The user's cache: trees, kernels and object directories, shared by all runs of one user.

Nothing in it is needed to understand a result, and all of it can be removed at any time when nothing runs. What is
published appears by one rename; what is being written is locked, and the lock is kept by the children too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from orchestrator import proc
from orchestrator.errors import StoreError, printable

ENVIRONMENT = "ORCH_CACHE"
POLL_S = 0.5


def cache_dir() -> Path:
    """``$ORCH_CACHE``, or the user's cache folder by the XDG rules (``~/.cache/orch``). It may not exist yet."""
    chosen = os.environ.get(ENVIRONMENT)
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_cache_path("orch")


@contextlib.contextmanager
def lock(path: Path, *, wait_s: float, say: Callable[[str], None]) -> Iterator[int]:
    """Hold ``path`` (made if missing) by flock; yields its file descriptor.

    Give the descriptor to children that write what the lock protects (``proc.run(pass_fds=…)``): they keep the lock
    when we are killed, and the next run waits until the last of them has ended. While another process holds it,
    ``say`` is told once who that is. Raises :class:`StoreError`, naming the holder, after ``wait_s`` seconds.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"cannot use the cache: {error}", hint=f"set {ENVIRONMENT} to a folder of yours") from error
    try:
        _take(descriptor, path, wait_s, say)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {proc.own_command()[:500]}\n".encode(), 0)
        yield descriptor
    finally:
        # No explicit LOCK_UN: it would take the lock away from children that still hold the description.
        os.close(descriptor)


@contextlib.contextmanager
def publish(final: Path) -> Iterator[Path]:
    """An empty folder that becomes ``final`` by one rename if the block ends well, and vanishes if it does not.

    Call it under a :func:`lock`; an older ``final`` is replaced, and what a killed process left behind is removed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.new")
    remove(temporary)
    temporary.mkdir()
    try:
        yield temporary
        remove(final)
        temporary.rename(final)
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Remove a file or folder that may not exist; what stands in the cache is never half removed under its own name."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        doomed = path.with_name(f".{path.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)


def _take(descriptor: int, path: Path, wait_s: float, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise StoreError(f"cannot lock {path}: {error}") from error
        holder = _holder(descriptor)
        if time.monotonic() >= deadline:
            raise StoreError(f"{path} is in use by {holder}", hint="wait until it has ended, then run this again")
        if not told:
            say(f"waiting for {holder}")
            told = True
        time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))


def _holder(descriptor: int) -> str:
    """Who holds the lock, for a message: the process that took it, or what it left running when it was killed."""
    text = printable(os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip())
    pid, _, command = text.partition(" ")
    if not pid.isdecimal():
        return "another process"
    if Path("/proc", pid).exists():
        return f"process {pid} ({command})"
    return f"a process that {pid} ({command}; killed) had started"
