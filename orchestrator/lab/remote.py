"""What is asked of a machine over its connection, and how that can fail.

The protocol is small on purpose: everything the lab does is made of these calls, so a simulated machine that answers
them (tests/unit/fakehost.py) can be made to fail at each of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.errors import TargetError


class Cut(Exception):
    """The connection could not be made, or broke: what was asked may or may not have happened."""


class NoSuchFile(Exception):
    """The host has no such file, or does not show it."""


class CannotWrite(Exception):
    """The host refused to write a file: a full disk, a missing folder, no permission."""


class NotTrusted(TargetError):
    """The host has another key than ``known_hosts`` says, or refuses ours: no retry would help."""


@dataclass(frozen=True)
class Reply:
    """How a command on the host ended; ``returncode`` as a shell has it, 128 + N for signal N."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """Its last line, for a message."""
        lines = [line.strip() for line in (self.stderr or self.stdout).splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


class Files(Protocol):
    """What it takes to look at a machine without changing anything; see :class:`Transport`."""

    def read(self, path: str) -> bytes: ...
    def names(self, folder: str) -> tuple[str, ...]: ...


class Transport(Protocol):
    """One connection to one host. Relative paths start at the user's home folder there.

    Every method raises :class:`Cut` if the connection breaks, or if there is no answer within ``deadline_s``.
    """

    def run(self, argv: Sequence[str], *, deadline_s: float) -> Reply:
        """Run a command to its end. Its words arrive as they are, whatever they hold."""

    def read(self, path: str) -> bytes:
        """A small file, also of /proc and /sys. Raises :class:`NoSuchFile`."""

    def write(self, path: str, data: bytes) -> None:
        """Replace a small file: it holds the old bytes or the new ones, never a part. Raises :class:`CannotWrite`."""

    def names(self, folder: str) -> tuple[str, ...]:
        """Names in a folder, sorted; none if there is no such folder."""

    def size(self, path: str) -> int:
        """Bytes of a file, -1 if there is none."""

    def append(self, path: str, source: Path, start: int) -> None:
        """Write ``source`` from byte ``start`` to its end behind ``start`` bytes of ``path``.

        Raises :class:`CannotWrite`.
        """

    def fetch(self, path: str, to: Path, start: int) -> None:
        """Write ``path`` from byte ``start`` to its end behind ``start`` bytes of ``to``.

        Raises :class:`NoSuchFile`.
        """

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""

    def home(self) -> str:
        """Absolute path of the user's home folder."""

    def close(self) -> None:
        """Give the connection back; never raises."""


Connect = Callable[[], Transport]  # Raises Cut or NotTrusted.


def command_line(argv: Sequence[str]) -> str:
    """``argv`` as the one string that SSH has for a command (RFC 4254, 6.5), which the user's shell there splits."""
    return shlex.join(argv)
