"""A scheduler and three workers, as docs/dask.md starts them: the same recordings as locally, and a worker is killed.

Costs four boots of the default kernels and the one that is killed: about half a minute.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from orchcli import ORCH, ROOT, Run, derive
from ports import free_port
from realkernel import PLANTED

from orchestrator.engine import facts
from orchestrator.results import Outcome
from orchestrator.store import Store

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]

DASK = Path(sys.executable).with_name("dask")
DEADLINE_S = 900.0


@dataclass
class Machines:
    """A scheduler and workers; each worker has a cache of its own, as on a machine of its own."""

    folder: Path
    port: int
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def engine(self) -> str:
        return f"dask://127.0.0.1:{self.port}"

    def start(self, name: str, *argv: object) -> None:
        environment = os.environ | {"ORCH_CACHE": str(self.folder / name)}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [str(word) for word in argv], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        self.running[name].send_signal(signal.SIGKILL)
        self.running[name].wait()

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    (tmp_path / "machines").mkdir()
    found = Machines(tmp_path / "machines", free_port())
    found.start("scheduler", DASK, "scheduler", "--host", "127.0.0.1", "--port", found.port, "--no-dashboard")
    for name in ("one", "two", "three"):
        found.start(name, ORCH, "worker", found.engine, "--name", name, "--offer", "icount=1")
    yield found
    for name in found.running:
        found.kill(name)


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
