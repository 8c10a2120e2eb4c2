"""Ports for servers that cannot say which one the kernel gave them, or must come back on the same one."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of the loopback that nobody has, and that nobody gets before its server is there.

    Not one that the kernel would give: it gives it to the next connection as well, anybody's. Nor can a client that
    tries it while nobody listens be connected to itself.
    """
    first, last = map(int, RANGE.read_text().split())
    candidates = [port for port in range(10_000, 65_536) if not first <= port <= last]
    random.SystemRandom().shuffle(candidates)  # Not the one that another run of the tests has just found.
    for port in (*candidates, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found: int = probe.getsockname()[1]
            return found
    raise AssertionError("no port is free")
