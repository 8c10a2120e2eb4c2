"""target/local.py: what it leaves is what init would leave; and, where /dev/kvm works, the real thing."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from simulate import whole

from orchestrator import image, kvmdev, recording
from orchestrator.errors import TargetError
from orchestrator.experiment import Cell, Guest, Storm, TargetSpec
from orchestrator.image import Guests
from orchestrator.kvmdev import KvmDevice
from orchestrator.plan import Trial
from orchestrator.results import Outcome, TrialResult
from orchestrator.target import local
from orchestrator.target.target import COMMAND, CONSOLE, RECORDING, STATUS, Job
from orchestrator.trial import run_trial


def guests_of(program: Path) -> Guests:
    """Guests whose one program is ``program``."""
    return Guests(program, program, program, "id")


def scripted(tmp_path: Path, script: str) -> local.LocalTarget:
    """A target whose guest program is a shell script."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    program = tmp_path / "bin" / "fault_vmm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return local.LocalTarget(guests_of(program))


def job(**changes: object) -> Job:
    values: dict[str, object] = {
        "vmlinux": None, "words": ("--arm", "a b"), "tdp": local.running_tdp(), "swap": False, "cpus": 1,
        "mem_mib": 1024, "deadline_s": 30.0, "guest_deadline_s": 60.0,
    }  # fmt: skip
    return Job(**(values | changes))  # type: ignore[arg-type]


def trial_folder(tmp_path: Path) -> Path:
    (tmp_path / "trial").mkdir()
    return tmp_path / "trial"


def test_a_program_runs_in_the_trials_folder_with_its_words(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path)
    target = scripted(tmp_path, f'printf "%s\\n" "$@" >&2; pwd >&2; echo data >{RECORDING}')
    seen = target.run(job(), folder)
    assert (seen.ending, seen.returncode, seen.boot_seconds) == ("ended", 0, 0.0) and seen.wall_seconds > 0
    assert (folder / STATUS).read_text() == (
        f"pid1 0\nstderr --arm\nstderr a b\nstderr --out\nstderr {RECORDING}\nstderr {folder}\nexit 0\nend 0\n"
    )
    assert (folder / RECORDING).read_text() == "data\n" and (folder / CONSOLE).exists()
    assert (folder / COMMAND).read_text().splitlines()[1].endswith(f"--arm 'a b' --out {RECORDING}")


@pytest.mark.parametrize(
    ("script", "outcome", "reason"),
    [
        ("echo 'no /dev/kvm' >&2; exit 1", Outcome.FAILED, "the program exited with 1: no /dev/kvm"),
        ("kill -SEGV $$", Outcome.FAILED, "the program died of signal 11"),
        ("exit 0", Outcome.FAILED, "the program said it was done, but cannot read the recording"),
    ],
)
def test_how_a_program_can_fail(tmp_path: Path, script: str, outcome: Outcome, reason: str) -> None:
    result = run_one(
        scripted(tmp_path, script), Cell("quiet", Guest(rounds=1, tdp=local.running_tdp()), None), tmp_path
    )
    assert result.outcome is outcome and result.reason.startswith(reason), result.reason


@pytest.mark.parametrize("deadlines", [{"deadline_s": 0.3}, {"guest_deadline_s": 0.3}])
def test_a_program_that_does_not_end_is_killed_at_the_nearer_deadline(
    tmp_path: Path, deadlines: dict[str, float]
) -> None:
    target = scripted(tmp_path, "trap '' TERM; sleep 60")
    started = time.monotonic()
    seen = target.run(job(**deadlines), trial_folder(tmp_path))
    assert seen.ending == "wall-deadline" and time.monotonic() - started < 30


def test_a_hang_of_the_running_kernel_is_a_hang_while_the_program_ran(tmp_path: Path) -> None:
    quiet = Cell("quiet", Guest(rounds=1, tdp=local.running_tdp()), None)
    result = run_one(scripted(tmp_path, "sleep 60"), quiet, tmp_path, deadline_s=0.3)
    assert (result.outcome, result.reason) == (
        Outcome.HANG,
        "no end within the deadline (wall time), while the program ran",
    )


def test_the_other_paging_mode_is_refused(tmp_path: Path) -> None:
    wanted = not local.running_tdp()
    with pytest.raises(TargetError, match="the running KVM uses") as caught:
        scripted(tmp_path, "exit 0").run(job(tdp=wanted), trial_folder(tmp_path))
    assert caught.value.hint == f"set guest.tdp: {str(not wanted).lower()} in the config"


