"""``target: ssh`` on two lab hosts, for real: copied, booted by kexec, checked, measured, returned; and crashed and
refused on the way. What is too dear for every day is in ``test_lab_dear.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from labhosts import MARKS, LabVm
from labruns import STORM, finished, lab_config, running_config
from orchcli import Run, check_samples, orch

from orchestrator.kernel.build import BuiltKernel
from orchestrator.results import Outcome

pytestmark = [*MARKS, pytest.mark.usefixtures("at_home")]

Hosts = tuple[LabVm, ...]
KEXEC_REFUSED = "kexec refused: kexec_load failed: Operation not permitted"


@pytest.fixture(scope="module")
def clean(lab: Hosts, lab_kernels: dict[str, BuiltKernel], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Base and v1 on both hosts, with nothing in the way."""
    cells = {"quiet": {"storm": "none"}, "storm": {"storm": STORM}}
    folder = tmp_path_factory.mktemp("clean")
    return finished(lab_config(folder, *((host, {}) for host in lab), arms=("base", "v1"), cells=cells))


def test_one_command_measures_base_and_v1_on_two_hosts(clean: Run, lab_kernels: dict[str, BuiltKernel]) -> None:
    assert clean.ended.code == 0 and "Traceback" not in clean.ended.text, clean.ended.text
    assert {item.outcome for item in clean.results.values()} == {Outcome.OK}
    check_samples(clean)
    machines = {cell: {clean.results[cell, arm].machine for arm in ("base", "v1")} for cell in ("quiet", "storm")}
    assert sorted(machines.values(), key=sorted) == [{"lab1"}, {"lab2"}], "each block on one machine, both at once"
    for cell, arm in clean.results:
        record = json.loads((clean.trial(cell, arm) / "machine.json").read_text())
        assert record["booted"]["build_id"] == lab_kernels[arm].build_id != record["known_good"]["build_id"]
    storm = clean.recording("storm", "base")
    assert len(storm.windows) and storm.header.tdp


def test_the_running_kernel_is_measured_as_the_lab_file_allows_and_put_back_as_it_was(
    lab: Hosts, tmp_path: Path
) -> None:
    host = lab[0]
    seen = "uname -r; cat /sys/kernel/kexec_loaded /sys/kernel/mm/transparent_hugepage/enabled"
    before = host.ssh(seen)
    assert before.split("\n")[:2] == [host.image.release, "0"] and "[always]" in before
    done = finished(running_config(tmp_path / "running", host))
    assert done.ended.code == 0, done.ended.text
    record = json.loads((done.trial("quiet", "running") / "machine.json").read_text())
    assert record["booted"] is None and record["known_good"]["release"] == host.image.release
    thp = [item["value"] for item in record["conditions"]["settings"] if item["knob"] == "thp"]
    assert thp == ["madvise"] and host.ssh(seen) == before


def test_a_panic_is_a_result_and_the_host_comes_back(lab: Hosts, tmp_path: Path) -> None:
    host = lab[0]
    start = len(host.console())
    done = finished(lab_config(tmp_path / "panics", (host, {}), arms=("panic",)))
    assert host.ssh("uname -r").strip() == host.image.release
    assert done.ended.code == 2, done.ended.text
    result = done.results["quiet", "panic"]
    assert result.outcome is Outcome.PANIC and result.machine == "lab1" and result.machine_lost == ""
    assert result.reason == "Kernel panic - not syncing: planted: guest page fault 1000"
    assert any("direct_page_fault" in line for line in result.trace)
    assert "Kernel panic" in host.console()[start:] and "quarantine" not in done.ended.text


def test_refusals_of_a_host_are_no_results_and_no_losses(lab: Hosts, tmp_path: Path) -> None:
    """kexec is refused; then there is no room. Nothing is booted, so that this costs little."""
    host = lab[1]
    host.ssh("sysctl -q kernel.kexec_load_disabled=1")
    start = len(host.console())
    refused = finished(lab_config(tmp_path / "refused", (host, {})))
    assert refused.ended.code == 2, refused.ended.text
    result = refused.results["quiet", "base"]
    assert result.outcome is Outcome.NOT_RUN and result.reason == KEXEC_REFUSED, result.reason
    host.ssh(
        "fallocate -l $(df -B1 --output=avail / | tail -1) /filler || dd if=/dev/zero of=/filler bs=1M", accept=(0, 1)
    )
    full = finished(lab_config(tmp_path / "full", (host, {})))
    assert full.ended.code == 2 and "lab2 is quarantined: it has no room" in full.ended.text, full.ended.text
    assert full.results["quiet", "base"].outcome is Outcome.NOT_RUN
    assert "Starting new kernel" not in host.console()[start:]
    host.ssh("rm /filler")
    assert orch("lab", "release", host.described().id).code == 0
