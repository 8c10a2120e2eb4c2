"""To reach a machine: its host key, our folder and agent, its lease; and home, if somebody left it elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from orchestrator.errors import TargetError
from orchestrator.lab import home, journal, lease, seen
from orchestrator.lab.journal import Journal
from orchestrator.lab.machine import Machine, MachineGone, NotRun
from orchestrator.lab.remote import CannotWrite, Cut, NoSuchFile, NotTrusted
from orchestrator.lab.seen import Seen
from orchestrator.store import file_sha256

CONTACT_BYTES = 8 << 20  # Our agent, a lease and a journal.


def contact(machine: Machine) -> None:
    """Before each trial: the machine is ours, runs its known-good kernel, and nothing is left on it of any trial.

    Raises :class:`~orchestrator.lab.machine.MachineGone`.
    """
    found = journal.quarantined(machine.host)
    if found is not None:
        raise MachineGone(
            f"{machine.host.name} is in quarantine since {found.since}: it {found.reason}",
            hint=f"look after it, then: orch lab release {machine.host.name}",
        )
    if not machine.contacted:
        _first(machine)
    else:
        _again(machine)
    if not machine.journal.settled:
        home.go_home(machine)


def give_back(machine: Machine) -> None:
    """Let others have the machine."""
    if machine.stop_keeper is not None:
        machine.stop_keeper()
        machine.stop_keeper = None
    if machine.agent:
        lease.give_back(machine.link, machine.agent, machine.folder, machine.lease)
    machine.link.drop()


def _again(machine: Machine) -> None:
    try:
        with _usable(machine):
            _take_lease(machine)
    except Cut as error:
        machine.say(f"does not answer ({error})")
        home.go_home(machine)
    with _usable(machine):
        try:
            _take_lease(machine)
            now = machine.link.insist(seen.look, machine.answer_s)
        except Cut as error:
            machine.lost(f"cannot be reached any more: {error}")
    known_good = machine.journal.known_good
    if machine.journal.settled and now.kernel != known_good:
        # Not in quarantine: whoever installed it knows what they do. But half a run on another kernel is no run.
        raise MachineGone(f"{machine.host.name} now runs {now.kernel}, and ran {known_good} when this run began")


def _first(machine: Machine) -> None:
    known = journal.read(machine.host)
    try:
        with _usable(machine):
            now = _reach(machine, known)
            _settle_in(machine)
            _begin(machine, _read_there(machine) or known, now)
            machine.save(machine.journal.state)
    except Cut as error:
        raise MachineGone(f"{machine.host.name} cannot be reached: {error}") from error
    if machine.journal.settled:
        journal.settle(machine.host)


@contextlib.contextmanager
def _usable(machine: Machine) -> Iterator[None]:
    """Whatever the machine refuses, it is out of this run, which goes on. Raises :class:`MachineGone`, and Cut."""
    try:
        yield
    except MachineGone:
        raise
    except NotTrusted as error:
        raise MachineGone(error.what, hint=error.hint) from error
    except (CannotWrite, NotRun, TargetError) as error:
        raise MachineGone(f"{machine.host.name} cannot be used: {error}") from error


def _reach(machine: Machine, known: Journal | None) -> Seen:
    """Connect. A machine that was left in a kernel under test, and does not answer, is restarted first."""
    try:
        return machine.link.insist(seen.look, 2 * machine.host.deadlines.connect_s)
    except Cut:
        if known is None or known.settled:
            raise
    machine.say(f"was left {known.state} by {known.owner}, and does not answer")
    machine.begin(known)
    home.bring_back(machine)
    return machine.link.insist(seen.look, machine.host.deadlines.return_s)


def _settle_in(machine: Machine) -> None:
    """Our folder, our agent and our lease on the machine."""
    there = machine.link.insist(lambda transport: transport.home(), machine.answer_s)
    machine.folder = machine.host.folder if machine.host.folder.startswith("/") else f"{there}/{machine.host.folder}"
    machine.expect(("mkdir", "-p", "--", f"{machine.folder}/files", f"{machine.folder}/trials"))
    # Not even a lease fits on a full disk; but what lies there may be in use.
    if machine.free_bytes() < CONTACT_BYTES:
        _for_us(lambda: lease.await_free(machine.link, machine.folder, machine.lease, machine.say))
        machine.make_room(machine.agent_here.stat().st_size)
    machine.agent = machine.put(machine.agent_here, file_sha256(machine.agent_here))
    _take_lease(machine)
    if machine.stop_keeper is None:
        machine.stop_keeper = machine.keep(machine.folder, machine.lease, machine.doubt)


def _take_lease(machine: Machine) -> None:
    _for_us(lambda: lease.take(machine.link, machine.agent, machine.folder, machine.lease, machine.say))


def _for_us(act: Callable[[], object]) -> None:
    try:
        act()
    except lease.Held as error:
        raise MachineGone(error.what, hint=error.hint) from error


def _read_there(machine: Machine) -> Journal | None:
    path = f"{machine.folder}/{journal.JOURNAL}"
    try:
        return journal.parse(machine.link.insist(lambda transport: transport.read(path), machine.answer_s))
    except NoSuchFile:
        return None


def _begin(machine: Machine, left: Journal | None, now: Seen) -> None:
    """The journal to start from: what was left unfinished, or this moment as the known-good one."""
    owner = str(machine.lease.owner)
    if left is None or left.settled:
        machine.begin(Journal(machine.host.name, "reachable", machine.clock.utc(), owner, now.kernel, now.boot_id))
        return
    if journal.vouched(machine.host):
        # A person looked after the machine: what runs now is good. A program may still run, and settings be changed.
        left = dataclasses.replace(left, state="returning", known_good=now.kernel, leaving="")
    machine.say(f"was left {left.state} by {left.owner}; bringing it back to {left.known_good}")
    machine.begin(dataclasses.replace(left, owner=owner))
