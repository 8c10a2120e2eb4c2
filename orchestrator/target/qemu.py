"""The target ``qemu``: boot the kernel under test as the host of a KVM guest, in an emulated or a nested machine.

The kernel is entered directly as an ELF file (PVH). Results come over virtio ports of their own, never over the
console. A test holds the whole argument list: a change there is a change of the experiment.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator import image, proc
from orchestrator.doctor import Accel
from orchestrator.errors import TargetError
from orchestrator.image import Guests
from orchestrator.manifest import QEMU
from orchestrator.target.target import (
    COMMAND,
    COMMAND_NOTE,
    CONSOLE,
    INITRAMFS,
    RECORDING,
    STATUS,
    TRACE,
    Ending,
    Evidence,
    Job,
)

QEMU_LOG = "qemu.log"
MONITOR = "monitor.sock"
POLL_S = 0.01
NMI_GRACE_S = 10.0  # What an emulated kernel may need to print a trace on an emulated UART.
PID1_LINE = b"pid1 "

# What QEMU's model of an EPYC has and TCG does not emulate (7.2): off by name, so that the CPU is the same whatever a
# later QEMU learns to emulate, and so that QEMU's log holds nothing but errors.
TCG_LACKS = (
    "rdseed", "sha-ni", "fxsr-opt", "misalignsse", "3dnowprefetch", "osvw", "topoext", "perfctr-core", "clzero",
    "xsaveerptr", "ibpb", "nrip-save", "xsavec", "xsaves",
)  # fmt: skip


@dataclass(frozen=True)
class QemuTarget:
    """QEMU with one accelerator. ``tsc_khz`` is this machine's, needed by ``tcg`` only; ``machine`` of the config."""

    accel: Accel
    machine: str
    guests: Guests
    tsc_khz: int

    def run(self, job: Job, folder: Path) -> Evidence:
        """See :class:`~orchestrator.target.target.Target`."""
        words = [image.DEADLINE_WORD.format(job.guest_deadline_s), *([image.SWAP_WORD] if job.swap else [])]
        words += [f"/bin/{image.TRACER}", str(job.trace_kib)] if job.trace_kib else []
        words += [f"/bin/{job.program}", *job.arguments, "--out", image.RECORDING_WORD]
        image.write_initramfs(self.guests, words, folder / INITRAMFS, job.files)
        argv = [proc.require(QEMU, "qemu-system-x86"), *self.arguments(job)]
        (folder / COMMAND).write_text(f"{COMMAND_NOTE}{proc.quote(argv)}\n")
        evidence = watch(argv, folder, job.deadline_s)
        if evidence.wall_seconds < 1 and not (folder / STATUS).exists():
            raise TargetError("QEMU did not start", log=folder / QEMU_LOG, hint="orch doctor")
        return evidence

    def arguments(self, job: Job) -> list[str]:
        """QEMU's arguments for a job; paths of outputs are relative to the trial's folder, where QEMU runs."""
        bus = "device" if self.machine == "microvm" else "pci"
        return [
            # Nothing but what stands below: no default NIC, disk or display, no file of the user's.
            "-nodefaults", "-no-user-config", "-display", "none",
            # The kernel's reboot, also the one after a panic (panic=-1), ends QEMU.
            "-no-reboot",
            *self._machine(job), *self._accelerator(),
            "-m", f"{job.mem_mib}M", "-smp", str(job.cpus),
            "-kernel", str(job.vmlinux), "-initrd", INITRAMFS, "-append", self._command_line(job),
            # QEMU's own random numbers (RDRAND of TCG among them) come from this seed, not from this machine.
            "-seed", "1",
            # The console belongs to the kernel, the other two ports to init and the recording.
            "-chardev", f"file,id=console,path={CONSOLE}", "-serial", "chardev:console",
            "-device", f"virtio-serial-{bus}",
            "-chardev", f"file,id=status,path={STATUS}", "-device", "virtserialport,chardev=status,name=orch.status",
            "-chardev", f"file,id=recording,path={RECORDING}",
            "-device", "virtserialport,chardev=recording,name=orch.recording",
            *self._trace_port(job),
            # A watchdog on the guest's clock: a kernel that hangs with interrupts off gets an NMI and says where.
            "-device", "ib700", "-action", "watchdog=inject-nmi",
            # For the same NMI when the wall deadline passes: see inject_nmi().
            "-chardev", f"socket,id=monitor,path={MONITOR},server=on,wait=off",
            "-mon", "chardev=monitor,mode=control",
        ]  # fmt: skip

    def _machine(self, job: Job) -> list[str]:
        if self.machine == "q35":
            return ["-machine", "q35"]
        # pic, pit, rtc: the kernel's timers and clock. Without ACPI the boot is shorter (the MP table says what
        # there is), but a second CPU needs ACPI: with the MP table its TSC is not trusted.
        acpi = "acpi=on" if job.cpus > 1 else "acpi=off"
        return ["-machine", f"microvm,{acpi},pic=on,pit=on,rtc=on"]

    def _accelerator(self) -> list[str]:
        if self.accel == "kvm":
            # The real CPU with its nesting; migratable=off lets the invariant TSC through.
            return ["-accel", "kvm", "-cpu", "host,migratable=off"]
        cpu = ",".join(["EPYC-v1", "svm=on", "npt=on", *(f"{feature}=off" for feature in TCG_LACKS)])
        if self.accel == "tcg":
            return ["-accel", "tcg,thread=multi", "-cpu", cpu]
        return [
            # One instruction is one nanosecond; idle time costs nothing (sleep=off); the date is fixed.
            "-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", cpu,
            "-rtc", "base=2021-01-25,clock=vm",
        ]  # fmt: skip

    def _trace_port(self, job: Job) -> list[str]:
        """The trace's own port, only where there is one: a device more is another machine."""
        if not job.trace_kib:
            return []
        return [
            "-chardev", f"file,id=trace,path={TRACE}", "-device", "virtserialport,chardev=trace,name=orch.trace",
        ]  # fmt: skip

    def _command_line(self, job: Job) -> str:
        tdp = int(job.tdp)
        words = [
            "console=ttyS0",
            # Warnings reach the console: they are evidence. Less would hide them, more costs a UART exit a character.
            "loglevel=5",
            # A panic restarts at once, by triple fault, which QEMU's -no-reboot turns into its end.
            "panic=-1", "reboot=t",
            # The watchdog's NMI is a panic with a trace. On microvm, which has no port 0x61, the kernel reads 0xff
            # there and takes it for a PCI error (default_do_nmi() and pci_serr_error() in arch/x86/kernel/nmi.c).
            "unknown_nmi_panic", "sysctl.kernel.panic_on_unrecovered_nmi=1",
            "rdinit=/init",
            # The same addresses in every boot and every arm.
            "nokaslr", "norandmaps",
            # TDP or shadow paging, for whichever vendor the CPU is of.
            f"kvm_amd.npt={tdp}", f"kvm_intel.ept={tdp}",
        ]  # fmt: skip
        if job.panic_on_warn:
            # One warning may come with every fault (lockdep's are not WARN_ONCE), and bury the console.
            words.append("panic_on_warn=1")
        if self.accel == "icount":
            # Calibrating the local APIC timer spins for 100 ms of virtual time, which is 4 s of wall time; the PIT
            # needs no calibration. Its own self-test spins as well.
            words += ["nolapic_timer", "no_timer_check"]
        if self.accel == "tcg":
            # On a loaded machine the calibration against emulated timers fails, and the boot hangs.
            words += [f"tsc_early_khz={self.tsc_khz}", "tsc=reliable"]
        # Nothing after "--": without ACPI, QEMU appends the virtio-mmio devices here.
        return " ".join(words)


