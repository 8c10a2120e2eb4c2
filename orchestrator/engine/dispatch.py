"""Units of trials to workers, and their results back: each until it is stored, once, whoever dies meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import distributed

from orchestrator.engine import intake, remote
from orchestrator.engine.intake import Ended, Event, Intake, Kept, WorkerGoneError
from orchestrator.engine.link import BROKEN, Link, LinkError
from orchestrator.engine.local import OnResult, Unit, elsewhere
from orchestrator.engine.need import LAB, Need
from orchestrator.engine.remote import Answer, Done, Failed, Order, Unready
from orchestrator.engine.roster import Member, Roster
from orchestrator.errors import EngineError, OrchError, StoreError, TargetError, printable
from orchestrator.results import TrialResult
from orchestrator.store import Store
from orchestrator.target.pool import NoMachineLeft

POLL_S = 0.2
LOOK_EVERY_S = 1.0
MAX_FAILURES = 2  # workers that may fail on one unit before it is the unit's fault
MAX_HICCUPS = 3  # errors one after the other, of a connection that says of itself that it is open
MAX_LOSSES = 20  # of the connection without a single result between


@dataclass(frozen=True)
class _Room:
    """Room for so many units at once, on these workers together."""

    slots: int
    workers: frozenset[str]


@dataclass
class _Job:
    """A unit on its way. ``failures`` are of workers that could not run it."""

    unit: Unit
    failures: list[Failed] = field(default_factory=list)

    @property
    def name(self) -> str:
        ids = sorted(trial.id for trial in self.unit.left)
        which = (
            f"trial {ids[0]}" if len(ids) == 1 else f"block {self.unit.left[0].block} (trials {ids[0]} to {ids[-1]})"
        )
        return f"{which} of cell {self.unit.left[0].cell.name}"


@dataclass
class _Sent:
    """A job that one of ``workers`` runs, or has run; one that is being stored is not sent again meanwhile."""

    job: _Job
    future: distributed.Future
    resource: str
    workers: frozenset[str]
    state: Literal["runs", "ended", "is stored"] = "runs"


@dataclass(frozen=True)
class Work:
    """What one call of :class:`Dispatch` does: ``units``, each of which needs a place of the kind ``need``.

    At most ``jobs`` units at once, None for as many as the workers have room for. ``order`` makes the order of a unit
    on a machine of the lab, or on none; for ``kernels`` see :func:`orchestrator.engine.parcel.unpack`.
    """

    units: Sequence[Unit]
    need: Need
    jobs: int | None
    order: Callable[[Unit, str], Order]
    kernels: Mapping[str, Path]


@dataclass
class Dispatch:
    """Runs ``work`` once. Dask chooses the worker of each unit among those that are ready, and runs it on another if
    that dies; what Dask loses with its scheduler, or with all workers of its choice, is sent again."""

    link: Link
    roster: Roster
    store: Store
    work: Work
    on_result: OnResult
    patience_s: float
    names: str  # unique to this client: Dask must never take an old task for a new one
    _waiting: deque[_Job] = field(default_factory=deque)
    _sent: dict[str, _Sent] = field(default_factory=dict)
    _intake: Intake = field(init=False)
    _count: itertools.count[int] = field(default_factory=itertools.count)
    _ready: dict[str, Member] = field(default_factory=dict)
    _looked: float = 0.0
    _seen: float = 0.0  # when somebody was ready last
    _told: bool = False
    _gone: dict[str, str] = field(default_factory=dict)  # machines of the lab, by resource, and why
    _hiccups: int = 0
    _losses: int = 0
    _error: OrchError | None = None

    def __post_init__(self) -> None:
        threads = min(intake.THREADS, self.work.jobs or intake.THREADS)
        self._intake = Intake(self.link, self.store, self.work.kernels, threads)

    def run(self) -> None:
        """Run everything; an error ends it after the units that run already, whose results are kept.

        Raises what :func:`orchestrator.engine.local.execute` would, and :class:`EngineError` if for ``patience_s``
        there is no scheduler, or no worker that is ready.
        """
        self._waiting.extend(_Job(unit) for unit in self.work.units)
        self._seen = time.monotonic()
        try:
            self._loop()
        finally:
            self._intake.close()
        if self._error is not None:
            raise self._error

    def _loop(self) -> None:
        while self._sent or (self._waiting and self._error is None):
            try:
                if self.link.lost:
                    raise LinkError("the scheduler has gone")
                self._look()
                if self._error is None:
                    self._send()
                self._receive()
                self._hiccups = 0
            except LinkError as error:
                self._hiccups += 1
                if self.link.lost or self._hiccups > MAX_HICCUPS:
                    self._reconnect(error)

    def _look(self) -> None:
        if time.monotonic() < self._looked + LOOK_EVERY_S and self._ready:
            return
        self.roster.look()
        self._ready = self.roster.ready(self.work.need)
        self._looked = time.monotonic()
        for key, sent in list(self._sent.items()):
            gone = not sent.workers & self._ready.keys()
            if gone and sent.state != "is stored":  # Dask would wait for one of them for ever.
                self._again(key)
        if self._rooms():
            self._seen, self._told = self._looked, False
        elif not self._sent:
            if self._looked > self._seen + self.patience_s:
                raise nobody(self.work.need, self.patience_s, self.roster)
            if not self._told:
                self.roster.say(waiting_for(self.work.need, self.link.engine))
                self._told = True
            time.sleep(POLL_S)

    def _send(self) -> None:
        rooms = self._rooms()
        used = Counter(sent.resource for sent in self._sent.values() if self._takes_room(sent))
        at_once = sum(room.slots for room in rooms.values())
        if self.work.jobs is not None:
            at_once = min(at_once, self.work.jobs)
        while self._waiting and used.total() < at_once and len(self._sent) < 2 * at_once:
            name = next(name for name, room in rooms.items() if used[name] < room.slots)
            job = self._waiting.popleft()
            key = f"{self.names}-{job.unit.left[0].id}-{next(self._count)}"
            future = self.link.submit(
                remote.run_unit,
                self.work.order(job.unit, name.removeprefix(LAB) if self.work.need.kind == "ssh" else ""),
                key=key,
                workers=sorted(rooms[name].workers),
                resource=name,
                when_done=self._intake.ended,
            )
            self._sent[key] = _Sent(job, future, name, rooms[name].workers)
            used[name] += 1

    def _takes_room(self, sent: _Sent) -> bool:
        """A unit that has ended leaves its slot to the next; whether a machine of the lab is lost, its answer says."""
        return sent.state == "runs" or self.work.need.kind == "ssh"

    def _rooms(self) -> dict[str, _Room]:
        """Where units can run, by the Dask resource of which each takes one; a lab's machine is one, whoever offers."""
        found: dict[str, _Room] = {}
        for address, member in self._ready.items():
            for name, slots in member.room(self.work.need).items():
                if name in self._gone:
                    continue
                before = found.get(name, _Room(0, frozenset()))
                both = 1 if self.work.need.kind == "ssh" else before.slots + slots
                found[name] = _Room(both, before.workers | {address})
        return found

    def _receive(self) -> None:
        for event in self._intake.wait(POLL_S):
            self._take(event)

    def _take(self, event: Event) -> None:
        sent, what = self._sent.get(event.key), event.what
        if sent is None:  # Sent again meanwhile: this result is nobody's.
            return
        if isinstance(what, Ended):
            sent.state = "ended"
        elif isinstance(what, Kept):
            self._count_in(event.key, what)
        elif isinstance(what, CancelledError | WorkerGoneError):
            self._again(event.key)
        elif isinstance(what, StoreError):
            raise what
        elif isinstance(what, TimeoutError | LinkError):  # Its worker died, and it runs again; or the network fails.
            sent.state = "runs"
            sent.future.add_done_callback(self._intake.ended)
            if isinstance(what, LinkError):
                raise what
        elif isinstance(what, BaseException):
            del self._sent[event.key]
            self._error = self._error or _dask_error(sent.job, what)
        else:
            self._handle(sent, event.key, what)

    def _handle(self, sent: _Sent, key: str, answer: Answer) -> None:
        if isinstance(answer, Unready) or (isinstance(answer, Done) and not _is_whole(answer, sent.job.unit)):
            self.roster.unready(answer.worker, answer.why if isinstance(answer, Unready) else "leaves blocks half run")
            self._looked = 0.0
            self._again(key)
        elif isinstance(answer, Done):
            sent.state = "is stored"
            self._intake.keep(key, sent.job.unit, answer)
        else:
            self._put_aside(sent.job, key, answer)

    def _count_in(self, key: str, kept: Kept) -> None:
        sent = self._sent.pop(key)
        self._losses = 0
        for result in kept.results:
            self.on_result(result)
        if kept.done.lost:
            self._lose(sent.resource, sent.job, kept.done, kept.results[-1] if kept.results else None)

    def _lose(self, name: str, job: _Job, done: Done, last: TrialResult | None) -> None:
        """A machine of the lab cannot be used any more; its block runs again on another one, as it would here."""
        self._gone[name] = done.lost
        self.roster.say(f"{name.removeprefix(LAB)} is not used any more: {done.lost}")
        unit, ended = job.unit, len(done.parcels)
        if last is None or not last.machine_lost:  # It was lost before a trial began.
            again: Unit | None = Unit(unit.whole, unit.whole, unit.machines)
        else:
            again = elsewhere(unit, unit.left[ended:], last)
        if again is not None:
            self._waiting.appendleft(_Job(again))
        if len(self._gone) == len(self.work.need.hosts) and self._waiting:
            lines = "".join(f"\n  {name.removeprefix(LAB)}: {why}" for name, why in self._gone.items())
            self._error = self._error or NoMachineLeft(f"no machine of the lab is left:{lines}", hint="orch lab status")

    def _put_aside(self, job: _Job, key: str, failure: Failed) -> None:
        """A worker could not run a unit: it gets no more work, and another one tries."""
        del self._sent[key]
        job.failures.append(failure)
        self.roster.refuse(failure.worker, f"could not run {job.name}: {printable(failure.what)}")
        self._ready.pop(failure.worker, None)
        self._waiting.appendleft(job)
        if len(job.failures) >= MAX_FAILURES or not self._ready:
            log = "".join(f"\n  | {printable(line)}" for line in failure.log)
            what = f"{job.name}: worker {failure.worker} could not run it: {printable(failure.what)}{log}"
            self._error = self._error or TargetError(what, hint=failure.hint)

    def _again(self, key: str) -> None:
        """Send a unit again, before all that waits: its arms' other blocks are older than what comes after it."""
        sent = self._sent.pop(key)
        self._waiting.appendleft(sent.job)
        with contextlib.suppress(*BROKEN, CancelledError):  # The scheduler may have gone.
            sent.future.cancel()

    def _reconnect(self, error: Exception) -> None:
        for key in [key for key, sent in self._sent.items() if sent.state != "is stored"]:
            self._again(key)
        if self._error is not None:
            self._receive()
            return
        self._losses += 1
        if self._losses > MAX_LOSSES:
            raise EngineError(
                f"the connection to {self.link.engine} was lost {self._losses} times without a result: {error}"
            )
        self.roster.say(f"the connection to {self.link.engine} is lost ({error}); what was running there runs again")
        self._ready = {}
        self.roster.forget()
        self.link.connect(self.patience_s)
        self._seen = time.monotonic()


