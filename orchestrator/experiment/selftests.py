"""What ``checks: [kvm_selftests]`` runs: which of the kernel's own KVM selftests, how long, on what machine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from orchestrator.experiment.strict import STRICT

# Names become paths below tools/testing/selftests/kvm, and words of the list that guests/ktest_runner reads: no blank,
# no "..", no '#', which ends a name in its report.
TEST_NAME = r"^[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*)?$"
ARGUMENT = r"^[A-Za-z0-9_.,:=+/-]+$"
CELL_NAME: Literal["kvm-selftests"] = "kvm-selftests"
START_S = 60.0  # What the boot may take besides the tests' own time, s.

ARGUMENT_WORDS = "an argument of letters, digits and _.,:=+/-"
Argument = Annotated[str, Field(pattern=ARGUMENT, max_length=64)]


@dataclass(frozen=True, config=STRICT)
class Selftest:
    """One test with its arguments."""

    test: Annotated[
        str,
        Field(pattern=TEST_NAME, max_length=64, description="a test of tools/testing/selftests/kvm"),
    ]
    args: Annotated[tuple[Argument, ...], Field(max_length=16, description="its arguments, a list of text")] = ()
    timeout_s: Annotated[
        float, Field(gt=0, le=7200, description="time of the target's own clock after which it is ended, s")
    ] = 60.0
    cpus: Annotated[
        int, Field(ge=1, le=64, description="emulated CPUs that it needs; where there are fewer it is skipped by name")
    ] = 1

    @property
    def label(self) -> str:
        """The test with its arguments: what it is called in lists and reports."""
        return " ".join((self.test, *self.args))


# The tests of Linux 5.10 that an emulated AMD CPU can run, with ten times the time they were seen to take.
DEFAULT_TESTS = (
    Selftest("demand_paging_test", timeout_s=300.0),
    Selftest("dirty_log_perf_test", timeout_s=300.0),
    # Its vCPU and the thread that collects the log must run at the same time.
    Selftest("dirty_log_test", timeout_s=600.0, cpus=2),
    Selftest("kvm_create_max_vcpus"),
    Selftest("set_memory_region_test", timeout_s=120.0),
    Selftest("steal_time"),
    Selftest("x86_64/cr4_cpuid_sync_test"),
    Selftest("x86_64/hyperv_cpuid"),
    Selftest("x86_64/kvm_pv_test"),
    Selftest("x86_64/platform_info_test"),
    Selftest("x86_64/set_sregs_test"),
    Selftest("x86_64/svm_vmcall_test"),
    Selftest("x86_64/sync_regs_test"),
    Selftest("x86_64/tsc_msrs_test"),
    Selftest("x86_64/user_msr_test"),
)


@dataclass(frozen=True, config=STRICT)
class SelftestSpec:
    """The tests and the machine they run on, which may be another than the measuring trials'."""

    tests: Annotated[tuple[Selftest, ...], Field(min_length=1, max_length=256, description="the tests, in order")] = (
        DEFAULT_TESTS
    )
    base_runs: Annotated[
        int, Field(ge=1, le=100, description="boots of the base: what differs between them is flaky and not gated")
    ] = 2
    runs: Annotated[int, Field(ge=1, le=100, description="boots of every other arm")] = 1
    accel: Annotated[
        Literal["tcg", "kvm", "icount"], Field(description="tcg: concurrent; kvm: real; icount: bit-exact, one CPU")
    ] = "tcg"
    cpus: Annotated[int, Field(ge=1, le=64, description="emulated CPUs; icount takes one")] = 2
    mem_mib: Annotated[int, Field(ge=512, le=1024 * 1024, description="memory of the host under test, MiB")] = 4096
    deadline_s: Annotated[float, Field(gt=0, le=86400, description="wall time after which a boot is a hang, s")] = (
        1800.0
    )

    def enough_cpus(self, test: Selftest) -> bool:
        """Whether the target has the CPUs that a test needs."""
        return test.cpus <= self.cpus

    @property
    def guest_deadline_s(self) -> float:
        """Time inside the target within which all tests have ended, one way or the other."""
        return START_S + sum(test.timeout_s for test in self.tests)


@dataclass(frozen=True, config=STRICT)
class SelftestCell:
    """One boot in which the selftests run: what a :class:`Cell` is for a measuring trial."""

    name: Literal["kvm-selftests"]
    selftests: SelftestSpec
