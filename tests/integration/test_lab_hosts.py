"""The lab hosts themselves, by hand: what the tests of ``target: ssh`` stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
from labhosts import MARKS, LabVm

from orchestrator import image, recording
from orchestrator.errors import CommandError
from orchestrator.kernel.build import BuiltKernel
from orchestrator.trial import padded

pytestmark = [*MARKS]

TRIAL = (
    f"/root/fault_vmm --arm '{padded('base')}' --cell quiet --seed 1 --vcpus 1 --mem-bytes 4194304 --stride-bytes 4096"
    " --rounds 2 --access write --order sequential --page 4k --backing absent --out /root/recording.bin"
)


def test_each_host_is_a_machine_of_its_own_with_kvm(lab: tuple[LabVm, ...]) -> None:
    for host in lab:
        assert host.ssh("hostname; uname -r").split() == [host.name, host.image.release]
        assert host.ssh("stat -c %F /dev/kvm; findmnt -no SOURCE,FSTYPE /").split("\n")[:2] == [
            "character special file",
            "/dev/vda ext4",
        ]
        assert "kvm: Nested Virtualization enabled" in host.console()
    assert len({(host.folder / "host_key.pub").read_text() for host in lab}) == len(lab)
    impostor = LabVm(lab[0].name, lab[0].folder, lab[0].image, lab[1].proxy, lab[1].port)
    with pytest.raises(CommandError, match="exited with 255"):
        impostor.ssh("true")


@pytest.mark.dear
def test_kexec_leads_to_a_kernel_under_test_that_measures_and_a_break_leads_back(
    lab: tuple[LabVm, ...], lab_kernels: dict[str, BuiltKernel], tmp_path: Path
) -> None:
    host, kernel = lab[0], lab_kernels["base"]
    assert kernel.vmlinux is not None
    guests = image.build_guests(print)
    host.copy(kernel.vmlinux, "/root/vmlinux")
    host.copy(guests.program("fault_vmm"), "/root/fault_vmm")
    host.ssh('kexec -l /root/vmlinux --args-linux --command-line="$(cat /proc/cmdline) nokaslr" && sync')
    host.ssh("(sleep 0.5; kexec -e) >/dev/null 2>&1 &")
    assert host.await_ssh(kernel.release) == kernel.release
    notes = bytes.fromhex(host.ssh("od -An -v -tx1 /sys/kernel/notes"))
    assert bytes.fromhex(kernel.build_id) in notes
    host.ssh(TRIAL, deadline_s=120)
    host.fetch("/root/recording.bin", tmp_path / "recording.bin")
    header = recording.read(tmp_path / "recording.bin").header
    assert (header.mem_bytes, header.rounds, header.arm.rstrip()) == (4 << 20, 2, "base") and header.tdp
    host.sysrq("sb")
    assert host.await_ssh(host.image.release) == host.image.release
    assert host.ssh("cmp /root/vmlinux - && echo same", stdin=kernel.vmlinux.read_bytes()) == "same\n"


@pytest.mark.dear
def test_a_host_that_is_off_is_silent_until_the_power_command(lab: tuple[LabVm, ...]) -> None:
    host = lab[1]
    host.switch_off()
    with pytest.raises(CommandError):
        host.ssh("true", deadline_s=5)
    host.power_cycle()
    assert host.await_ssh() == host.image.release
