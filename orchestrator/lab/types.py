"""What a lab is: the machines of ``target: ssh``, frozen and validated, independent of the YAML form.

A machine is described by what it takes to reach it, to boot it, to see it die and to get it back; and by what may be
changed on it. ``Field(description=…)`` is the one documentation of each key, as in ``experiment/types.py``.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from orchestrator.errors import UserError
from orchestrator.experiment.strict import STRICT
from orchestrator.experiment.types import NAME, NAME_WORDS
from orchestrator.store import file_sha256

Boot = Literal["kexec", "grub", "none"]
Knob = Literal["governor", "turbo", "smt", "thp", "ksm", "numa_balancing", "swap"]
KNOBS: tuple[Knob, ...] = get_args(Knob)

# One word of a command: something printable. Commands are run as they stand, by execve(), never by a shell.
Word = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=4096, description="printable text")]
# A word of the kernel's command line: no white space, and no quote that could swallow the next word.
CommandLineWord = Annotated[
    str, Field(pattern=r'^[^\s"\x00-\x1f\x7f]+$', max_length=256, description="one word without blanks and quotes")
]
HostName = Annotated[str, Field(pattern=NAME, max_length=31, description=NAME_WORDS)]
Seconds = Annotated[float, Field(gt=0, le=86400)]


@dataclass(frozen=True, config=STRICT)
class Deadlines:
    """How long each step of a machine may take, s. Past it comes the next, stronger way to get the machine back."""

    connect_s: Annotated[Seconds, Field(description="one attempt to connect")] = 15.0
    answer_s: Annotated[Seconds, Field(description="a command that only looks, or changes a setting")] = 30.0
    copy_s: Annotated[Seconds, Field(description="copying one file to or from the machine, cuts included")] = 600.0
    boot_s: Annotated[Seconds, Field(description="from the boot command until the kernel under test answers")] = 600.0
    return_s: Annotated[Seconds, Field(description="each way of returning to the known-good kernel")] = 600.0
    load_s: Annotated[Seconds, Field(description="waiting for a low load before measuring")] = 300.0
    power_s: Annotated[Seconds, Field(description="the power command itself")] = 120.0


@dataclass(frozen=True, config=STRICT)
class LabHost:
    """One machine. Paths of this machine (``key``, ``known_hosts``, ``initrd``) are absolute.

    There is no password: ``key`` names a private key without a passphrase, or ``agent`` is true. ``console``, ``power``
    and ``sysrq`` are argument lists of commands that run on this machine, not on the host.
    """

    name: HostName
    address: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:_-]*$", max_length=253, description="a host name or IP address")
    ]
    user: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_.-]*$", max_length=32, description="user name on the host")]
    known_hosts: Annotated[
        Path, Field(description="file with the host's key, in OpenSSH's form; no other key is accepted")
    ]
    port: Annotated[int, Field(ge=1, le=65535, description="TCP port of sshd")] = 22
    key: Annotated[Path | None, Field(description="private key file without a passphrase")] = None
    agent: Annotated[bool, Field(description="true: the keys of this user's ssh-agent, instead of a key file")] = False
    sudo: Annotated[bool, Field(description="true: what needs root is run by `sudo -n`; false: the user is root")] = (
        False
    )
    # "=": a path of its own, relative to the user's home folder there, or absolute.
    folder: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_./-]*[A-Za-z0-9_-]$",
            max_length=64,
            description="folder on the host, on a disk that outlives reboots; relative to the user's home, or absolute",
        ),
    ] = ".cache/orch-lab"
    boot: Annotated[
        Boot, Field(description="kexec: load and go; grub: a one-time entry; none: the kernel that is running")
    ] = "kexec"
    append: Annotated[
        tuple[CommandLineWord, ...], Field(description="words added to the command line of the kernel under test")
    ] = ()
    initrd: Annotated[
        Path | None, Field(description="initramfs for the kernel under test; none: it mounts the host's root itself")
    ] = None
    console: Annotated[
        tuple[Word, ...], Field(description="command here that prints the host's serial console; [] if there is none")
    ] = ()
    console_break: Annotated[
        str | None,
        Field(
            max_length=16,
            description="what that command reads as BREAK, which makes the next key a SysRq; none if it cannot",
        ),
    ] = None
    power: Annotated[
        tuple[Word, ...], Field(description="command here that power-cycles the host; [] if there is none")
    ] = ()
    cpus: Annotated[
        tuple[Annotated[int, Field(ge=0, le=4095)], ...],
        Field(description="CPUs for guest and storm, ascending: vCPU 0 on the first one …; [] for all"),
    ] = ()
    may_change: Annotated[
        tuple[Knob, ...],
        Field(description=f"what may be set before measuring, and is put back afterwards: {', '.join(KNOBS)}"),
    ] = ()
    max_load: Annotated[
        float,
        Field(gt=0, le=1000, description="a trial starts only when fewer CPUs than this are busy, counted over 2 s"),
    ] = 0.5
    min_free_mib: Annotated[int, Field(ge=1, le=2**20, description="room that must be free in folder, MiB")] = 512
    deadlines: Deadlines = Deadlines()

    def __post_init__(self) -> None:
        if (self.key is None) == (not self.agent):
            raise ValueError("exactly one of key and agent: true")
        if list(self.cpus) != sorted(set(self.cpus)):
            raise ValueError("cpus in ascending order, each once")
        if self.console_break is not None and not self.console:
            raise ValueError("a console for console_break")
        if ".." in self.folder.split("/"):
            raise ValueError("a folder without '..'")
        if self.boot == "none" and (self.append or self.initrd is not None):
            raise ValueError("no append and no initrd with boot: none")

    @property
    def id(self) -> str:
        """Name of its files here: its name for people, and a hash of where it is, since lab files may share names."""
        return f"{self.name}-{hashlib.sha256(f'{self.address}:{self.port}'.encode()).hexdigest()[:8]}"

    @property
    def identity(self) -> str:
        """What of this description decides what is measured: changing the rest does not make another run.

        An initramfs by its content: the same file may lie elsewhere on a worker. Raises :class:`UserError` if it
        cannot be read.
        """
        parts = [f"{self.name} ({self.address} port {self.port}), boot {self.boot}"]
        parts += [f"cpus {', '.join(map(str, self.cpus))}"] if self.cpus else []
        parts += [f"append {' '.join(self.append)}"] if self.append else []
        parts += [f"initrd {_content_of(self.initrd)}"] if self.initrd is not None else []
        parts += [f"sets {', '.join(self.may_change)}"] if self.may_change else []
        return "; ".join(parts)


@dataclass(frozen=True, config=STRICT)
class Lab:
    """A lab file. ``fragments`` are kernel config fragments (absolute paths) that its machines need to be reached."""

    path: Path
    fragments: Annotated[
        tuple[Path, ...], Field(description="kernel config fragments: drivers for the hosts' disks and networks")
    ]
    hosts: tuple[LabHost, ...]


def _content_of(path: Path) -> str:
    if not (found := file_sha256(path)):
        raise UserError(f"the initrd {path} of the lab file cannot be read", hint=f"ls -l {shlex.quote(str(path))}")
    return found
