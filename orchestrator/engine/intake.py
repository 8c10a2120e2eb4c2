"""What workers answer, fetched and stored in threads beside the loop that sends work: disks and networks take time.

Only that loop decides what becomes of an answer; it is told each :class:`Event` and asks for what shall be stored.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import distributed

from orchestrator.engine import parcel, remote
from orchestrator.engine.link import Link
from orchestrator.engine.local import Unit
from orchestrator.engine.remote import Answer, Done, Failed
from orchestrator.errors import ShippingError, StoreError
from orchestrator.results import TrialResult
from orchestrator.store import Store

FETCH_S = 60.0  # for one answer to come over the network
THREADS = 3  # enough that a disk's syncs come together, and no more than a client's Python has use for


class WorkerGoneError(Exception):
    """A worker went, or lost its files, between saying that a unit is done and giving all of it away."""


@dataclass(frozen=True)
class Ended:
    """The task has ended: its worker has room again. Its answer follows."""


@dataclass(frozen=True)
class Kept:
    """The trials of ``done`` are on disk."""

    done: Done
    results: tuple[TrialResult, ...]


@dataclass(frozen=True)
class Event:
    """What became of a task, by its key."""

    key: str
    what: Ended | Answer | Kept | BaseException


class Intake:
    """Fetches and stores so many answers at once; ``kernels`` as in :func:`~orchestrator.engine.parcel.unpack`."""

    def __init__(self, link: Link, store: Store, kernels: Mapping[str, Path], threads: int) -> None:
        self._link, self._store, self._kernels = link, store, kernels
        self._pool = ThreadPoolExecutor(threads, "intake")
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._closed = False
        self._one_block = threading.Lock()

    def ended(self, future: distributed.Future) -> None:
        """Called by Dask when a task has ended."""
        self._events.put(Event(future.key, Ended()))
        self._start(future.key, lambda: self._fetch(future))

    def keep(self, key: str, unit: Unit, done: Done) -> None:
        """Store a unit, as :class:`Kept`.

        Else the event is a :class:`WorkerGoneError`, a :class:`StoreError`, or a :class:`Failed` for a worker that sent
        something else. Until it comes, nobody else may run or store these trials.
        """
        self._start(key, lambda: self._keep(unit, done))

    def wait(self, seconds: float) -> list[Event]:
        """All that has happened; at most so long, if nothing has."""
        events = []
        with contextlib.suppress(queue.Empty):
            events.append(self._events.get(timeout=seconds))
            while True:
                events.append(self._events.get_nowait())
        return events

    def close(self) -> None:
        """Nothing is written any more when this returns. What has begun ends, but for files that come in pieces."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)

    def _start(self, key: str, work: Callable[[], Answer | Kept | BaseException]) -> None:
        def run() -> None:
            try:
                what = work()
            except (Exception, CancelledError) as error:
                what = error
            self._events.put(Event(key, what))

        with contextlib.suppress(RuntimeError):  # All is over: nobody wants it any more.
            self._pool.submit(run)

    def _fetch(self, future: distributed.Future) -> Answer | BaseException:
        if future.status == "error":
            error: BaseException = future.exception()
            return error
        answer: Answer = self._link.result(future, FETCH_S)
        return answer

    def _keep(self, unit: Unit, done: Done) -> Kept | Failed:
        """Nothing of a unit counts before all of it is here, since its trials are compared with each other."""
        try:
            results = tuple(
                parcel.unpack(packed, trial, self._fetcher(done, trial.id), self._kernels, self._store)
                for trial, packed in zip(unit.left, done.parcels, strict=False)
            )
            for result in results:
                self._store.seal(result, written_sha256=result.recording_sha256)
            # Whoever kills this process now leaves at most one block half there, which is run again whole.
            with self._one_block:
                for result in results:
                    self._store.set_aside(result.id)
                self._store.publish([result.id for result in results])
        except ShippingError as error:
            return Failed(done.worker, error.what, None, ())
        except OSError as error:
            raise StoreError(f"cannot keep a trial that was run elsewhere: {error}") from error
        return Kept(done, results)

    def _fetcher(self, done: Done, trial_id: str) -> parcel.Fetch:
        """Fetches pieces of a trial's files from the worker that ran it."""

        def fetch(name: str, offset: int, size: int) -> bytes:
            if self._closed:
                raise WorkerGoneError("nobody waits for it any more")
            try:
                return self._link.ask_one(done.worker, remote.read, done.key, trial_id, name, offset, size)
            except Exception as error:  # Whatever it is, the worker has these files no more.
                raise WorkerGoneError from error

        return fetch
