"""Faults of lab hosts that cost a minute or more each: ``make test-lab`` only."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from labhosts import MARKS, LabVm
from labruns import UNDER_TEST, await_measuring, finished, going, lab_config, running_config
from orchcli import Run, check_samples, orch

from orchestrator.kernel.build import BuiltKernel
from orchestrator.results import Outcome

pytestmark = [*MARKS, pytest.mark.dear, pytest.mark.usefixtures("at_home")]

Hosts = tuple[LabVm, ...]
# What df calls available leaves root some; [-]: not the command that looks for it.
FILL = """
fallocate -l $(df -B1 --output=avail / | tail -1) /filler1; dd if=/dev/zero of=/filler2 bs=1M
(while pgrep -f '[-]-rounds'; do sleep 0.2; done; rm /filler1 /filler2) >/dev/null 2>&1 &
"""
YEAR_S = 365 * 86400
OTHER_KEXEC = rb"""#!/bin/sh
for word do
	shift
	case $word in
	/var/orch/files/*) word=/root/other ;;
	esac
	set -- "$@" "$word"
done
exec kexec.real "$@"
"""


def test_cuts_of_the_cable_cost_no_trial(lab: Hosts, tmp_path: Path) -> None:
    """While the kernel is copied (of which no earlier run has left a copy), while it boots, and while it measures."""
    host = lab[0]
    host.ssh("rm -rf /var/orch/files /var/orch/trials")
    start = len(host.console())
    with going(lab_config(tmp_path / "cuts", (host, {}), rounds=60)) as run:
        host.proxy.cut_after(6 << 20)
        host.await_console("Starting new kernel", start=start)
        assert not host.proxy.armed, "the kernel's 18 MB were cut in the middle"
        host.proxy.down(True)
        host.await_console(rf"Linux version {UNDER_TEST}[^$]*lab host: sshd starts", start=start)
        host.proxy.down(False)
        await_measuring(host, start)
        connections = host.proxy.connections
        host.proxy.cut()
        done = run.ended()
    assert done.ended.code == 0 and host.proxy.connections > connections, done.ended.text
    assert "the connection broke in the middle of a trial" in done.ended.text
    assert "connected again; the trial went on meanwhile" in done.ended.text
    assert done.results["quiet", "base"].outcome is Outcome.OK
    check_samples(done)


def test_killed_while_a_host_is_in_a_kernel_under_test_the_next_run_brings_it_back(lab: Hosts, tmp_path: Path) -> None:
    host = lab[1]
    config = lab_config(tmp_path / "killed", (host, {}), arms=("base", "v1"), rounds=20)
    with going(config) as run:
        run.await_said(r"trial \d+ \(1 of 2")
        await_measuring(host, len(host.console()))
        os.kill(run.child.pid, signal.SIGKILL)
        done = run.ended()
    first, (kept,) = _recordings(done), done.folder.glob("trials/*/recording.bin")
    assert len(first) == 1 and host.ssh("uname -r").strip() == UNDER_TEST
    age = kept.stat().st_mtime_ns
    again = finished(config)
    assert again.ended.code == 0 and again.folder == done.folder, again.ended.text
    assert re.search(r"lab2: was left testing by .*; bringing it back to ", again.ended.text)
    assert {item.outcome for item in again.results.values()} == {Outcome.OK} and len(again.results) == 2
    assert kept.stat().st_mtime_ns == age and first.items() <= _recordings(again).items()


def test_a_host_that_never_comes_back_is_quarantined_and_its_block_runs_elsewhere(lab: Hosts, tmp_path: Path) -> None:
    """It switches itself off in the middle of the block's first trial, and its power command does nothing."""
    lost, other = lab
    dead = {
        "power": ["/bin/false"],
        "console_break": None,
        "deadlines": {"connect_s": 5, "answer_s": 10, "boot_s": 150, "return_s": 20},
    }
    config = lab_config(tmp_path / "gone", (lost, dead), (other, {}), arms=("base", "v1"), rounds=20, deadline_s=60)
    start = len(lost.console())
    with going(config) as run:
        await_measuring(lost, start)
        lost.ssh("(sleep 0.5; poweroff) >/dev/null 2>&1 &")
        done = run.ended()
    assert done.ended.code == 0, done.ended.text
    assert {(item.outcome, item.machine) for item in done.results.values()} == {(Outcome.OK, other.name)}
    check_samples(done)
    assert "lab1: quarantined: it does not come back to " in done.ended.text and len(done.results) == 2
    # What happened on the machine that was lost is kept, but does not count.
    (superseded,) = done.folder.glob("superseded/*/result.json")
    first = json.loads(superseded.read_text())
    assert (first["machine"], first["outcome"]) == (lost.name, "hang") and "does not answer" in first["reason"]
    assert first["machine_lost"].startswith("lab1 is quarantined: it does not come back to ")
    status = orch("lab", "status")
    assert f"{lost.described().id}: QUARANTINED" in status.out, status.text
    # The next run leaves it alone, until somebody says otherwise.
    alone = running_config(tmp_path / "alone", lost)
    refused = finished(alone)
    assert refused.ended.code == 2 and "is in quarantine since" in refused.ended.text, refused.ended.text
    lost.power_cycle()
    lost.await_ssh(lost.image.release)
    assert orch("lab", "release", lost.described().id).code == 0
    again = finished(alone)
    assert again.ended.code == 0 and again.results["quiet", "running"].machine == lost.name, again.ended.text


