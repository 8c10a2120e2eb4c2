"""Every kind of machine that a kernel can be booted on here, and the one that is running."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from orchcli import check_samples, derive, orch, run
from realkernel import PLANTED

from orchestrator import doctor, kvmdev
from orchestrator.results import Outcome
from orchestrator.target import local

booted = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]
V1 = {"base": [], "v1": ["../../patches/hva-retry/v1.patch"]}


@pytest.mark.parametrize("machine", [pytest.param("q35", marks=booted)])
def test_a_pc_with_pci_boots_too_in_both_paging_modes(tmp_path: Path, machine: str) -> None:
    target = {"kind": "qemu", "accel": "icount", "machine": machine, "mem_mib": 256, "deadline_s": 120}
    cells = {"quiet": {"guest": {"tdp": [True, False]}, "storm": "none"}}
    done = run(derive(PLANTED, tmp_path, name="q35", arms={"base": []}, cells=cells, target=target), tmp_path / "r")
    assert done.ended.code == 0, done.ended.text
    check_samples(done)
    on, off = (done.recording(f"quiet,tdp={mode}", "base") for mode in ("on", "off"))
    assert on.header.tdp and not off.header.tdp
    fast, slow = (np.median(next(found.chunks()).latency_cycles) for found in (on, off))
    assert slow > fast, "shadow paging reads the guest's tables"


@pytest.mark.parametrize("machine", [pytest.param("microvm", marks=booted)])
def test_two_cpus_at_once_under_tcg(tmp_path: Path, machine: str) -> None:
    """No figure is asserted: time is the emulator's. But storms and faults really overlap, and all is recorded."""
    target = {"kind": "qemu", "accel": "tcg", "machine": machine, "cpus": 2, "mem_mib": 256, "deadline_s": 120}
    storm = {"op": "madvise_dontneed", "placement": "outside", "size_kib": 1024, "cpu": "other"}
    cells = {"storm": {"storm": storm}, "two-vcpus": {"guest": {"vcpus": 2}, "storm": "none"}}
    done = run(derive(PLANTED, tmp_path, name="two", arms=V1, cells=cells, target=target), tmp_path / "r")
    assert done.ended.code == 0 and {item.outcome for item in done.results.values()} == {Outcome.OK}, done.ended.text
    check_samples(done)
    for arm in V1:
        storm_recording, two = done.recording("storm", arm), done.recording("two-vcpus", arm)
        assert two.header.nr_vcpus == 2 and [len(piece) for piece in two.chunks()] == [2048, 2048]
        windows, header = storm_recording.windows, storm_recording.header
        inside = (windows["start_tsc"] > header.start_tsc) & (windows["end_tsc"] < header.end_tsc)
        assert inside.sum() > 1


@pytest.mark.parametrize("machine", [pytest.param("microvm", marks=booted)])
def test_the_watchdog_says_where_a_kernel_hangs(tmp_path: Path, machine: str) -> None:
    """Under tcg the watchdog's ten seconds are ten seconds: it comes long before the deadline."""
    target = {"kind": "qemu", "accel": "tcg", "machine": machine, "mem_mib": 256, "deadline_s": 120}
    arms = {"hang": ["../../patches/planted/hang.patch"]}
    done = run(derive(PLANTED, tmp_path, name="watchdog", arms=arms, target=target), tmp_path / "r")
    assert done.ended.code == 2, done.ended.text
    result = done.results["quiet", "hang"]
    assert result.outcome is Outcome.HANG and 10 < result.wall_seconds - result.boot_seconds < 60
    assert result.reason.startswith("the kernel hung; the watchdog's NMI found it in direct_page_fault+0x")


def test_the_running_kernel_measures_real_latencies(tmp_path: Path) -> None:
    """`target: local` through the whole command, on a machine whose /dev/kvm runs a guest."""
    device = kvmdev.probe()
    if not device.runs_flat_guest:
        pytest.skip(f"target: local cannot work here: {device.error or device.flat_guest_error}")
    config = tmp_path / "local.yaml"
    tdp = str(local.running_tdp()).lower()
    config.write_text(
        "name: local\narms: {running: []}\ntarget: {kind: local, deadline_s: 60}\n"
        f"defaults: {{guest: {{mem_mib: 4, rounds: 20, tdp: {tdp}}}, storm: {{size_kib: 64, period_us: 100}}}}\n"
        "cells:\n  quiet: {storm: none}\n"
        "  outside: {storm: {op: madvise_dontneed, placement: outside}}\n"
        "schedule: {boots: 2}\n"
    )
    done = run(config, tmp_path / "r")
    assert done.ended.code == 0 and done.summary["status"] == "complete", done.ended.text
    check_samples(done)
    assert done.recording("quiet", "running").header.tdp is local.running_tdp()
    assert len(done.recording("outside", "running").windows) >= 1
    assert "its own /dev/kvm" in done.ended.err


def test_an_accelerator_that_cannot_work_is_an_error_and_no_fallback(tmp_path: Path) -> None:
    obstacle = doctor.kvm_obstacle(kvmdev.probe())
    if not obstacle:
        pytest.skip("hardware nesting works here")
    target = {"kind": "qemu", "accel": "kvm", "mem_mib": 256}
    config = derive(PLANTED, tmp_path, name="hardware", arms={"base": []}, target=target)
    ended = orch("run", config, "--results", tmp_path / "r", deadline_s=300)
    assert ended.code == 2 and f"accel: kvm cannot work here: {obstacle}" in ended.err, ended.text
    assert "set target.accel to auto, icount or tcg" in ended.err and not (tmp_path / "r").exists()
