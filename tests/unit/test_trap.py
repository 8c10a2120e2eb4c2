"""guests/fault_vmm/trap.c: what is said when the flat guest leaves in a way that it never should, on this /dev/kvm."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator import kvmdev

GUESTS = Path(__file__).parents[2] / "guests"
# fault_vmm's VM, with one thing planted in its memory between creation and the first round.
HARNESS = """
#include <sys/ioctl.h>
#include "common.h"
#include "fault_vmm.h"

static void plant(struct vm *vm, const char *what)
{
    uint8_t *read = vm->sys + ((guest_read - guest_start) + 63) / 64 * 64;
    uint64_t *pd = (uint64_t *)(vm->sys + layout_pml4_gpa() + 2 * PAGE_BYTES);
    struct kvm_sregs sregs;

    while (read[0] != 0x0f || read[1] != 0x31)
        read++;
    if (!strcmp(what, "ud2"))
        memcpy(read, "\\x0f\\x0b", 2);
    if (!strcmp(what, "not present") || !strcmp(what, "no idt"))
        pd[MEM_GPA / HUGE_BYTES] = 0;
    if (!strcmp(what, "no slot"))
        pd[MEM_GPA / HUGE_BYTES] = 0x80000000ull | 0xe3;
    if (!strcmp(what, "no idt")) {
        die_if(ioctl(vm->vcpus[0].fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
        sregs.idt.limit = 0;
        die_if(ioctl(vm->vcpus[0].fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    }
}

int main(int argc, char **argv)
{
    static struct params params = { .vcpus = 1, .mem_bytes = 4 << 20, .stride_bytes = PAGE_BYTES, .rounds = 1 };
    static struct vm vm;

    vm_create(&vm, &params);
    plant(&vm, argv[1]);
    vcpu_warm(&vm, &vm.vcpus[0]);
    vcpu_round(&vm, &vm.vcpus[0], 0);
    return 0;
}
"""
DAMAGED = "its code or page tables are DAMAGED: a page that is not its own any more?"


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    device = kvmdev.probe()
    if not device.runs_flat_guest:
        pytest.skip(f"no guest can run here: {device.error or device.flat_guest_error}")
    folder = tmp_path_factory.mktemp("trap")
    (folder / "harness.c").write_text(HARNESS)
    names = ("vm.c", "layout.c", "trap.c", "counters.c", "guest.S", "trap_stubs.S")
    sources = [folder / "harness.c", *(GUESTS / "fault_vmm" / name for name in names)]
    flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"]
    include = [f"-I{GUESTS / name}" for name in ("include", "storm", "vmm", "fault_vmm")]
    subprocess.run(["gcc", *flags, *include, "-o", folder / "harness", *sources], check=True)
    return folder / "harness"


def planted(harness: Path, what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([harness, what], capture_output=True, text=True, timeout=60, check=False)


def test_an_untouched_guest_ends_its_round(harness: Path) -> None:
    done = planted(harness, "nothing")
    assert (done.returncode, done.stderr) == (0, "")


def said(harness: Path, what: str) -> str:
    """The reason: the last line, after the registers."""
    done = planted(harness, what)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 3, done.stderr
    assert all(re.fullmatch(r"(r\w+ [0-9a-f]{16} ?)+", line) for line in lines[:2])
    return lines[2].split(": ", 1)[1]


def test_an_exception_is_told_with_its_place(harness: Path) -> None:
    reason = said(harness, "ud2")
    assert re.match(
        r"the guest on vCPU 0 took exception 6 \(#UD\) at guest_read\+0x[0-9a-f]+, error code 0, cr2 0,"
        r" 1024 accesses before the end; ",
        reason,
    ), reason
    assert reason.endswith(DAMAGED)


def test_a_page_fault_is_told_with_its_address_and_error_code(harness: Path) -> None:
    reason = said(harness, "not present")
    assert "exception 14 (#PF) at guest_read+" in reason
    assert "error code 0, cr2 0x100000000, 1024 accesses before the end" in reason and reason.endswith(DAMAGED)


def test_a_triple_fault_is_told_with_what_is_left_of_it(harness: Path) -> None:
    reason = said(harness, "no idt")
    what = "cr2 0x100000000, rcx 1024, r10 0x100000000"
    assert reason == f"the guest on vCPU 0 ended in a triple fault: {what}; {DAMAGED}"


def test_an_access_beside_every_memslot_is_told_with_its_gpa(harness: Path) -> None:
    assert said(harness, "no slot") == f"vCPU 0 touched gpa 0x80000000, where no memslot is; {DAMAGED}"
