"""Everything that trials need, ready: kernels and selftests by arm, and the machines that run them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator import stale, trial
from orchestrator.doctor import Accel
from orchestrator.experiment import SelftestCell, TargetSpec
from orchestrator.image import Guests
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.selftests import BuiltSelftests
from orchestrator.linuxguest import LinuxKit
from orchestrator.plan import Plan, Trial
from orchestrator.results import TrialResult
from orchestrator.target import qemu
from orchestrator.target.target import Pool, Target


@dataclass(frozen=True)
class RunningKernel:
    """The kernel of ``target: local``, in the form of :class:`orchestrator.analysis.built.Kernel`."""

    arm: str
    release: str
    build: Literal["ok", "failed"] = "ok"
    vmlinux_sha256: str = ""
    build_seconds: float = 0.0
    cached: bool = True
    error: str = ""


@dataclass(frozen=True)
class Bench:
    """``test_target`` is the selftests' machine, which may be another than the measuring trials'; None without them.

    ``linux`` is what Linux guests need; None without such guests.
    """

    spec: TargetSpec
    kernels: Sequence[BuiltKernel]
    tests: Sequence[BuiltSelftests]
    target: Target
    test_target: Target | None
    linux: LinuxKit | None = None

    def runs(self, item: Trial) -> bool:
        """Whether what a trial needs was built: all others go on without it."""
        return was_built(item, self.kernels, self.tests)

    def hold(self, trials: Sequence[Trial]) -> AbstractContextManager[None]:
        """What the trials of one block share while they run: in a lab, their machine."""
        if isinstance(self.target, Pool) and not isinstance(trials[0].cell, SelftestCell):
            return self.target.block(trials[0].block)
        return contextlib.nullcontext()

    def resume(self, plan: Plan, done: Sequence[TrialResult]) -> Sequence[TrialResult]:
        """Which results of an earlier part of a run stand: in a lab, not those of a block that lost its machine."""
        if not isinstance(self.target, Pool):
            return done
        return self.target.resume(plan, done, [item.id for item in plan.trials if not self.runs(item)])

    def close(self) -> None:
        """Give back what :meth:`hold` took for longer than a block: a lab's machines are leased until here."""
        if isinstance(self.target, Pool):
            self.target.close()

    def run(self, item: Trial, folder: Path, rerun: str, only: stale.Round | None = None) -> TrialResult:
        """Run a trial in ``folder``; see :func:`orchestrator.trial.run_trial`."""
        vmlinux = next((kernel.vmlinux for kernel in self.kernels if kernel.arm == item.arm), None)
        tests = next((built for built in self.tests if built.arm == item.arm), None)
        target = self.target
        if isinstance(item.cell, SelftestCell) and self.test_target is not None:
            target = self.test_target
        return trial.run_trial(item, self.spec, vmlinux, target, folder, rerun, only, tests, self.linux)


def was_built(item: Trial, kernels: Sequence[BuiltKernel], tests: Sequence[BuiltSelftests]) -> bool:
    """Whether the kernel of a trial's arm compiled, and if it runs them the arm's selftests."""
    needed: list[BuiltKernel | BuiltSelftests] = [*kernels]
    if isinstance(item.cell, SelftestCell):
        needed += tests
    return all(built.build == "ok" for built in needed if built.arm == item.arm)


def make_emulator(accel: Accel, machine: str, guests: Guests) -> qemu.QemuTarget:
    """QEMU on this machine: emulating by threads, it must know the frequency of this machine's TSC."""
    return qemu.QemuTarget(accel, machine, guests, qemu.measure_tsc_khz(guests) if accel == "tcg" else 0)
