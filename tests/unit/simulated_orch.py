"""``orch`` whose target makes recordings up: the whole pipeline without kernels and QEMU.

In a test, ``install(monkeypatch.setattr)``; as a program, an ``orch`` for other processes to kill. What a trial does is
decided by its arm's name: ``base``, ``v1`` …, or one of ``panic``, ``oops``, ``lost``, ``slow``, ``broken`` (a kernel
that does not compile), ``gone`` (a target that does not start). The kernel's version is what the file ``version``
beside the config says, 5.10.262 without it; one that ends in ``-slow`` is slow in every arm.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from simulate import recording_bytes

from orchestrator import cli, doctor, image, run
from orchestrator.doctor import AccelChoice
from orchestrator.errors import SourceError, TargetError
from orchestrator.experiment import Experiment
from orchestrator.image import Guests
from orchestrator.kernel import keep
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.source import KernelTree
from orchestrator.store import Store
from orchestrator.target.target import CONSOLE, RECORDING, STATUS, Evidence, Job

CONSOLES = Path(__file__).parents[1] / "data" / "consoles"
FAULTS = 256
RELEASE = "5.10.262"
SLOW, SLOW_FACTOR = "-slow", 1.5
NOTES = "SIMULATED_ORCH_NOTES"  # environment: a file that gets a line for each trial that begins
SECONDS = "SIMULATED_ORCH_SECONDS"  # environment: how long a trial takes


@dataclass(frozen=True)
class SimulatedTarget:
    """Leaves what QEMU would; ``mended``: the arm ``gone`` starts like any other."""

    mended: bool = False

    def run(self, job: Job, folder: Path) -> Evidence:
        words = dict(zip(job.words[::2], job.words[1::2], strict=True))
        arm, cell, seed = words["--arm"].rstrip(), words["--cell"], int(words["--seed"])
        if NOTES in os.environ:
            with Path(os.environ[NOTES]).open("a") as notes:
                notes.write(f"{arm} {cell} {seed}\n")
        time.sleep(float(os.environ.get(SECONDS, "0")))
        if arm == "gone" and not self.mended:
            raise TargetError("QEMU did not start", hint="orch doctor")
        console = arm if arm in ("panic", "oops") else "ok"
        shutil.copy(CONSOLES / f"{console}.log", folder / CONSOLE)
        ended = arm not in ("panic", "oops", "lost")
        (folder / STATUS).write_text("pid1 0.1\nstart 1.1\n" + ("exit 0\nend 1.2\n" if ended else ""))
        if ended:
            factor = {"factor": SLOW_FACTOR} if str(job.vmlinux).endswith(SLOW) else {}
            (folder / RECORDING).write_bytes(make_recording(arm, cell, seed, **factor))
        return Evidence("ended", 0, 0.7, 2.0)


def make_recording(arm: str, cell: str, seed: int, factor: float = 1.0) -> bytes:
    """The same for every arm but ``slow``, whose faults take half as long again, and ``noisy``, of which each boot in
    ``cell1`` has a factor of its own."""
    cycles = np.random.default_rng(seed).normal(10_000, 50, FAULTS)
    cycles *= SLOW_FACTOR if arm == "slow" else factor
    cycles *= math.exp(np.random.default_rng(seed + 1).normal(0, 0.02)) if (arm, cell) == ("noisy", "cell1") else 1.0
    names = ("pf_fixed", "pf_guest", "exits", "io_exits", "mmio_exits", "irq_exits", "halt_exits", "insn_emulation")
    counters = dict.fromkeys(names, 0) | {"pf_fixed": FAULTS, "exits": FAULTS + 8, "io_exits": 8}
    return recording_bytes(
        arm=arm, cell=cell, seed=seed, latencies=[cycles.astype(np.uint64)], counters=counters, pages=FAULTS
    )


def take_tree(chosen: Experiment, store: Store, reporter: object, *, begun: bool, update: bool) -> KernelTree:
    """A tree of the version that is offered now; as the real one, a run that goes on keeps its own."""
    if begun:
        return store.load(keep.TREE, KernelTree)
    offered = chosen.path.with_name("version")
    version = offered.read_text().strip() if offered.exists() else RELEASE
    if version == "none":
        raise SourceError("no kernel source could be had:\n  - simulated: the mirror does not answer")
    tree = KernelTree(Path("/nowhere"), f"simulated {version}", hashlib.sha256(version.encode()).hexdigest(), version)
    store.save(keep.TREE, tree)
    return tree


def build_kernels(
    chosen: Experiment, patches: Path, reporter: object, tree: KernelTree | None = None
) -> tuple[BuiltKernel, ...]:
    """Kernels that nobody boots. The log of the one that does not compile lies beside ``patches``."""
    release = RELEASE if tree is None else tree.release
    return tuple(_kernel(arm.name, release, patches.with_name("build.log")) for arm in chosen.arms)


def _kernel(arm: str, release: str, log: Path) -> BuiltKernel:
    if arm == "broken":
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("  CC  mmu.o\nmmu.c:3: error: 'x' undeclared\n")
        return BuiltKernel(
            arm, "failed", "", None, "", None, "", None, "", 1.0, False, log, "mmu.c:3: error: 'x' undeclared"
        )
    path = Path("/nowhere") if release == RELEASE else Path("/nowhere") / release
    content = hashlib.sha256(f"{arm} {release}".encode()).hexdigest()
    return BuiltKernel(arm, "ok", release, path, content, path, "cd" * 32, path, content[:40], 10.0, True, path, "")


def install(patch: Callable[[Any, str, object], None]) -> None:
    """Replace what needs a compiler, a kernel or QEMU, by ``patch(object, name, value)``."""
    nothing = Guests(Path("/init"), Path("/fault_vmm"), Path("/tsc_khz"), "simulated")
    patch(doctor, "pick_accel", lambda wanted, cpus: AccelChoice("icount", "icount, simulated"))
    patch(image, "build_guests", lambda say: nothing)
    patch(run, "take_tree", take_tree)
    patch(run, "build_kernels", build_kernels)
    patch(run, "make_target", lambda setting, guests: SimulatedTarget())


def write_config(
    folder: Path, arms: Sequence[str] = ("base", "v1"), boots: int = 1, cells: int = 2, schedule: str = ""
) -> Path:
    """An experiment in ``folder`` with an arm for each name; ``schedule`` are more keys of that section."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "host.config").write_text("CONFIG_KVM=y\n")
    lines = ["name: simulated", "kernel: {sources: [{tree: linux}], fragments: [host.config]}", "arms:"]
    for arm in arms:
        (folder / f"{arm}.patch").write_text(f"patch of {arm}\n")
        lines.append(f"  {arm}: [{'' if arm == arms[0] else f'{arm}.patch'}]")
    lines += ["target: {kind: qemu, accel: icount}", "cells:"]
    lines += [f"  cell{index}: {{guest: {{mem_mib: 1, rounds: 1}}, storm: none}}" for index in range(cells)]
    lines += [f"schedule: {{boots: {boots}{schedule and ', '}{schedule}}}", "checks: [kernel_log, controls]"]
    path = folder / "simulated.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    # A shell's background jobs, and so perhaps pytest, ignore it, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    install(setattr)
    cli.main()
