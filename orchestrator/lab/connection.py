"""The real :class:`~orchestrator.lab.remote.Transport`: Fabric's connection, Paramiko's channels and SFTP.

Only keys and agents; only hosts whose key stands in the lab's ``known_hosts``; nothing of the user's own SSH
configuration, so that a lab file means the same for everybody.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import posixpath
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import fabric
import paramiko

from orchestrator.lab.remote import CannotWrite, Cut, NoSuchFile, NotTrusted, Reply, command_line
from orchestrator.lab.types import LabHost

BLOCK = 1 << 18
KEEPALIVE_S = 10  # Keeps middleboxes from forgetting a connection that only waits.
UNKNOWN_SIGNAL = 255  # What ssh(1) exits with, too, when a command died of a signal.

# Paramiko's threads log a traceback for every attempt at a machine that boots,
# and every failure reaches us as an exception, too.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_unique = itertools.count()


def connect(host: LabHost) -> SshTransport:
    """Connect once. Raises :class:`Cut`, or :class:`NotTrusted` if no retry would help."""
    connection = fabric.Connection(
        host.address,
        user=host.user,
        port=host.port,
        config=fabric.Config(lazy=True),  # Else it reads /etc/fabric.*, ~/.fabric.* and both ssh_config files.
        connect_kwargs={
            # Left out, not None, where there is none: Fabric takes it for a list.
            **({} if host.key is None else {"key_filename": str(host.key)}),
            "allow_agent": host.agent,
            "look_for_keys": False,
            "timeout": host.deadlines.connect_s,
            "banner_timeout": host.deadlines.connect_s,
            "auth_timeout": host.deadlines.connect_s,
            "channel_timeout": host.deadlines.answer_s,  # Paramiko's own: an hour.
        },
    )
    # Fabric's own policy takes any key that it sees for the first time.
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    scan = shlex.join(["ssh-keyscan", "-p", str(host.port), host.address])
    try:
        connection.client.load_host_keys(str(host.known_hosts))
        connection.open()
        connection.transport.set_keepalive(KEEPALIVE_S)
    except paramiko.BadHostKeyException as error:
        raise NotTrusted(
            f"{host.name} has another key than {host.known_hosts} says: it was installed anew, or is another machine",
            hint=f"compare with {scan}, and put the right key into {host.known_hosts}",
        ) from error
    except paramiko.AuthenticationException as error:
        used = "any key of the agent" if host.agent else f"the key {host.key}"
        raise NotTrusted(
            f"{host.name} does not accept {used} for {host.user}: {error}",
            hint=f"put the public key into ~{host.user}/.ssh/authorized_keys on {host.address}",
        ) from error
    except paramiko.SSHException as error:
        raise _named(error, host, scan) from error
    except (OSError, EOFError) as error:
        raise Cut(str(error) or type(error).__name__) from error
    return SshTransport(connection.client, connection.transport, host.deadlines.answer_s)


def _named(error: paramiko.SSHException, host: LabHost, scan: str) -> NotTrusted | Cut:
    """What Paramiko has no class of its own for, by its words."""
    if "not found in known_hosts" in str(error):
        return NotTrusted(
            f"{host.known_hosts} has no key of {host.name} ({host.address}, port {host.port})",
            hint=f"{scan} >>{shlex.quote(str(host.known_hosts))}, and compare what it wrote with the machine's",
        )
    if "No authentication methods available" in str(error):
        return NotTrusted(
            f"the lab file says agent: true for {host.name}, and no ssh-agent with a key is at hand",
            hint="ssh-add -l, which needs SSH_AUTH_SOCK as this command does",
        )
    return Cut(str(error))


class Watch:
    """Calls ``expire``, from a thread of its own, once ``limit_s`` have passed since the last :meth:`renew`.

    A context manager. Inside of Paramiko some waits know no timeout, whatever a channel's ``settimeout()`` says
    (``Channel._wait_for_event()``, ``Packetizer.write_all()``): what ends them is that the connection is closed.
    """

    def __init__(self, limit_s: float, expire: Callable[[], None]) -> None:
        self.expired = False
        self._limit_s = limit_s
        self._expire = expire
        self._over = threading.Event()
        self.renew()

    def renew(self) -> None:
        """Something came: the time begins anew."""
        self._end = time.monotonic() + self._limit_s

    def __enter__(self) -> Watch:
        threading.Thread(target=self._run, name="deadline", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def _run(self) -> None:
        while (left_s := self._end - time.monotonic()) > 0:
            if self._over.wait(left_s):
                return
        self.expired = True
        self._expire()


class SshTransport:
    """An open connection; see :class:`~orchestrator.lab.remote.Transport`. One thread at a time may use it."""

    def __init__(self, client: paramiko.SSHClient, transport: paramiko.Transport, answer_s: float) -> None:
        self._client = client
        # All goes through this one: Fabric would connect again by itself, and nobody would watch it doing so.
        self._transport = transport
        self._answer_s = answer_s
        self._files: paramiko.SFTPClient | None = None

    def run(self, argv: Sequence[str], *, deadline_s: float) -> Reply:
        """See the protocol."""
        line = command_line(argv)
        with self._within(deadline_s, line), contextlib.closing(self._transport.open_session()) as channel:
            channel.exec_command(line)
            channel.shutdown_write()
            stdout, stderr = _drain(channel.recv), _drain(channel.recv_stderr)
            code = channel.recv_exit_status()
            if code < 0:  # No exit status came: a signal, or the connection's end.
                if not self._transport.is_active():
                    raise EOFError("the connection broke")
                code = UNKNOWN_SIGNAL
        return Reply(code, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))

    def read(self, path: str) -> bytes:
        """See the protocol. In pieces until the end: files of /proc and /sys do not know their size."""
        with self._answer(path), self._sftp().open(path, "rb") as stream:
            return _drain(stream.read)

    def write(self, path: str, data: bytes) -> None:
        """See the protocol."""
        temporary = f"{path}.{os.getpid()}-{next(_unique)}.new"
        with self._answer(path, writing=True):
            with self._sftp().open(temporary, "wb") as stream:
                stream.write(data)
            self._sftp().posix_rename(temporary, path)

    def names(self, folder: str) -> tuple[str, ...]:
        """See the protocol."""
        with contextlib.suppress(NoSuchFile), self._answer(folder):
            return tuple(sorted(self._sftp().listdir(folder)))
        return ()

    def size(self, path: str) -> int:
        """See the protocol."""
        with contextlib.suppress(NoSuchFile), self._answer(path):
            return self._sftp().stat(path).st_size or 0
        return -1

    def append(self, path: str, source: Path, start: int) -> None:
        """See the protocol."""
        with source.open("rb") as local, self._answer(path, writing=True) as watch:
            local.seek(start)
            with self._sftp().open(path, "r+b" if start else "wb") as stream:
                stream.seek(start)
                stream.set_pipelined(True)  # Else each block costs a round trip; errors come with a later one.
                while block := local.read(BLOCK):
                    stream.write(block)
                    watch.renew()

    def fetch(self, path: str, to: Path, start: int) -> None:
        """See the protocol."""
        with to.open("r+b" if start else "wb") as local:
            local.seek(start)
            with self._answer(path) as watch, self._sftp().open(path, "rb") as stream:
                stream.seek(start)
                # Ask for all of it at once: else each block costs a round trip.
                stream.prefetch(max(0, (stream.stat().st_size or 0)), max_concurrent_requests=64)
                while block := stream.read(BLOCK):
                    local.write(block)
                    watch.renew()

    def remove(self, path: str) -> None:
        """See the protocol."""
        with contextlib.suppress(NoSuchFile), self._answer(path):
            self._sftp().remove(path)

    def home(self) -> str:
        """See the protocol: SFTP starts in the home folder."""
        with self._answer():
            return posixpath.normpath(self._sftp().normalize("."))

    def close(self) -> None:
        """See the protocol."""
        with contextlib.suppress(Exception):  # It may be broken in any way; there is nothing left to lose.
            self._client.close()

    def _sftp(self) -> paramiko.SFTPClient:
        if self._files is None:
            self._files = paramiko.SFTPClient.from_transport(self._transport)
            if self._files is None:
                raise EOFError("no channel for SFTP")
        return self._files

    def _answer(self, path: str = "", *, writing: bool = False) -> contextlib.AbstractContextManager[Watch]:
        return self._within(self._answer_s, path, writing=writing)

    @contextlib.contextmanager
    def _within(self, limit_s: float, what: str, *, writing: bool = False) -> Iterator[Watch]:
        """Paramiko's errors as ours, and silence for ``limit_s`` as one of them.

        SFTP's answer "Failure" says nothing more (a full disk is one).
        """
        with Watch(limit_s, self._transport.close) as watch:
            try:
                yield watch
            except Exception as error:
                if watch.expired:
                    raise Cut(f"no answer within {limit_s:g} s{what and f': {what}'}") from error
                if isinstance(error, EOFError | paramiko.SSHException | TimeoutError | ConnectionError):
                    raise Cut(str(error) or type(error).__name__) from error
                if not isinstance(error, OSError):
                    raise
                if not self._transport.is_active() or str(error) == "Socket is closed":
                    raise Cut(str(error)) from error
                if writing:
                    raise CannotWrite(f"cannot write {what}: {error.strerror or error}") from error
                raise NoSuchFile(f"{what}: {error.strerror or error}") from error


def _drain(receive: Callable[[int], bytes]) -> bytes:
    """Everything until the end, or until the connection is closed."""
    return b"".join(iter(lambda: receive(BLOCK), b""))
