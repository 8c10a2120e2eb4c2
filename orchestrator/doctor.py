"""What this machine can do, and the line to type where it cannot.

Everything is tried, not guessed: QEMU runs a ROM of three instructions under each accelerator, /dev/kvm is asked by
ioctl. Nothing here needs the network or changes the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator import kvmdev, proc
from orchestrator.cache import cache_dir
from orchestrator.errors import CommandError, TargetError, UserError
from orchestrator.kvmdev import KvmDevice
from orchestrator.manifest import QEMU, examine_host, qemu_version

Status = Literal["ok", "warn", "fail"]
Accel = Literal["kvm", "tcg", "icount"]

MIN_DISK_GIB, GOOD_DISK_GIB = 3, 6  # Tree 1.2 GiB, objects 0.7 GiB, the package and its tarball 0.3 GiB, results.
MIN_MEM_MIB, GOOD_MEM_MIB = (
    1024,
    3072,
)  # The linker of vmlinux and one emulated host at a time; one more for a second job.
PROBE_DEADLINE_S = 30.0

# What the parts of a run call, and the Debian package that has it.
RUN_TOOLS = {"setpriv": "util-linux", "git": "git", "cpio": "cpio"}
BUILD_TOOLS = {
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "rsync": "rsync",
    "tar": "tar",
    "xz": "xz-utils",
}
DEBIAN_TOOLS = {"apt-get": "apt", "dpkg-deb": "dpkg"}
BUILD_HEADERS = {"gelf.h": "libelf-dev", "stdio.h": "libc6-dev"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# x86 reset vector, 16 bytes below the end of a 64 KiB BIOS: mov $0x10,%al; out %al,$0xf4; hlt; jmp to hlt.
# isa-debug-exit makes QEMU exit with (0x10 << 1) | 1.
ROM = bytes(0xFFF0) + bytes.fromhex("b010 e6f4 f4 ebfd").ljust(16, b"\0")
ROM_EXIT = 33


@dataclass(frozen=True)
class Finding:
    """One line about this machine. ``fix`` is the command that mends it, or empty."""

    name: str
    status: Status
    says: str
    fix: str = ""


@dataclass(frozen=True)
class AccelChoice:
    """The accelerator that will be used, and the reason in one line."""

    accel: Accel
    why: str


def examine(folders: Sequence[Path] = ()) -> tuple[Finding, ...]:
    """Everything a run needs. ``folders`` is where it will write; the current and the cache folder by default."""
    device = kvmdev.probe()
    return (
        _qemu(),
        _tools("run", RUN_TOOLS),
        _tools("kernel build", BUILD_TOOLS),
        _headers(),
        _tools("Debian packages", DEBIAN_TOOLS),
        _keyring(),
        _mirror(),
        *(_disk(folder) for folder in folders or (Path.cwd(), cache_dir())),
        _cores(),
        _memory(),
        _kvm(device),
        _auto(device),
        _local(device),
    )


def pick_accel(wanted: Accel | Literal["auto"] = "auto", cpus: int = 1) -> AccelChoice:
    """The accelerator for a target with ``cpus`` CPUs.

    ``auto`` takes ``kvm`` if a kernel under test could use KVM in turn and QEMU really runs with it; else ``icount``,
    which repeats bit by bit, for one CPU and ``tcg`` for more. Raises :class:`TargetError` for an explicit choice that
    cannot work here.
    """
    return _choose(wanted, cpus, kvmdev.probe() if wanted in ("auto", "kvm") else None)


def kvm_obstacle(device: KvmDevice) -> str:
    """Why QEMU with ``accel: kvm`` cannot host a kernel that uses KVM, in one line; empty if it can."""
    if device.error:
        return device.error
    if device.nests:
        failure = qemu_failure("kvm")
        return f"/dev/kvm offers {_extension(device)}, but QEMU does not run with it: {failure}" if failure else ""
    works = "opens, makes VMs and runs a flat guest" if device.runs_flat_guest else "opens and makes VMs"
    parameter = kvmdev.nested_parameter()
    switch = f" ({parameter})" if parameter else ""
    return (
        f"/dev/kvm {works}, but the CPUID that it supports has neither svm nor vmx{switch}:"
        " a kernel under test could not use KVM in turn"
    )


def qemu_failure(accel: Accel) -> str:
    """Run three instructions in QEMU; why that failed, or empty."""
    arguments = {"kvm": ["kvm", "-cpu", "host"], "tcg": ["tcg"], "icount": ["tcg", "-icount", "shift=0,sleep=off"]}
    with tempfile.TemporaryDirectory(prefix="orch-doctor-") as folder:
        rom = Path(folder) / "rom.bin"
        rom.write_bytes(ROM)
        argv = [QEMU, "-accel", *arguments[accel], "-machine", "microvm", "-m", "16", "-bios", str(rom)]
        argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-device", f"isa-debug-exit,iobase={0xF4:#x},iosize=4"]
        try:
            proc.require(QEMU, "qemu-system-x86")
            proc.run(argv, deadline_s=PROBE_DEADLINE_S, accept=(ROM_EXIT,))
        except (CommandError, UserError) as error:
            return " ".join(error.what.split())[:200]
    return ""


def _choose(wanted: Accel | Literal["auto"], cpus: int, device: KvmDevice | None) -> AccelChoice:
    if wanted == "icount" and cpus > 1:
        raise TargetError(f"icount takes one CPU, not {cpus}: QEMU 7.2 hangs when it brings up a second")
    if wanted == "auto" or wanted == "kvm":
        obstacle = kvm_obstacle(device or kvmdev.probe())
        if not obstacle:
            return AccelChoice("kvm", "this machine's KVM offers nesting and QEMU runs with it")
        if wanted == "kvm":
            raise TargetError(
                f"accel: kvm cannot work here: {obstacle}", hint="set target.accel to auto, icount or tcg"
            )
        wanted, reason = ("icount", "bit-exact") if cpus == 1 else ("tcg", f"a thread for each of {cpus} CPUs")
        chosen = AccelChoice(wanted, f"{wanted} ({reason}), since {obstacle}")
    else:
        chosen = AccelChoice(wanted, f"{wanted}, as the experiment says")
    failure = qemu_failure(chosen.accel)
    if failure:
        raise TargetError(f"QEMU does not run with accel {chosen.accel}: {failure}", hint="orch doctor")
    return chosen


# --- findings ---------------------------------------------------------------------------------------------------------


def _qemu() -> Finding:
    version = qemu_version()
    if not version:
        return Finding("QEMU", "fail", f"{QEMU} is not installed", "apt-get install qemu-system-x86")
    failure = qemu_failure("icount")
    if failure:
        return Finding(
            "QEMU", "fail", f"{version} does not run: {failure}", "apt-get install --reinstall qemu-system-x86"
        )
    return Finding("QEMU", "ok", f"{version}; emulation works")


def _tools(what: str, tools: dict[str, str]) -> Finding:
    missing = {program: package for program, package in tools.items() if shutil.which(program) is None}
    if not missing:
        return Finding(f"tools: {what}", "ok", ", ".join(tools))
    packages = " ".join(sorted(set(missing.values())))
    return Finding(f"tools: {what}", "fail", f"missing: {', '.join(missing)}", f"apt-get install {packages}")


def _headers() -> Finding:
    """The kernel's objtool needs libelf; the guests are linked against static libc."""
    missing = {name: package for name, package in BUILD_HEADERS.items() if not _header_exists(name)}
    if not missing:
        return Finding("headers", "ok", ", ".join(BUILD_HEADERS))
    packages = " ".join(sorted(missing.values()))
    return Finding("headers", "fail", f"missing: {', '.join(missing)}", f"apt-get install {packages}")


