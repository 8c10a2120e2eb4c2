"""What is known here of all machines, and what those of a lab file say when they are asked; nothing is changed."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cache import cache_dir
from orchestrator.errors import StoreError
from orchestrator.lab import lease, seen
from orchestrator.lab.journal import JOURNAL, QUARANTINE, RELEASED, Journal, KernelId, Quarantine, read_quarantine
from orchestrator.lab.lease import Owner
from orchestrator.lab.remote import Cut, NotTrusted, Transport
from orchestrator.lab.types import Boot, LabHost
from orchestrator.store import load_json

NEEDED: dict[Boot, tuple[str, ...]] = {"kexec": ("kexec",), "grub": ("grub-reboot", "grub-probe"), "none": ()}
COMMON = ("sha256sum", "df", "mkdir", "mv", "rm")


@dataclass(frozen=True)
class Known:
    """A machine's files here; ``id`` is its folder's name."""

    id: str
    journal: Journal | None
    quarantine: Quarantine | None


@dataclass(frozen=True)
class Answer:
    """What a machine says. ``problems`` are what a run on it would stumble over, each in a line."""

    kernel: KernelId
    tdp: bool | None
    load_average: str
    holder: Owner | None
    problems: tuple[str, ...]


def known() -> tuple[Known, ...]:
    """All machines that this user's runs have met, by name."""
    found = []
    for folder in sorted((cache_dir() / "lab").glob("*")):
        if any((folder / name).exists() for name in (JOURNAL, QUARANTINE)):
            found.append(Known(folder.name, _journal(folder / JOURNAL), read_quarantine(folder, folder.name)))
    return tuple(found)


def release(name: str) -> tuple[Quarantine, ...]:
    """Take the machines called ``name`` (or with that id) out of quarantine; what they were in for.

    The person who looked after them vouches for the kernels that they now run, see
    :func:`orchestrator.lab.journal.vouched`.
    """
    entries = []
    for item in known():
        if item.quarantine is not None and name in (item.id, item.quarantine.host):
            path = cache_dir() / "lab" / item.id / QUARANTINE
            path.replace(path.with_name(RELEASED))
            entries.append(item.quarantine)
    return tuple(entries)


def ask(host: LabHost, connect: Callable[[LabHost], Transport]) -> Answer | str:
    """Ask one machine; or why it does not answer."""
    try:
        transport = connect(host)
    except NotTrusted as error:
        return f"{error.what}; {error.hint}"
    except Cut as error:
        return f"cannot be reached: {error}"
    try:
        with contextlib.closing(transport):
            return _answer(host, transport)
    except Cut as error:
        return f"the connection broke: {error}"


def _answer(host: LabHost, transport: Transport) -> Answer:
    tdp = seen.tdp(transport)
    problems = [] if tdp is not None else [f"there is no {seen.DEVICE}"]
    answer_s = host.deadlines.answer_s
    root = ("sudo", "-n", "--") if host.sudo else ()
    reply = transport.run((*root, "id", "-u"), deadline_s=answer_s)
    if reply.stdout.strip() != "0":
        how = f"sudo -n: {reply.said}" if host.sudo else f"{host.user} is not root, and sudo is false"
        problems.append(how)
    for program in (*COMMON, *NEEDED[host.boot]):
        # `command -v` is the shell's own; the word is one of ours.
        script = f"command -v {shlex.quote(program)}"
        if transport.run((*root, "sh", "-c", script), deadline_s=answer_s).returncode != 0:
            problems.append(f"the program {program} is not installed")
    load = transport.read("/proc/loadavg").decode("ascii", "replace").split()
    folder = host.folder if host.folder.startswith("/") else f"{transport.home()}/{host.folder}"
    holder = lease.holder_of(transport, folder)
    return Answer(seen.look(transport).kernel, tdp, (load or ["?"])[0], holder, tuple(problems))


def _journal(path: Path) -> Journal | None:
    with contextlib.suppress(StoreError):
        return load_json(path, Journal)
    return None
