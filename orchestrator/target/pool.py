"""The machines of a lab as one target: each block of the plan has a machine of its own while it runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.errors import TargetError
from orchestrator.lab.machine import MachineGone
from orchestrator.plan import Plan
from orchestrator.results import Outcome, TrialResult
from orchestrator.target.target import Evidence, Job

POLL_S = 1.0


class NoMachineLeft(TargetError):
    """No machine of the lab can be used any more."""


class Member(Protocol):
    """One machine; :class:`orchestrator.target.ssh.SshTarget`."""

    @property
    def usable(self) -> bool:
        """Whether it is not in quarantine."""

    def contact(self) -> None:
        """Reach it and bring it home. Raises :class:`MachineGone`."""

    def run(self, job: Job, folder: Path) -> Evidence:
        """See :class:`~orchestrator.target.target.Target`. Raises :class:`MachineGone`."""

    def close(self) -> None:
        """Give it back."""


@dataclass
class LabPool:
    """A :class:`~orchestrator.target.target.Pool`. ``members`` by name."""

    members: Mapping[str, Member]

    def __post_init__(self) -> None:
        self._preferred: dict[int, str] = {}  # Of a block of which some trials have run, the machine that ran them.
        self._free = list(self.members)
        self._gone: dict[str, MachineGone] = {}
        self._changed = threading.Condition()
        self._own = threading.local()

    @property
    def gone(self) -> Mapping[str, MachineGone]:
        """Machines that cannot be used any more, and why."""
        return dict(self._gone)

    @contextlib.contextmanager
    def block(self, index: int) -> Iterator[None]:
        """See the protocol. Raises :class:`NoMachineLeft`, naming the reason of each."""
        name = self._take(self._preferred.get(index, ""))
        self._own.name = name
        try:
            yield
        finally:
            del self._own.name
            self._give_back(name)

    def run(self, job: Job, folder: Path) -> Evidence:
        """Run on the machine that this thread's block holds. Raises :class:`MachineGone`."""
        name: str = self._own.name
        if name in self._gone:
            raise self._gone[name]
        try:
            evidence = self.members[name].run(job, folder)
        except MachineGone as error:
            self._lose(name, error)
            raise
        if evidence.machine_lost:
            self._lose(name, MachineGone(evidence.machine_lost))
        return evidence

    def resume(self, plan: Plan, done: Sequence[TrialResult], skipped: Collection[str]) -> tuple[TrialResult, ...]:
        """See the protocol."""
        kept: list[TrialResult] = []
        for block in plan.blocks:
            ids = {trial.id for trial in block.trials}
            mine = [result for result in done if result.id in ids]
            whole = len(mine) == len(ids - set(skipped))
            lost = any(result.machine_lost and result.outcome in (Outcome.LOST, Outcome.NOT_RUN) for result in mine)
            machines = {result.machine for result in mine}
            (machine,) = machines if len(machines) == 1 else ("",)
            if whole and not lost:
                kept += mine
            elif not lost and machine in self.members and self.members[machine].usable:
                kept += mine
                self._preferred[block.index] = machine
        return tuple(kept)

    def close(self) -> None:
        """Give all machines back, those that are lost included: the lease must not outlive us."""
        for member in self.members.values():
            member.close()

    def _take(self, preferred: str) -> str:
        """A machine that can be reached, the preferred one if it is free or becomes so."""
        while True:
            with self._changed:
                while not (name := self._choose(preferred)):
                    if len(self._gone) == len(self.members):
                        raise self._none_left()
                    self._changed.wait(POLL_S)
                self._free.remove(name)
            try:
                self.members[name].contact()
                return name
            except MachineGone as error:
                self._lose(name, error)
            except BaseException:
                # Whatever that was, a block that waits for this machine must not do so for ever.
                self._give_back(name)
                raise

    def _choose(self, preferred: str) -> str:
        if preferred in self.members and preferred not in self._gone:
            return preferred if preferred in self._free else ""
        return self._free[0] if self._free else ""

    def _give_back(self, name: str) -> None:
        with self._changed:
            if name not in self._gone:
                self._free.append(name)
            self._changed.notify_all()

    def _lose(self, name: str, error: MachineGone) -> None:
        with self._changed:
            self._gone.setdefault(name, error)
            self._changed.notify_all()

    def _none_left(self) -> NoMachineLeft:
        lines: Sequence[str] = [f"\n  {name}: {error.what}" for name, error in self._gone.items()]
        return NoMachineLeft(f"no machine of the lab is left:{''.join(lines)}", hint="orch lab status")
