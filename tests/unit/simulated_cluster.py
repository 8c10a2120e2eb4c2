"""Workers whose target makes recordings up, and a client for them: a Dask cluster without kernels and QEMU.

As a program, a worker (``worker ENGINE --offer …``) or an ``orch`` (anything else) for other processes to kill.
"""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import simulated_orch
from simulated_orch import SimulatedTarget

from orchestrator import cli, image, run
from orchestrator.engine import kit
from orchestrator.experiment import Experiment
from orchestrator.image import Guests
from orchestrator.kernel.build import BuiltKernel

PROGRAMS = ("init", "fault_vmm", "tsc_khz")


def install(patch: Callable[[Any, str, object], None], folder: Path) -> None:
    """Replace what needs a compiler, a kernel or QEMU, in client and worker; what is shipped lies in ``folder``."""
    simulated_orch.install(patch)
    patch(kit, "make_emulator", lambda accel, machine, guests: SimulatedTarget())
    patch(image, "build_guests", lambda say: build_guests(folder))
    patch(run, "build_kernels", lambda chosen, patches, *_: build_kernels(chosen, patches, folder))


def build_guests(folder: Path) -> Guests:
    """Programs that nobody runs."""
    (folder / "guests").mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        (folder / "guests" / name).write_text(f"program {name}\n")
    init, fault_vmm, tsc_khz = (folder / "guests" / name for name in PROGRAMS)
    return Guests(init, fault_vmm, tsc_khz, "simulated")


def build_kernels(chosen: Experiment, patches: Path, folder: Path) -> tuple[BuiltKernel, ...]:
    """Kernels that nobody boots, but that are files with the hashes that they say."""
    kernels = simulated_orch.build_kernels(chosen, patches, None)
    return tuple(kernel if kernel.build == "failed" else _with_file(kernel, folder) for kernel in kernels)


def _with_file(kernel: BuiltKernel, folder: Path) -> BuiltKernel:
    path = folder / f"vmlinux-{kernel.arm}"
    path.write_text(f"kernel of {kernel.arm}\n")
    return replace(kernel, vmlinux=path, vmlinux_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    install(setattr, Path(sys.argv.pop(1)))
    cli.main()
