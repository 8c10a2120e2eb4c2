"""What trials need, in a form that means the same on every machine: names and hashes, no path of the client's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator.bench import Bench, make_emulator
from orchestrator.doctor import Accel
from orchestrator.engine.depot import Depot, Item
from orchestrator.experiment import TargetSpec
from orchestrator.image import Guests
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.selftests import BuiltSelftests
from orchestrator.store import file_sha256
from orchestrator.target.target import Target

NOWHERE = Path()


@dataclass(frozen=True)
class Kit:
    """A :class:`~orchestrator.bench.Bench` to be set up anywhere.

    Paths in ``kernels`` and ``tests`` are None or empty; their files, and the guest programs, are known by SHA-256.
    ``test_accel`` is that of the selftests' machine, None without selftests.
    """

    spec: TargetSpec
    accel: Accel
    test_accel: Accel | None
    guests_id: str
    guests: tuple[Item, ...]
    kernels: tuple[BuiltKernel, ...]
    tests: tuple[BuiltSelftests, ...]

    @property
    def hashes(self) -> tuple[str, ...]:
        """Of every file that a worker must have."""
        kernels = (kernel.vmlinux_sha256 for kernel in self.kernels if kernel.build == "ok")
        programs = (item.sha256 for tests in self.tests for item in _programs(tests))
        return tuple(dict.fromkeys([*(item.sha256 for item in self.guests), *kernels, *programs]))


@dataclass(frozen=True)
class Packing:
    """A kit, and where its files lie on this machine, by SHA-256."""

    kit: Kit
    files: dict[str, Path]


def pack(
    spec: TargetSpec,
    accels: tuple[Accel, Accel | None],
    guests: Guests,
    kernels: Sequence[BuiltKernel],
    tests: Sequence[BuiltSelftests],
) -> Packing:
    """The kit of a bench; ``accels`` are those of the measuring trials and of the selftests."""
    programs = sorted(path for path in guests.init.parent.iterdir() if path.is_file())
    items = tuple(Item(path.name, file_sha256(path)) for path in programs)
    files = {item.sha256: path for item, path in zip(items, programs, strict=True)}
    for kernel in kernels:
        if kernel.vmlinux is not None:
            files[kernel.vmlinux_sha256] = kernel.vmlinux
    for built in tests:
        if built.folder is not None:
            files |= {item.sha256: built.folder / item.name for item in _programs(built)}
    bare_kernels = tuple(
        dataclasses.replace(kernel, vmlinux=None, config=None, system_map=None, log=NOWHERE) for kernel in kernels
    )
    bare_tests = tuple(dataclasses.replace(built, folder=None, log=NOWHERE) for built in tests)
    return Packing(Kit(spec, *accels, guests.content_id, items, bare_kernels, bare_tests), files)


def unpack(kit: Kit, depot: Depot) -> Bench:
    """The bench on this machine, from files that were shipped. Raises :class:`StoreError` if one is missing."""
    folder = depot.tree(kit.guests)
    guests = Guests(folder / "init", folder / "fault_vmm", folder / "tsc_khz", kit.guests_id)
    kernels = tuple(
        dataclasses.replace(kernel, vmlinux=depot.file(kernel.vmlinux_sha256)) if kernel.build == "ok" else kernel
        for kernel in kit.kernels
    )
    tests = tuple(
        dataclasses.replace(built, folder=depot.tree(_programs(built))) if built.build == "ok" else built
        for built in kit.tests
    )
    target = _machine(kit.accel, kit.spec.machine, guests)
    test_target = None if kit.test_accel is None else _machine(kit.test_accel, kit.spec.machine, guests)
    return Bench(kit.spec, kernels, tests, target, test_target)


@cache
def _machine(accel: Accel, machine: str, guests: Guests) -> Target:
    """Made once a process: what it measures of this machine takes longer than all else here."""
    return make_emulator(accel, machine, guests)


def _programs(tests: BuiltSelftests) -> tuple[Item, ...]:
    return tuple(Item(f"bin/{item.name}", item.sha256) for item in tests.programs if item.sha256)
