"""What became of each machine, on disk before each step: so that whoever comes next knows what it finds there.

    CACHE/lab/HOST/journal.json        here: the last state that this tool knows of
    CACHE/lab/HOST/quarantine.json     here: why the machine is not used any more
    CACHE/lab/HOST/recovery.log        here: its serial console when it was last brought home outside a trial
    FOLDER/journal.json                on the host: the same journal, for tools on other machines

A tool may be killed at any instruction. The next one compares the kernel that runs with ``known_good``, and the
settings with ``before`` or ``home_before``, and first puts both right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from orchestrator.cache import cache_dir
from orchestrator.errors import StoreError
from orchestrator.lab.types import Knob, LabHost
from orchestrator.store import load_json, to_json, write_atomic

State = Literal["reachable", "prepared", "booting", "testing", "returning", "idle"]
# In these another kernel than the known-good one may run.
AWAY: tuple[State, ...] = ("booting", "testing", "returning")

JOURNAL = "journal.json"
QUARANTINE = "quarantine.json"
RELEASED = "released.json"


@dataclass(frozen=True)
class KernelId:
    """Which kernel runs: ``uname -r``, ``uname -v``, and the GNU build id (hex; empty if it has none)."""

    release: str
    version: str
    build_id: str

    def __str__(self) -> str:
        return f"{self.release} ({f'build id {self.build_id[:12]}' if self.build_id else self.version})"


@dataclass(frozen=True)
class Setting:
    """A setting of the machine: the file of /sys or /proc (for swap, the device), and what is to be written there."""

    knob: Knob
    path: str
    value: str


@dataclass(frozen=True)
class Journal:
    """``boot_id`` is of the boot that was last seen; ``test`` the kernel under test while one is booted or about to be.

    ``leaving`` is the boot that a boot command was given in, until another one is seen: a machine that still answers in
    it is not at home, it is on its way out. ``trial`` is the folder on the host of a program that may still run.

    ``before`` are the settings to put back as long as the boot ``boot_id`` runs, in which they were read;
    ``home_before`` those of the known-good kernel, which are put back in any later boot of it.
    """

    host: str
    state: State
    since: str
    owner: str
    known_good: KernelId
    boot_id: str
    test: KernelId | None = None
    leaving: str = ""
    trial: str = ""
    before: tuple[Setting, ...] = ()
    home_before: tuple[Setting, ...] = ()

    @property
    def at_home(self) -> bool:
        """Whether no boot command was given since the known-good kernel ran, nor anything measured."""
        return self.state not in AWAY or (self.state == "booting" and not self.leaving)

    @property
    def settled(self) -> bool:
        """Whether nothing of a trial is left on the machine."""
        return self.state not in AWAY and not self.trial and not self.before


@dataclass(frozen=True)
class Quarantine:
    """Why a machine is not used any more, since when (UTC), and in which state it was."""

    host: str
    reason: str
    since: str
    state: str


_journal = TypeAdapter(Journal)


def folder(host: LabHost) -> Path:
    """The machine's files here."""
    return cache_dir() / "lab" / host.id


def read(host: LabHost) -> Journal | None:
    """The journal here; None if there is none, or it is of another version of the tool."""
    try:
        return load_json(folder(host) / JOURNAL, Journal)
    except StoreError:
        return None


def write(host: LabHost, journal: Journal) -> bytes:
    """Save it here; returns the bytes, to be saved on the host as well."""
    folder(host).mkdir(parents=True, exist_ok=True)
    data = to_json(journal)
    write_atomic(folder(host) / JOURNAL, data)
    return data


def parse(data: bytes) -> Journal | None:
    """A journal that a host had; None if it is none (it may be damaged, or of another version of the tool)."""
    try:
        return _journal.validate_json(data, strict=True)
    except ValidationError:
        return None


def quarantined(host: LabHost) -> Quarantine | None:
    """Why the machine is not used; None if it is."""
    return read_quarantine(folder(host), host.name)


def read_quarantine(where: Path, name: str) -> Quarantine | None:
    """The same by the folder of its files here; one that is damaged counts."""
    if not (where / QUARANTINE).exists():
        return None
    try:
        return load_json(where / QUARANTINE, Quarantine)
    except StoreError as error:
        return Quarantine(name, f"has a quarantine that cannot be read: {error.what}", "", "")


def quarantine(host: LabHost, reason: str, since: str, state: str) -> Quarantine:
    """Keep the machine out of all runs until :func:`orchestrator.lab.status.release`."""
    entry = Quarantine(host.name, reason, since, state)
    folder(host).mkdir(parents=True, exist_ok=True)
    write_atomic(folder(host) / QUARANTINE, to_json(entry))
    return entry


def vouched(host: LabHost) -> bool:
    """Whether the machine came out of quarantine and has not been settled since: it now runs its known-good kernel."""
    return (folder(host) / RELEASED).exists()


def settle(host: LabHost) -> None:
    """The machine's journal is right again."""
    (folder(host) / RELEASED).unlink(missing_ok=True)
