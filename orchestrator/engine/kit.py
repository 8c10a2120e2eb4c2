"""What trials need, in a form that means the same on every machine: names and hashes, no path of the client's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator.bench import Bench, make_emulator
from orchestrator.doctor import Accel
from orchestrator.engine.depot import Depot, Item, tree_id
from orchestrator.engine.need import Kind
from orchestrator.experiment import LinuxGuestSpec, TargetSpec
from orchestrator.image import Guests
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.selftests import BuiltSelftests
from orchestrator.lab import LabHost
from orchestrator.linuxguest import LinuxKit
from orchestrator.store import file_sha256
from orchestrator.target import labtarget
from orchestrator.target.target import Target
from orchestrator.vmm import Packed

NOWHERE = Path()
INITRD = "initrd"
VMLINUX, BZIMAGE = "vmlinux", "bzImage"  # the second beside the first: file_to_boot() in lab/boot.py

Say = Callable[[str], None]


@dataclass(frozen=True)
class BareLinux:
    """A :class:`~orchestrator.linuxguest.LinuxKit` without paths; ``kernel`` is empty for that of each trial's arm."""

    spec: LinuxGuestSpec
    packed: Packed
    kernel: str

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(Item(file.path, file.sha256) for file in self.packed.files)

    @property
    def hashes(self) -> tuple[str, ...]:
        return (*(item.sha256 for item in self.items), *([self.kernel] if self.kernel else []))


@dataclass(frozen=True)
class Kit:
    """A :class:`~orchestrator.bench.Bench` to be set up anywhere.

    Paths in ``kernels`` and ``tests`` are None or empty; their files, and the guest programs, are known by SHA-256.
    ``kind`` is of the measuring trials' target; ``test_accel`` that of the selftests' machine, None without selftests.
    ``images`` are, by arm, the compressed kernels that some boot loaders of a lab want beside vmlinux; ``initrds``, by
    the lab's machine, what it wants of an initramfs.
    """

    spec: TargetSpec
    kind: Kind
    test_accel: Accel | None
    guests_id: str
    guests: tuple[Item, ...]
    kernels: tuple[BuiltKernel, ...]
    tests: tuple[BuiltSelftests, ...]
    images: tuple[tuple[str, Item], ...] = ()
    initrds: tuple[tuple[str, Item], ...] = ()
    linux: BareLinux | None = None

    @property
    def hashes(self) -> tuple[str, ...]:
        """Of every file that a worker must have."""
        kernels = (kernel.vmlinux_sha256 for kernel in self.kernels if kernel.build == "ok")
        programs = (item.sha256 for tests in self.tests for item in _programs(tests))
        images = (item.sha256 for _, item in (*self.images, *self.initrds))
        linux = () if self.linux is None else self.linux.hashes
        return tuple(dict.fromkeys([*(item.sha256 for item in self.guests), *kernels, *programs, *images, *linux]))

    def kernel_files(self, kernel: BuiltKernel) -> tuple[Item, ...]:
        """What lies side by side on a worker of one kernel."""
        images = (item for arm, item in self.images if arm == kernel.arm)
        return (Item(VMLINUX, kernel.vmlinux_sha256), *images)


@dataclass(frozen=True)
class Packing:
    """A kit, and where its files lie on this machine, by SHA-256."""

    kit: Kit
    files: dict[str, Path]

    @property
    def kernels(self) -> dict[str, Path]:
        """This machine's kernels, by the name of the folder in which a worker has them."""
        return {
            tree_id(self.kit.kernel_files(kernel)): self.files[kernel.vmlinux_sha256]
            for kernel in self.kit.kernels
            if kernel.build == "ok"
        }