def _dask_error(job: _Job, error: BaseException) -> EngineError:
    """What Dask itself says of a task: it never got as far as an answer."""
    if isinstance(error, distributed.KilledWorker):
        return EngineError(
            f"{job.name}: {error.allowed_failures + 1} workers died one after the other while they had it",
            hint="look at the workers' logs; Dask's distributed.scheduler.allowed-failures says how many may",
        )
    return EngineError(f"{job.name}: Dask could not run it: {printable(f'{type(error).__name__}: {error}')[:500]}")


def _is_whole(done: Done, unit: Unit) -> bool:
    """Whether an answer has every trial, or says why it has not."""
    return len(done.parcels) == len(unit.left) or bool(done.lost)


def waiting_for(need: Need | str, engine: str) -> str:
    """The line that says why nothing happens."""
    return f"waiting for a worker at {engine} that offers {need}"


def nobody(need: Need | str, patience_s: float, roster: Roster) -> EngineError:
    """The error that there is no worker to run anything."""
    refused = "".join(f"\n  {line}" for line in roster.refusals())
    return EngineError(
        f"no worker at {roster.link.engine} offers {need} and could be used, for {patience_s:.0f} s"
        f"{': not used are' if refused else ''}{refused}",
        hint=f"orch worker {roster.link.engine}   (see docs/dask.md)",
    )