def test_a_host_that_stands_still_in_a_trial_is_a_hang_and_fetched_back_by_its_power_switch(
    lab: Hosts, tmp_path: Path
) -> None:
    host = lab[0]
    deadlines = {"connect_s": 5, "answer_s": 10, "boot_s": 150, "return_s": 100}
    changes: dict[str, object] = {"deadlines": deadlines, "console_break": None}
    start = len(host.console())
    with going(lab_config(tmp_path / "silent", (host, changes), rounds=30, deadline_s=40)) as run:
        await_measuring(host, start)
        host.qmp("stop")
        done = run.ended()
    assert host.ssh("uname -r").strip() == host.image.release
    assert done.ended.code == 2 and "quarantined" not in done.ended.text, done.ended.text
    result = done.results["quiet", "base"]
    assert (result.outcome, result.machine_lost) == (Outcome.HANG, "") and "does not answer" in result.reason, result


def test_another_kernel_than_the_arms_is_never_measured(
    lab: Hosts, lab_kernels: dict[str, BuiltKernel], tmp_path: Path
) -> None:
    """The host's kexec loads v1 whatever it is told. Both kernels have the same `uname -r`."""
    host, other = lab[0], lab_kernels["v1"]
    assert other.vmlinux is not None and other.release == lab_kernels["base"].release
    host.copy(other.vmlinux, "/root/other")
    host.ssh("cd /usr/sbin && mv kexec kexec.real && cat >kexec && chmod 755 kexec", stdin=OTHER_KEXEC)
    try:
        done = finished(lab_config(tmp_path / "wrong", (host, {})))
    finally:
        host.restore()
        host.ssh("cd /usr/sbin && mv kexec.real kexec")
    assert done.ended.code == 2, done.ended.text
    result = done.results["quiet", "base"]
    assert result.outcome is Outcome.NOT_RUN and result.reason.startswith("wrong kernel: lab1 runs "), result.reason
    assert other.build_id in result.reason or other.release in result.reason
    assert not (done.trial("quiet", "base") / "recording.bin").exists()


def test_a_clock_that_jumps_by_a_year_is_no_event(lab: Hosts, tmp_path: Path) -> None:
    host = lab[1]
    start = len(host.console())
    with going(lab_config(tmp_path / "clock", (host, {}), rounds=60)) as run:
        await_measuring(host, start)
        before = float(host.ssh(f"date +%s; date -s @$(($(date +%s) + {YEAR_S})) >/dev/null").split()[0])
        done = run.ended()
    assert abs(before - time.time()) < 86400, "the host's clock was right before"
    assert done.ended.code == 0 and done.results["quiet", "base"].outcome is Outcome.OK, done.ended.text
    assert 0 < done.results["quiet", "base"].wall_seconds < 900
    check_samples(done)


def test_a_disk_that_fills_up_in_a_trial_fails_that_trial_only(lab: Hosts, tmp_path: Path) -> None:
    """Whatever filled it is removed as soon as the program has failed: else there is no room for the next trial."""
    host = lab[1]
    start = len(host.console())
    config = lab_config(tmp_path / "filled", (host, {}), arms=("base", "v1"), rounds=60)
    with going(config) as run:
        await_measuring(host, start)
        host.ssh(FILL, deadline_s=120)
        done = run.ended()
    assert done.ended.code == 2, done.ended.text
    first, second = sorted(done.results.values(), key=lambda item: item.id)
    assert first.outcome is Outcome.FAILED and "No space left on device" in first.reason, first
    assert second.outcome is Outcome.OK and first.recording_sha256 == "" != second.recording_sha256


def _recordings(done: Run) -> dict[str, str]:
    """SHA-256 of the finished trials' recordings, by trial."""
    return {item.id: item.recording_sha256 for item in done.results.values() if item.outcome is Outcome.OK}
