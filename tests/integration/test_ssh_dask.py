"""`--engine` with `target: ssh`: Dask workers hold a lab's machine, which is this one behind a real OpenSSH server."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daskmachines import Machines, scheduler
from orchcli import ORCH, ROOT
from sshserver import SshServer, ssh_server
from test_ssh_loopback import QUIET, config, described, needs_kvm

from orchestrator.engine import facts
from orchestrator.lab import lease
from orchestrator.results import Outcome
from orchestrator.store import Store, load_json
from orchestrator.target.ssh import MachineRecord

DEADLINE_S = 600.0
WORKERS = ("w1", "w2")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    needs_kvm()
    with ssh_server(tmp_path_factory.mktemp("sshd")) as started:
        yield started


@pytest.fixture(scope="module")
def machines(server: SshServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Two workers that reach one machine."""
    described(server, ", max_load: 1000, min_free_mib: 1")
    with scheduler(tmp_path_factory.mktemp("dask") / "machines") as found:
        for name in WORKERS:
            found.worker(name, "--lab", server.folder / "lab.yaml")
        yield found


def two_trials(server: SshServer, folder: Path, rounds: int) -> Path:
    """One block of two trials, which are compared with each other (A/A)."""
    path = config(server, folder, rounds, QUIET, 1)
    path.write_text(path.read_text().replace("{boots: 1}", "{boots: 1, aa: true}"))
    return path


def start(config: Path, machines: Machines, results: Path) -> subprocess.Popen[str]:
    argv = [str(ORCH), "run", str(config), "--results", str(results), "--engine", machines.engine]
    with (results.parent / "said").open("w") as said:
        return subprocess.Popen(argv, cwd=ROOT, stdout=said, stderr=said, text=True)


def finish(client: subprocess.Popen[str], machines: Machines, results: Path) -> tuple[Path, str]:
    """The run's folder, and what was said; every trial was counted once, and is whole."""
    client.wait(DEADLINE_S)
    said = (results.parent / "said").read_text()
    assert client.returncode == 0, f"{said}\n{machines.logs()}"
    (folder,) = (path for path in results.iterdir() if path.is_dir())
    found = Store.read(folder).finished_trials()
    assert [(item.id, item.outcome, item.machine) for item in found] == [
        (name, Outcome.OK, "here") for name in ("000", "001")
    ], said
    counted = Counter(line.split()[1] for line in said.splitlines() if line.startswith("trial "))
    assert counted == {"000": 1, "001": 1}, said
    return folder, said


def holder(server: SshServer) -> int:
    """The process that holds the machine; 0 if none does."""
    try:
        owner = lease._parse((server.folder / "remote/lease").read_bytes())[1]
    except FileNotFoundError:
        return 0
    return 0 if owner is None else owner.pid


def begun(server: SshServer) -> set[str]:
    """Folders of programs that run on the machine."""
    return {path.parent.name for path in (server.folder / "remote/trials").glob("*/keeper")}


def wait_until(what: Callable[[], object], client: subprocess.Popen[str], machines: Machines) -> None:
    end = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < end and client.poll() is None, f"exit code {client.poll()}\n{machines.logs()}"
        time.sleep(0.01)


def test_a_worker_measures_a_machine_of_the_lab(server: SshServer, machines: Machines, tmp_path: Path) -> None:
    path = two_trials(server, tmp_path, 2)
    with start(path, machines, tmp_path / "r") as client:
        wait_until(lambda: holder(server), client, machines)
        held_by = holder(server)
        folder, said = finish(client, machines, tmp_path / "r")
    (used,) = (name for name in WORKERS if machines.running[name].pid == held_by)  # The lease is the worker's own.
    assert used in {item.name for item in facts.load(folder)}
    assert f"worker {used} (tcp://" in said and "is ready: lab-here" in said
    records = [load_json(path, MachineRecord) for path in sorted(folder.glob("trials/*/machine.json"))]
    running = os.uname().release
    assert [(item.machine, item.known_good.release, item.booted) for item in records] == [("here", running, None)] * 2
    assert not holder(server) and not list((server.folder / "remote/trials").iterdir()), "and is given back"


def test_a_worker_that_is_killed_with_a_machine_in_its_hands_loses_nothing(
    server: SshServer, machines: Machines, tmp_path: Path
) -> None:
    path = two_trials(server, tmp_path, 150)
    programs: set[str] = set()

    def runs(count: int) -> bool:
        programs.update(begun(server))
        return len(programs) >= count

    with start(path, machines, tmp_path / "r") as client:
        wait_until(lambda: runs(2), client, machines)
        (victim,) = (name for name in WORKERS if machines.running[name].pid == holder(server))
        machines.kill(victim)  # In the block's second trial: the first one's result has not left it yet.
        heir = next(name for name in WORKERS if name != victim)
        assert not list(tmp_path.glob("r/*/trials/0*")) and begun(server) == {max(programs, key=_number)}
        wait_until(lambda: holder(server) == machines.running[heir].pid, client, machines)
        wait_until(lambda: runs(4), client, machines)
        folder, said = finish(client, machines, tmp_path / "r")
    assert len(programs) == 4 and f"worker {victim} (tcp://" in said and "what it was running runs again" in said
    assert {item.name for item in facts.load(folder)} >= {heir}
    log = (machines.folder / f"{heir}.log").read_text()
    assert "here: was left testing by" in log and "no sign of life" not in log, (
        "whose process is gone is not waited for"
    )
    assert not holder(server) and not list((server.folder / "remote/trials").iterdir()), "nothing of either is left"


def _number(program: str) -> int:
    """Programs of one lease are numbered."""
    return int(program.rpartition("-")[2])
