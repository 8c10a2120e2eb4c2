"""engine/cluster.py with real processes: a worker, the scheduler and the client are killed, and nothing is lost."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import cluster_worker
import pytest
import simulated_cluster
from ports import free_port
from simulated_orch import make_recording, write_config

from orchestrator import run
from orchestrator.engine import cluster
from orchestrator.engine.cluster import Cluster
from orchestrator.engine.dispatch import Dispatch
from orchestrator.errors import EngineError
from orchestrator.experiment import load
from orchestrator.plan import make_plan
from orchestrator.progress import Reporter
from orchestrator.store import Store

ROOT = Path(__file__).parents[2]
WORKERS = ("w1", "w2")
TRIAL_S = 0.15
BOOTS = 6
DEADLINE_S = 300.0  # of what takes seconds


@dataclass
class Machines:
    """A scheduler and workers on this machine, in processes of their own."""

    folder: Path
    port: int
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)

    @property
    def engine(self) -> str:
        return f"dask://127.0.0.1:{self.port}"

    def scheduler(self) -> None:
        argv = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port)]
        self._start("scheduler", [*argv, "--no-dashboard", "--no-show"], {})

    def worker(self, name: str, offer: str = "tcg=1") -> None:
        argv = [sys.executable, cluster_worker.__file__, str(self.folder), self.engine, name, offer]
        cache = self.folder / "cache" / name
        self._start(name, argv, {"ORCH_CACHE": str(cache), cluster_worker.SECONDS: str(TRIAL_S)})

    def kill(self, name: str) -> None:
        """kill -9."""
        self.running[name].send_signal(signal.SIGKILL)
        self.running.pop(name).wait()

    def hold(self, number: int) -> None:
        """Until :meth:`let_go`, let no worker get to the end of the ``number``-th trial that it begins in this test."""
        for name in WORKERS:
            (self.folder / f"{name}.hold").write_text(str(number))

    def let_go(self) -> None:
        """Let the workers go on."""
        for name in WORKERS:
            (self.folder / f"{name}.hold").unlink(missing_ok=True)

    def lives(self, name: str) -> int:
        """How often a worker has begun: it does so anew when the scheduler goes."""
        return self.said(name).count("looking for a scheduler")

    @property
    def ready(self) -> bool:
        """Whether the workers have joined since they were started last."""
        return all(
            self.lives(name) >= self.starts[name] and self.said(name).count(": offers ") == self.lives(name)
            for name in WORKERS
        )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    @property
    def begun(self) -> list[tuple[str, str]]:
        """(worker, trial) of each trial that began, in order."""
        path = self.folder / "notes"
        return [tuple(line.split(" ", 1)) for line in path.read_text().splitlines()] if path.exists() else []  # type: ignore[misc]

    def _start(self, name: str, argv: list[str], environment: dict[str, str]) -> None:
        self.starts[name] += 1
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                argv, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, stdout=log, stderr=log
            )


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A scheduler and two workers, started once; every test leaves it so."""
    found = Machines(tmp_path_factory.mktemp("machines"), free_port())
    found.scheduler()
    for name in WORKERS:
        found.worker(name)
    yield found
    for name in list(found.running):
        found.kill(name)


