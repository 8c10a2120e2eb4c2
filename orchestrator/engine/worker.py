"""``orch worker``: a Dask worker that offers what this machine can do, and comes back when its scheduler does."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import dask
import distributed

from orchestrator import cache, doctor, lab
from orchestrator.doctor import Accel
from orchestrator.engine import remote
from orchestrator.engine.identity import own_identity
from orchestrator.engine.link import RETRY_S, Say, brief, dask_address, quiet
from orchestrator.engine.need import lab_resource, qemu_resource
from orchestrator.errors import EngineError, TargetError, UserError, printable
from orchestrator.lab import LabHost, selection

POLL_S = 0.2
OFFER = re.compile(r"(?P<accel>[a-z]+)=(?P<slots>[1-9][0-9]{0,3})")
NAME_TAKEN = "name taken"  # Scheduler.add_worker() in distributed/scheduler.py
FOLDER = "dask"  # in the cache: workers' own folders, which Dask removes when the worker has gone
# Dask samples a worker's threads every 10 ms and its loop every 20: nothing shall tick beside a measurement.
STILL = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.gil.enabled": False,
}


@dataclass(frozen=True)
class Offer:
    """Room for ``slots`` boots at once under ``accel``."""

    accel: Accel
    slots: int


def parse_offer(text: str) -> Offer:
    """``ACCEL=N``, as it was typed. Raises :class:`UserError`."""
    found = OFFER.fullmatch(text)
    accel = next((item for item in get_args(Accel) if found is not None and item == found["accel"]), None)
    if found is None or accel is None:
        raise UserError(
            f"{printable(text)!r} offers nothing: expected ACCEL=N with {', '.join(get_args(Accel))}",
            hint="orch worker dask://127.0.0.1:8786 --offer icount=2",
        )
    return Offer(accel, int(found["slots"]))


def find_offers(wanted: Sequence[Offer]) -> tuple[Offer, ...]:
    """What was asked for, tried; or all that works here: icount on every CPU, what takes real time once.

    Raises :class:`TargetError` if a wanted offer, or every one, cannot work here.
    """
    for offer in wanted:
        doctor.pick_accel(offer.accel, 1)
    if wanted:
        return tuple(wanted)
    usual = (Offer("icount", len(os.sched_getaffinity(0))), Offer("tcg", 1), Offer("kvm", 1))
    found = tuple(offer for offer in usual if not _obstacle(offer.accel))
    if not found:
        raise TargetError(f"QEMU runs under no accelerator here: {_obstacle('icount')}", hint="orch doctor")
    return found


def find_hosts(lab_file: Path | None, names: Sequence[str]) -> tuple[LabHost, ...]:
    """Machines of a lab file, those of these names or all. Raises :class:`UserError`."""
    if lab_file is None:
        if names:
            raise UserError("--host names a machine of a lab file", hint=f"--lab FILE --host {names[0]}")
        return ()
    return selection.named(lab.load(lab_file), names)


@dataclass(frozen=True)
class Offers:
    """What a worker offers: room for boots here, and machines of a lab that it reaches."""

    boots: tuple[Offer, ...]
    hosts: tuple[LabHost, ...] = ()

    @property
    def resources(self) -> dict[str, int]:
        """As Dask knows them."""
        boots = {qemu_resource(offer.accel): offer.slots for offer in self.boots}
        return boots | {lab_resource(host.name): 1 for host in self.hosts}

    @property
    def threads(self) -> int:
        """How many units run at once at most: boots of different kinds never do."""
        return max([len(self.hosts), *(offer.slots for offer in self.boots)])

    def __str__(self) -> str:
        return ", ".join([*(f"{offer.slots} x {offer.accel}" for offer in self.boots), *(h.name for h in self.hosts)])


def work(engine: str, offers: Offers, name: str | None, patience_s: float, say: Say) -> None:
    """Be a worker of the scheduler at ``engine``, until a signal ends this process.

    When the scheduler goes, this process starts itself anew: the trials that ran for it die, since nobody waits for
    them, and it looks for a scheduler again. Raises :class:`EngineError` if none answers for ``patience_s``.
    """
    address = dask_address(engine)
    name = name or f"{socket.gethostname()}-{os.getpid()}"
    quiet()
    dask.config.set(STILL)
    remote.offer_lab(offers.hosts)
    own_identity()  # Now, while the sources on disk are those that were imported.

    async def live() -> None:
        await _work(address, engine, offers, name, patience_s, say)
        # Not after asyncio.run(), which would wait for the trials.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    asyncio.run(live())


async def _work(address: str, engine: str, offers: Offers, name: str, patience_s: float, say: Say) -> None:
    """One life as a worker; returns when the scheduler has gone."""
    say(f"looking for a scheduler at {engine}")
    worker = await _join(address, engine, offers, name, patience_s)
    say(f"worker {name} at {worker.address}: offers {offers}; orch {own_identity().tool}")
    while worker.status == distributed.core.Status.running:
        await asyncio.sleep(POLL_S)
    say(f"the scheduler at {engine} has gone")


async def _join(address: str, engine: str, offers: Offers, name: str, patience_s: float) -> distributed.Worker:
    ends = time.monotonic() + patience_s
    while True:
        left = max(0.1, ends - time.monotonic())
        worker = _make(address, offers, name, left)
        try:
            await worker.start()
        except TimeoutError as error:
            raise EngineError(
                f"no scheduler answers at {engine} within {patience_s:.0f} s",
                hint="dask scheduler --host 127.0.0.1 --port 8786   (see docs/dask.md)",
            ) from error
        except RuntimeError as error:
            why = brief(error.__cause__ or error)
            # The scheduler may not have noticed yet that our last life is over.
            if NAME_TAKEN not in why or left <= RETRY_S:
                raise UserError(f"cannot join {engine} as {name}: {why}", hint="see docs/dask.md") from error
            await asyncio.sleep(RETRY_S)
        else:
            return worker


def _make(address: str, offers: Offers, name: str, patience_s: float) -> distributed.Worker:
    folder = cache.cache_dir() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return distributed.Worker(
        address,
        nthreads=offers.threads,
        resources=offers.resources,
        name=name,
        local_directory=str(folder),
        memory_limit=0,  # What takes memory here is QEMU, which Dask does not see.
        death_timeout=patience_s,
    )


def _obstacle(accel: Accel) -> str:
    try:
        doctor.pick_accel(accel, 1)
    except (TargetError, UserError) as error:
        return error.what
    return ""
