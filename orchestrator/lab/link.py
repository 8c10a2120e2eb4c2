"""A connection that comes back: what is asked of a machine is asked again after a cut, until a deadline.

Only what may happen twice is asked this way. Files are copied on from where the connection broke, and what arrives is
compared by SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator.errors import TargetError
from orchestrator.lab.clock import Clock
from orchestrator.lab.remote import Connect, Cut, NotTrusted, Reply, Transport
from orchestrator.lab.types import LabHost
from orchestrator.store import file_sha256

T = TypeVar("T")

RETRY_S = 1.0  # between two attempts to connect


class Link:
    """The one way to a host. ``root`` is put before the words of a command that needs root."""

    def __init__(self, host: LabHost, connect: Connect, clock: Clock) -> None:
        self.host = host
        self.clock = clock
        self.root: tuple[str, ...] = ("sudo", "-n", "--") if host.sudo else ()
        self._connect = connect
        self._transport: Transport | None = None
        self._trusted = False  # Whether the host ever let us in.

    def once(self, act: Callable[[Transport], T]) -> T:
        """Do ``act``, connecting first if need be. Raises :class:`Cut`; the next call connects anew."""
        try:
            if self._transport is None:
                self._transport = self._connect()
                self._trusted = True
            return act(self._transport)
        except Cut:
            self.drop()
            raise
        except NotTrusted as error:
            self.drop()
            # A machine that goes down or comes up may refuse everybody for a while (pam_nologin).
            if self._trusted:
                raise Cut(error.what) from error
            raise

    def insist(self, act: Callable[[Transport], T], deadline_s: float) -> T:
        """Do ``act`` until it was not cut. Raises :class:`Cut` when ``deadline_s`` have passed."""
        end = self.clock.monotonic() + deadline_s
        while True:
            try:
                return self.once(act)
            except Cut:
                if self.clock.monotonic() + RETRY_S >= end:
                    raise
            self.clock.sleep(RETRY_S)

    def drop(self) -> None:
        """Give the connection up, for instance before the host goes down."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def run(self, argv: Sequence[str], *, root: bool = False, deadline_s: float | None = None) -> Reply:
        """Run a command that may run twice, and return how it ended. Raises :class:`Cut`."""
        words = (*self.root, *argv) if root else tuple(argv)
        answer_s = self.host.deadlines.answer_s if deadline_s is None else deadline_s
        return self.insist(lambda transport: transport.run(words, deadline_s=answer_s), answer_s)

    def put(self, source: Path, to: str, sha256: str) -> None:
        """Copy a file to the host, executable, unless it is there. ``to`` must be a name that only this content has.

        Raises :class:`Cut` (also if what arrives is not what was sent, each time), :class:`TargetError`, or
        :class:`~orchestrator.lab.remote.CannotWrite`.
        """
        part = f"{to}.part"
        end = self.clock.monotonic() + self.host.deadlines.copy_s

        def copy(transport: Transport) -> None:
            if transport.size(to) == source.stat().st_size:
                return
            start = transport.size(part)
            transport.append(part, source, start if 0 < start <= source.stat().st_size else 0)
            self._check_sum(transport, part, sha256, end)
            self._expect(transport, ("chmod", "755", "--", part), end)
            self._expect(transport, ("mv", "--", part, to), end)

        self.insist(copy, self.host.deadlines.copy_s)

    def get(self, source: str, to: Path) -> None:
        """Copy a finished file from the host. Raises as :meth:`put`, and :class:`NoSuchFile`."""
        end = self.clock.monotonic() + self.host.deadlines.copy_s

        def copy(transport: Transport) -> None:
            start = to.stat().st_size if to.exists() else 0
            transport.fetch(source, to, start)
            self._check_sum(transport, source, file_sha256(to), end, local=to)

        to.unlink(missing_ok=True)
        self.insist(copy, self.host.deadlines.copy_s)

    def _check_sum(self, transport: Transport, path: str, sha256: str, end: float, local: Path | None = None) -> None:
        found = self._expect(transport, ("sha256sum", "--", path), end).stdout.partition(" ")[0].lstrip("\\")
        if found == sha256:
            return
        # Whatever it is, it is not the beginning of the right file: the next attempt starts anew.
        if local is None:
            transport.remove(path)
        else:
            local.unlink()
        raise Cut(f"{path} on {self.host.name} has another SHA-256 than its copy here: {found or 'none'}")

    def _expect(self, transport: Transport, argv: Sequence[str], end: float) -> Reply:
        reply = transport.run(argv, deadline_s=max(self.host.deadlines.answer_s, end - self.clock.monotonic()))
        if reply.returncode != 0:
            raise TargetError(f"{argv[0]} failed on {self.host.name}: {reply.said}")
        return reply