def pack(
    spec: TargetSpec,
    kinds: tuple[Kind, Accel | None],
    guests: Guests,
    kernels: Sequence[BuiltKernel],
    tests: Sequence[BuiltSelftests],
    linux: LinuxKit | None = None,
    hosts: Sequence[LabHost] = (),
) -> Packing:
    """The kit of a bench; ``kinds`` are those of the measuring trials' target and of the selftests', ``hosts`` the
    machines of the lab."""
    programs = sorted(path for path in guests.init.parent.iterdir() if path.is_file())
    items = tuple(Item(path.name, file_sha256(path)) for path in programs)
    files = {item.sha256: path for item, path in zip(items, programs, strict=True)}
    files |= {kernel.vmlinux_sha256: kernel.vmlinux for kernel in kernels if kernel.vmlinux is not None}
    images, initrds = _for_a_lab(kernels, hosts, files) if kinds[0] == "ssh" else ((), ())
    for built in tests:
        if built.folder is not None:
            files |= {item.sha256: built.folder / item.name for item in _programs(built)}
    bare_linux = None
    if linux is not None:
        own = "" if linux.kernel is None else file_sha256(linux.kernel)
        files |= {file.sha256: linux.folder / file.path for file in linux.packed.files}
        files |= {own: linux.kernel} if linux.kernel is not None else {}
        # Where a VMM or its fragments lie on the client is nobody else's business.
        bare_linux = BareLinux(dataclasses.replace(linux.spec, files=(), kernel="base"), linux.packed, own)
    bare_kernels = tuple(
        dataclasses.replace(kernel, vmlinux=None, config=None, system_map=None, log=NOWHERE) for kernel in kernels
    )
    bare_tests = tuple(dataclasses.replace(built, folder=None, log=NOWHERE) for built in tests)
    bare = dataclasses.replace(spec, lab=None)  # A path of this machine's; workers have lab files of their own.
    whole = Kit(bare, *kinds, guests.content_id, items, bare_kernels, bare_tests, images, initrds, bare_linux)
    return Packing(whole, files)


Named = tuple[tuple[str, Item], ...]


def _for_a_lab(kernels: Sequence[BuiltKernel], hosts: Sequence[LabHost], files: dict[str, Path]) -> tuple[Named, Named]:
    """A kit's ``images`` and ``initrds``; where they lie is added to ``files``."""
    beside = {kernel.arm: kernel.vmlinux.with_name(BZIMAGE) for kernel in kernels if kernel.vmlinux is not None}
    images = {arm: path for arm, path in beside.items() if path.exists()}
    initrds = {host.name: host.initrd for host in hosts if host.initrd is not None}
    found = {path: file_sha256(path) for path in (*images.values(), *initrds.values())}
    files |= {sha256: path for path, sha256 in found.items()}
    return (
        tuple((arm, Item(BZIMAGE, found[path])) for arm, path in images.items()),
        tuple((name, Item(INITRD, found[path])) for name, path in initrds.items()),
    )


def unpack(kit: Kit, depot: Depot, host: LabHost | None, say: Say) -> Bench:
    """The bench on this machine, from files that were shipped, with ``host`` as the target of ``ssh``.

    Raises :class:`StoreError` if a file is missing.
    """
    folder = depot.tree(kit.guests)
    guests = Guests(folder / "init", folder / "fault_vmm", folder / "tsc_khz", kit.guests_id)
    kernels = tuple(
        dataclasses.replace(kernel, vmlinux=depot.tree(kit.kernel_files(kernel)) / VMLINUX)
        if kernel.build == "ok"
        else kernel
        for kernel in kit.kernels
    )
    tests = tuple(
        dataclasses.replace(built, folder=depot.tree(_programs(built))) if built.build == "ok" else built
        for built in kit.tests
    )
    target: Target
    if kit.kind == "ssh":
        hosts = () if host is None else (_with_initrd(host, kit, depot),)
        target = labtarget.make_pool(hosts, guests, kernels, say)
    else:
        target = _machine(kit.kind, kit.spec.machine, guests)
    test_target = None if kit.test_accel is None else _machine(kit.test_accel, kit.spec.machine, guests)
    return Bench(kit.spec, kernels, tests, target, test_target, _linux(kit, depot, guests))


def _with_initrd(host: LabHost, kit: Kit, depot: Depot) -> LabHost:
    """With the client's, wherever this machine's lab file has one: it may have been changed since it was compared."""
    item = dict(kit.initrds).get(host.name)
    return dataclasses.replace(host, initrd=None if item is None else depot.file(item.sha256))


def _linux(kit: Kit, depot: Depot, guests: Guests) -> LinuxKit | None:
    if (bare := kit.linux) is None:
        return None
    kernel = depot.file(bare.kernel) if bare.kernel else None
    return LinuxKit(bare.spec, bare.packed, depot.tree(bare.items), kernel, guests)


@cache
def _machine(accel: Accel, machine: str, guests: Guests) -> Target:
    """Made once a process: what it measures of this machine takes longer than all else here."""
    return make_emulator(accel, machine, guests)


def _programs(tests: BuiltSelftests) -> tuple[Item, ...]:
    return tuple(Item(f"bin/{item.name}", item.sha256) for item in tests.programs if item.sha256)
