"""Two runs never share a machine: a lease that lies on the machine itself, so that tools anywhere see it.

    FOLDER/lease               "TOKEN JSON": who holds the machine; replaced only by compare-and-swap (guests/lab_agent)
    FOLDER/lease.TOKEN.beat    counted up by the holder every BEAT_S, as long as it lives

Whether a holder lives is seen by waiting for its next beat, or, on one and the same machine, by its process. No clock
of any machine is compared with another's: a clock that jumps gives no lease away. A lease outlives the machine's
reboots, since every trial has some.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator import proc
from orchestrator.errors import TargetError, printable
from orchestrator.lab.link import Link
from orchestrator.lab.remote import CannotWrite, Connect, Cut, NoSuchFile, Transport

BEAT_S = 10.0
DEAD_S = 60.0  # A holder that cannot reach the machine for so long has lost it.
WATCH_S = 1.0
NO_LEASE = "-"  # the token of a lease that is not there
EXIT_HELD = 3  # guests/lab_agent/lab_agent.c
NAME = "lease"


class Held(TargetError):
    """Somebody else holds the machine."""


@dataclass(frozen=True)
class Owner:
    """A process of a tool: where it runs, and what tells it from every other one."""

    who: str
    node: str
    pid: int
    start: int  # field 22 of /proc/PID/stat
    boot_id: str
    pid_namespace: str
    command: str
    since: str

    def __str__(self) -> str:
        text = f"{self.who}@{self.node}, process {self.pid} since {self.since}: {self.command}"
        return printable(text)[:300]

    @property
    def dead(self) -> bool:
        """Whether the process is known to have ended: this can be seen only where it ran."""
        here = own_boot_id(), _pid_namespace()
        return here == (self.boot_id, self.pid_namespace) and start_time(self.pid) != self.start


@dataclass(frozen=True)
class Lease:
    """One tool's hold on a machine."""

    token: str
    owner: Owner

    @property
    def text(self) -> str:
        return f"{self.token} {_owner.dump_json(self.owner).decode()}\n"


_owner = TypeAdapter(Owner)


def make_lease(since: str) -> Lease:
    """A lease of this process, not taken yet."""
    user = os.environ.get("USER") or str(os.getuid())
    pid = os.getpid()
    command = proc.own_command()[:200]
    owner = Owner(
        user, os.uname().nodename, pid, start_time(pid), own_boot_id(), _pid_namespace(), printable(command), since
    )
    return Lease(secrets.token_hex(8), owner)


def take(link: Link, agent: str, folder: str, lease: Lease, say: Callable[[str], None]) -> None:
    """Take the lease of a machine, or see that we still have it.

    Waits, at most :data:`DEAD_S`, to see whether another holder is still alive. Raises :class:`Held`, naming the
    holder, if it is, and :class:`Cut`.
    """
    path = f"{folder}/{NAME}"
    while (token := await_free(link, folder, lease, say)) != lease.token:
        reply = link.run((agent, "swap-token", path, token, lease.text))
        if reply.returncode == 0:
            beat = _beat_file(path, token)
            link.insist(lambda transport: transport.remove(beat), link.host.deadlines.answer_s)  # noqa: B023 (called now)
            return
        if reply.returncode != EXIT_HELD:
            raise TargetError(f"its lease cannot be taken: {reply.said}")


def await_free(link: Link, folder: str, lease: Lease, say: Callable[[str], None]) -> str:
    """Wait until nobody else who lives holds the machine, which is only read; the token of the lease that lies there.

    Raises as :func:`take`.
    """
    path = f"{folder}/{NAME}"
    token, holder = _read(link, path)
    if token not in (lease.token, NO_LEASE) and not (holder is not None and holder.dead):
        _wait_for_death(link, path, token, holder, say)
    return token


def give_back(link: Link, agent: str, folder: str, lease: Lease) -> None:
    """Let others have the machine. A lease that cannot be given back dies with us."""
    path = f"{folder}/{NAME}"
    with contextlib.suppress(Cut):
        link.run((agent, "swap-token", path, lease.token, ""))
        link.once(lambda transport: transport.remove(_beat_file(path, lease.token)))


