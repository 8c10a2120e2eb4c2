"""A Linux guest on a lab host: QEMU as this machine has it, packed, copied, and run there in a root of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from labhosts import MARKS, LabVm
from labruns import STORM, finished, lab_config
from orchcli import check_samples

from orchestrator.kernel.build import BuiltKernel
from orchestrator.results import Outcome

pytestmark = [*MARKS, pytest.mark.dear]

LINUX: dict[str, object] = {"kind": "linux", "faults": "host", "jitter_wakeups": 100}


def test_a_linux_guest_runs_on_a_lab_host_and_the_storm_in_its_vmm(
    lab: tuple[LabVm, ...], lab_kernels: dict[str, BuiltKernel], tmp_path: Path
) -> None:
    host = lab[0]
    cells = {"quiet": {"guest": LINUX, "storm": "none"}, "storm": {"guest": LINUX, "storm": STORM}}
    config = lab_config(tmp_path / "linux", (host, {}), cells=cells, rounds=2, deadline_s=300)
    done = finished(config)
    assert done.ended.code == 0, done.ended.text
    assert {item.outcome for item in done.results.values()} == {Outcome.OK}
    check_samples(done)
    for cell in ("quiet", "storm"):
        record = json.loads((done.trial(cell, "base") / "machine.json").read_text())
        assert record["booted"]["build_id"] == lab_kernels["base"].build_id
        recording = done.recording(cell, "base")
        assert recording.counter("pf_fixed") >= recording.nr_faults, "the host's faults"
        assert recording.counter("guest_minflt") == 0, "and not the guest's"
        assert recording.counter("jitter_wakeups") == 100
    assert len(done.recording("storm", "base").windows) > 0 == len(done.recording("quiet", "base").windows)
    packed = json.loads((done.folder / "linux-guest" / "packed.json").read_text())
    assert any(item["path"].endswith("qemu-system-x86_64") for item in packed["files"])
    # Nothing of it is left but the files: no mount, no process.
    assert "/roots/" not in host.ssh("cat /proc/mounts") and not host.ssh("pgrep qemu", accept=(0, 1)).strip()
