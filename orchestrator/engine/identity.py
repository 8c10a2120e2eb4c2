"""Which tool, which Dask, which QEMU and which machine: what client and workers must agree about before they work."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from orchestrator import __version__
from orchestrator.engine.need import HostId
from orchestrator.manifest import Host, examine_host, qemu_version, tool_commit

PACKAGE = Path(__file__).resolve().parents[1]
SHOWN_DIGITS = 12


def _digest_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(PACKAGE)} {content}\n".encode())
    return digest.hexdigest()


# SHA-256 over the tool's Python files, taken when this process began: on disk they may change under it. Two checkouts
# of one version number may differ in what a trial does; two with these same bytes do not.
SOURCES_ID = _digest_sources()


@dataclass(frozen=True)
class Identity:
    """``tool`` names the tool's version for people, ``sources_id`` decides. ``qemu`` is empty where there is none.

    ``host`` is the machine; ``cpus`` of its CPUs are this process's to use. ``lab`` are machines of a lab that a worker
    offers.
    """

    tool: str
    sources_id: str
    dask: str
    qemu: str
    host: Host
    cpus: int
    lab: tuple[HostId, ...] = ()


@cache
def own_identity() -> Identity:
    """This process's identity. It starts programs (git, QEMU), the first time."""
    commit = tool_commit()
    return Identity(
        tool=" ".join(part for part in (__version__, commit, f"(sources {SOURCES_ID[:SHOWN_DIGITS]})") if part),
        sources_id=SOURCES_ID,
        dask=dask_version(),
        qemu=qemu_version(),
        host=examine_host(),
        cpus=len(os.sched_getaffinity(0)),
    )


def dask_version() -> str:
    """The version of Dask's distributed that is installed here."""
    return version("distributed")
