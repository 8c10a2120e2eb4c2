"""Linux guests under a real VMM: packed, their kernel built, and put into the host under test.

linux-guest/packed.json      in a run's folder: what was packed, each file with its package (vmm.py)
linux-guest/kernel.json      the guests' own kernel, if they have one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import cache, image, vmm
from orchestrator.errors import BuildError, StoreError, UserError
from orchestrator.experiment import Arm, Cell, Experiment, LinuxGuest, LinuxGuestSpec
from orchestrator.experiment.memory import KERNEL_MIB, VMM_MIB, needed_mib, ram_mib
from orchestrator.image import GuestFile, Guests
from orchestrator.kernel import build
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.source import KernelTree
from orchestrator.manifest import LinuxGuestId
from orchestrator.store import Store
from orchestrator.vmm import Packed

PACKED, KERNEL = "linux-guest/packed.json", "linux-guest/kernel.json"
KERNEL_ARM = "linux-guest"  # what the build calls the guests' own kernel; it is no arm
# Paths in the host under test, without the leading slash, as GuestFile has them.
VMLINUX, INITRAMFS, ARGV, PRELOAD = "guest/vmlinux", "guest/initramfs.cpio", "guest/argv", "lib/libstorm.so"
ARGV_FILE, INITRAMFS_FILE = "guest.argv", "guest.cpio"  # in the trial's folder
VMM_OWN_MIB = 48  # What QEMU maps besides its files and its guest's memory.
COMMAND_LINE = (
    "console=ttyS0",
    "loglevel=5",
    # A panic restarts at once, which ends the VMM.
    "panic=-1", "reboot=t",
    "rdinit=/init",
    # The same addresses in every boot and every arm.
    "nokaslr", "norandmaps",
    # Checking that the timer's interrupt comes through spins for ten ticks; KVM's does.
    "no_timer_check",
)  # fmt: skip


@dataclass(frozen=True)
class LinuxKit:
    """What trials with Linux guests need besides the kernel under test.

    ``folder`` holds the packed files at their paths. ``kernel`` is the guests', None for that of the trial's own arm.
    """

    spec: LinuxGuestSpec
    packed: Packed
    folder: Path
    kernel: Path | None
    guests: Guests


# --- as a stage of a run ----------------------------------------------------------------------------------------------


def pack(chosen: Experiment, say: Callable[[str], None]) -> Packed | None:
    """The VMM, None without Linux guests. Raises :class:`UserError` as :func:`vmm.pack` does, or if a cell with it does
    not fit the host under test, before minutes go into kernels."""
    if chosen.linux_guest is None:
        return None
    packed = vmm.pack(chosen.linux_guest, say)
    say(f"VMM: {describe(packed, chosen.linux_guest)}")
    if chosen.target.kind != "qemu":
        return packed  # A lab machine has it on its disk, and its memory is not for the config to say.
    for cell in chosen.linux_cells:
        need = needed_mib(cell) - VMM_MIB + packed.mib + VMM_OWN_MIB
        # While it boots, the host has the initramfs twice: as it came, and unpacked.
        need = max(need, 2 * packed.mib + KERNEL_MIB)
        if need > chosen.target.mem_mib:
            raise UserError(
                f"cell {cell.name} needs {need:.0f} MiB of the host under test, which has {chosen.target.mem_mib}:"
                f" {packed.mib:.0f} are the packed VMM, {ram_mib(cell)} the guest's memory",
                hint=f"{chosen.path}: target: {{mem_mib: {-(-int(need + 1) // 128) * 128}}}",
            )
    return packed


def describe(packed: Packed, spec: LinuxGuestSpec) -> str:
    """The VMM and the guests' kernel in a line."""
    kernels = {"base": "the base arm's", "arm": "each arm's own"}
    own = ", ".join(path.name for path in spec.fragments)
    kernel = kernels[spec.kernel] if isinstance(spec.kernel, str) else f"one of their own (base and {own})"
    files = f"packed in {len(packed.files)} files, {packed.mib:.0f} MiB"
    return f"{packed.program} ({packed.version}), {files}; the guests' kernel: {kernel}"


def identify(chosen: Experiment, packed: Packed | None) -> LinuxGuestId | None:
    """What the manifest says of it."""
    if packed is None or chosen.linux_guest is None:
        return None
    return LinuxGuestId(PACKED, packed.id, describe(packed, chosen.linux_guest))


