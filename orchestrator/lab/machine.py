"""One machine of a lab, and its journal: what every step on it shares.

    reachable → prepared → booting → testing → returning → idle → prepared → …

Each state is saved, here and on the machine, before anything is done that belongs to it. The steps are in contact.py
(to reachable), away.py (to booting and testing) and home.py (returning, and idle or quarantine).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from orchestrator.errors import TargetError
from orchestrator.lab import journal
from orchestrator.lab.clock import Clock
from orchestrator.lab.journal import Journal, KernelId, State
from orchestrator.lab.lease import Lease, make_lease, other_holder
from orchestrator.lab.link import Link
from orchestrator.lab.outside import Outside
from orchestrator.lab.remote import CannotWrite, Connect, Cut, Transport
from orchestrator.lab.types import LabHost

POLL_S = 1.0
MIB = 1 << 20
NAME_CHARS = 40  # of a SHA-256 in a file's name

# Starts to beat for a lease in a folder, with what to call if this process has stood still; returns what stops it.
Keep = Callable[[str, Lease, Callable[[], None]], Callable[[], None]]


class NotRun(Exception):
    """The machine could not be brought to run the trial; it is well itself. The text says why."""


class Crashed(Exception):
    """The kernel under test died, or restarted the machine. The text says how that was seen."""


class Hung(Exception):
    """The kernel under test, or the program, did not come to its end in time. The text says which deadline passed."""


class MachineGone(TargetError):
    """The machine cannot be used any more by this run: quarantined, taken over, or never reached."""


@dataclass(frozen=True)
class BuiltImage:
    """A kernel under test: the file to boot, and what must be seen of it after the boot."""

    path: Path
    sha256: str
    release: str
    build_id: str

    @property
    def id(self) -> KernelId:
        return KernelId(self.release, "", self.build_id)


class Machine:
    """See the module. One thread at a time may use it. ``agent_here`` is the program guests/lab_agent on this machine.

    After the first contact ``folder`` and ``agent`` are absolute paths on the host.
    """

    def __init__(
        self,
        host: LabHost,
        agent_here: Path,
        *,
        connect: Connect,
        outside: Outside,
        clock: Clock,
        say: Callable[[str], None],
        keep: Keep,
    ) -> None:
        self.host = host
        self.link = Link(host, connect, clock)
        self.outside = outside
        self.clock = clock
        self.folder = host.folder
        self.agent = ""
        self.agent_here = agent_here
        self.lease = make_lease(clock.utc())
        self.keep = keep
        self.stop_keeper: Callable[[], None] | None = None
        self.in_doubt = False  # Whether this run has stood still, and the lease has not been read since.
        self._say = say
        self._journal: Journal | None = None

    @property
    def answer_s(self) -> float:
        """How long a command that only looks may take."""
        return self.host.deadlines.answer_s

    @property
    def scratch(self) -> str:
        """A file of ours on the host, for what is on its way to where only root may write."""
        return f"{self.folder}/scratch"

    @property
    def contacted(self) -> bool:
        """Whether there is a journal."""
        return self._journal is not None

    @property
    def journal(self) -> Journal:
        """Where the machine stands. Raises :class:`MachineGone` before the first contact."""
        if self._journal is None:
            raise MachineGone(f"{self.host.name} was not contacted")
        return self._journal

    def begin(self, start: Journal) -> None:
        """Take over a journal: of another tool, or a new one."""
        self._journal = start

    def say(self, text: str) -> None:
        """Tell the user something about this machine."""
        self._say(f"{self.host.name}: {text}")

    def save(self, state: State, **changes: object) -> None:
        """Go over to a state: written here and, if it can be reached, on the machine, before this returns.

        On the way home the machine may well be down, and its disk full: then it is written here only.
        Raises :class:`Cut`; :class:`NotRun` if the kernel under test cannot write, and :class:`MachineGone` if the
        machine's own cannot, or if another run holds the machine by now: then it is written nowhere.
        """
        reached = self.not_anothers() if state == "returning" else self.still_ours()
        changed = dataclasses.replace(self.journal, **changes)  # type: ignore[arg-type]
        self._journal = dataclasses.replace(changed, state=state, since=self.clock.utc())
        data = journal.write(self.host, self._journal)
        if not reached:
            return
        path = f"{self.folder}/{journal.JOURNAL}"
        try:
            if state == "returning":
                self.link.once(lambda transport: transport.write(path, data))
            else:
                self.link.insist(lambda transport: transport.write(path, data), self.answer_s)
        except Cut:
            if state != "returning":
                raise
        except CannotWrite as error:
            if state == "testing":
                raise NotRun(f"{self.host.name}: {error}") from error
            if state != "returning":
                self.lost(f"cannot be written to: {error}")

    def check_lease(self, transport: Transport) -> None:
        """Raise :class:`MachineGone` if another run has taken the machine over, and Cut.

        This one has stood still then (a laptop that slept), and whatever it would do now it would do to that run: there
        may be another kernel, another program, another journal. Before the machine was leased there is nothing to lose.
        """
        if self.stop_keeper is None:
            return
        other = other_holder(transport, self.folder, self.lease)
        if other:
            raise MachineGone(f"{self.host.name} was taken over by {other}")
        self.in_doubt = False

    def doubt(self) -> None:
        """From now on nothing is sure about the lease until it is read; from any thread."""
        self.in_doubt = True

    def still_ours(self) -> bool:
        """:meth:`check_lease`, until the machine answers. True; raises as that does."""
        self.link.insist(self.check_lease, self.answer_s)
        return True

    def not_anothers(self) -> bool:
        """:meth:`check_lease`, if the machine answers; whether it did. Raises :class:`MachineGone`."""
        try:
            self.link.once(self.check_lease)
        except Cut:
            return False
        return True

    def put(self, source: Path, sha256: str, to: str = "") -> str:
        """Copy a file to the machine, named by its content, unless it is there; its path there.

        Raises :class:`Cut`, :class:`CannotWrite`, :class:`TargetError`.
        """
        path = to or f"{self.folder}/files/{sha256[:NAME_CHARS]}"
        self.link.put(source, path, sha256)
        return path

    def expect(self, argv: Sequence[str], *, root: bool = False) -> str:
        """The output of a command that must succeed. Raises :class:`NotRun` if it does not, and :class:`Cut`."""
        reply = self.link.run(argv, root=root)
        if reply.returncode != 0:
            raise NotRun(f"{self.host.name}: {' '.join(argv)}: {reply.said}")
        return reply.stdout

    def make_room(self, need_bytes: int) -> None:
        """See to it that ``need_bytes`` fit beside the room that must stay free; remove what earlier runs copied.

        A machine without that room can run no trial: it is quarantined. Raises :class:`MachineGone`.
        """
        need = need_bytes + self.host.min_free_mib * MIB
        if self.free_bytes() >= need:
            return
        self.say("the disk is nearly full: removing what earlier runs left")
        self.still_ours()
        names = self.link.insist(lambda transport: transport.names(f"{self.folder}/files"), self.answer_s)
        keep = self.agent.rpartition("/")[2]
        old = [f"{self.folder}/files/{name}" for name in names if name != keep]
        # Roots hold links to these files, which alone would keep their blocks.
        self.link.run(("rm", "-rf", "--", *old, f"{self.folder}/roots", f"{self.folder}/trials"), root=True)
        self.expect(("mkdir", "-p", "--", f"{self.folder}/trials"))
        free = self.free_bytes()
        if free < need:
            self.lost(f"has no room: {free // MIB} MiB are free for {self.folder}, {need // MIB} MiB are needed")

    def free_bytes(self) -> int:
        """Of the disk that holds our folder. Raises :class:`NotRun`, and Cut.

        By POSIX df: the fourth field of the second line, in KiB.
        """
        return int(self.expect(("df", "-Pk", "--", self.folder)).splitlines()[1].split()[3]) * 1024

    def lost(self, reason: str) -> NoReturn:
        """Quarantine the machine; ``reason`` goes on after its name. Raises :class:`MachineGone`, always."""
        state = self._journal.state if self._journal is not None else "reachable"
        journal.quarantine(self.host, reason, self.clock.utc(), state)
        self.say(f"quarantined: it {reason}")  # Now: a run that goes on elsewhere ends well, and says no more of it.
        raise MachineGone(
            f"{self.host.name} is quarantined: it {reason}",
            hint=f"look after {self.host.name}, then: orch lab release {self.host.name}",
        )
