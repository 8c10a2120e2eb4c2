"""The only place that starts processes: argv lists, which no shell ever reads; logs; deadlines.

Every child gets its own session, dies with us (``PR_SET_PDEATHSIG`` by ``setpriv``, and :data:`GUARD`) and, past its
deadline, is killed with its whole process group.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.errors import TAIL_LINES, CommandError, UserError, printable

KILL_GRACE_S = 5.0

# A tool killed before its child has asked for the signal would leave it running: prctl(2) says nothing of a parent that
# is gone already. So the child looks, once it has asked. A constant line: the words are its arguments, which sh(1)
# hands to execve() and never reads.
GUARD = ("sh", "-c", 'test "$PPID" = "$0" && exec "$@"')


@dataclass(frozen=True)
class Completed:
    """A command that exited with 0 (or with a code that the caller accepts)."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    seconds: float


def quote(argv: Sequence[str | Path]) -> str:
    """``argv`` as a line that a person can paste into a shell."""
    return shlex.join(str(word) for word in argv)


def own_command() -> str:
    """This process's command line, as the kernel has it: for locks, which name their holder."""
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
    return quote([word.decode("utf-8", "replace") for word in words])


def require(program: str, package: str) -> str:
    """Absolute path of ``program``; :class:`UserError` that names the Debian ``package`` when it is missing."""
    found = shutil.which(program)
    if found is None:
        raise UserError(f"the program {program} is not installed", hint=f"apt-get install {package}")
    return found


def run(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    deadline_s: float = 600.0,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    accept: Sequence[int] = (0,),
    on_line: Callable[[str], None] | None = None,
    pass_fds: Sequence[int] = (),
    hint: str | None = None,
    shown: str | None = None,
) -> Completed:
    """Run ``argv`` to its end and return its output.

    With ``log``, stdout and stderr go there (appended); without, they are captured together into the result's
    ``stdout``. ``on_line``, if given, sees each line as it comes, from another thread.
    ``env`` is added to our environment. ``pass_fds`` lets a child hold a lock for as long as it lives.
    ``shown`` is what errors call a command whose words may hold a secret.

    Raises :class:`CommandError` for an exit code outside ``accept``, a signal, or a passed deadline.
    """
    words = tuple(str(word) for word in argv)
    started = time.monotonic()
    collected: list[str] = []
    with start(words, log=log if on_line is None else None, cwd=cwd, env=env, stdin=stdin, pass_fds=pass_fds) as child:
        reader = threading.Thread(target=_drain, args=(child.stdout, log, on_line, collected), daemon=True)
        reader.start()
        code = child.wait(deadline_s)
        if code is None:
            child.stop()
        reader.join(KILL_GRACE_S)
    output = "".join(collected)
    what = f"{shown or quote(words)}{'' if log is not None else _last_lines(output)}"
    if code is None:
        raise CommandError(f"no end after {deadline_s:.0f} s, killed: {what}", log=log, hint=hint)
    if code not in accept:
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        raise CommandError(f"{how}: {what}", log=log, hint=hint)
    return Completed(words, code, output, time.monotonic() - started)


def start(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | int | None = None,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start ``argv`` and return at once; use the result as a context manager.

    With ``log`` both output streams are appended to it; without, they are read from :attr:`Child.stdout`.
    ``stdin`` is given through an unlinked temporary file, so no writer can block; or it is a file descriptor.
    """
    words = [require("setpriv", "util-linux"), "--pdeathsig", "KILL", "--", *GUARD, str(os.getpid()), *map(str, argv)]
    with contextlib.ExitStack() as stack:
        source: IO[bytes] | int = subprocess.DEVNULL
        if isinstance(stdin, int):
            source = stdin
        elif stdin is not None:
            source = stack.enter_context(tempfile.TemporaryFile())
            source.write(stdin)
            source.seek(0)
        sink: IO[bytes] | int = subprocess.PIPE
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            sink = stack.enter_context(log.open("ab"))
        return Child(
            subprocess.Popen(
                words,
                stdin=source,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=None if env is None else {**os.environ, **env},
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        )


def attach(argv: Sequence[str | Path], *, cwd: Path | None = None) -> int:
    """Run ``argv`` on the user's own terminal until it ends; returns its exit code."""
    return subprocess.run([str(word) for word in argv], cwd=cwd, check=False).returncode


class Child:
    """A running process in its own group; a context manager that leaves nothing behind."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.stdout = popen.stdout

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(grace_s=0.0)
        if self.stdout is not None:
            self.stdout.close()

    def poll(self) -> int | None:
        """Exit code (negative for a signal), or None while it runs."""
        return self._popen.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait at most ``timeout_s``; exit code, or None while it runs."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_s: float = KILL_GRACE_S) -> int:
        """End the whole group: TERM, ``grace_s`` seconds, KILL. Returns the exit code."""
        if grace_s > 0 and self._popen.poll() is None:
            self._signal(signal.SIGTERM)
            self.wait(grace_s)
        self._signal(signal.SIGKILL)
        return self._popen.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def _drain(
    stream: IO[bytes] | None, log: Path | None, on_line: Callable[[str], None] | None, collected: list[str]
) -> None:
    """Read a child's output to its end: to the log and the watcher, or into ``collected``."""
    if stream is None:
        return
    with contextlib.ExitStack() as stack, contextlib.suppress(ValueError):
        sink = stack.enter_context(log.open("ab")) if log is not None else None
        for raw in stream:
            text = raw.decode("utf-8", "replace")
            if sink is not None:
                sink.write(raw)
                sink.flush()
            else:
                collected.append(text)
            if on_line is not None:
                on_line(text.rstrip("\n"))


def _last_lines(output: str) -> str:
    return "".join(f"\n  | {printable(line)}" for line in output.splitlines()[-TAIL_LINES:])
