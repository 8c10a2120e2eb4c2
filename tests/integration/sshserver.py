"""An OpenSSH server of one's own: on a port of loopback, with its own keys, for this user only."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ports import free_port

STARTS_S = 60.0


# What /proc and kill() say of a process that has ended, the former also in the middle of reading.
GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class SshServer:
    """A running sshd; ``key`` is let in, ``known_hosts`` has its own key."""

    folder: Path
    port: int
    pid: int

    @property
    def key(self) -> Path:
        return self.folder / "user"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def lab(self, more: str = "") -> str:
        """The lines of a lab file for this machine as the host ``here``; ``more`` is added to its keys."""
        return (
            f"hosts:\n  here: {{address: 127.0.0.1, port: {self.port}, user: {getpass.getuser()},"
            f" key: {self.key}, known_hosts: {self.known_hosts}, folder: {self.folder / 'remote'}{more}}}\n"
        )

    def sessions(self) -> list[int]:
        """Processes that serve connections: sshd's children."""
        return _children(self.pid)

    def cut(self) -> int:
        """Kill all connections, as a network that fails does; how many there were."""
        found = self.sessions()
        for child in found:
            for process in [*_descendants(child), child]:
                with suppress(*GONE):  # It may end by itself between being listed and being killed.
                    if "sshd" in Path(f"/proc/{process}/comm").read_text():
                        os.kill(process, signal.SIGKILL)
        return len(found)


def _descendants(pid: int) -> list[int]:
    return [found for child in _children(pid) for found in (*_descendants(child), child)]


def _children(pid: int) -> list[int]:
    """By the parent that each process names: /proc/PID/task/TID/children may leave some out while others end."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(*GONE):
            state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(parent) == pid and state != "Z":
                found.append(int(entry.name))
    return found


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Start one, until the block ends. Raises :class:`FileNotFoundError` without openssh-server."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if sshd is None:
        raise FileNotFoundError("no sshd: apt-get install openssh-server")
    for name in ("host", "user"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
        subprocess.run(argv, check=True)
    port = free_port()
    host_key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nStrictModes no\nSubsystem sftp internal-sftp\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # Where sshd's unprivileged half lives.
    log = (folder / "sshd.log").open("w")
    with subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stderr=log) as process:
        try:
            _wait_for(port, process)
            yield SshServer(folder, port, process.pid)
        finally:
            process.terminate()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + STARTS_S
    while True:
        assert server.poll() is None, "sshd does not start, see sshd.log"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
