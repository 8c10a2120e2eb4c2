"""What trials need of a worker, and the Dask resources by which workers offer it.

qemu-ACCEL    room for one boot under an accelerator
lab-HOST      a machine of a lab that the worker reaches
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from orchestrator.doctor import Accel
from orchestrator.lab import LabHost

QEMU, LAB = "qemu-", "lab-"

Kind = Accel | Literal["ssh"]


@dataclass(frozen=True)
class HostId:
    """A lab's machine: its name, and the SHA-256 of what of its description decides what is measured."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Need:
    """Room for a boot with ``cpus`` emulated CPUs under an accelerator; of ``ssh``, one of the machines ``hosts``."""

    kind: Kind
    cpus: int
    hosts: tuple[HostId, ...] = ()

    def __str__(self) -> str:
        return self.kind if self.kind != "ssh" else " or ".join(host.name for host in self.hosts)


def qemu_resource(accel: Accel) -> str:
    """The resource of which a boot under ``accel`` takes one."""
    return f"{QEMU}{accel}"


def lab_resource(name: str) -> str:
    """The resource of which a block on the machine ``name`` takes one."""
    return f"{LAB}{name}"


def host_id(host: LabHost) -> HostId:
    """Which machine a description means."""
    return HostId(host.name, hashlib.sha256(host.identity.encode()).hexdigest())
