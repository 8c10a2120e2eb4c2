"""The manifest: what ran, on what, by which command. Written before anything else of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator import __version__, proc
from orchestrator.errors import CommandError, UserError
from orchestrator.experiment import Experiment
from orchestrator.experiment.values import GIT_RANGE_PREFIX
from orchestrator.results import Provenance

QEMU = "qemu-system-x86_64"
# Settings of the host that are named after something: a swap device, a vulnerability of the CPU.
SWAP, MITIGATION = "swap on ", "mitigation of "


@dataclass(frozen=True)
class FileId:
    """A file by name and content; for a folder (a series) ``sha256`` covers the names and contents of its files."""

    path: str
    sha256: str


@dataclass(frozen=True)
class ArmFiles:
    """The patches of an arm."""

    arm: str
    patches: tuple[FileId, ...]


@dataclass(frozen=True)
class LinuxGuestId:
    """The VMM of Linux guests: the file in the run that lists what was packed, the hash of all that, and a line."""

    path: str
    id: str
    what: str


@dataclass(frozen=True)
class Host:
    """The machine that ran it. ``kernel`` is uname's release and version; memory in MiB."""

    node: str
    kernel: str
    machine: str
    cpu: str
    cores: int
    mem_mib: int


@dataclass(frozen=True)
class HostSetting:
    """A setting of the machine that moves latencies, by its path in /sys or /proc or a name, and its value."""

    name: str
    value: str


@dataclass(frozen=True)
class Manifest:
    """What a run needs to be understood, and repeated, later.

    ``started`` is UTC, ISO 8601; ``accel`` the accelerator in use and ``accel_why`` the reason in one line. The kernel
    itself (its tree's identity and content) is in ``kernels/``, since it is known only once it is fetched.
    ``fingerprint`` covers everything that decides the trials: a run is continued only by one with the same.
    ``machines`` are those of a lab, each with what its description says of the measurement. ``host_settings`` are this
    machine's when the run began; None if they are not known, or its trials ran on others.
    """

    run: str
    command: tuple[str, ...]
    started: str
    experiment: str
    config: FileId
    config_text: str
    fragments: tuple[FileId, ...]
    arms: tuple[ArmFiles, ...]
    target: str
    accel: str
    accel_why: str
    seeds: tuple[int, ...]
    tool_version: str
    tool_commit: str
    qemu_version: str
    host: Host
    fingerprint: str
    guests_id: str = ""
    machines: tuple[str, ...] = ()
    linux_guest: LinuxGuestId | None = None
    host_settings: tuple[HostSetting, ...] | None = None

    def of_run(self, run: str) -> Manifest:
        """The same with the name of the run's folder, which is chosen when it is created."""
        return dataclasses.replace(self, run=run)


def make_manifest(
    experiment: Experiment,
    command: Sequence[str],
    accel: str,
    accel_why: str,
    seeds: Sequence[int],
    guests_id: str = "",
    machines: Sequence[str] = (),
    lab_fragments: Sequence[Path] = (),
    qemu: str | None = None,
    linux_guest: LinuxGuestId | None = None,
    host_settings: tuple[HostSetting, ...] | None = None,
) -> Manifest:
    """Hash every input and look at the host. ``run`` stays empty until the store creates or finds the folder.

    ``guests_id`` is the content of the guest programs (:class:`orchestrator.image.Guests`): a run is not continued with
    others than it began with; ``machines`` likewise, the identities of a lab's. ``lab_fragments`` are kernel config
    fragments besides the experiment's own. ``qemu`` is the version of QEMU, if it is other machines'.
    ``linux_guest`` is the packed VMM of Linux guests. ``host_settings``: see :class:`Manifest`.

    Raises :class:`UserError` for an input that cannot be read.
    """
    fragments = _fragments(experiment, lab_fragments)
    arms = tuple(ArmFiles(arm.name, tuple(file_id(path) for path in arm.patches)) for arm in experiment.arms)
    host = examine_host()
    if qemu is None:
        qemu = qemu_version() if experiment.target.kind == "qemu" else ""
    # A running kernel is the kernel under test of `local`: another kernel, another run.
    running = host.kernel if experiment.target.kind == "local" else ""
    packed = [] if linux_guest is None else [linux_guest.id]
    environment = [__version__, guests_id, accel, qemu, running, *machines, *packed]
    return Manifest(
        run="",
        command=tuple(command),
        started=datetime.now(UTC).isoformat(timespec="microseconds"),
        experiment=experiment.name,
        config=file_id(experiment.path),
        config_text=_text(experiment.path),
        fragments=fragments,
        arms=arms,
        target=experiment.target.kind,
        accel=accel,
        accel_why=accel_why,
        seeds=tuple(seeds),
        tool_version=__version__,
        tool_commit=tool_commit(),
        qemu_version=qemu,
        guests_id=guests_id,
        machines=tuple(machines),
        linux_guest=linux_guest,
        host_settings=host_settings,
        host=host,
        fingerprint=fingerprint(experiment, fragments, arms, environment),
    )


