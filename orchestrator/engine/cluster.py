"""The engine ``dask``: trials execute on the workers of a Dask cluster, results are kept here.

The client alone writes the run's folder, so killing it loses nothing that was stored, and killing anything else nothing
at all: a block whose worker dies is run again elsewhere. Dask runs whatever code it is sent, on workers and client: the
scheduler's port must be reachable for nobody else (loopback, a tunnel, or TLS).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator import proc
from orchestrator.bench import was_built
from orchestrator.doctor import Accel, AccelChoice
from orchestrator.engine import facts, local
from orchestrator.engine.dispatch import POLL_S, Dispatch, Work, nobody, waiting_for
from orchestrator.engine.identity import SOURCES_ID
from orchestrator.engine.kit import Kit, Packing
from orchestrator.engine.link import Link, LinkError, Say
from orchestrator.engine.local import OnResult, Unit
from orchestrator.engine.need import HostId, Need, host_id
from orchestrator.engine.remote import Order
from orchestrator.engine.roster import Roster
from orchestrator.experiment import SelftestCell
from orchestrator.lab import LabHost
from orchestrator.plan import Plan, Trial
from orchestrator.results import Outcome, TrialResult
from orchestrator.store import Store

BEST_FIRST: tuple[Accel, ...] = ("kvm", "icount", "tcg")


class Cluster:
    """The workers at ``engine`` (``dask://HOST:PORT``). A context manager.

    ``patience_s`` is how long it waits for a scheduler and for a first worker, at the start and whenever they have
    gone. Entering raises :class:`UserError` for an address that is none and :class:`EngineError` if nobody answers.
    """

    def __init__(self, engine: str, patience_s: float, say: Say) -> None:
        self.engine = engine
        self._patience_s = patience_s
        self._link = Link(engine, say)
        self._roster = Roster(self._link, say)

    def __enter__(self) -> Cluster:
        self._link.connect(self._patience_s)
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def pick_accel(self, wanted: Accel | Literal["auto"], cpus: int) -> AccelChoice:
        """The accelerator of a target with ``cpus`` CPUs, by what the workers offer; waits for the first that does.

        Raises :class:`EngineError` if none comes, with the reason of each worker that cannot be used.
        """
        ends = time.monotonic() + self._patience_s
        told = False
        while True:
            self._look()
            for accel in BEST_FIRST if wanted == "auto" else (wanted,):
                if accel == "icount" and cpus > 1:
                    continue
                if any(member.room(Need(accel, cpus)) for member in self._roster.members):
                    if self._roster.qemu is None:
                        self._roster.choose_qemu(accel)
                    why = "as the experiment says" if wanted == accel else "the best that they offer"
                    return AccelChoice(accel, f"{accel} on the workers at {self.engine}, {why}")
            if time.monotonic() >= ends or self._refuses_all():
                raise nobody(wanted, self._patience_s, self._roster)
            if not told:
                self._roster.say(waiting_for(wanted, self.engine))
                told = True
            time.sleep(POLL_S)

    def qemu_version(self) -> str:
        """Of all workers that are used; known once :meth:`pick_accel` has chosen."""
        return self._roster.qemu or ""

    @property
    def workers(self) -> int:
        """How many workers were there at the last look and are not refused."""
        return sum(not member.refusal for member in self._roster.members)

    def runner(self, packing: Packing, hosts: Sequence[LabHost], store: Store) -> ClusterRunner:
        """What runs the trials of a run, those of target ``ssh`` on ``hosts``.

        Workers get what they lack of the packing before their first trial.
        """
        self._roster.packing = packing
        return ClusterRunner(self, packing, store, tuple(host_id(host) for host in hosts))

    def dispatch(self, work: Work, store: Store, on_result: OnResult) -> None:
        """Run ``work``, see :class:`~orchestrator.engine.dispatch.Dispatch`."""
        names = f"orch-{uuid.uuid4().hex[:12]}"
        try:
            Dispatch(self._link, self._roster, store, work, on_result, self._patience_s, names).run()
        finally:
            facts.record(store, self._roster.facts.values())

    def _look(self) -> None:
        try:
            self._roster.look()
        except LinkError:
            self._roster.forget()
            self._link.connect(self._patience_s)

    def _refuses_all(self) -> bool:
        """Whether there are workers, and none can ever be used: waiting for others is no use to the user."""
        members = self._roster.members
        return bool(members) and all(member.refusal for member in members)


@dataclass(frozen=True)
class ClusterRunner:
    """A :class:`~orchestrator.engine.Runner` on a cluster.

    A unit's results are stored, and reported, together, when the whole unit has been run on one worker.
    """

    cluster: Cluster
    packing: Packing
    store: Store
    hosts: tuple[HostId, ...]

    def runs(self, item: Trial) -> bool:
        """See :class:`~orchestrator.engine.Runner`."""
        return was_built(item, self.packing.kit.kernels, self.packing.kit.tests)

    def resume(self, plan: Plan, done: Sequence[TrialResult]) -> Sequence[TrialResult]:
        """See :class:`~orchestrator.engine.Runner`: a block stays on one worker, and no worker waits for its rest."""
        skipped = [trial.id for trial in plan.trials if not self.runs(trial)]
        whole = whole_blocks(plan, done, skipped, self.packing.kit)
        return [item for item in done if item.id in whole]

    def execute(self, plan: Plan, finished: Iterable[str], accel: str, jobs: int | None, on_result: OnResult) -> None:
        """See :class:`~orchestrator.engine.Runner`."""
        units = local.units(plan, finished, accel)
        if not units:
            return
        kit, rerun = self.packing.kit, proc.quote(["orch", "trial", self.store.run])
        need = Need(kit.kind, kit.spec.cpus, self.hosts)
        cell = units[0].left[0].cell
        if isinstance(cell, SelftestCell) and kit.test_accel is not None:
            need = Need(kit.test_accel, cell.selftests.cpus)

        def order(unit: Unit, host: str) -> Order:
            return Order(SOURCES_ID, kit, need.kind, host, unit.left, rerun)

        self.cluster.dispatch(Work(units, need, jobs, order, self.packing.kernels), self.store, on_result)

    def close(self) -> None:
        """See :class:`~orchestrator.engine.Runner`: nothing is held; whoever made the cluster closes it."""


def whole_blocks(plan: Plan, done: Sequence[TrialResult], skipped: Iterable[str], kit: Kit) -> set[str]:
    """Of the trials that are done those of blocks of which no trial is left but ``skipped`` ones, which never run.

    A block that lost its machine of the lab is not done. Under icount trials are compared wherever they ran: there all
    stand.
    """
    ended = {item.id for item in done}
    lost = {item.block for item in done if item.machine_lost and item.outcome in (Outcome.LOST, Outcome.NOT_RUN)}
    begun = lost | {trial.block for trial in plan.trials if trial.id not in ended | set(skipped)}

    def stands(trial: Trial) -> bool:
        kind = kit.test_accel if isinstance(trial.cell, SelftestCell) else kit.kind
        return kind == "icount" or trial.block not in begun

    return {trial.id for trial in plan.trials if trial.id in ended and stands(trial)}
