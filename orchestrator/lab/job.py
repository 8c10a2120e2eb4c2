"""One program on a machine: started so that it outlives the connection, watched, and what it left fetched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.lab import seen
from orchestrator.lab.machine import Crashed, Hung, Machine, NotRun
from orchestrator.lab.remote import Cut, NoSuchFile, Transport

EXIT_STARTED = 3  # guests/lab_agent/run.c: it was started before
FIRST_POLL_S, LAST_POLL_S = 0.5, 5.0  # Rare, since each disturbs the measurement a little.
KEEPER, DONE = "keeper", "done"

_unique = itertools.count()


@dataclass(frozen=True)
class Started:
    """A program in its folder on the host (absolute)."""

    folder: str
    boot_id: str


def start(
    machine: Machine, words: Sequence[str], deadline_s: float, whole_log: bool, root: str | None = None
) -> Started:
    """Start ``words`` (a program's path on the host and its arguments) in a new folder there.

    ``whole_log``: keep what the kernel has logged since it booted, not only from now on. With ``root`` the program's
    path is one below that folder (:mod:`orchestrator.lab.root`). Raises :class:`NotRun`, :class:`Cut`.
    """
    folder = f"{_trials(machine)}/{machine.lease.token}-{next(_unique)}"
    machine.save("testing", trial=folder)
    machine.expect(("mkdir", "--parents", "--", folder))
    options = ["--dir", folder, "--deadline", f"{deadline_s:g}", "--log", "whole" if whole_log else "new"]
    options += ["--cpus", ",".join(map(str, machine.host.cpus))] if machine.host.cpus else []
    options += ["--root", root] if root is not None else []
    reply = machine.link.run((machine.agent, "run", *options, "--", *words), root=True)
    if reply.returncode not in (0, EXIT_STARTED):
        raise NotRun(f"the program cannot be started: {reply.said}")
    return Started(folder, machine.journal.boot_id)


def is_folder(machine: Machine, path: str) -> bool:
    """Whether a path on the host, from a journal, is one that :func:`start` makes."""
    parent, _, name = path.rpartition("/")
    return parent == _trials(machine) and name not in ("", ".", "..")


def wait(machine: Machine, job: Started, deadline_s: float) -> None:
    """Return when the program has ended, however it ended.

    A connection that breaks is made again: the program does not notice. Raises :class:`Hung` at the deadline,
    :class:`Crashed` if the machine panics or restarts meanwhile, or the program's keeper is gone.
    """
    end = machine.clock.monotonic() + deadline_s
    poll_s = FIRST_POLL_S
    cut = ""
    while machine.clock.monotonic() < end:
        # Before it is asked: a dead machine's silence is a broken connection only after answer_s.
        if machine.outside.panicked():
            raise Crashed("the kernel panicked")
        try:
            ended = machine.link.once(lambda transport: _ended(transport, job))
            if cut:
                machine.say("connected again; the trial went on meanwhile")
            if ended:
                return
            cut = ""
        except Cut as error:
            if not cut:
                machine.say(f"the connection broke in the middle of a trial ({error}), connecting again")
            cut = str(error) or "the connection broke"
        machine.clock.sleep(min(poll_s, max(0.0, end - machine.clock.monotonic())))
        poll_s = min(2 * poll_s, LAST_POLL_S)
    where = f"; the machine does not answer: {cut}" if cut else ""
    raise Hung(f"no end within {deadline_s:.0f} s{where}")


def fetch(machine: Machine, job: Started, names: Sequence[str], folder: Path, deadline_s: float) -> None:
    """Copy what the program left, of ``names``, to ``folder``; what it did not leave is not there.

    A cut may last for ``deadline_s`` before a file, and for ``copy_s`` within one. Raises :class:`Cut`.
    """
    for name in names:
        path = f"{job.folder}/{name}"
        if machine.link.insist(lambda transport, path=path: transport.size(path), deadline_s) >= 0:  # type: ignore[misc]
            machine.link.get(path, folder / name)


def has_ended(machine: Machine, job: Started) -> bool:
    """Whether the program came to its end in the boot that it was started in, whatever runs now. Raises Cut."""

    def look(transport: Transport) -> bool:
        if transport.size(f"{job.folder}/{DONE}") < 0:
            return False
        try:
            return transport.read(f"{job.folder}/{KEEPER}").decode().split()[2:3] == [job.boot_id]
        except (NoSuchFile, ValueError):
            return False

    return machine.link.insist(look, machine.host.deadlines.copy_s)


def _trials(machine: Machine) -> str:
    return f"{machine.folder}/trials"


def _ended(transport: Transport, job: Started) -> bool:
    if seen.boot_id(transport) != job.boot_id:
        raise Crashed("the machine restarted in the middle of the trial")
    if transport.size(f"{job.folder}/{DONE}") >= 0:
        return True
    if not _keeper_lives(transport, job) and transport.size(f"{job.folder}/{DONE}") < 0:
        raise Crashed("the process that watches the program is gone")
    return False


def _keeper_lives(transport: Transport, job: Started) -> bool:
    """By PID and start time, as guests/lab_agent/run.c wrote them."""
    try:
        pid, start, *_ = transport.read(f"{job.folder}/{KEEPER}").decode().split()
        fields = transport.read(f"/proc/{int(pid)}/stat").decode("utf-8", "replace").rpartition(")")[2].split()
    except (NoSuchFile, ValueError):
        return False
    return len(fields) > 19 and fields[19] == start
