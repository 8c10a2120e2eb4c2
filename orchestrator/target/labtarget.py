"""From the machines of a lab file to a target: each with its connection, its console and its lease."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.image import LAB_AGENT, Guests
from orchestrator.kernel.build import BuiltKernel
from orchestrator.lab import connection, journal
from orchestrator.lab.clock import RealClock
from orchestrator.lab.lease import Keeper, Lease
from orchestrator.lab.machine import Machine
from orchestrator.lab.outside import RealOutside
from orchestrator.lab.types import LabHost
from orchestrator.target.pool import LabPool
from orchestrator.target.ssh import SshTarget

POWER_LOG = "power.log"


def make_machine(host: LabHost, guests: Guests, say: Callable[[str], None]) -> Machine:
    """A machine that has not been contacted yet."""

    def keep(folder: str, lease: Lease) -> Callable[[], None]:
        return Keeper(lambda: connection.connect(host), folder, lease).stop

    return Machine(
        host,
        guests.program(LAB_AGENT),
        connect=lambda: connection.connect(host),
        outside=RealOutside(host, journal.folder(host) / POWER_LOG),
        clock=RealClock(),
        say=say,
        keep=keep,
    )


def make_pool(
    hosts: Sequence[LabHost], guests: Guests, kernels: Sequence[BuiltKernel], say: Callable[[str], None]
) -> LabPool:
    """The target of an experiment that runs on ``hosts``."""
    return LabPool({host.name: SshTarget(make_machine(host, guests, say), guests, tuple(kernels)) for host in hosts})
