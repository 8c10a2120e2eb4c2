"""Away from home: into the kernel under test, checked, tuned and quiet. Each step leaves the way back to home.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from orchestrator.lab import boot, seen, tuning
from orchestrator.lab.journal import Setting
from orchestrator.lab.machine import POLL_S, BuiltImage, Crashed, Hung, Machine, NotRun
from orchestrator.lab.remote import Cut, NoSuchFile
from orchestrator.lab.seen import Seen
from orchestrator.lab.tuning import Conditions

LOAD_WINDOW_S = 2.0
PSTORE = ("/sys/fs/pstore", "/var/lib/systemd/pstore")  # the latter: where systemd-pstore(8) moves them to at boot


def enter(machine: Machine, image: BuiltImage, files: boot.Image, asked: Sequence[str]) -> float:
    """From the known-good kernel into ``image``, with the words ``asked`` for; seconds until it answered.

    Raises :class:`NotRun`, :class:`Crashed`, :class:`Hung` or :class:`Cut`.
    """
    own = machine.link.insist(lambda transport: transport.read("/proc/cmdline"), machine.answer_s).decode().strip()
    given = any(word.startswith("root=") for word in machine.host.append)
    before = machine.link.insist(seen.boot_id, machine.answer_s)
    try:
        root = "" if files.initrd or given else boot.find_root(machine.link, own)
        settings = _lasting(machine)
        # Before the machine is made ready: from then on any reboot may lead into the kernel under test.
        machine.save("booting", test=image.id, boot_id=before, leaving="", home_before=settings)
        boot.load(machine.link, files, boot.command_line(own, machine.host, root, asked), machine.scratch)
        machine.save("booting", leaving=before)
        started = machine.clock.monotonic()
        boot.go(machine.link, machine.agent)
    except boot.Refused as error:
        raise NotRun(error.what) from error
    now = _await_boot(machine, before)
    seconds = machine.clock.monotonic() - started
    if (now.kernel.release, now.kernel.build_id) != (image.release, image.build_id):
        raise NotRun(f"wrong kernel: {machine.host.name} runs {now.kernel}, not {image.id}")
    machine.save("testing", boot_id=now.boot_id, leaving="")
    if machine.host.boot == "grub" and boot.one_time_entry_left(machine.link):
        raise NotRun("grub cannot clear its one-time entry on this disk: use boot: kexec for this machine")
    return seconds


def stay(machine: Machine) -> None:
    """Bench the kernel that is running. Raises :class:`Cut`."""
    running = machine.link.insist(seen.boot_id, machine.answer_s)
    machine.save("testing", boot_id=running, home_before=_lasting(machine))


def check_paging(machine: Machine, wanted: bool) -> None:
    """Raise :class:`NotRun` if the running KVM uses the other kind of paging than a cell asks for."""
    found = machine.link.insist(seen.tdp, machine.answer_s)
    if found is None:
        raise NotRun(f"no KVM: there is no {seen.DEVICE}")
    if found != wanted:
        names = {True: "TDP", False: "shadow paging"}
        raise NotRun(f"the running KVM uses {names[found]}, and the cell asks for {names[wanted]}")


def tune(machine: Machine, needs_swap: bool) -> None:
    """Set what may be set, its old values saved before: this boot's own, which the known-good kernel may not know.

    Raises :class:`NotRun` if the machine refuses, and :class:`Cut`.
    """
    now = machine.link.insist(tuning.read_settings, machine.answer_s)
    if needs_swap and not any(setting.knob == "swap" for setting in now):
        raise NotRun("no swap space, which the cell needs (madvise_pageout)")
    planned = tuning.plan(now, machine.host.may_change, needs_swap)
    if not planned:
        return
    paths = [setting.path for setting in planned]
    known = [setting.path for setting in machine.journal.before]
    added = tuple(setting for setting in now if setting.path in paths and setting.path not in known)
    machine.save(machine.journal.state, before=(*machine.journal.before, *added))
    for setting in planned:
        refused = tuning.apply(machine.link, machine.agent, setting)
        if refused:
            raise NotRun(refused)


def wait_until_quiet(machine: Machine) -> Conditions:
    """Wait until hardly anything else runs; the conditions of the measurement. Raises :class:`NotRun`, and Cut."""
    end = machine.clock.monotonic() + machine.host.deadlines.load_s
    while True:
        before = _stat(machine)
        started = machine.clock.monotonic()
        machine.clock.sleep(LOAD_WINDOW_S)
        after = _stat(machine)
        load = tuning.busy_cpus(before, after, machine.clock.monotonic() - started)
        if load < machine.host.max_load:
            return machine.link.insist(partial(tuning.read_conditions, load=load), machine.answer_s)
        if machine.clock.monotonic() >= end:
            raise NotRun(f"not quiet: {load:.2f} CPUs busy after {machine.host.deadlines.load_s:.0f} s")


def crash_dumps(machine: Machine) -> tuple[str, ...]:
    """Names of what earlier kernels left in pstore; empty where there is none."""
    reply = machine.link.run(("find", *PSTORE, "-type", "f"), root=True)
    return tuple(sorted(reply.stdout.splitlines()))


def read_crash_dumps(machine: Machine, known: Sequence[str]) -> str:
    """What a kernel left in pstore since ``known`` was listed. Parts count from the end of the log backwards."""
    new = [name for name in reversed(crash_dumps(machine)) if name not in known]
    if not new:
        return ""
    return machine.link.run(("cat", "--", *new), root=True).stdout


def _lasting(machine: Machine) -> tuple[Setting, ...]:
    now = machine.link.insist(tuning.read_settings, machine.answer_s)
    return tuning.lasting(now, machine.host.may_change)


def _await_boot(machine: Machine, before: str) -> Seen:
    """Wait for another boot than ``before``."""
    end = machine.clock.monotonic() + machine.host.deadlines.boot_s
    last = ""
    while machine.clock.monotonic() < end:
        try:
            now = machine.link.once(seen.look)
            if now.boot_id != before:
                return now
            last = "it still runs the old one"
        except Cut as error:
            last = str(error)
        if machine.outside.panicked():
            raise Crashed("the kernel under test panicked while it booted")
        machine.clock.sleep(POLL_S)
    raise Hung(f"the kernel under test did not answer within {machine.host.deadlines.boot_s:.0f} s ({last})")


def _stat(machine: Machine) -> str:
    try:
        return machine.link.insist(lambda transport: transport.read("/proc/stat"), machine.answer_s).decode()
    except NoSuchFile as error:
        raise NotRun(f"no /proc/stat: {error}") from error