@pytest.fixture
def config(machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An experiment of twelve trials in six blocks that are compared in real time; the workers have its recordings."""
    simulated_cluster.install(monkeypatch.setattr, tmp_path)
    monkeypatch.setattr(run, "report", no_report)
    path = write_config(tmp_path, boots=BOOTS, cells=1)
    path.write_text(path.read_text().replace("accel: icount", "accel: tcg"))
    for trial in make_plan(load(path)).trials:
        name = f"{trial.arm}-{trial.cell.name}-{trial.seed}.bin"
        (machines.folder / name).write_bytes(make_recording(trial.arm, trial.cell.name, trial.seed))
    (machines.folder / "notes").unlink(missing_ok=True)
    wait_until(lambda: machines.ready)
    yield path
    machines.let_go()


def no_report(store: Store) -> run.Finished:
    """Drawing takes longer than all the rest, and is the same for every engine."""
    return run.Finished(store.run, SimpleNamespace(status="complete"), ())  # type: ignore[arg-type]


class Client(threading.Thread):
    """``orch run`` in a thread; ``said`` is what it tells the user."""

    def __init__(self, config: Path, engine: str) -> None:
        super().__init__(daemon=True)
        self.arguments = (config, engine)
        self.stream = io.StringIO()
        self.finished: run.Finished | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        config, engine = self.arguments
        reporter = Reporter(self.stream)
        try:
            with Cluster(engine, DEADLINE_S, reporter.say) as joined:
                self.finished = run.run(config, config.parent / "results", None, ["orch"], reporter, cluster=joined)
        except BaseException as error:
            self.error = error

    @property
    def said(self) -> str:
        return self.stream.getvalue()

    def end(self) -> run.Finished:
        self.join(DEADLINE_S)
        assert self.error is None and self.finished is not None, (self.error, self.said)
        return self.finished


def wait_until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def check_whole(finished: run.Finished, machines: Machines, config: Path) -> None:
    """Every trial is there once, byte for byte what its worker had, and each block is of one worker."""
    plan = make_plan(load(config))
    results = Store.read(finished.run).finished_trials()
    assert [item.id for item in results] == [trial.id for trial in plan.trials]
    for item in results:
        expected = (machines.folder / f"{item.arm}-{item.cell}-{item.seed}.bin").read_bytes()
        assert (finished.run / "trials" / item.id / "recording.bin").read_bytes() == expected
    assert not list(finished.run.glob("trials/.*"))


def said_trials(said: str) -> Counter[str]:
    return Counter(line.split()[1] for line in said.splitlines() if line.startswith("trial "))


def test_a_worker_that_is_killed_has_its_block_repeated_elsewhere(machines: Machines, config: Path) -> None:
    machines.hold(2)
    client = Client(config, machines.engine)
    wait_until(lambda: Counter(worker for worker, _ in machines.begun) == dict.fromkeys(WORKERS, 2))
    victim = machines.begun[-1][0]
    machines.kill(victim)  # In the middle of its first block, as the other one is.
    machines.let_go()
    finished = client.end()
    machines.worker(victim)
    check_whole(finished, machines, config)
    assert set(said_trials(client.said).values()) == {1}, "counted twice"
    assert f"worker {victim} (tcp://" in client.said and "has gone; what it was running runs again" in client.said
    counts = Counter(trial for _, trial in machines.begun)
    assert 1 <= sum(counts.values()) - len(counts) <= 2, (
        machines.begun, client.said, machines.said("w1"), machines.said("w2")
    )  # fmt: skip
    last = {trial: worker for worker, trial in machines.begun}
    by_seed: dict[str, set[str]] = {}
    for trial, worker in last.items():
        by_seed.setdefault(trial.rsplit("-", 1)[1], set()).add(worker)
    assert all(len(workers) == 1 for workers in by_seed.values()), "a block is of one machine"


def test_the_scheduler_is_killed_and_comes_back(machines: Machines, config: Path) -> None:
    machines.hold(3)
    client = Client(config, machines.engine)
    wait_until(lambda: "trial 00" in client.said or not client.is_alive())
    lives = {name: machines.lives(name) for name in WORKERS}
    machines.kill("scheduler")
    before = len(said_trials(client.said))
    wait_until(lambda: all(machines.lives(name) > lives[name] for name in WORKERS))
    machines.let_go()
    machines.scheduler()
    finished = client.end()
    check_whole(finished, machines, config)
    assert 0 < before < 12 and set(said_trials(client.said).values()) == {1}
    assert f"the connection to {machines.engine} is lost (the scheduler has gone); what was running" in client.said
    assert len(machines.begun) <= 12 + 2 * 2, "two workers had a block of two each"


def test_a_scheduler_that_does_not_come_back_ends_it_and_the_same_command_goes_on(
    machines: Machines, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Dispatch] = []

    class Noted(Dispatch):
        def __post_init__(self) -> None:
            super().__post_init__()
            made.append(self)

    monkeypatch.setattr(cluster, "Dispatch", Noted)
    machines.hold(3)
    client = Client(config, machines.engine)
    wait_until(lambda: "trial 00" in client.said or not client.is_alive())
    made[0].patience_s = 1.0  # Now: on a loaded machine its workers may take longer to be ready.
    machines.kill("scheduler")
    client.join(DEADLINE_S)
    machines.let_go()
    assert isinstance(client.error, EngineError)
    assert f"no scheduler answers at {machines.engine} within 1 s" in client.error.what
    machines.scheduler()
    again = Client(config, machines.engine)
    finished = again.end()
    assert "going on with" in again.said
    check_whole(finished, machines, config)
    assert not said_trials(client.said).keys() & said_trials(again.said).keys(), "what was stored is not run again"


def test_the_client_is_killed_and_the_same_command_goes_on(machines: Machines, config: Path) -> None:
    argv = [sys.executable, simulated_cluster.__file__, str(config.parent), "run", str(config)]
    argv += ["--results", str(config.parent / "results"), "--engine", machines.engine]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    machines.hold(3)
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: [path for path in stored(config) if partner(path).exists()])
        finally:
            process.kill()
    machines.let_go()
    times = {path: path.stat().st_mtime_ns for path in stored(config)}
    client = Client(config, machines.engine)
    finished = client.end()
    check_whole(finished, machines, config)
    whole = {path: time for path, time in times.items() if partner(path) in times}
    assert whole and {path: path.stat().st_mtime_ns for path in whole} == whole, "a whole block was run again"


def stored(config: Path) -> list[Path]:
    """The results that are in place."""
    return list(config.parent.glob("results/*/trials/[0-9]*/result.json"))


def partner(result: Path) -> Path:
    """The other trial of its block: blocks are of two."""
    number = int(result.parent.name)
    return result.parents[1] / f"{number ^ 1:03d}" / result.name
