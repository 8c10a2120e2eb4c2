"""The workers of a cluster, each looked at before it gets work: its versions, what it offers, the files it lacks."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.doctor import Accel
from orchestrator.engine import remote
from orchestrator.engine.facts import WorkerFacts
from orchestrator.engine.identity import Identity, dask_version, own_identity
from orchestrator.engine.kit import Kit, Packing
from orchestrator.engine.link import Link, LinkError, Resident, Say
from orchestrator.engine.need import Need, lab_resource, qemu_resource
from orchestrator.engine.parcel import PIECE_BYTES
from orchestrator.errors import OrchError, printable

MAX_UNREADY = 3


@dataclass
class Member:
    """A worker. ``refusal`` is why it gets no work, or empty; ``ready_for`` is what it has everything for."""

    resident: Resident
    identity: Identity | None
    refusal: str = ""
    ready_for: tuple[Kit, Need] | None = None

    def room(self, need: Need) -> dict[str, int]:
        """How many units it offers to run at once, by the Dask resource of which each takes one."""
        if self.refusal or self.identity is None:
            return {}
        offered = dict(self.resident.resources)
        if need.kind == "ssh":
            names = [host.name for host in need.hosts if host in self.identity.lab]
            return {lab_resource(name): 1 for name in names if offered.get(lab_resource(name), 0) >= 1}
        name = qemu_resource(need.kind)
        slots = min(int(offered.get(name, 0)), self.resident.threads)
        return {name: slots} if slots > 0 else {}

    @property
    def label(self) -> str:
        """Name and address."""
        return f"{self.resident.name} ({self.resident.address})"


@dataclass
class Roster:
    """Who is there. ``packing`` is what workers need, once it is known; ``qemu`` the version that all must have."""

    link: Link
    say: Say
    packing: Packing | None = None
    qemu: str | None = None
    facts: dict[str, WorkerFacts] = field(default_factory=dict)
    _members: dict[str, Member] = field(default_factory=dict)
    _unready: dict[str, int] = field(default_factory=dict)

    def look(self) -> None:
        """See who has come and who has gone. Raises :class:`~orchestrator.engine.link.LinkError`."""
        residents = self.link.residents()
        for address in [address for address in self._members if address not in residents]:
            member = self._members.pop(address)
            if member.ready_for is not None:
                self.say(f"worker {member.label} has gone; what it was running runs again elsewhere")
        new = [resident for address, resident in residents.items() if address not in self._members]
        if new:
            for member in self._examine(new):
                self._members[member.resident.address] = member
                if member.refusal:
                    self.say(f"worker {member.label} is not used: it {member.refusal}")

    def forget(self) -> None:
        """Look at everybody again: the scheduler was another one."""
        self._members.clear()

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    def ready(self, need: Need) -> dict[str, Member]:
        """Workers that offer what trials need and have all files for them, shipped now if need be; by address."""
        if self.packing is None:
            return {}
        wanted = (self.packing.kit, need)
        for member in self.members:
            self._check_lab(member, need)
            if member.room(need) and member.ready_for != wanted:
                self._make_ready(member, self.packing, need)
        return {
            member.resident.address: member
            for member in self.members
            if member.room(need) and member.ready_for == wanted
        }

    def _check_lab(self, member: Member, need: Need) -> None:
        """Two descriptions of one machine could make two measurements of it."""
        described = {host.name: host for host in member.identity.lab} if member.identity is not None else {}
        other = [host.name for host in need.hosts if described.get(host.name, host) != host]
        if other:
            self.refuse(member.resident.address, f"describes {', '.join(other)} otherwise than this machine's lab file")

    def refuse(self, address: str, why: str) -> None:
        """Give a worker no more work in this run."""
        member = self._members.get(address)
        if member is not None and not member.refusal:
            member.refusal = why
            self.say(f"worker {member.label} is not used any more: it {why}")

    def unready(self, address: str, why: str) -> None:
        """A worker said that it is not what it was: look at it again, but not for ever."""
        self._unready[address] = self._unready.get(address, 0) + 1
        if self._unready[address] > MAX_UNREADY:
            self.refuse(address, why)
        else:
            self._members.pop(address, None)

    def refusals(self) -> tuple[str, ...]:
        """A line for each worker that is not used."""
        return tuple(f"{member.label} {member.refusal}" for member in self.members if member.refusal)

    # --- looking --------------------------------------------------------------------------------------------------

    def _examine(self, new: Iterable[Resident]) -> list[Member]:
        """Versions of Dask first, by Dask's own word: another one may not even understand our question."""
        versions = self.link.dask_versions()
        members = [Member(resident, None, _dask_refusal(versions.get(resident.address))) for resident in new]
        asked = {member.resident.address: member for member in members if not member.refusal}
        answers = self.link.ask(tuple(asked), remote.identify) if asked else {}
        for address, member in asked.items():
            answer = answers.get(address)
            if isinstance(answer, Identity):
                member.identity = answer
                member.refusal = self._refusal(answer)
            else:
                member.refusal = f"has no orch that answers: {printable(f'{type(answer).__name__}: {answer}')[:300]}"
        return members

    def _refusal(self, identity: Identity) -> str:
        ours = own_identity()
        if identity.sources_id != ours.sources_id:
            return f"has orch {identity.tool}, here is {ours.tool}"
        if self.qemu is not None and identity.qemu != self.qemu:
            return f"has {identity.qemu or 'no QEMU'}, the others have {self.qemu}: their results could differ"
        return ""

    def choose_qemu(self, accel: Accel) -> str:
        """The version of QEMU that most workers with ``accel`` have, this machine's own among equals; the rest go."""
        need = Need(accel, 1)
        versions = [member.identity.qemu for member in self.members if member.identity and member.room(need)]
        own = own_identity().qemu
        self.qemu = max(sorted(set(versions)), key=lambda item: (versions.count(item), item == own))
        for member in self.members:
            if member.identity is not None and not member.refusal and (why := self._refusal(member.identity)):
                self.refuse(member.resident.address, why)
        return self.qemu

    # --- shipping -------------------------------------------------------------------------------------------------

    def _make_ready(self, member: Member, packing: Packing, need: Need) -> None:
        """Ship what it lacks and have it try; what it cannot do is why it is not used."""
        if member.identity is None:
            return
        address, room = member.resident.address, member.room(need)
        if why := _crowded(member.identity, need, sum(room.values())):
            self.refuse(address, why)
            return
        try:
            sent = self._ship(address, packing)
            failure = self.link.ask_one(address, remote.prepare, packing.kit, need)
        except OrchError as error:
            self.refuse(address, f"cannot be made ready: {printable(error.what)}")
            return
        except LinkError:
            raise
        except Exception as error:  # Whatever the worker raised, or its connection.
            self.unready(address, f"does not answer: {printable(f'{type(error).__name__}: {error}')[:300]}")
            return
        if failure:
            self.refuse(address, f"cannot run these trials: {printable(failure)}")
            return
        member.ready_for = (packing.kit, need)
        shipped = f", {sent / 2**20:.1f} MiB shipped to it" if sent else ""
        offers = ", ".join(room) if need.kind == "ssh" else f"{sum(room.values())} x {need.kind}"
        self.say(f"worker {member.label} is ready: {offers}{shipped}")
        name = member.resident.name
        self.facts[name] = WorkerFacts(name, member.identity.tool, member.identity.qemu, member.identity.host)

    def _ship(self, address: str, packing: Packing) -> int:
        """Send the files that a worker's machine lacks, in pieces; returns how many bytes that took."""
        total, sender = 0, uuid.uuid4().hex
        for sha256 in self.link.ask_one(address, remote.missing, packing.kit.hashes):
            path = packing.files[sha256]
            size, offset = path.stat().st_size, 0
            with path.open("rb") as stream:
                while True:
                    piece = stream.read(PIECE_BYTES)
                    last = offset + len(piece) >= size
                    self.link.ask_one(address, remote.put, sha256, sender, offset, piece, last)
                    offset += len(piece)
                    if last:
                        break
            total += offset
        return total


def _dask_refusal(version: str | None) -> str:
    ours = dask_version()
    return "" if version == ours else f"has Dask {version}, here is {ours}"


def _crowded(identity: Identity, need: Need, slots: int) -> str:
    """Why real time would mean nothing with so many boots at once, or empty."""
    if need.kind in ("icount", "ssh") or slots <= 1 or slots * need.cpus <= identity.cpus:
        return ""
    return (
        f"offers {slots} boots at once with {need.cpus} emulated CPUs each, and has {identity.cpus} CPUs:"
        " the times would mean nothing"
    )
