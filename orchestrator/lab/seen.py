"""What a machine says about itself, by files that every kernel has."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.kernel.elf import find_build_id
from orchestrator.lab.journal import KernelId
from orchestrator.lab.remote import NoSuchFile, Transport

RELEASE = "/proc/sys/kernel/osrelease"
VERSION = "/proc/sys/kernel/version"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
NOTES = "/sys/kernel/notes"
# Without TDP, KVM's vendor module says so here (arch/x86/kvm/svm/svm.c, arch/x86/kvm/vmx/vmx.c).
TDP_SWITCHES = ("/sys/module/kvm_amd/parameters/npt", "/sys/module/kvm_intel/parameters/ept")

DEVICE = "/dev/kvm"


@dataclass(frozen=True)
class Seen:
    """The kernel that runs, and which of its boots this is."""

    kernel: KernelId
    boot_id: str


def look(transport: Transport) -> Seen:
    """Ask for both. Raises :class:`~orchestrator.lab.remote.Cut`."""
    release, version, boot_id = (_line(transport, path) for path in (RELEASE, VERSION, BOOT_ID))
    try:
        build_id = find_build_id(transport.read(NOTES))
    except NoSuchFile:
        build_id = ""
    return Seen(KernelId(release, version, build_id), boot_id)


def boot_id(transport: Transport) -> str:
    """Which boot this is."""
    return _line(transport, BOOT_ID)


def tdp(transport: Transport) -> bool | None:
    """Whether the running KVM uses NPT or EPT; None if there is no KVM.

    A vendor module with neither switch (kvm_pvm) can only shadow.
    """
    for path in TDP_SWITCHES:
        value = _line(transport, path)
        if value:
            return value in ("Y", "1")
    return False if transport.size(DEVICE) >= 0 else None


def _line(transport: Transport, path: str) -> str:
    try:
        return transport.read(path).decode("utf-8", "replace").strip()
    except NoSuchFile:
        return ""
