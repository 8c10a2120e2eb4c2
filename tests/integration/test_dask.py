"""A scheduler and three workers, as docs/dask.md starts them: the same recordings as locally, and a worker is killed.

Costs four boots of the default kernels and the one that is killed: about half a minute.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daskmachines import Machines, scheduler
from orchcli import ORCH, ROOT, Run, derive
from realkernel import PLANTED

from orchestrator.engine import facts
from orchestrator.results import Outcome
from orchestrator.store import Store

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]

DEADLINE_S = 900.0


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with scheduler(tmp_path / "machines") as found:
        for name in ("one", "two", "three"):
            found.worker(name, "--offer", "icount=1")
        yield found


def test_three_workers_leave_the_same_recordings_as_this_machine_though_one_is_killed(
    planted: Run, machines: Machines, tmp_path: Path
) -> None:
    patches = {"base": [], "v1": ["../../patches/hva-retry/v1.patch"]}
    config = derive(PLANTED, tmp_path, name="dask", arms=patches, schedule={"boots": 2, "seed": 1})
    argv = [str(ORCH), "run", str(config), "--results", str(tmp_path / "results"), "--engine", machines.engine]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        try:
            victim = wait_for_a_boot(machines, client)
            orphans = qemus_of(machines.running[victim].pid)
            machines.kill(victim)
            out, err = client.communicate(timeout=DEADLINE_S)
        finally:
            client.kill()
    assert client.returncode == 0, f"{out}\n{err}\n{machines.logs()}"
    assert f"worker {victim} (tcp://" in err and "has gone; what it was running runs again elsewhere" in err, err
    (folder,) = (path for path in (tmp_path / "results").iterdir() if path.is_dir())
    results = Store.read(folder).finished_trials()
    assert [item.id for item in results] == ["000", "001", "002", "003"]
    assert {item.outcome for item in results} == {Outcome.OK} and len({item.recording_sha256 for item in results}) == 4
    for item in results[:2]:
        assert item.recording_sha256 == planted.results["quiet", item.arm].recording_sha256, "byte for byte"
    used = {item.name for item in facts.load(folder)}
    assert used >= {victim} and len(used) >= 2
    for item in results:
        command = (folder / "trials" / item.id / "command.txt").read_text()
        assert str(machines.folder) not in command, "it names a kernel of this machine, to be pasted here"
    shipped = [path for path in machines.folder.glob("*/shipped/trees/*/vmlinux") if path.is_file()]
    assert len({path.stat().st_ino for path in shipped}) >= 4, "two kernels went to at least two workers"
    assert not qemus().keys() & {*orphans}, "QEMU dies with its worker"


def wait_for_a_boot(machines: Machines, client: subprocess.Popen[str]) -> str:
    """The name of a worker whose QEMU has been running for a moment."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and client.poll() is None:
        for name, process in machines.running.items():
            if name != "scheduler" and qemus_of(process.pid):
                time.sleep(0.3)
                return name
        time.sleep(0.05)
    raise AssertionError(machines.logs())


def qemus_of(worker: int) -> list[int]:
    """QEMUs that run trials of a worker's process."""
    return [pid for pid, parent in qemus().items() if parent == worker]


def qemus() -> dict[int, int]:
    """QEMUs that run trials, and who started each."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if b"name=orch.recording" in (entry / "cmdline").read_bytes():
                found[int(entry.name)] = parent
        except (OSError, ValueError):
            continue
    return found
