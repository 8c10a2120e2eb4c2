"""From the machines of a lab file to a target: each with its connection, its console and its lease."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from orchestrator.image import LAB_AGENT, Guests
from orchestrator.kernel.build import BuiltKernel
from orchestrator.lab import connection, journal
from orchestrator.lab.clock import RealClock
from orchestrator.lab.lease import DEAD_S, Keeper, Lease
from orchestrator.lab.machine import Machine
from orchestrator.lab.outside import RealOutside
from orchestrator.lab.types import LabHost
from orchestrator.target.pool import LabPool
from orchestrator.target.ssh import SshTarget

POWER_LOG = "power.log"


def make_machine(host: LabHost, guests: Guests, say: Callable[[str], None]) -> Machine:
    """A machine that has not been contacted yet."""

    def keep(folder: str, lease: Lease, stood_still: Callable[[], None]) -> Callable[[], None]:
        return Keeper(lambda: connection.connect(hurried(host)), folder, lease, stood_still).stop

    return Machine(
        host,
        guests.program(LAB_AGENT),
        connect=lambda: connection.connect(host),
        outside=RealOutside(host, journal.folder(host) / POWER_LOG),
        clock=RealClock(),
        say=say,
        keep=keep,
    )


def hurried(host: LabHost) -> LabHost:
    """The same machine for the keeper of its lease, which must have tried again long before the lease counts as dead,
    however patient the lab file is."""
    given = host.deadlines
    connect_s, answer_s = (min(limit_s, DEAD_S / 4) for limit_s in (given.connect_s, given.answer_s))
    return dataclasses.replace(host, deadlines=dataclasses.replace(given, connect_s=connect_s, answer_s=answer_s))


def make_pool(
    hosts: Sequence[LabHost], guests: Guests, kernels: Sequence[BuiltKernel], say: Callable[[str], None]
) -> LabPool:
    """The target of an experiment that runs on ``hosts``."""
    return LabPool({host.name: SshTarget(make_machine(host, guests, say), guests, tuple(kernels)) for host in hosts})
