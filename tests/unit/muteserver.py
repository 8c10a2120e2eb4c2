"""An SSH server that lets everybody in and then falls silent: no error ever comes of it, and no answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import paramiko

Silence = Literal["open", "request", "command", "version"]


@dataclass
class MuteServer(paramiko.ServerInterface):
    """``silence`` is what it does not answer any more: that a channel is opened, what is asked of it, how the command
    ended, or which SFTP is spoken. ``port`` is on loopback; ``connections`` have been made to it."""

    silence: Silence
    port: int = 0
    connections: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL  # type: ignore[attr-defined,no-any-return]

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if self.silence == "open":
            self.over.wait()
        return paramiko.OPEN_SUCCEEDED  # type: ignore[attr-defined,no-any-return]

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return self._asked()

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        return self._asked()

    def _asked(self) -> bool:
        if self.silence == "request":
            self.over.wait()
        return True


@contextmanager
def mute_server(folder: Path, silence: Silence) -> Iterator[MuteServer]:
    """Start one, until the block ends; ``folder`` gets the ``key`` to be let in with, and ``known_hosts``."""
    host_key, user_key = (paramiko.ECDSAKey.generate() for _ in range(2))
    user_key.write_private_key_file(str(folder / "key"))
    found = MuteServer(silence)
    open_: list[paramiko.Transport] = []

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                transport = paramiko.Transport(listening.accept()[0])
                open_.append(transport)
                found.connections += 1
                transport.add_server_key(host_key)
                with suppress(paramiko.SSHException, EOFError):
                    transport.start_server(server=found)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        found.port = listening.getsockname()[1]
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{found.port} {host_key.get_name()} {host_key.get_base64()}\n")
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            found.over.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for transport in open_:
                transport.close()