def _header_exists(name: str) -> bool:
    places = ("/usr/include", "/usr/local/include", f"/usr/include/{os.uname().machine}-linux-gnu")
    return any(Path(place, name).exists() for place in places)


def _keyring() -> Finding:
    if KEYRING.exists():
        return Finding("Debian keys", "ok", str(KEYRING))
    says = f"{KEYRING} is missing: a kernel source package could not be verified"
    return Finding("Debian keys", "warn", says, "apt-get install debian-archive-keyring")


def _mirror() -> Finding:
    """A look at apt's configuration only; whether the mirror answers is found out when it is needed."""
    says = "apt knows no Debian mirror: kernel sources of kind debian cannot be fetched (tree, tarball and git can)"
    nothing = Finding(
        "Debian mirror", "warn", says, "add one to /etc/apt/sources.list.d/, or list another kernel source"
    )
    if shutil.which("apt-get") is None:
        return nothing
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"]
    try:
        listing = proc.run(argv, deadline_s=60).stdout
    except CommandError as error:
        return Finding("Debian mirror", "warn", " ".join(error.what.split())[:200])
    suites = sorted({match.group(1) for match in re.finditer(r"^\S+/debian\S* (\S+)$", listing, re.MULTILINE)})
    return Finding("Debian mirror", "ok", f"apt has one, with {', '.join(suites)}") if suites else nothing


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    status: Status = "ok" if free >= GOOD_DISK_GIB else "warn" if free >= MIN_DISK_GIB else "fail"
    need = "" if status == "ok" else f"; a kernel with its objects and a run take about {GOOD_DISK_GIB} GiB"
    return Finding(f"disk: {folder}", status, f"{free:.1f} GiB free{need}")


def _cores() -> Finding:
    cores = examine_host().cores
    if cores >= 2:
        return Finding("cores", "ok", f"{cores}")
    return Finding("cores", "warn", "1: builds take twice as long, and tcg with two CPUs shows little concurrency")


def _memory() -> Finding:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text("ascii"), re.MULTILINE)
    available = int(found.group(1)) // 1024 if found else 0
    status: Status = "ok" if available >= GOOD_MEM_MIB else "warn" if available >= MIN_MEM_MIB else "fail"
    need = "" if status == "ok" else f"; {GOOD_MEM_MIB} MiB are comfortable, {MIN_MEM_MIB} the least"
    return Finding("memory", status, f"{available} MiB available{need}")


def _kvm(device: KvmDevice) -> Finding:
    obstacle = kvm_obstacle(device)
    if not obstacle:
        return Finding("hardware KVM", "ok", f"/dev/kvm offers {_extension(device)} and QEMU runs with it")
    return Finding("hardware KVM", "warn", f"not usable: {obstacle}", _kvm_fix(device))


def _kvm_fix(device: KvmDevice) -> str:
    if "Permission denied" in device.error:
        return "adduser $USER kvm   (then log in again)"
    module, _, value = kvmdev.nested_parameter().partition(" nested=")
    if not device.error and value in ("N", "0"):
        return f"modprobe -r {module} && modprobe {module} nested=1"
    return ""


def _auto(device: KvmDevice) -> Finding:
    try:
        return Finding("accel: auto", "ok", f"picks {_choose('auto', 1, device).accel} for one CPU")
    except TargetError as error:
        return Finding("accel: auto", "fail", error.what, error.hint or "")


def _local(device: KvmDevice) -> Finding:
    if device.runs_flat_guest:
        return Finding("target: local", "ok", "the running kernel's /dev/kvm runs a flat guest")
    return Finding("target: local", "warn", f"not usable: {device.error or device.flat_guest_error}", _kvm_fix(device))


def _extension(device: KvmDevice) -> str:
    return "svm" if device.svm else "vmx"