def _fragments(experiment: Experiment, of_lab: Sequence[Path]) -> tuple[FileId, ...]:
    """Kernel config fragments: the experiment's, the lab's, the Linux guests'."""
    own = experiment.linux_guest.fragments if experiment.linux_guest is not None else ()
    return tuple(file_id(path) for path in (*experiment.kernel.fragments, *of_lab, *own))


def fingerprint(
    experiment: Experiment, fragments: Iterable[FileId], arms: Iterable[ArmFiles], environment: Sequence[str]
) -> str:
    """SHA-256 over what decides the trials: the experiment with its files by content, and the environment.

    Where the files lie, how the YAML is written and what it says in ``description`` makes no difference.
    """
    content = TypeAdapter(Experiment).dump_python(experiment, mode="json", exclude={"path", "description"})
    del content["target"]["lab"]  # Where it lies; what it says of the machines is in the environment.
    content["kernel"]["fragments"] = [item.sha256 for item in fragments]
    if experiment.linux_guest is not None:  # Its files are in the environment, its fragments among the kernel's.
        own = len(experiment.linux_guest.fragments)
        content["linux_guest"] |= {"vmm": "", "files": [], "kernel": own or content["linux_guest"]["kernel"]}
    content["arms"] = [[item.arm, [patch.sha256 for patch in item.patches]] for item in arms]
    text = json.dumps([content, list(environment)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def provenance(manifest: Manifest, workers: Sequence[tuple[str, str]] = ()) -> Provenance:
    """What a reader needs to repeat the run. ``workers`` are rows about other machines that ran its trials."""
    host = manifest.host
    rows = [
        ("run", manifest.run),
        ("started", manifest.started),
        ("config", f"{manifest.config.path} (sha256 {manifest.config.sha256[:16]})"),
        ("target", f"{manifest.target}, {manifest.accel_why}"),
        ("seeds", ", ".join(map(str, manifest.seeds[:8])) + (" …" if len(manifest.seeds) > 8 else "")),
        *(("machine", machine) for machine in manifest.machines),
        ("host", f"{host.cpu}, {host.cores} CPUs, {host.mem_mib} MiB, Linux {host.kernel}"),
        *workers,
        ("QEMU", manifest.qemu_version or "not used"),
        ("tool", f"orchestrator {manifest.tool_version} {manifest.tool_commit}".rstrip()),
    ]
    if manifest.linux_guest is not None:
        rows.append(("Linux guests", f"{manifest.linux_guest.what}; list: {manifest.linux_guest.path}"))
    rows += [
        (f"patch of {arm.arm}", f"{Path(item.path).name} (sha256 {item.sha256[:16]})")
        for arm in manifest.arms
        for item in arm.patches
    ]
    return Provenance(proc.quote(manifest.command), tuple(rows))


def file_id(path: Path) -> FileId:
    """Identity of a file, of a folder by all regular files in it, of a ``git:REPOSITORY#A..B`` by its commits."""
    if str(path).startswith(GIT_RANGE_PREFIX):
        repository, _, span = str(path).removeprefix(GIT_RANGE_PREFIX).partition("#")
        argv = ["git", "-C", repository, "rev-list", "--end-of-options", span]
        return FileId(str(path), hashlib.sha256(proc.run(argv, deadline_s=60).stdout.encode()).hexdigest())
    try:
        if not path.is_dir():
            return FileId(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        digest = hashlib.sha256()
        for item in sorted(path.rglob("*")):
            if item.is_file():
                name = str(item.relative_to(path))
                digest.update(f"{hashlib.sha256(item.read_bytes()).hexdigest()} {name!r}\n".encode())
        return FileId(str(path), digest.hexdigest())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def examine_host() -> Host:
    """This machine, from uname and /proc."""
    cpuinfo = _text(Path("/proc/cpuinfo"))
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    uname = os.uname()
    return Host(
        node=uname.nodename,
        kernel=f"{uname.release} {uname.version}",
        machine=uname.machine,
        cpu=model.group(1) if model else platform.processor(),
        cores=len(os.sched_getaffinity(0)),
        mem_mib=int(memory.group(1)) // 1024 if memory else 0,
    )


def qemu_version() -> str:
    """First line of ``qemu-system-x86_64 --version``; empty if there is none (the doctor says how to get it)."""
    if shutil.which(QEMU) is None:
        return ""
    return proc.run([QEMU, "--version"], deadline_s=30).stdout.partition("\n")[0].strip()


def tool_commit() -> str:
    """Commit of this checkout, with ``-dirty`` if it has changes; empty if it is not a git checkout."""
    try:
        argv = [
            "git",
            "-C",
            str(Path(__file__).parent),
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ]
        return proc.run(argv, deadline_s=30).stdout.strip()
    except (CommandError, UserError, OSError):
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
