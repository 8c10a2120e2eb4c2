"""The target ``ssh``: a machine of a lab boots the kernel under test, runs the program, and comes back.

What it leaves in a trial's folder, besides what every target leaves:

    serial.log     the serial console, from the boot command to the machine's return
    kernel.log     the kernel's log at the end of the program, if it came to that
    pstore.log     what a dead kernel left in the machine's persistent store
    machine.json   which machine, kernel and boot it was, and its settings and load when the program began
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import proc
from orchestrator.errors import TargetError
from orchestrator.image import Guests
from orchestrator.kernel.build import BuiltKernel
from orchestrator.lab import away, boot, contact, home, job, journal, root
from orchestrator.lab.journal import KernelId
from orchestrator.lab.machine import BuiltImage, Crashed, Hung, Machine, MachineGone, NotRun
from orchestrator.lab.remote import CannotWrite, Cut, NoSuchFile
from orchestrator.lab.tuning import Conditions
from orchestrator.store import file_sha256, to_json, write_atomic
from orchestrator.target.target import COMMAND, CONSOLE, RECORDING, STATUS, Ending, Evidence, Job

SERIAL = "serial.log"
KERNEL_LOG = "kernel.log"  # guests/lab_agent/run.c
PSTORE = "pstore.log"
MACHINE = "machine.json"
TRACE_GRACE_S = 5.0  # What a kernel may need to print a trace on a slow serial line.
COPIED_BYTES = 64 << 20  # Programs and a recording of ordinary size, on top of the kernel.
BANNER = "Linux version "  # linux_banner of init/version.c, the first line of every boot


@dataclass(frozen=True)
class MachineRecord:
    """machine.json. ``booted`` is the kernel that was asked for, None where the running one is benched."""

    machine: str
    known_good: KernelId
    booted: KernelId | None
    boot_id: str
    conditions: Conditions


@dataclass
class _Course:
    """How a trial went so far."""

    boot_seconds: float = 0.0
    ending: Ending = "ended"
    note: str = ""
    serial_bytes: int | None = None  # of serial.log, when the machine was asked to come home
    dumps: tuple[str, ...] = field(default_factory=tuple)
    crashed: bool = False
    started: job.Started | None = None  # as long as what it leaves has not been fetched
    lost: str = ""


@dataclass(frozen=True)
class _Copied:
    """A program on the machine: its path there or, with a ``root``, below that."""

    path: str
    root: str | None


@dataclass(frozen=True)
class SshTarget:
    """One machine. ``kernels`` are those that jobs may ask for, by their vmlinux."""

    machine: Machine
    guests: Guests
    kernels: tuple[BuiltKernel, ...]

    @property
    def usable(self) -> bool:
        """Whether the machine is not in quarantine."""
        return journal.quarantined(self.machine.host) is None

    def contact(self) -> None:
        """Reach the machine and bring it home. Raises :class:`MachineGone`."""
        contact.contact(self.machine)

    def close(self) -> None:
        """Give the machine back to others."""
        contact.give_back(self.machine)

    def run(self, job: Job, folder: Path) -> Evidence:
        """See :class:`~orchestrator.target.target.Target`; the machine is at home again when this returns.

        Raises :class:`MachineGone` if the trial did not even begin, since the machine cannot be used any more. One that
        is lost later is in the evidence.
        """
        if job.program == "ktest_runner" or job.trace_kib:
            raise TargetError("target: ssh runs neither selftests nor traced trials: they have a QEMU of their own")
        machine = self.machine
        started = machine.clock.monotonic()
        self.contact()
        course = _Course()
        lost = ""
        try:
            with self._judged(course):
                self._go(job, folder, course)
            lost = self._return(folder, course)
        finally:
            machine.outside.unwatch()
        self._write_console(job, folder, course)
        for name in (STATUS, COMMAND):
            (folder / name).touch()
        return Evidence(
            ending=course.ending,
            returncode=0,
            boot_seconds=course.boot_seconds,
            wall_seconds=machine.clock.monotonic() - started,
            note=course.note,
            machine=machine.host.name,
            machine_lost=lost,
        )

    @contextlib.contextmanager
    def _judged(self, course: _Course) -> Iterator[None]:
        """What ends a trial early, as its ending."""
        try:
            yield
        except MachineGone as error:
            course.ending, course.note, course.lost = "not-run", error.what, error.what
        except (NotRun, TargetError, CannotWrite) as error:
            course.ending, course.note = "not-run", str(error)
        except Crashed as error:
            course.ending, course.note, course.crashed = "killed", str(error), True
        except Hung as error:
            course.ending, course.note = "wall-deadline", str(error)
        except Cut as error:
            # Before anything was booted or measured, the machine, or the cable, is all that this says something about.
            course.ending = "not-run" if self.machine.journal.at_home else "killed"
            course.note = f"{self.machine.host.name} cannot be reached: {error}"

    def _go(self, job: Job, folder: Path, course: _Course) -> None:
        """Copy, boot, check, tune, wait for quiet, run, fetch."""
        machine = self.machine
        image = None if job.vmlinux is None else self._image(job.vmlinux)
        copied, files = self._copy(job, image)
        machine.save("prepared", test=None if image is None else image.id)
        course.dumps = away.crash_dumps(machine)
        machine.outside.watch(folder / SERIAL)
        if image is None:
            away.stay(machine)
        else:
            course.boot_seconds = away.enter(machine, image, files, asked_words(job))
        away.check_paging(machine, job.tdp)
        away.tune(machine, job.swap)
        conditions = away.wait_until_quiet(machine)
        known_good, booted = machine.journal.known_good, None if image is None else image.id
        record = MachineRecord(machine.host.name, known_good, booted, machine.journal.boot_id, conditions)
        write_atomic(folder / MACHINE, to_json(record))
        self._run_program(job, copied, folder, course)

    def _image(self, vmlinux: Path) -> BuiltImage:
        kernel = next(item for item in self.kernels if item.vmlinux == vmlinux)
        path = boot.file_to_boot(vmlinux, self.machine.host)
        digest = kernel.vmlinux_sha256 if path == vmlinux else file_sha256(path)
        if not digest:
            raise TargetError(f"{path}, which boot: {self.machine.host.boot} needs, is not there")
        return BuiltImage(path, digest, kernel.release, kernel.build_id)

    def _copy(self, job: Job, image: BuiltImage | None) -> tuple[_Copied, boot.Image]:
        """What the trial needs, on the machine: the program there, and the kernel's files."""
        machine, host = self.machine, self.machine.host
        paths = [file.source for file in job.files] + ([] if image is None else [image.path])
        machine.make_room(COPIED_BYTES + sum(path.stat().st_size for path in paths))
        try:
            program = self._put_program(job)
            if image is None:
                return program, boot.Image("", "")
            there = [machine.put(image.path, image.sha256)]
            there += [] if host.initrd is None else [machine.put(host.initrd, file_sha256(host.initrd))]
            kernel, *initrd = boot.install(machine.link, *there)
        except CannotWrite as error:
            machine.make_room(COPIED_BYTES)  # Raises MachineGone if that is why.
            raise NotRun(str(error)) from error
        return program, boot.Image(kernel, *initrd or ("",))

    def _put_program(self, job: Job) -> _Copied:
        """One program by itself, or with the files that it wants beside it in a root of its own."""
        local = self.guests.program(job.program)
        if not job.files:
            return _Copied(self.machine.put(local, file_sha256(local)), None)
        files = {file.path: file.source for file in job.files}
        return _Copied(f"/bin/{job.program}", root.lay_out(self.machine, {f"bin/{job.program}": local, **files}))

    def _run_program(self, wanted: Job, program: _Copied, folder: Path, course: _Course) -> None:
        machine = self.machine
        words = (program.path, *wanted.arguments, "--out", RECORDING)
        inside = f", with {program.root} as its root (lab_agent run --root)" if program.root else ""
        note = f"# On {machine.host.name}, in an empty folder{inside}:\n"
        (folder / COMMAND).write_text(f"{note}{proc.quote(words)}\n")
        booted = wanted.vmlinux is not None
        started = job.start(machine, words, wanted.guest_deadline_s, whole_log=booted, root=program.root)
        course.started = started
        try:
            job.wait(machine, started, wanted.deadline_s)
        except Hung:
            with contextlib.suppress(Cut):  # What there is of its words, if the machine still answers.
                job.fetch(machine, started, (STATUS,), folder, machine.answer_s)
            raise
        self._fetch(started, folder, course)

    def _fetch(self, started: job.Started, folder: Path, course: _Course) -> None:
        machine = self.machine
        job.fetch(machine, started, (STATUS, KERNEL_LOG, RECORDING), folder, machine.host.deadlines.copy_s)
        course.started = None

    def _rescue(self, folder: Path, course: _Course) -> None:
        """Fetch what a program left that ended while the machine could not be reached; the trial has ended well then.

        Not if the kernel under test died: that is what came of the trial.
        """
        machine = self.machine
        if course.started is None or course.crashed or not job.has_ended(machine, course.started):
            return
        try:
            self._fetch(course.started, folder, course)
        except (TargetError, NoSuchFile) as error:
            machine.say(f"what the trial left cannot be fetched: {error}")
            return
        machine.say("the trial had ended before the connection broke; its recording is fetched")
        course.ending, course.note = "ended", ""

    def _ask_where(self) -> None:
        """Let a kernel that hangs say where: the stacks of all CPUs and of all blocked tasks, on its console.

        First all messages are let through to it: the stacks of tasks are of a level that is not (sched_show_task()).
        Raises :class:`MachineGone` if the machine is another run's by now.
        """
        self.machine.not_anothers()
        if self.machine.in_doubt:
            return
        refused = self.machine.outside.sysrq("8lw")
        if not refused:
            self.machine.clock.sleep(TRACE_GRACE_S)

    def _return(self, folder: Path, course: _Course) -> str:
        """Home; why the machine is lost, or nothing."""
        machine = self.machine
        if course.crashed:
            machine.clock.sleep(TRACE_GRACE_S)  # Its last words may still be on their way.
        try:
            if course.ending == "wall-deadline":
                self._ask_where()
            if (folder / SERIAL).exists():
                course.serial_bytes = (folder / SERIAL).stat().st_size
            home.go_home(machine, lambda: self._rescue(folder, course))
            dumps = away.read_crash_dumps(machine, course.dumps)
        except MachineGone as error:
            return course.lost or error.what
        except Cut as error:
            return course.lost or f"{machine.host.name} cannot be reached: {error}"
        if dumps:
            (folder / PSTORE).write_text(dumps, "utf-8")
        return course.lost

    def _write_console(self, job: Job, folder: Path, course: _Course) -> None:
        """The best account of what the kernel under test said: its own log, else the serial console, else pstore."""
        text = _read(folder / KERNEL_LOG)
        if not text and (folder / SERIAL).exists():
            release = next((item.release for item in self.kernels if item.vmlinux == job.vmlinux), "")
            text = of_kernel((folder / SERIAL).read_bytes()[: course.serial_bytes].decode("utf-8", "replace"), release)
        if not text:
            text = _read(folder / PSTORE)
        (folder / CONSOLE).write_text(text, "utf-8")


def asked_words(job: Job) -> tuple[str, ...]:
    """What a job wants of the kernel's command line: TDP or shadow paging, for whichever vendor the CPU is of."""
    switch = int(job.tdp)
    words = (f"kvm_amd.npt={switch}", f"kvm_intel.ept={switch}")
    return (*words, "panic_on_warn=1") if job.panic_on_warn else words


def of_kernel(serial: str, release: str) -> str:
    """What a kernel of ``release`` printed: from its banner on; everything, if it printed none or nothing booted."""
    at = serial.rfind(f"{BANNER}{release} ") if release else -1
    return serial if at < 0 else serial[serial.rfind("\n", 0, at) + 1 :]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
