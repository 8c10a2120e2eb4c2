"""The real tree: fetched with its signature checked, configured, built once in full and then by what changed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from realkernel import ARMS, FRAGMENTS

from orchestrator.cache import cache_dir
from orchestrator.experiment import Arm
from orchestrator.kernel import elf, kconfig
from orchestrator.kernel.build import BuiltKernel, build_arms
from orchestrator.kernel.source import KernelTree

pytestmark = [pytest.mark.kernel, pytest.mark.network]

APT = (Path("/etc/apt"), Path("/var/lib/apt/lists"))


def steps(kernel: BuiltKernel) -> list[str]:
    """Files that a build compiled."""
    return re.findall(r"^  CC +(\S+)$", kernel.log.read_text(), re.MULTILINE)


def test_the_tree_is_what_it_says(kernel_tree: KernelTree) -> None:
    assert re.fullmatch(r"5\.10\.\d+", kernel_tree.release)
    assert re.fullmatch(rf"Debian linux-source-5\.10 {re.escape(kernel_tree.release)}-\S+", kernel_tree.identity)
    assert (kernel_tree.path / "virt/kvm/kvm_main.c").is_file()
    assert kernel_tree.path.is_relative_to(cache_dir())


def test_every_requested_option_is_in_the_kernel(kernels: dict[str, BuiltKernel], kernel_tree: KernelTree) -> None:
    config = kernels["base"].config
    assert config
    have = kconfig.parse(config.read_text())
    requests = kconfig.read(FRAGMENTS)
    assert kconfig.check(requests, config.read_text(), kernel_tree.path) == ()
    assert have["KVM_AMD"] == have["KVM_INTEL"] == have["PVH"] == "y"
    # What `make tinyconfig` and a merge would have let in by `default y`.
    assert not {"INPUT", "VT", "HID", "SERIO", "THERMAL", "CPU_FREQ", "INET", "WIRELESS"} & have.keys()


def test_a_vanished_option_names_its_dependency(kernel_tree: KernelTree, tmp_path: Path) -> None:
    """Only Kconfig is asked: the option is lost before anything would be compiled."""
    path = tmp_path / "x.config"
    path.write_text("CONFIG_VHOST_NET=y\n")
    (problem,) = kconfig.check(kconfig.read([path]), "", kernel_tree.path)
    assert problem.startswith(
        f"{path}:1: expected CONFIG_VHOST_NET=y, found # CONFIG_VHOST_NET is not set: it depends on"
    )


def test_arms_cost_what_they_change(kernels: dict[str, BuiltKernel]) -> None:
    base, v1 = kernels["base"].log, steps(kernels["v1"])
    # Not from the log: a build that was killed goes on where it was, and its log has only the rest.
    full = list((cache_dir() / "build" / base.parent.name / "base").rglob(".*.o.cmd"))
    assert 700 < len(full) < 1118, "the design's small config compiled 1,054 to 1,118"
    assert {"arch/x86/kvm/mmu/mmu.o", "arch/x86/kvm/../../../virt/kvm/kvm_main.o"} <= set(v1)
    assert len(v1) <= 0.15 * len(full)
    assert steps(kernels["comment"]) == ["arch/x86/kvm/mmu/mmu.o"]


def test_the_same_code_gives_the_same_kernel(kernels: dict[str, BuiltKernel]) -> None:
    """A comment recompiles and relinks, in a directory where v1 was built before: base again, to the last bit."""
    base, v1, comment = kernels["base"], kernels["v1"], kernels["comment"]
    assert comment.vmlinux_sha256 == base.vmlinux_sha256 != v1.vmlinux_sha256
    assert comment.build_id == base.build_id != v1.build_id
    assert base.vmlinux and elf.build_id(base.vmlinux) == base.build_id


def test_nothing_of_the_machine_is_in_the_kernel(kernels: dict[str, BuiltKernel]) -> None:
    base = kernels["base"]
    assert base.vmlinux and re.fullmatch(r"5\.10\.\d+", base.release)
    data = base.vmlinux.read_bytes()
    assert b"(orch@orch)" in data and b"#1 SMP PREEMPT Mon Jan 25 12:00:00 UTC 2021" in data
    assert str(cache_dir()).encode() not in data and os.uname().nodename.encode() + b")" not in data


def test_a_patch_that_does_not_compile(kernels: dict[str, BuiltKernel]) -> None:
    broken = kernels["broken"]
    assert broken.build == "failed" and broken.vmlinux is None
    first = broken.error.splitlines()[0]
    assert re.match(r"arch/x86/kvm/mmu/mmu\.c:\d+:\d+: error: 'planted_undeclared' undeclared", first)
    assert "make -C" in broken.log.read_text()


def cpu_s() -> float:
    """CPU time of this process and of all that it has started and waited for: other loads make none of it."""
    return sum(os.times()[:4])


def test_a_warm_start_takes_no_time_and_touches_no_apt(
    kernels: dict[str, BuiltKernel], kernel_tree: KernelTree
) -> None:
    before = [path.stat().st_mtime_ns for path in APT]
    started = cpu_s()
    arms = [Arm(name, patches) for name, patches in ARMS.items() if name != "broken"]
    again = build_arms(kernel_tree, FRAGMENTS, arms, cache_dir(), lambda step: pytest.fail(step.line))
    assert all(kernel.cached for kernel in again) and cpu_s() - started < 5
    assert [kernel.vmlinux_sha256 for kernel in again] == [kernels[kernel.arm].vmlinux_sha256 for kernel in again]
    assert [path.stat().st_mtime_ns for path in APT] == before
