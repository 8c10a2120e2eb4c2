"""What /dev/kvm really offers, asked by ioctl: its existence says little.

Numbers and layouts are of ``include/uapi/linux/kvm.h`` (x86-64), stable since API version 12 (Linux 2.6.22).
``python -m orchestrator.kvmdev`` runs the flat guest alone: in a child, since a broken KVM may never come back from
KVM_RUN.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator import proc
from orchestrator.errors import CommandError

DEVICE = Path("/dev/kvm")
API_VERSION = 12
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_RUN = 0xAE80
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_EXIT_HLT = 5

CPUID_ENTRIES = 256
CPUID_ENTRY = struct.Struct("<10I")  # struct kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx, padding[3]
SREGS_BYTES, REGS_BYTES = 312, 144
CS_BASE, CS_SELECTOR = 0, 12  # struct kvm_sregs starts with cs: base u64, limit u32, selector u16
RIP, RFLAGS = 16 * 8, 17 * 8  # struct kvm_regs: 16 general registers, rip, rflags
EXIT_REASON = 8  # struct kvm_run
FLAT_GUEST_DEADLINE_S = 10.0
HLT = b"\xf4"


@dataclass(frozen=True)
class KvmDevice:
    """``error`` is why the device cannot even be opened or makes no VM (then the rest is false), empty otherwise.

    ``svm``/``vmx``: whether guests may be offered AMD's or Intel's extensions, without which a kernel that runs under
    this KVM cannot use KVM in turn. ``flat_guest_error`` is why a guest of one instruction did not run, or empty.
    """

    error: str
    svm: bool
    vmx: bool
    flat_guest_error: str

    @property
    def nests(self) -> bool:
        return self.svm or self.vmx

    @property
    def runs_flat_guest(self) -> bool:
        return not self.error and not self.flat_guest_error


def probe(device: Path = DEVICE) -> KvmDevice:
    """Ask the device; never raises, never hangs."""
    if not device.exists():
        return KvmDevice(f"{device} does not exist", False, False, "")
    try:
        with _opened(device) as kvm:
            version = fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0)
            if version != API_VERSION:
                return KvmDevice(f"{device} speaks API version {version}, not {API_VERSION}", False, False, "")
            os.close(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
            svm, vmx = nesting_bits(_supported_cpuid(kvm))
    except OSError as error:
        return KvmDevice(f"{device} cannot be used: {error.strerror}", False, False, "")
    return KvmDevice("", svm, vmx, _flat_guest_error())


def nesting_bits(cpuid: bytes) -> tuple[bool, bool]:
    """``(svm, vmx)`` of a ``struct kvm_cpuid2``: CPUID 0x80000001 ECX bit 2, CPUID 1 ECX bit 5 (AMD APM, Intel SDM)."""
    svm = vmx = False
    (count,) = struct.unpack_from("<I", cpuid)
    for entry in range(count):
        function, _, _, _, _, ecx, *_ = CPUID_ENTRY.unpack_from(cpuid, 8 + entry * CPUID_ENTRY.size)
        svm |= function == 0x80000001 and bool(ecx & 1 << 2)
        vmx |= function == 1 and bool(ecx & 1 << 5)
    return svm, vmx


def nested_parameter() -> str:
    """``kvm_intel nested=N`` and the like: the module's own switch; empty where there is none."""
    for module in ("kvm_intel", "kvm_amd"):
        with contextlib.suppress(OSError):
            value = Path(f"/sys/module/{module}/parameters/nested").read_text("ascii").strip()
            return f"{module} nested={value}"
    return ""


def run_flat_guest(device: Path = DEVICE) -> None:
    """Run one HLT in real mode at address 0. Raises :class:`OSError` if KVM refuses or the guest ends otherwise."""
    with contextlib.ExitStack() as stack:
        kvm = stack.enter_context(_opened(device))
        machine = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        stack.callback(os.close, machine)
        memory = mmap.mmap(-1, mmap.PAGESIZE)
        memory[: len(HLT)] = HLT
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        fcntl.ioctl(machine, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, len(memory), address))
        vcpu = fcntl.ioctl(machine, KVM_CREATE_VCPU, 0)
        stack.callback(os.close, vcpu)
        state = mmap.mmap(vcpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
        sregs = bytearray(SREGS_BYTES)
        fcntl.ioctl(vcpu, KVM_GET_SREGS, sregs, True)
        struct.pack_into("<Q", sregs, CS_BASE, 0)
        struct.pack_into("<H", sregs, CS_SELECTOR, 0)
        fcntl.ioctl(vcpu, KVM_SET_SREGS, bytes(sregs))
        regs = bytearray(REGS_BYTES)
        struct.pack_into("<Q", regs, RIP, 0)
        struct.pack_into("<Q", regs, RFLAGS, 2)  # Bit 1 is always set.
        fcntl.ioctl(vcpu, KVM_SET_REGS, bytes(regs))
        fcntl.ioctl(vcpu, KVM_RUN, 0)
        (reason,) = struct.unpack_from("<I", state, EXIT_REASON)
        if reason != KVM_EXIT_HLT:
            raise OSError(0, f"KVM_RUN ended with exit reason {reason}, not KVM_EXIT_HLT")


def _flat_guest_error() -> str:
    try:
        proc.run([sys.executable, "-m", "orchestrator.kvmdev"], deadline_s=FLAT_GUEST_DEADLINE_S)
    except CommandError as error:
        return error.what.splitlines()[-1].strip(" |")
    return ""


def _supported_cpuid(kvm: int) -> bytes:
    buffer = bytearray(8 + CPUID_ENTRIES * CPUID_ENTRY.size)
    struct.pack_into("<I", buffer, 0, CPUID_ENTRIES)
    fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, buffer, True)
    return bytes(buffer)


@contextlib.contextmanager
def _opened(device: Path) -> Iterator[int]:
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    try:
        run_flat_guest()
    except OSError as failure:
        sys.exit(f"a guest of one instruction does not run: {failure.strerror}")
