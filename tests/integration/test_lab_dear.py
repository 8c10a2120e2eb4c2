"""Faults of lab hosts that cost a minute or more each: ``make test-lab`` only."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from labhosts import LabVm
from labruns import UNDER_TEST, await_measuring, finished, going, lab_config
from orchcli import Run, check_samples

from orchestrator.results import Outcome

pytestmark = [
    pytest.mark.lab,
    pytest.mark.dear,
    pytest.mark.kernel,
    pytest.mark.qemu,
    pytest.mark.network,
    pytest.mark.usefixtures("at_home"),
]

Hosts = tuple[LabVm, ...]


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


def _recordings(done: Run) -> dict[str, str]:
    """SHA-256 of the finished trials' recordings, by trial."""
    return {item.id: item.recording_sha256 for item in done.results.values() if item.outcome is Outcome.OK}
