"""guests/ -> static binaries -> initramfs.

The binaries are built once per content of ``guests/`` and compiler; the initramfs of a trial is those, and one file
of fixed size that says what to run, so that two arms boot with the same memory layout.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import cache, proc
from orchestrator.errors import BuildError, CommandError, UserError
from orchestrator.kernel import elf

SOURCES = Path(__file__).resolve().parent.parent / "guests"
SOURCE_SUFFIXES = (".c", ".h", ".S")
PROGRAMS = ("fault_vmm", "stale_check")  # what a trial may run
TEST_RUNNER = "ktest_runner"  # and what runs programs that are not ours
LINUX_RUNNER = "vmm_run"  # what runs a VMM with a Linux guest
BENCH = "fault_bench"  # and in that guest is its init
LIBSTORM = "libstorm.so"  # and in that VMM is preloaded
TRACER = "tracer"  # and what runs a program with the host kernel's tracing on
LAB_AGENT = "lab_agent"  # on the machines of a lab, never in an initramfs
BUILD_DEADLINE_S = 300.0
LOCK_WAIT_S = 600.0
# What the trial's file may hold: fixed, so that the length of an arm's name moves no byte of guest memory.
TRIAL_FILE_BYTES = 2048
# What guests/init/init.c understands besides the program and its arguments.
SWAP_WORD = "@swap"  # make the RAM disk swap space first
DEADLINE_WORD = "@deadline={:g}"  # seconds of the guest's own clock
RECORDING_WORD = "@recording"  # stands for the virtio port of that name
# What a person needs who looks around in a kernel under test: file systems, applets by name, a terminal with job
# control; and at the end the machine goes off, as after a trial.
SHELL_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ PS1='\\u@\\h:\\w# '
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t debugfs debugfs /sys/kernel/debug
echo "$(uname -srv)"
echo "fault_vmm --out /dev/null measures; KVM's counters are in /sys/kernel/debug/kvm; leave with exit"
setsid cttyhack sh
reboot -f
"""


@dataclass(frozen=True)
class Guests:
    """The static programs. ``content_id`` is the SHA-256 over their sources and the compiler's version."""

    init: Path
    fault_vmm: Path
    tsc_khz: Path
    content_id: str

    def program(self, name: str) -> Path:
        """A program that trials run, by its name; all lie in one folder."""
        return self.fault_vmm.with_name(name)


@dataclass(frozen=True)
class GuestFile:
    """A file of this machine and where it lies in the initramfs, a path without a leading slash."""

    path: str
    source: Path


def build_guests(say: Callable[[str], None]) -> Guests:
    """Compile ``guests/``, or take what was compiled from the same sources by the same compiler before.

    Raises :class:`BuildError` with the compiler's log.
    """
    compiler = proc.run([proc.require("gcc", "gcc"), "--version"]).stdout.partition("\n")[0]
    content_id = _content_id(compiler)
    folder = cache.cache_dir() / "guests" / content_id
    if not folder.exists():
        with cache.lock(folder.with_suffix(".lock"), wait_s=LOCK_WAIT_S, say=say):
            if not folder.exists():
                _compile(folder)
    return Guests(folder / "init", folder / "fault_vmm", folder / "tsc_khz", content_id)


def write_initramfs(guests: Guests, words: Sequence[str], out: Path, files: Sequence[GuestFile] = ()) -> None:
    """An initramfs at ``out`` whose init runs ``words`` (a program's path and its arguments), by ``cpio``.

    ``files`` are put in as well.

    The same guests and words give the same bytes: times are zero, owners root, inodes counted.
    Raises :class:`UserError` if the words do not fit the trial's file.
    """
    trial = b"".join(word.encode() + b"\0" for word in words)
    if len(trial) > TRIAL_FILE_BYTES:
        raise UserError(f"the trial's arguments take {len(trial)} bytes, there is room for {TRIAL_FILE_BYTES}")
    root = _empty_root(out, ("bin", "dev", "proc", "sys", "trial"))
    _install(guests.init, root / "init")
    # Only what runs: another program beside it would move the memory of every measuring trial.
    for name in (*PROGRAMS, LINUX_RUNNER, TEST_RUNNER, TRACER):
        if f"/bin/{name}" in words:
            _install(guests.program(name), root / "bin" / name)
    for file in files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        _install(file.source, root / file.path)
    (root / "trial" / "argv").write_bytes(trial.ljust(TRIAL_FILE_BYTES, b"\0"))
    _pack(root, out)


def write_guest_initramfs(guests: Guests, out: Path) -> None:
    """An initramfs at ``out`` for the Linux guest of a cell: its init is the benchmark. The same in every trial."""
    root = _empty_root(out, ("dev", "proc", "sys", "tmp"))
    _install(guests.program(BENCH), root / "init")
    _pack(root, out)


def write_shell_initramfs(guests: Guests, out: Path) -> None:
    """An initramfs at ``out`` whose init is a shell (Debian's static busybox), with ``fault_vmm`` beside it.

    Raises :class:`UserError` with the package to install if there is no static busybox.
    """
    busybox = Path(proc.require("busybox", "busybox-static"))
    if any(segment.kind == elf.PT_INTERP for segment in elf.segments(busybox.read_bytes()) or ()):
        raise UserError(f"{busybox} is not a static program", hint="apt-get install busybox-static")
    root = _empty_root(out, ("bin", "dev", "proc", "sys"))
    _install(busybox, root / "bin" / "busybox")
    for name in PROGRAMS:
        _install(guests.program(name), root / "bin" / name)
    (root / "init").write_text(SHELL_INIT)
    (root / "init").chmod(0o755)
    _pack(root, out)


def _empty_root(out: Path, folders: Sequence[str]) -> Path:
    root = out.with_name(f".{out.name}.root")
    shutil.rmtree(root, ignore_errors=True)
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return root


def _install(program: Path, to: Path) -> None:
    shutil.copyfile(program, to)
    to.chmod(0o755)


def _pack(root: Path, out: Path) -> None:
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    for name in names:
        os.utime(root / name, (0, 0))
    argv = [proc.require("cpio", "cpio"), "--create", "--format=newc", "--reproducible", "--quiet"]
    argv += ["--owner=+0:+0", f"--file={out}"]
    proc.run(argv, cwd=root, stdin="\n".join(names).encode())
    shutil.rmtree(root)


def _content_id(compiler: str) -> str:
    digest = hashlib.sha256(f"{compiler}\n".encode())
    for path in sorted(SOURCES.rglob("*")):
        relative = path.relative_to(SOURCES)
        if relative.parts[0] != "build" and (path.suffix in SOURCE_SUFFIXES or path.name == "Makefile"):
            digest.update(f"{relative}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _compile(folder: Path) -> None:
    with cache.publish(folder) as temporary:
        log = folder.with_suffix(".log")
        log.unlink(missing_ok=True)
        argv = [proc.require("make", "make"), "-C", str(SOURCES), "-s", f"BUILD={temporary}/objects"]
        try:
            proc.run(argv, log=log, deadline_s=BUILD_DEADLINE_S)
        except CommandError as error:
            raise BuildError("the guest programs did not compile", log=log, hint=proc.quote(argv)) from error
        for program in (temporary / "objects" / "bin").iterdir():
            program.rename(temporary / program.name)
        shutil.rmtree(temporary / "objects")
