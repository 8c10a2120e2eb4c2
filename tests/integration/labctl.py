"""What a lab file's console and power commands are for a lab host in QEMU: ``labctl.py console|power FOLDER``.

A program of its own, started as it stands in the lab file; it needs nothing but Python's standard library.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

CONSOLE, MONITOR = "console.sock", "monitor.sock"
CHARDEV = "console"
BREAK = b"~B"  # as ipmitool has it
BREAK_PAUSE_S = 1.0


def monitor(folder: Path, *commands: dict[str, Any]) -> list[Any]:
    """Run QMP commands of the QEMU in ``folder``; what each returned. Raises RuntimeError if one fails, and OSError."""
    answers = []
    with _connect(folder / MONITOR) as connection, connection.makefile("rw") as stream:
        stream.readline()  # the greeting
        for command in ({"execute": "qmp_capabilities"}, *commands):
            stream.write(json.dumps(command) + "\n")
            stream.flush()
            while "event" in (answer := json.loads(stream.readline())):
                pass
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
            answers.append(answer["return"])
    return answers[1:]


def power(folder: Path) -> None:
    """Off and on again: a reset, and run on in case that the machine was stopped or had switched itself off."""
    monitor(folder, {"execute": "system_reset"}, {"execute": "cont"})


def console(folder: Path) -> None:
    """The serial line on stdout; what comes on stdin goes to it, with :data:`BREAK` as a BREAK. Until either ends."""
    # Not epoll, which takes no file and no /dev/null for stdin.
    with _connect(folder / CONSOLE) as line, selectors.PollSelector() as selector:
        selector.register(line, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                data = os.read(key.fd, 4096)
                if not data and key.fileobj is line:
                    return
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is line:
                    os.write(sys.stdout.fileno(), data)
                else:
                    _type(folder, line, data)


def _type(folder: Path, line: socket.socket, data: bytes) -> None:
    first, *rest = data.split(BREAK)
    line.sendall(first)
    for number, part in enumerate(rest):
        if number:
            # QEMU takes breaks and characters from different sockets: without a pause the breaks come first.
            time.sleep(BREAK_PAUSE_S)
        monitor(folder, {"execute": "chardev-send-break", "arguments": {"id": CHARDEV}})
        line.sendall(part)


def _connect(path: Path) -> socket.socket:
    """By way of the folder's descriptor: the path of a socket holds 107 bytes only."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        connection.settimeout(None)
        return connection
    finally:
        os.close(folder)


if __name__ == "__main__":
    {"console": console, "power": power}[sys.argv[1]](Path(sys.argv[2]))
