"""The way home: whatever a trial did to a machine, back to its known-good kernel and the settings of before.

By ever stronger means, each with its deadline; what nothing brings back is quarantined.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from orchestrator.errors import printable
from orchestrator.lab import boot, job, journal, seen, tuning
from orchestrator.lab.machine import POLL_S, Machine, MachineGone, NotRun
from orchestrator.lab.remote import Cut

RECOVERY_LOG = "recovery.log"  # The serial console while a machine is brought home that no trial watches.


def go_home(machine: Machine, rescue: Callable[[], None] = lambda: None) -> None:
    """From any state to ``idle``. Raises :class:`~orchestrator.lab.machine.MachineGone`, the machine in quarantine; or
    held by another run: then nothing is done to it any more, by no means.

    ``rescue`` is called before the trial's folder is removed, when the machine is at home; it may raise :class:`Cut`.
    """
    was_at_home = machine.journal.at_home
    machine.save("returning")
    bring_back(machine, was_at_home)
    _clean_up(machine, rescue)


def bring_back(machine: Machine, was_at_home: bool = False) -> None:
    """Restart the machine until its known-good kernel runs. Raises as :func:`go_home`.

    One that ``was_at_home`` and is silent is waited for first: it need not be the machine that is broken.
    """
    if _is_home(machine):
        return
    tried = []
    waiting = (("waiting for it", lambda: _silent(machine)),) if was_at_home else ()
    with _console(machine):
        for name, way in (*waiting, *_ways(machine)):
            machine.not_anothers()
            refused = way()
            if refused:
                tried.append(f"{name}: {refused}")
                continue
            if _await_home(machine):
                return
            tried.append(f"{name}: no known-good kernel within {machine.host.deadlines.return_s:.0f} s")
            machine.say(f"does not come back by {name}")
    machine.lost(f"does not come back to {machine.journal.known_good} ({'; '.join(tried)})")


@contextlib.contextmanager
def _console(machine: Machine) -> Iterator[None]:
    """See to it that the console is watched, between trials too: keys can be sent only where it is."""
    if machine.outside.watching:
        yield
        return
    log = journal.folder(machine.host) / RECOVERY_LOG
    log.unlink(missing_ok=True)
    machine.outside.watch(log)
    try:
        yield
    finally:
        machine.outside.unwatch()


def _is_home(machine: Machine) -> bool:
    """Whether the known-good kernel runs, and not because a boot that was asked for has not begun yet."""
    try:
        now = machine.link.once(seen.look)
    except Cut:
        return False
    return now.kernel == machine.journal.known_good and now.boot_id != machine.journal.leaving


def _await_home(machine: Machine) -> bool:
    end = machine.clock.monotonic() + machine.host.deadlines.return_s
    while machine.clock.monotonic() < end:
        machine.clock.sleep(POLL_S)
        if _is_home(machine):
            return True
    return False


def _ways(machine: Machine) -> tuple[tuple[str, Callable[[], str]], ...]:
    """How to restart the machine, weakest first. Each says why it cannot be had, or nothing."""
    return (
        ("its own restart", lambda: _restarts_itself(machine)),
        ("reboot over SSH", lambda: _reboot(machine)),
        ("SysRq over SSH", lambda: _sysrq(machine)),
        ("SysRq over the console", lambda: _from_outside(machine, lambda: machine.outside.sysrq("sb"))),
        ("power command", lambda: _from_outside(machine, machine.outside.power_cycle)),
    )


def _from_outside(machine: Machine, way: Callable[[], str]) -> str:
    """A way that needs no answer of the machine: not while it may be another run's, which is booting it just now."""
    if machine.in_doubt:
        machine.say("this run has stood still; waiting until the machine says whose it is by now")
        deadlines = machine.host.deadlines
        try:
            machine.link.insist(machine.check_lease, deadlines.boot_s + deadlines.return_s)
        except Cut as error:
            raise MachineGone(
                f"{machine.host.name} may be another run's, since this one stood still, and it does not say: {error}"
            ) from error
        return _reboot(machine)  # It answers, and is ours.
    return way()


def _silent(machine: Machine) -> str:
    try:
        machine.link.once(seen.boot_id)
    except Cut:
        return ""
    return "it answers"


def _restarts_itself(machine: Machine) -> str:
    """A kernel that panicked does (panic=-1); and without a console, one that is silent may have panicked."""
    panicked = machine.outside.panicked() or not machine.host.console
    return _silent(machine) or ("" if panicked else "it is silent, and shows no panic")


def _reboot(machine: Machine) -> str:
    try:
        # What a reboot does not reset (a turbo bit in an MSR, after kexec) is put back by the kernel that set it.
        with contextlib.suppress(NotRun):
            _stop_program(machine)
            _put_back(machine)
        boot.unload(machine.link)
        boot.reboot(machine.link, machine.agent)
    except (Cut, boot.Refused) as error:
        return str(error)
    return ""


def _sysrq(machine: Machine) -> str:
    """Sync, then restart without asking anybody (Documentation/admin-guide/sysrq.rst)."""
    if not machine.agent:
        return "the agent was not copied yet"
    for key in "sb":
        argv = (*machine.link.root, machine.agent, "set", "/proc/sysrq-trigger", key)
        try:
            reply = machine.link.once(lambda transport: transport.run(argv, deadline_s=machine.answer_s))  # noqa: B023
        except Cut as error:
            return "" if key == "b" else str(error)
        if reply.returncode not in (0, 255):
            return reply.said
    machine.link.drop()
    return ""


def _clean_up(machine: Machine, rescue: Callable[[], None]) -> None:
    """The known-good kernel runs: take back what was set and loaded, and end what may still run."""
    try:
        machine.still_ours()
        folder = _stop_program(machine)
        rescue()
        if folder:
            machine.expect(("rm", "-rf", "--", folder), root=True)
        _put_back(machine)
        boot.tidy(machine.link, machine.scratch)
        now = machine.link.insist(seen.boot_id, machine.answer_s)
        machine.save("idle", test=None, trial="", before=(), home_before=(), boot_id=now, leaving="")
    except (Cut, NotRun) as error:
        machine.lost(f"cannot be put back as it was: {error}")
    journal.settle(machine.host)


def _stop_program(machine: Machine) -> str:
    """End what may still run; the trial's folder on the machine, empty if there is none. Raises NotRun and Cut."""
    folder = machine.journal.trial
    if not folder:
        return ""
    # The journal may come from the machine, where others can write it, and this goes to root.
    if not job.is_folder(machine, folder):
        machine.say(f"leaving {printable(folder)} alone, which its journal names: that is no folder of a trial")
        return ""
    machine.expect((machine.agent, "stop", folder), root=True)
    return folder


def _put_back(machine: Machine) -> None:
    """The settings of before: in the boot in which they were changed its own, in another one the known-good kernel's.

    A kernel under test has its own defaults, and values that the known-good one may refuse. Raises NotRun and Cut.
    """
    running = machine.link.insist(seen.look, machine.answer_s)
    if running.boot_id == machine.journal.boot_id:
        wanted = machine.journal.before
    else:
        wanted = machine.journal.home_before if running.kernel == machine.journal.known_good else ()
    before = tuple(setting for setting in wanted if tuning.is_known(setting))
    now = machine.link.insist(tuning.read_settings, machine.answer_s)
    for setting in tuning.undo(now, before):
        refused = tuning.apply(machine.link, machine.agent, setting)
        if refused:
            raise NotRun(refused)
