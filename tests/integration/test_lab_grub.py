"""``boot: grub`` on a lab host that boots from its own disk, by the GRUB that it installed itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from labhosts import MARKS, LabVm, lab_hosts
from labroot import lab_image
from labruns import UNDER_TEST, await_measuring, finished, going, lab_config
from orchcli import check_samples

from orchestrator.cache import cache_dir
from orchestrator.kernel.build import BuiltKernel
from orchestrator.lab import boot
from orchestrator.results import Outcome

pytestmark = [*MARKS, pytest.mark.dear]

GRUB: dict[str, object] = {"boot": "grub"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabVm]:
    image = lab_image(cache_dir(), print, grub=True)
    with lab_hosts(image, tmp_path_factory.mktemp("grub"), ("lab3",)) as (made,):
        made.await_first_boot()
        yield made


@pytest.fixture(autouse=True)
def at_home(host: LabVm) -> Iterator[None]:
    yield
    host.restore()


def next_entry(host: LabVm) -> str:
    """What GRUB would boot once, by its environment block."""
    return "".join(re.findall("^next_entry=(.*)$", host.ssh("grub-editenv - list"), re.MULTILINE))


def test_base_and_v1_are_booted_by_a_one_time_entry_and_the_next_boot_is_an_ordinary_one(
    host: LabVm, lab_kernels: dict[str, BuiltKernel], tmp_path: Path
) -> None:
    assert "Booting `GNU/Linux'" in host.console() and "BOOT_IMAGE=" in host.ssh("cat /proc/cmdline")
    start = len(host.console())
    done = finished(lab_config(tmp_path / "grub", (host, GRUB), arms=("base", "v1")))
    assert done.ended.code == 0, done.ended.text
    assert {item.outcome for item in done.results.values()} == {Outcome.OK}
    check_samples(done)
    for cell, arm in done.results:
        record = json.loads((done.trial(cell, arm) / "machine.json").read_text())
        assert record["booted"]["build_id"] == lab_kernels[arm].build_id != record["known_good"]["build_id"]
    booted = re.findall(r"^\[ +0\.000000\][^\n]*Linux version (\S+)", host.console()[start:], re.MULTILINE)
    assert booted[0::2] == [UNDER_TEST, UNDER_TEST] and set(booted[1::2]) == {host.image.release}, booted
    assert host.console().count("Booting `kernel under test'", start) == 2
    assert "Starting new kernel" not in host.console()[start:], "no kexec"
    # Of the two kernels the last one is kept, and no entry.
    assert len(host.ssh(f"ls {boot.GRUB_FOLDER}").split()) == 1 and boot.ENTRY not in host.ssh(f"cat {boot.CUSTOM}")
    assert host.ssh("uname -r").strip() == host.image.release and next_entry(host) == ""


def test_whatever_restarts_the_machine_in_a_trial_restarts_the_known_good_kernel(host: LabVm, tmp_path: Path) -> None:
    start = len(host.console())
    with going(lab_config(tmp_path / "cycled", (host, GRUB), rounds=60)) as run:
        await_measuring(host, start)
        host.power_cycle()
        host.await_ssh(host.image.release)
        done = run.ended()
    assert done.ended.code == 2 and "quarantined" not in done.ended.text, done.ended.text
    result = done.results["quiet", "base"]
    assert (result.outcome, result.machine_lost) == (Outcome.LOST, ""), result
    assert host.ssh("uname -r").strip() == host.image.release and next_entry(host) == ""


def test_a_panic_leads_back_through_grub(host: LabVm, tmp_path: Path) -> None:
    done = finished(lab_config(tmp_path / "panics", (host, GRUB), arms=("panic",)))
    assert done.ended.code == 2, done.ended.text
    result = done.results["quiet", "panic"]
    assert result.outcome is Outcome.PANIC and result.machine_lost == "", result
    assert host.ssh("uname -r").strip() == host.image.release


def test_an_entry_of_somebody_elses_stays_and_a_host_without_grub_is_refused(host: LabVm, tmp_path: Path) -> None:
    theirs = "menuentry 'rescue' --id 'rescue' {\n\ttrue\n}\n"
    host.ssh(f"cat >{boot.CUSTOM}", stdin=theirs.encode())
    host.ssh("cd /usr/sbin && mv grub-reboot grub-reboot.away")
    try:
        done = finished(lab_config(tmp_path / "refused", (host, GRUB)))
    finally:
        host.ssh("cd /usr/sbin && mv grub-reboot.away grub-reboot")
    assert done.ended.code == 2, done.ended.text
    result = done.results["quiet", "base"]
    assert result.outcome is Outcome.NOT_RUN and "grub-reboot" in result.reason, result.reason
    kept = host.ssh(f"cat {boot.CUSTOM}")
    assert kept.startswith(theirs) and boot.without_entry(kept) == theirs
    assert next_entry(host) == "" and host.ssh("uname -r").strip() == host.image.release
