"""What runs inside a Dask worker: any worker that has this very tool, started by ``orch worker`` or by Dask's own.

The client calls :func:`identify`, :func:`missing`, :func:`put`, :func:`prepare` and :func:`read` beside the tasks, in
the worker's event loop: they are quick. :func:`run_unit` is the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache as memoize
from pathlib import Path

import distributed
from distributed.protocol import dask_deserialize, dask_serialize

from orchestrator import cache, doctor
from orchestrator.engine import depot, parcel
from orchestrator.engine.depot import Depot
from orchestrator.engine.identity import Identity, own_identity
from orchestrator.engine.kit import Kit, unpack
from orchestrator.engine.need import Kind, Need, host_id
from orchestrator.engine.parcel import Parcel
from orchestrator.errors import OrchError, tail
from orchestrator.lab import LabHost
from orchestrator.lab.machine import MachineGone
from orchestrator.plan import Trial
from orchestrator.target.pool import NoMachineLeft

SPOOL = "orch-trials"  # in the worker's own local directory, which Dask removes when the worker has gone


@dataclass(frozen=True)
class Order:
    """A unit of trials to run in order, beside none but others of the same ``kind``; ``host`` is the lab's machine.

    ``sources_id`` is the client's tool: a worker may have been replaced since it was looked at. ``rerun`` is the
    command that repeats a trial, but for the trial's id.
    """

    sources_id: str
    kit: Kit
    kind: Kind
    host: str
    trials: tuple[Trial, ...]
    rerun: str


@dataclass(frozen=True)
class Done:
    """The trials of an order, in order; what has no data waits in the spool of ``key``, for as long as Dask keeps it.

    ``worker`` is the address of the worker that ran them. ``lost`` says why the lab's machine cannot be used any more:
    then trials may be missing at the end.
    """

    worker: str
    key: str
    parcels: tuple[Parcel, ...]
    lost: str = ""


def _to_frames(done: Done) -> tuple[dict[str, bytes], list[bytes | memoryview]]:
    """Files go as frames of their own: pickle would copy each into its stream, and at the other end out of it."""
    frames: list[bytes | memoryview] = []

    def take(data: bytes | memoryview) -> bytes:
        frames.append(data)
        return b""

    parcels = tuple(item.with_data(take) for item in done.parcels)
    return {"done": pickle.dumps(replace(done, parcels=parcels))}, frames


def _from_frames(header: dict[str, bytes], frames: list[bytes | memoryview]) -> Done:
    done: Done = pickle.loads(header["done"])
    left = iter(frames)
    return replace(done, parcels=tuple(item.with_data(lambda _: next(left)) for item in done.parcels))


dask_serialize.register(Done, _to_frames)
dask_deserialize.register(Done, _from_frames)


@dataclass(frozen=True)
class Failed:
    """This worker could not run an order: ``what``, ``hint`` and the end of the log of the error there."""

    worker: str
    what: str
    hint: str | None
    log: tuple[str, ...]


@dataclass(frozen=True)
class Unready:
    """This worker has another tool, or not all files: it must be looked at again. Nothing was run."""

    worker: str
    why: str


Answer = Done | Failed | Unready


class Gate:
    """Lets trials of one kind at a time through, any number of them: a boot that is timed runs beside no other kind."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._kind = ""
        self._inside = 0

    @contextlib.contextmanager
    def hold(self, kind: str) -> Iterator[None]:
        """Wait until nobody of another kind is inside, then be inside."""
        with self._changed:
            self._changed.wait_for(lambda: self._inside == 0 or self._kind == kind)
            self._kind, self._inside = kind, self._inside + 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()


_gate = Gate()
_lab: dict[str, LabHost] = {}


def offer_lab(hosts: Iterable[LabHost]) -> None:
    """Let this process run trials on machines of a lab."""
    _lab.update({host.name: host for host in hosts})


def identify() -> Identity:
    """Who this worker is."""
    return replace(own_identity(), lab=tuple(host_id(host) for host in _lab.values()))


def missing(hashes: tuple[str, ...]) -> tuple[str, ...]:
    """Which of these files this machine lacks."""
    return _depot().missing(hashes)


def put(sha256: str, sender: str, offset: int, data: bytes, last: bool) -> None:
    """See :meth:`orchestrator.engine.depot.Depot.put`."""
    _depot().put(sha256, sender, offset, data, last)


async def prepare(kit: Kit, need: Need) -> str:
    """Try what the kit needs of this machine; why it cannot be had, or empty."""
    try:
        if need.kind != "ssh":
            await asyncio.to_thread(doctor.pick_accel, need.kind, need.cpus)
        await asyncio.to_thread(unpack, kit, _depot(), None, print)
    except OrchError as error:
        return error.what
    return ""


def read(key: str, trial_id: str, name: str, offset: int, size: int, dask_worker: distributed.Worker) -> bytes:
    """A piece of a file of a trial that :func:`run_unit` left in the spool."""
    folder = depot.safe_path(_spool(dask_worker), f"{key}/{trial_id}")
    with depot.safe_path(folder, name).open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def run_unit(order: Order) -> Answer:
    """Run an order's trials one after the other. Every error is an answer: exceptions are left to Dask itself."""
    worker = distributed.get_worker()
    if order.sources_id != own_identity().sources_id:
        return Unready(worker.address, f"has orch {own_identity().tool}")
    lacks = _depot().missing(order.kit.hashes)
    if lacks:
        return Unready(worker.address, f"lacks {len(lacks)} files of the run")
    key = str(worker.get_current_task())
    spool = _spool(worker)
    _sweep(spool, worker)
    if order.host and order.host not in _lab:
        return Unready(worker.address, f"does not offer {order.host} any more")
    with _gate.hold(order.kind):
        try:
            return _run_trials(order, worker, spool / key, key)
        except OrchError as error:
            return Failed(worker.address, error.what, error.hint, tail(error.log) if error.log is not None else ())
        except OSError as error:
            return Failed(worker.address, f"cannot keep a trial's files: {error}", None, ())


def _run_trials(order: Order, worker: distributed.Worker, folder: Path, key: str) -> Done:
    bench = unpack(order.kit, _depot(), _lab.get(order.host), print)
    shutil.rmtree(folder, ignore_errors=True)
    parcels: list[Parcel] = []
    lost = ""
    try:
        with bench.hold(order.trials):
            for trial in order.trials:
                if lost or not _is_wanted(worker, key):  # If the client has gone, nobody would ever fetch it.
                    break
                place = folder / trial.id
                place.mkdir(parents=True)
                result = bench.run(trial, place, f"{order.rerun} {trial.id}")
                parcels.append(parcel.pack(result, place))
                lost = result.machine_lost
    except (MachineGone, NoMachineLeft) as error:
        lost = error.what
    finally:
        bench.close()
    if all(file.data is not None for packed in parcels for file in packed.files):
        shutil.rmtree(folder, ignore_errors=True)
    return Done(worker.address, key, tuple(parcels), lost)


def _is_wanted(worker: distributed.Worker, key: str) -> bool:
    """Whether the scheduler still waits for a task. Dask stops no thread, it only forgets what comes of it."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running")


def _sweep(spool: Path, worker: distributed.Worker) -> None:
    """Remove trials that Dask has forgotten: fetched, or of a client that has gone."""
    if spool.is_dir():
        for path in spool.iterdir():
            if path.name not in worker.state.tasks:
                shutil.rmtree(path, ignore_errors=True)


def _spool(worker: distributed.Worker) -> Path:
    return Path(worker.local_directory) / SPOOL


@memoize
def _depot() -> Depot:
    return Depot(cache.cache_dir() / depot.FOLDER)
