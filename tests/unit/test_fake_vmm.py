"""guests/libstorm from the first word of the guest to the recording, in a VMM that has neither KVM nor a guest."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator import proc, recording

HERE = Path(__file__).parent
GUESTS = HERE.parents[1] / "guests"
PAGES, ROUNDS = 512, 2
TRIAL = ("--mem-bytes", PAGES * 4096, "--rounds", ROUNDS)
TWO = ("--vcpus", 2)


@dataclass(frozen=True)
class Vmm:
    """The programs, and a folder for what one run of them leaves."""

    programs: Path
    folder: Path

    def run(
        self, *options: object, minflt: int = 0, fixed: int = PAGES, ids: tuple[int, ...] = (0,), **env: str
    ) -> subprocess.CompletedProcess[str]:
        """``vmm_run`` with the fake VMM; see there for what its arguments are."""
        words = [self.programs / "fake_vmm", minflt, fixed, *ids]
        (self.folder / "argv").write_bytes(b"".join(str(word).encode() + b"\0" for word in words))
        (self.folder / "debugfs").mkdir()
        argv = [
            self.programs / "vmm_run",
            "--preload",
            self.programs / "libstorm.so",
            "--vmm-argv",
            self.folder / "argv",
        ]
        argv += ["--control", self.folder / "control", "--console", self.folder / "console", "--boot-seconds", 30]
        argv += ["--out", self.folder / "recording.bin", *TRIAL, *options]
        env = {**os.environ, "FAKE_DEBUGFS": str(self.folder / "debugfs"), **env}
        return subprocess.run(
            [str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False, env=env
        )

    def recorded(self) -> recording.Recording:
        return recording.read(self.folder / "recording.bin")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("build")
    targets = [f"{build}/bin/{name}" for name in ("vmm_run", "libstorm.so")]
    proc.run(["make", "-j2", "-s", "-C", GUESTS, f"BUILD={build}", *targets], deadline_s=120)
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread", "-rdynamic"]
    source = HERE / "fake_vmm.c"
    proc.run(["gcc", *flags, f"-I{GUESTS}/include", "-o", build / "bin/fake_vmm", source, "-ldl"])
    return build / "bin"


@pytest.fixture
def vmm(programs: Path, tmp_path: Path) -> Vmm:
    return Vmm(programs, tmp_path)


def test_a_vm_that_is_made_off_the_main_thread_is_found_in_debugfs(vmm: Vmm) -> None:
    """Linux 5.10 names the VM's folder by the thread that made it."""
    done = vmm.run()
    assert (done.returncode, done.stderr) == (0, "preloaded: ''\n"), "and what the VMM starts is not preloaded"
    found = vmm.recorded()
    assert found.header.has_counters and found.counter("pf_fixed") == PAGES * ROUNDS
    assert found.nr_faults == PAGES * ROUNDS and found.counter("guest_minflt") == 0


def test_a_folder_that_is_missing_is_named(vmm: Vmm) -> None:
    done = vmm.run(FAKE_NO_FOLDER="1")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "no TSC offset of vCPU 0: this kernel has neither KVM_VCPU_TSC_OFFSET nor /sys/kernel/debug/kvm/" in last
    assert "/vcpu0/tsc-offset: No such file or directory" in last


@pytest.mark.parametrize("ids", [(0, 1), (0, 4), (2, 200)])
def test_vcpus_are_counted_in_the_order_of_their_making_whatever_kvm_calls_them(vmm: Vmm, ids: tuple[int, ...]) -> None:
    done = vmm.run(*TWO, ids=ids)
    assert done.returncode == 0, done.stderr
    pieces = list(vmm.recorded().chunks(PAGES * ROUNDS))
    assert [piece.vcpu for piece in pieces] == [0, 1] and [len(piece.page) for piece in pieces] == [PAGES, PAGES]
    # The guest's clock reads 0 in these samples; the host's is that less the offset.
    assert [int(piece.start_tsc[0]) for piece in pieces] == [1000 + number for number in ids]


def test_fewer_vcpus_than_asked_for_are_an_error(vmm: Vmm) -> None:
    assert "--vcpus 2, but the VMM runs 1" in vmm.run(*TWO).stderr


@pytest.mark.parametrize(
    ("faults", "minflt", "fixed", "reason"),
    [
        ("host", 0, PAGES, ""),
        ("host", 1, PAGES, "took 2 faults, and --faults asks for 0"),
        ("guest", PAGES, 0, ""),
        ("guest", PAGES // 16, 0, "in 1024 samples the guest's own kernel took 64 faults, and --faults asks for 1024"),
        ("guest", PAGES + 1, 0, "took 1026 faults, and --faults asks for 1024"),
        ("guest", PAGES, 1, "in 1024 samples KVM mapped 2 pages: the host did not back what the guest's kernel gave"),
    ],
)
def test_samples_must_be_faults_of_the_kind_that_was_asked_for(
    vmm: Vmm, faults: str, minflt: int, fixed: int, reason: str
) -> None:
    done = vmm.run("--faults", faults, minflt=minflt, fixed=fixed)
    assert (done.returncode, (vmm.folder / "recording.bin").exists()) == ((1, False) if reason else (0, True))
    assert reason in done.stderr


def test_one_stray_fault_in_a_thousand_is_the_guests_own_business(vmm: Vmm) -> None:
    """1,024 samples in one round: one more fault of either kind is let pass."""
    done = vmm.run("--mem-bytes", 1024 * 4096, "--rounds", 1, "--faults", "guest", minflt=1025, fixed=1)
    assert done.returncode == 0, done.stderr