def build_kernel(
    chosen: Experiment, tree: KernelTree | None, base: Arm, say: Callable[[str], None]
) -> BuiltKernel | None:
    """The guests' own kernel from the base's sources, with its patches; None where they run an arm's.

    Raises what :func:`build.build_arms` does.
    """
    spec = chosen.linux_guest
    if spec is None or tree is None or not isinstance(spec.kernel, tuple):
        return None
    arm = Arm(KERNEL_ARM, base.patches)
    (built,) = build.build_arms(tree, spec.kernel, [arm], cache.cache_dir(), lambda step: None)
    how = "built before, in" if built.cached else "built in"
    say(f"kernel of the Linux guests: {built.release}, {how} {built.build_seconds:.0f} s")
    return built


def save(store: Store, packed: Packed | None, kernel: BuiltKernel | None) -> None:
    """Keep in the run what its Linux guests ran."""
    if packed is not None:
        store.save(PACKED, packed)
    if kernel is not None:
        store.save(KERNEL, kernel)


def load(store: Store, chosen: Experiment, guests: Guests, kernels: Sequence[BuiltKernel]) -> LinuxKit | None:
    """What :func:`save` kept, ready to be used again; None without Linux guests. Raises :class:`StoreError`."""
    if chosen.linux_guest is None:
        return None
    own = store.load(KERNEL, BuiltKernel) if (store.run / KERNEL).exists() else None
    return make_kit(chosen, guests, store.load(PACKED, Packed), own, kernels)


def make_kit(
    chosen: Experiment, guests: Guests, packed: Packed, own: BuiltKernel | None, kernels: Sequence[BuiltKernel]
) -> LinuxKit:
    """All that there is, from the cache. ``kernels`` has the base's, if guests run that.

    Raises :class:`StoreError` if the cache has lost something.
    """
    spec = chosen.linux_guest
    assert spec is not None
    kernel = own if spec.fragments else next((item for item in kernels if item.arm == chosen.base.name), None)
    vmlinux = None if kernel is None or spec.kernel == "arm" else kernel.vmlinux
    if spec.kernel != "arm" and (vmlinux is None or not vmlinux.exists()):
        again = "run" if spec.fragments else "build"
        raise StoreError("the kernel of the Linux guests is not in the cache", hint=f"orch {again} {chosen.path}")
    return LinuxKit(spec, packed, vmm.folder(packed), vmlinux, guests)


# --- one trial --------------------------------------------------------------------------------------------------------


def options(guest: LinuxGuest) -> dict[str, str | int]:
    """What ``vmm_run`` (guests/vmm_run/main.c) is told beyond what ``fault_vmm`` is told as well."""
    return {
        "faults": guest.faults,
        "memory": guest.memory,
        "jitter-wakeups": guest.jitter_wakeups,
        "jitter-period-us": guest.jitter_period_us,
        "preload": f"/{PRELOAD}",
        "vmm-argv": f"/{ARGV}",
    }


def vmm_words(cell: Cell, kit: LinuxKit) -> tuple[str, ...]:
    """The VMM's command line in the host under test, the same for every arm."""
    arguments = kit.spec.words(
        kernel=f"/{VMLINUX}",
        initrd=f"/{INITRAMFS}",
        mem_mib=ram_mib(cell),
        cpus=cell.guest.vcpus,
        cmdline=" ".join(COMMAND_LINE),
    )
    return (kit.packed.program, *arguments)


def guest_files(cell: Cell, kit: LinuxKit, vmlinux: Path | None, folder: Path) -> tuple[GuestFile, ...]:
    """The VMM and its guest for the host's initramfs; ``vmlinux`` is the kernel under test, ``folder`` the trial's."""
    kernel = kit.kernel or vmlinux
    if kernel is None:
        raise BuildError(f"cell {cell.name} has no kernel for its guest")
    image.write_guest_initramfs(kit.guests, folder / INITRAMFS_FILE)
    (folder / ARGV_FILE).write_bytes(b"".join(word.encode() + b"\0" for word in vmm_words(cell, kit)))
    return (
        *(GuestFile(file.path, kit.folder / file.path) for file in kit.packed.files),
        GuestFile(VMLINUX, kernel),
        GuestFile(INITRAMFS, folder / INITRAMFS_FILE),
        GuestFile(ARGV, folder / ARGV_FILE),
        GuestFile(PRELOAD, kit.guests.program(image.LIBSTORM)),
    )