def watch(argv: list[str], folder: Path, deadline_s: float) -> Evidence:
    """Run QEMU to its end or its deadline; note when PID 1 said that it runs."""
    started = time.monotonic()
    boot_seconds = 0.0
    ending: Ending = "ended"
    with proc.start(argv, cwd=folder, log=folder / QEMU_LOG) as child:
        while (code := child.wait(POLL_S if not boot_seconds else 10 * POLL_S)) is None:
            elapsed = time.monotonic() - started
            if not boot_seconds and _reached_pid1(folder / STATUS):
                boot_seconds = elapsed
            if elapsed > deadline_s:
                ending = "wall-deadline"
                inject_nmi(folder)
                code = child.wait(NMI_GRACE_S)
                if code is None:
                    code = child.stop(grace_s=0.0)
                break
    (folder / MONITOR).unlink(missing_ok=True)  # QEMU removes it itself, unless it was killed.
    if ending == "ended" and code < 0:
        ending = "killed"
    return Evidence(ending, code, boot_seconds, time.monotonic() - started)


def inject_nmi(folder: Path) -> None:
    """Send an NMI over QEMU's monitor, so that the kernel under test prints where it is and panics; best effort.

    The watchdog's 10 s on the emulated clock may be hours of ours: a kernel that spins with PAUSE, as in every
    contended spinlock, executes under icount a few hundred thousand instructions a second, since TCG leaves its
    execution loop at each (do_pause() in QEMU 7.2's target/i386/tcg/misc_helper.c).
    """
    commands = b'{"execute": "qmp_capabilities"}\n{"execute": "inject-nmi"}\n'
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(NMI_GRACE_S)
        # The path of a socket holds 107 bytes; by this way round it does not matter how deep the results lie.
        monitor.connect(f"/proc/self/fd/{directory}/{MONITOR}")
        monitor.sendall(commands)
        answer = b""
        while answer.count(b'"return"') < 2 and (part := monitor.recv(4096)):
            answer += part
    os.close(directory)


def measure_tsc_khz(guests: Guests) -> int:
    """This machine's TSC frequency in kHz, by ``guests/tsc_khz``. Raises :class:`TargetError` if it is not one."""
    text = proc.run([guests.tsc_khz], deadline_s=30).stdout.strip()
    if not text.isdecimal() or int(text) == 0:
        raise TargetError(f"{guests.tsc_khz} printed {text!r}, not a frequency in kHz")
    return int(text)


def _reached_pid1(status: Path) -> bool:
    try:
        with status.open("rb") as stream:
            return stream.read(len(PID1_LINE)) == PID1_LINE
    except FileNotFoundError:
        return False


def boot_shell(target: QemuTarget, job: Job) -> int:
    """Boot ``job``'s kernel with a shell on this terminal; returns QEMU's exit code when it ends."""
    with tempfile.TemporaryDirectory(prefix="orch-boot-") as name:
        folder = Path(name)
        image.write_shell_initramfs(target.guests, folder / INITRAMFS)
        argv = target.arguments(job)
        # mux: Ctrl-A X leaves QEMU, and Ctrl-C goes to the shell inside.
        argv[argv.index(f"file,id=console,path={CONSOLE}")] = "stdio,id=console,mux=on,signal=off"
        return proc.attach([proc.require(QEMU, "qemu-system-x86"), *argv], cwd=folder)