def other_holder(transport: Transport, folder: str, lease: Lease) -> str:
    """Who else holds the machine by now, for a message; empty if nobody does, as far as it says.

    A lease that is not there is nobody's: a kernel under test need not mount the disk that it lies on.
    """
    try:
        token, holder = _parse(transport.read(f"{folder}/{NAME}"))
    except NoSuchFile:
        return ""
    return "" if token in (lease.token, NO_LEASE) else _name(holder)


def holder_of(transport: Transport, folder: str) -> Owner | None:
    """Who holds the machine, for people; perhaps one that is dead."""
    with contextlib.suppress(NoSuchFile):
        return _parse(transport.read(f"{folder}/{NAME}"))[1]
    return None


class Keeper:
    """Beats for one lease, from a thread and over a connection of its own, until it is stopped.

    ``stood_still`` is called, from that thread, when this process or its machine did for so long that the lease may be
    another's by now.
    """

    def __init__(self, connect: Connect, folder: str, lease: Lease, stood_still: Callable[[], None]) -> None:
        self._connect = connect
        self._stood_still = stood_still
        self._path = _beat_file(f"{folder}/{NAME}", lease.token)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._stop.set()
        self._thread.join(BEAT_S)

    def _run(self) -> None:
        transport: Transport | None = None
        count = 0
        began = awake_s()
        while not self._stop.wait(BEAT_S if count else 0.0):
            if awake_s() - began > DEAD_S:
                self._stood_still()
            count += 1
            # The machine is down for a part of each trial, or its disk is full; whether the lease is lost by that,
            # take() says before it matters.
            try:
                transport = transport or self._connect()
                transport.write(self._path, f"{count}\n".encode())
            except (Cut, CannotWrite, TargetError):
                if transport is not None:
                    transport.close()
                transport = None
            began = awake_s()
        if transport is not None:
            transport.close()


def _wait_for_death(link: Link, path: str, token: str, holder: Owner | None, say: Callable[[str], None]) -> None:
    """Return when the holder is dead or gone; raise :class:`Held` at its next beat."""
    name = _name(holder)
    first = _beat(link, path, token)
    end = link.clock.monotonic() + DEAD_S
    say(f"{link.host.name} is leased to {name}; waiting to see whether that still lives")
    while link.clock.monotonic() < end:
        link.clock.sleep(WATCH_S)
        if _read(link, path)[0] != token:
            return
        if _beat(link, path, token) != first:
            raise Held(f"{link.host.name} is in use by {name}", hint="wait until it has ended, then run this again")
    say(f"{link.host.name}: no sign of life of {name} for {DEAD_S:.0f} s, taking the machine over")


def _name(holder: Owner | None) -> str:
    return str(holder) if holder is not None else "somebody (its lease cannot be read)"


def _read(link: Link, path: str) -> tuple[str, Owner | None]:
    try:
        return _parse(link.insist(lambda transport: transport.read(path), link.host.deadlines.answer_s))
    except NoSuchFile:
        return NO_LEASE, None


def _parse(data: bytes) -> tuple[str, Owner | None]:
    token, _, rest = data.decode("utf-8", "replace").strip().partition(" ")
    try:
        return token or NO_LEASE, _owner.validate_json(rest, strict=True)
    except ValidationError:
        return token or NO_LEASE, None


def _beat(link: Link, path: str, token: str) -> bytes:
    try:
        return link.insist(lambda transport: transport.read(_beat_file(path, token)), link.host.deadlines.answer_s)
    except NoSuchFile:
        return b""


def _beat_file(path: str, token: str) -> str:
    # The token is the first word of a file on the host, which others can write.
    return f"{path}.{''.join(char for char in token if char.isalnum())}.beat"


def awake_s() -> float:
    """Seconds since this machine booted, those that it slept included, which the usual monotonic clock leaves out."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def own_boot_id() -> str:
    """Which boot of this machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat, clock ticks since boot; 0 if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())
