"""Ways to bring a lab host home when the gentler ones fail: SysRq over the console, and over SSH. ``make test-lab``."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from labhosts import MARKS, LabVm
from labruns import UNDER_TEST, await_measuring, finished, going, lab_config
from orchcli import check_samples

from orchestrator.lab import home, journal
from orchestrator.results import Outcome

pytestmark = [*MARKS, pytest.mark.dear, pytest.mark.usefixtures("at_home")]

Hosts = tuple[LabVm, ...]
BOOT_S = 90


def test_a_kernel_that_never_answers_is_left_by_sysrq_over_the_console_also_by_the_next_run(
    lab: Hosts, tmp_path: Path
) -> None:
    """It boots and starts no sshd. The first tool is killed while it waits for that; the second one waits in vain."""
    host = lab[0]
    silent: dict[str, object] = {
        "append": ["init=/bin/sleep", "--", "infinity"],
        "power": ["/bin/false"],
        "deadlines": {"connect_s": 8, "answer_s": 20, "boot_s": BOOT_S, "return_s": 150},
    }
    config = lab_config(tmp_path / "never", (host, silent))
    start = len(host.console())
    with going(config) as run:
        host.await_console(rf"^\[[^\n]*Linux version {re.escape(UNDER_TEST)} ", start=start)
        os.kill(run.child.pid, signal.SIGKILL)
        run.child.wait(60)
    second = len(host.console())
    done = finished(config)

    # The first machine that it finds is the one that was left.
    assert re.search(r"lab1: was left booting by .*, and does not answer", done.ended.text), done.ended.text
    recovery = (journal.folder(host.described()) / home.RECOVERY_LOG).read_text(errors="replace")
    assert "sysrq: Emergency Sync" in recovery and "sysrq: Resetting" in recovery
    assert done.ended.code == 2 and "quarantined" not in done.ended.text, done.ended.text
    result = done.results["quiet", "base"]
    assert (result.outcome, result.machine, result.machine_lost) == (Outcome.HANG, "lab1", ""), result
    assert f"did not answer within {BOOT_S} s" in result.reason, result.reason
    serial = (done.trial("quiet", "base") / "serial.log").read_text(errors="replace")
    assert "sysrq: Show backtrace of all active CPUs" in serial and "Call Trace:" in serial
    assert "sysrq: Show Blocked State" in serial and "sysrq: Resetting" in serial
    assert host.console().count("sysrq: Resetting", second) == 2 and "Kernel panic" not in host.console()[start:]
    assert host.ssh("uname -r").strip() == host.image.release


def test_a_reboot_that_does_nothing_is_followed_by_sysrq_over_ssh(lab: Hosts, tmp_path: Path) -> None:
    """In the kernel under test, of a host that has neither a power switch nor a key for SysRq on its console."""
    host = lab[1]
    changes: dict[str, object] = {
        "power": ["/bin/false"],
        "console_break": None,
        "deadlines": {"connect_s": 8, "boot_s": 200, "return_s": 120},
    }
    start = len(host.console())
    with going(lab_config(tmp_path / "reboot", (host, changes), rounds=60)) as run:
        await_measuring(host, start)
        host.ssh("mount --bind /bin/true $(readlink -f $(command -v reboot))")
        done = run.ended()
    assert done.ended.code == 0 and "quarantined" not in done.ended.text, done.ended.text
    assert "lab2: does not come back by reboot over SSH" in done.ended.text
    result = done.results["quiet", "base"]
    assert (result.outcome, result.machine, result.machine_lost) == (Outcome.OK, "lab2", ""), result
    check_samples(done)
    assert host.console().count("sysrq: Resetting", start) == 1
    assert host.ssh("uname -r").strip() == host.image.release
