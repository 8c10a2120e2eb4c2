"""The cable between the tool and a lab host: a TCP forwarder on the loopback that can be cut, now or at a byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

BLOCK = 1 << 16


class Proxy:
    """Listens on a port of the loopback and forwards to another one; a context manager. Every method is thread-safe.

    ``connections`` counts what was forwarded so far, the ones that were cut included.
    """

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._down = False
        self._cut_at: int | None = None
        self._sent = 0

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # shutdown() wakes accept(); close() alone leaves it waiting.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Break every open connection; new ones are made as before."""
        with self._lock:
            victims, self._open = self._open, set()
            self._sent = 0
        for victim in victims:
            _break(victim)

    def cut_after(self, bytes_to_host: int) -> None:
        """Break every open connection once, when that many more bytes have gone to the host."""
        with self._lock:
            self._sent = 0
            self._cut_at = bytes_to_host

    @property
    def armed(self) -> bool:
        """Whether :meth:`cut_after` has not come to its cut yet."""
        return self._cut_at is not None

    def down(self, down: bool) -> None:
        """Refuse new connections, and break the open ones; or let them through again."""
        self._down = down
        if down:
            self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                if self._down:
                    raise ConnectionRefusedError
                host = socket.create_connection(self._target, timeout=10)
                host.settimeout(None)
            except OSError:
                _break(client)
                continue
            with self._lock:
                self.connections += 1
                self._open |= {client, host}
            for origin, to in ((client, host), (host, client)):
                threading.Thread(target=self._copy, args=(origin, to, to is host), daemon=True).start()

    def _copy(self, origin: socket.socket, to: socket.socket, towards_host: bool) -> None:
        try:
            while block := origin.recv(BLOCK):
                if towards_host and self._due(len(block)):
                    self.cut()
                    return
                to.sendall(block)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {origin, to}
            _break(origin)
            _break(to)

    def _due(self, size: int) -> bool:
        with self._lock:
            self._sent += size
            if self._cut_at is None or self._sent < self._cut_at:
                return False
            self._cut_at = None
            return True


def _break(victim: socket.socket) -> None:
    with contextlib.suppress(OSError):
        victim.shutdown(socket.SHUT_RDWR)
    victim.close()