def test_a_machine_without_kvm_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in (KvmDevice("/dev/kvm does not exist", False, False, ""), KvmDevice("", False, False, "it hangs")):
        monkeypatch.setattr(kvmdev, "probe", lambda device=device: device)
        with pytest.raises(TargetError, match=device.error or device.flat_guest_error):
            local.check_local()
    monkeypatch.setattr(kvmdev, "probe", lambda: KvmDevice("", False, False, ""))
    local.check_local()


def test_the_console_is_what_the_kernel_said_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = iter(["[1] old\n", "[1] old\n[2] kvm: new\n"])
    monkeypatch.setattr(local, "_kernel_log", lambda: next(logs))
    folder = trial_folder(tmp_path)
    scripted(tmp_path, "exit 0").run(job(), folder)
    assert (folder / CONSOLE).read_text() == "[2] kvm: new\n"


def run_one(target: local.LocalTarget, cell: Cell, tmp_path: Path, deadline_s: float = 60.0) -> TrialResult:
    trial = Trial("000", "running", cell, 0, 0, 7)
    spec = TargetSpec("local", deadline_s=deadline_s)
    (tmp_path / "000").mkdir()
    return run_trial(trial, spec, None, target, tmp_path / "000", "orch trial RUN 000")


# --- the real /dev/kvm ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> local.LocalTarget:
    device = kvmdev.probe()
    if not device.runs_flat_guest:
        pytest.skip(f"target: local cannot work here: {device.error or device.flat_guest_error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return local.LocalTarget(image.build_guests(print))


@pytest.mark.parametrize("placement", [None, "outside", "overlap", "other-process"])
def test_a_real_guest_faults_on_every_page(real: local.LocalTarget, tmp_path: Path, placement: str | None) -> None:
    storm = None
    if placement is not None:
        storm = Storm(op="madvise_dontneed", placement=placement, size_kib=64, period_us=200)  # type: ignore[arg-type]
    rounds = 60  # Long enough that a storm blows in it, wherever its thread must wait for a CPU.
    guest = Guest(mem_mib=1, rounds=rounds, order="random", tdp=local.running_tdp())
    result = run_one(real, Cell("cell", guest, storm), tmp_path)
    assert result.outcome is Outcome.OK, (result.reason, result.trace)
    found = recording.read(tmp_path / "000" / RECORDING)
    faults = whole(found)
    assert sorted(faults.page) == sorted(list(range(256)) * rounds)
    assert (found.header.seed, found.header.random, found.header.tdp) == (7, True, local.running_tdp())
    assert faults.latency_cycles.min() > 0 and (len(found.windows) > 0) == (placement is not None)


@pytest.mark.parametrize(("mask", "vcpus", "storm_cpu", "expected"), [
    ({1}, 1, "any", {"1"}), ({0, 1}, 1, "other", {"0", "1"}), ({0, 1}, 2, "any", {"0", "1", "0-1"}),
])  # fmt: skip
def test_guest_and_storm_stay_on_the_cpus_that_the_program_was_given(
    real: local.LocalTarget, tmp_path: Path, mask: set[int], vcpus: int, storm_cpu: str, expected: set[str]
) -> None:
    """CPU 0 of the cell is the first one of the program's affinity: so a lab machine's description places a trial."""
    if not mask <= os.sched_getaffinity(0):
        pytest.skip("this machine has not these CPUs")
    argv = [str(real.guests.fault_vmm), "--arm", "a", "--cell", "c", "--out", str(tmp_path / "out"), "--seed", "1",
            "--vcpus", str(vcpus), "--mem-bytes", "1048576", "--stride-bytes", "4096", "--rounds", "100",
            "--storm", "madvise_dontneed", "--placement", "outside", "--storm-bytes", "65536", "--storm-period-us",
            "1000", "--storm-cpu", storm_cpu]  # fmt: skip
    seen: set[str] = set()
    with subprocess.Popen(["taskset", "--cpu-list", ",".join(map(str, sorted(mask))), *argv]) as process:
        while process.poll() is None:
            for status in Path(f"/proc/{process.pid}/task").glob("*/status"):
                with contextlib.suppress(OSError):
                    text = status.read_text()
                    if text.startswith("Name:\tfault_vmm\n"):  # and not taskset, before it becomes that
                        seen |= set(re.findall(r"^Cpus_allowed_list:\t(\S+)", text, re.MULTILINE))
            time.sleep(0.005)
    assert process.returncode == 0 and expected <= seen <= expected | {"0-1" if mask == {0, 1} else "1"}, seen
