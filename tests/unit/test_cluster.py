"""engine/cluster.py on a Dask cluster in this process: the same results as locally, and what is refused."""

from __future__ import annotations

import errno
import gc
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import distributed
import pytest
import simulated_cluster
import simulated_orch
from simulated_orch import SimulatedTarget, write_config
from test_engine import experiment, result

from orchestrator import lab, run, trials
from orchestrator.engine import facts, identity, kit, link, parcel, remote
from orchestrator.engine.cluster import Cluster, whole_blocks
from orchestrator.engine.kit import Kit
from orchestrator.engine.roster import Roster
from orchestrator.errors import EngineError, StoreError, TargetError, UserError
from orchestrator.experiment import Arm, TargetSpec, load
from orchestrator.nights import several
from orchestrator.plan import make_plan
from orchestrator.progress import Reporter
from orchestrator.report import plots
from orchestrator.results import Outcome, TrialResult
from orchestrator.store import Store
from orchestrator.target.pool import LabPool, NoMachineLeft
from orchestrator.target.target import Evidence, Job

PATIENCE_S = 120.0
OFFERS = {"qemu-icount": 1, "qemu-tcg": 1, "lab-a": 1, "lab-b": 1}


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """The address of a scheduler with two workers."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, resources=OFFERS, dashboard_address=None, protocol="tcp",
        host="127.0.0.1",
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address.replace("tcp://", "dask://")


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing here builds or boots; every test has a cache of its own."""
    simulated_cluster.install(monkeypatch.setattr, tmp_path)
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    remote._depot.cache_clear()
    kit._machine.cache_clear()


def go(config: Path, engine: str | None, jobs: int | None = None, results: str = "results") -> tuple[Path, str]:
    """Run on the cluster, or here; the run's folder, and what was said."""
    said = io.StringIO()
    reporter = Reporter(said)
    if engine is None:
        return run.run(config, config.parent / results, jobs, ["orch"], reporter).run, said.getvalue()
    with Cluster(engine, PATIENCE_S, reporter.say) as cluster:
        return run.run(config, config.parent / results, jobs, ["orch"], reporter, cluster=cluster).run, said.getvalue()


def results_of(folder: Path) -> list[TrialResult]:
    """Results without what differs between two runs of one trial."""
    found = Store.read(folder).finished_trials()
    return [replace(item, wall_seconds=0, rerun=item.rerun.replace(str(folder), "RUN")) for item in found]


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of all trials but their results."""
    paths = sorted(path for path in folder.glob("trials/*/*") if path.name != "result.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# --- the same as locally ----------------------------------------------------------------------------------------------

ARMS = ("base", "v1", "panic", "lost", "broken")


@pytest.mark.parametrize("accel", ["icount", "tcg"])
def test_the_same_folder_as_locally(engine: str, tmp_path: Path, accel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, ARMS, boots=2)
    config.write_text(config.read_text().replace("icount", accel))
    monkeypatch.setattr(run, "report", lambda store: run.Finished(store.run, Comparison(), ()))  # type: ignore[arg-type]
    here, said_here = go(config, None, 1, "here")
    there, said = go(config, engine, None, "there")
    assert results_of(there) == results_of(here) and files_of(there) == files_of(here) and len(results_of(here)) == 16
    names = {path.name for path in there.iterdir()} - {path.name for path in here.iterdir()}
    assert names == {"workers.json"}
    lines = [line.split("): ")[1] for line in said.splitlines() if line.startswith("trial ")]
    assert sorted(lines) == sorted(
        line.split("): ")[1] for line in said_here.splitlines() if line.startswith("trial ")
    ), "the same progress"
    assert "0.0 MiB shipped" in said and {item.qemu for item in facts.load(there)} == {identity.own_identity().qemu}


@dataclass(frozen=True)
class Comparison:
    """In place of a report, which takes longer than all the rest and is the same for every engine."""

    status: str = "complete"


def test_the_report_names_the_workers(engine: str, tmp_path: Path) -> None:
    folder, _ = go(write_config(tmp_path, cells=1), engine)
    names = {item.name for item in facts.load(folder)}
    assert names and f"workers: {', '.join(sorted(names))}: " in (folder / "report.txt").read_text()
    assert json.loads((folder / "summary.json").read_text())["status"] == "complete"


def test_several_configs_run_one_after_the_other(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw_all", lambda *_: ())
    config = write_config(tmp_path, cells=1)
    other = config.with_name("other.yaml")
    other.write_text(config.read_text().replace("accel: icount", "accel: tcg"))
    reporter = Reporter(io.StringIO())

    def cluster() -> Cluster:
        return Cluster(engine, PATIENCE_S, reporter.say)

    found = several.run_all([config, other], tmp_path / "results", None, ["orch"], reporter, cluster)
    assert found.exit_code(False) == 0 and found.page is not None
    assert [part.run.manifest.accel for part in found.parts if part.run is not None] == ["icount", "tcg"]
    assert all(facts.load(part.run.folder) for part in found.parts if part.run is not None)


def test_a_recording_of_any_size_comes_in_pieces(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    config = write_config(tmp_path)
    here, _ = go(config, None, 1, "here")
    monkeypatch.setattr(parcel, "WHOLE_BYTES", 100)
    monkeypatch.setattr(parcel, "PIECE_BYTES", 1000)
    there, _ = go(config, engine, None, "there")
    assert files_of(there) == files_of(here) and any(len(data) > 4000 for data in files_of(here).values())


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "report", lambda store: run.Finished(store.run, Comparison(), ()))  # type: ignore[arg-type]


@dataclass(frozen=True)
class NotingTarget:
    """Simulated; notes which worker ran what, and breaks on the worker ``broken``.

    Nothing ends before so many ``workers`` have begun something; one that breaks again first waits for ``refused``.
    """

    notes: Path
    broken: tuple[str, ...] = ()
    workers: int = 1
    refused: threading.Event = field(default_factory=threading.Event)

    def run(self, job: Job, folder: Path) -> Evidence:
        worker = distributed.get_worker()
        words = dict(zip(job.words[::2], job.words[1::2], strict=True))
        with self.notes.open("a") as stream:
            stream.write(f"{worker.name} {words['--seed']} {words['--arm'].rstrip()}\n")
        wait_until(lambda: len(set(self.begun)) >= self.workers)
        if str(worker.name) in self.broken:
            if self.begun.count(str(worker.name)) > 1:
                self.refused.wait(PATIENCE_S)
            raise TargetError("QEMU did not start", hint="orch doctor")
        return SimulatedTarget().run(job, folder)

    @property
    def begun(self) -> list[str]:
        """The worker of each trial that began, in order."""
        return [line.split()[0] for line in self.notes.read_text().splitlines()]


def wait_until(what: Callable[[], bool]) -> None:
    """Wait for what may also never come: it is for the test to say so."""
    ends = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < ends:
        time.sleep(0.01)


def test_a_block_is_run_in_order_on_one_worker(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    target = NotingTarget(tmp_path / "notes", workers=2)
    monkeypatch.setattr(kit, "make_emulator", lambda accel, machine, guests: target)
    config = write_config(tmp_path, ("base", "v1", "slow"), boots=4, cells=1)
    config.write_text(config.read_text().replace("icount", "tcg"))
    go(config, engine)
    lines = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    seeds = {seed for _, seed, _ in lines}
    for number, seed in enumerate(make_plan(load(config)).seeds):
        own = [(worker, arm) for worker, other, arm in lines if other == str(seed)]
        assert len({worker for worker, _ in own}) == 1
        order = ["base", "v1", "slow"]
        assert [arm for _, arm in own] == (order if number % 2 == 0 else order[::-1])
    assert len(seeds) == 4 and {worker for worker, *_ in lines} == {"0", "1"}


def test_jobs_limits_what_runs_at_once(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    monkeypatch.setenv(simulated_orch.SECONDS, "0.05")
    monkeypatch.setattr(kit, "make_emulator", lambda accel, machine, guests: NotingTarget(tmp_path / "notes"))
    _, said = go(write_config(tmp_path, boots=2), engine, 1)
    assert "1 at a time" in said
    order = [line.split()[1] for line in said.splitlines() if line.startswith("trial ")]
    assert order == sorted(order), "one at a time they come in order"


def test_a_worker_does_not_wait_for_the_clients_disk(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    notes, begun = tmp_path / "notes", list[int]()
    monkeypatch.setattr(kit, "make_emulator", lambda accel, machine, guests: NotingTarget(notes))

    def seal_later(self: Store, item: TrialResult, written_sha256: str | None = None) -> None:
        wait_until(lambda: len(notes.read_text().splitlines()) == 2)
        begun.append(len(notes.read_text().splitlines()))
        seal(self, item, written_sha256)

    seal = Store.seal
    monkeypatch.setattr(Store, "seal", seal_later)
    folder, _ = go(write_config(tmp_path, cells=1), engine, 1)
    assert begun == [2, 2] and len(results_of(folder)) == 2


def test_a_disk_that_fails_ends_the_run(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    def fail(self: Store, item: TrialResult, written_sha256: str | None = None) -> None:
        if item.id == "001":
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(self, item, written_sha256)

    seal = Store.seal
    config = write_config(tmp_path, boots=2)
    monkeypatch.setattr(Store, "seal", fail)
    with pytest.raises(StoreError, match=r"cannot keep a trial that was run elsewhere: .*No space left"):
        go(config, engine, 1)
    monkeypatch.setattr(Store, "seal", seal)
    folder, said = go(config, engine)
    assert f"going on with {folder} (1 of 8 trials are done)" in said and len(results_of(folder)) == 8


def test_no_worker_is_missed_because_dasks_client_asks_at_the_same_time(engine: str) -> None:
    """Its timer asks for no workers, and writes the answer where that of any other question is."""
    found = link.Link(engine, lambda text: None)
    found.connect(10)
    try:
        client = found._open_client
        ask = client._update_scheduler_info

        async def ask_twice(n_workers: int = 0) -> None:
            await ask(n_workers)
            await ask()

        client._update_scheduler_info = ask_twice
        assert len(found.residents()) == 2
    finally:
        found.close()


# --- a run that was interrupted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accel", "stand"), [("tcg", {"000", "001"}), ("icount", {"000", "001", "003", "009"})])
def test_half_a_block_is_run_again_whole(accel: str, stand: set[str]) -> None:
    """Its trials are compared with each other, so that they must be of one machine; under icount they need not be."""
    arms = tuple(Arm(name, ()) for name in ("base", "v1", "broken"))
    plan = make_plan(replace(experiment(cells=2), arms=arms))
    assert [trial.arm for trial in plan.trials[:3]] == ["base", "v1", "broken"]
    skipped = [trial.id for trial in plan.trials if trial.arm == "broken"]
    kit = Kit(TargetSpec("qemu"), accel, None, "", (), (), ())  # type: ignore[arg-type]
    trials = {trial.id: trial for trial in plan.trials}
    done = [result(trials[trial_id]) for trial_id in ("000", "001", "003", "009")]
    assert whole_blocks(plan, done, skipped, kit) == stand
    lost = replace(done[1], machine="a", machine_lost="it did not return", outcome=Outcome.LOST)
    assert whole_blocks(plan, [done[0], lost], skipped, kit) == (set() if accel == "tcg" else {"000", "001"})


def test_a_run_that_was_begun_here_goes_on_there(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    config = write_config(tmp_path, ("base", "v1", "gone"), cells=1)
    with pytest.raises(TargetError, match="QEMU did not start"):
        go(config, None, 1)
    monkeypatch.setattr(kit, "make_emulator", lambda accel, machine, guests: SimulatedTarget(mended=True))
    folder, said = go(config, engine)
    assert f"going on with {folder} (2 of 3 trials are done)" in said and len(results_of(folder)) == 3


# --- a lab ------------------------------------------------------------------------------------------------------------

LAB = """hosts:
  a: {address: 10.0.0.1, user: root, agent: true, known_hosts: known_hosts}
  b: {address: 10.0.0.2, user: root, agent: true, known_hosts: known_hosts}
"""


@dataclass(frozen=True)
class Machine:
    """A machine of a lab; it is lost in the trial of ``lost_arm`` with ``lost_seed``."""

    name: str
    notes: Path
    lost_arm: str = ""
    lost_seed: int = 0
    usable: bool = True

    def contact(self) -> None:
        self._note("contact")

    def close(self) -> None:
        self._note("close")

    def run(self, job: Job, folder: Path) -> Evidence:
        words = dict(zip(job.words[::2], job.words[1::2], strict=True))
        arm, seed = words["--arm"].rstrip(), int(words["--seed"])
        self._note(f"{arm} {seed}")
        evidence = SimulatedTarget().run(job, folder)
        lost = arm == self.lost_arm and seed == self.lost_seed
        if lost:
            (folder / "recording.bin").unlink()
            evidence = replace(evidence, ending="killed")
        return replace(evidence, machine=self.name, machine_lost=f"{self.name} did not return" if lost else "")

    def _note(self, text: str) -> None:
        with self.notes.open("a") as stream:
            stream.write(f"{self.name} {text}\n")


@pytest.fixture
def lab_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None) -> Path:
    """An experiment of four blocks of two on the machines a and b, which the workers reach."""
    (tmp_path / "known_hosts").write_text("")
    (tmp_path / "lab.yaml").write_text(LAB)
    config = write_config(tmp_path, boots=4, cells=1)
    config.write_text(config.read_text().replace("{kind: qemu, accel: icount}", "{kind: ssh, lab: lab.yaml}"))
    for host in lab.load(tmp_path / "lab.yaml").hosts:
        monkeypatch.setitem(remote._lab, host.name, host)
    return config


def machines(monkeypatch: pytest.MonkeyPatch, *found: Machine) -> None:
    """Let ``found`` be the lab."""
    by_name = {machine.name: machine for machine in found}
    monkeypatch.setattr(
        kit.labtarget, "make_pool", lambda hosts, *_: LabPool({host.name: by_name[host.name] for host in hosts})
    )


def notes(tmp_path: Path) -> list[list[str]]:
    return [line.split() for line in (tmp_path / "notes").read_text().splitlines()]


def test_each_block_has_a_machine_of_the_lab(
    engine: str, tmp_path: Path, lab_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines(monkeypatch, Machine("a", tmp_path / "notes"), Machine("b", tmp_path / "notes"))
    monkeypatch.setenv(simulated_orch.SECONDS, "0.05")
    folder, said = go(lab_config, engine)
    results = results_of(folder)
    by_block: dict[int, set[str]] = {}
    for item in results:
        by_block.setdefault(item.block, set()).add(item.machine)
    assert len(results) == 8 and all(len(names) == 1 for names in by_block.values())
    assert {item.machine for item in results} == {"a", "b"} and "ready: lab-a, lab-b" in said
    words = [words for words in notes(tmp_path) if words[0] == "a"]
    assert [words[1] for words in words[:4]] == ["contact", words[1][1], words[2][1], "close"], "given back after each"


def test_a_block_that_loses_its_machine_runs_again_on_another(
    engine: str, tmp_path: Path, lab_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = make_plan(load(lab_config)).trials[1]  # The second trial of the first block, which goes to the first.
    fragile = Machine("a", tmp_path / "notes", second.arm, second.seed)
    machines(monkeypatch, fragile, Machine("b", tmp_path / "notes"))
    folder, said = go(lab_config, engine)
    results = results_of(folder)
    assert len(results) == 8 and {item.outcome for item in results} == {Outcome.OK}
    assert {item.machine for item in results if item.block == 0} == {"b"} and "a is not used any more: a did" in said
    superseded = {path.name for path in (folder / "superseded").iterdir()}
    assert superseded == {"000-1", "001-1"}, "what was measured on the machine that was lost is kept"
    here, _ = go_here(lab_config, tmp_path, monkeypatch, fragile)
    assert [replace(item, machine="", boot_seconds=0) for item in results_of(here)] == [
        replace(item, machine="", boot_seconds=0) for item in results
    ]


def go_here(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fragile: Machine) -> tuple[Path, str]:
    """The same without the cluster."""
    pool = LabPool({"a": fragile, "b": Machine("b", tmp_path / "notes")})
    monkeypatch.setattr(run.labtarget, "make_pool", lambda *_: pool)
    return go(config, None, 1, "here")


def test_no_machine_left_ends_the_run_and_keeps_what_there_is(
    engine: str, tmp_path: Path, lab_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "stopped", lambda run, conductor, why: why)
    plan = make_plan(load(lab_config))
    broken = [Machine(name, tmp_path / "notes", plan.trials[1].arm, plan.trials[1].seed) for name in "ab"]
    machines(monkeypatch, *broken)
    with pytest.raises(NoMachineLeft, match=r"no machine of the lab is left:\n  a: a did not return\n  b: b did not"):
        go(lab_config, engine, 1)
    (folder,) = (path for path in (tmp_path / "results").iterdir() if path.is_dir())
    assert {item.id: item.outcome for item in results_of(folder)} == {"000": Outcome.OK, "001": Outcome.LOST}
    for name in "ab":
        assert [words[1] for words in notes(tmp_path) if words[0] == name][-1] == "close"


# --- workers and targets that cannot ----------------------------------------------------------------------------------


def test_a_worker_that_cannot_run_trials_is_put_aside(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    notes = NotingTarget(tmp_path / "notes", ("1",), workers=2)
    monkeypatch.setattr(kit, "make_emulator", lambda accel, machine, guests: notes)

    def refuse(self: Roster, address: str, why: str) -> None:
        really_refuse(self, address, why)
        notes.refused.set()

    really_refuse = Roster.refuse
    monkeypatch.setattr(Roster, "refuse", refuse)
    folder, said = go(write_config(tmp_path, boots=3), engine)
    assert len(results_of(folder)) == 12
    assert "is not used any more: it could not run trial 00" in said and "QEMU did not start" in said
    assert notes.begun.count("1") <= 2, "it may have begun one more before its first answer was read"


def test_what_no_worker_can_run_ends_the_run_and_keeps_the_rest(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    config = write_config(tmp_path, ("base", "v1", "gone"), cells=1)
    with pytest.raises(TargetError, match=r"trial 002 of cell cell0: worker tcp://.*: QEMU did not start") as caught:
        go(config, engine)
    assert caught.value.hint == "orch doctor"
    (folder,) = (path for path in (tmp_path / "results").iterdir() if path.is_dir())
    assert [item.id for item in results_of(folder)] == ["000", "001"]


def test_another_version_of_the_tool_is_refused_with_both_named(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(identity.own_identity(), tool="0.9 (sources 0123)", sources_id="01" * 32)
    monkeypatch.setattr(remote, "own_identity", lambda: other)
    with pytest.raises(EngineError, match=r"no worker at dask://.* offers icount and could be used") as caught:
        go(write_config(tmp_path), engine)
    assert caught.value.what.count(f"has orch 0.9 (sources 0123), here is {identity.own_identity().tool}") == 2


def test_another_version_that_comes_later_runs_nothing(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    """A worker may be replaced, at the same address, between being looked at and being used."""
    ours = identity.own_identity()
    answers = iter([ours, ours, replace(ours, sources_id="01" * 32)])  # Two are looked at, one is used.
    monkeypatch.setattr(remote, "own_identity", lambda: next(answers, ours))
    monkeypatch.setattr(kit, "make_emulator", lambda accel, machine, guests: NotingTarget(tmp_path / "notes"))
    folder, said = go(write_config(tmp_path, cells=1), engine, 1)
    assert len(results_of(folder)) == len((tmp_path / "notes").read_text().splitlines()) == 2
    assert said.count("is ready") == 3 and next(answers, None) is None, "it was looked at again"


def test_another_dask_is_refused_with_both_named(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "dask_version", lambda: "1999.1")
    with pytest.raises(UserError, match=rf"the scheduler at {engine} has Dask {distributed.__version__}, here is 1999"):
        go(write_config(tmp_path), engine)


def test_files_that_vanish_from_a_workers_cache_are_shipped_again(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    @dataclass(frozen=True)
    class Vandal:
        def run(self, job: Job, folder: Path) -> Evidence:
            for path in (tmp_path / "cache/shipped/files").iterdir():
                path.unlink()
            return SimulatedTarget().run(job, folder)

    monkeypatch.setattr(kit, "make_emulator", lambda accel, machine, guests: Vandal())
    folder, said = go(write_config(tmp_path, cells=1), engine, 1)
    assert len(results_of(folder)) == 2 and said.count("MiB shipped to it") == 2


def test_what_cannot_work_on_a_cluster_says_so(engine: str, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("{kind: qemu, accel: icount}", "{kind: local}"))
    text = config.read_text().replace("kernel: {sources: [{tree: linux}], fragments: [host.config]}\n", "")
    config.write_text("\n".join(line for line in text.splitlines() if "v1" not in line) + "\n")
    with pytest.raises(UserError, match="target: local is the kernel of this machine"):
        go(config, engine)
    with Cluster(engine, PATIENCE_S, lambda text: None) as cluster:
        cluster._patience_s = 0.5  # Now: to connect may take longer.
        with pytest.raises(EngineError, match=r"no worker at .* offers kvm and could be used, for 0 s"):
            cluster.pick_accel("kvm", 1)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:8786", "tcp://127.0.0.1:8786", "dask://127.0.0.1", "dask://127.0.0.1:0", "dask://127.0.0.1:99999",
     "dask://a b:1", "dask://:8786", "dask://h:1/x", "dask+ssl://h:1", ""],
)  # fmt: skip
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UserError, match="is no address of a scheduler"):
        Cluster(address, 0, lambda text: None)


def test_nobody_answers() -> None:
    said: list[str] = []
    with pytest.raises(EngineError, match=r"no scheduler answers at dask://127\.0\.0\.1:1 within 2 s") as caught:
        Cluster("dask://127.0.0.1:1", 2, said.append).__enter__()
    assert "dask scheduler" in (caught.value.hint or "") and said == ["waiting for a scheduler at dask://127.0.0.1:1"]


def test_tls_that_is_not_set_up_is_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()  # What other tests left is theirs.
    unraisable: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: unraisable.append(f"{what.exc_value!r}: {what.object!r}"))
    with pytest.raises(UserError, match=r"cannot connect to dask\+tls://.*TLS"):
        Cluster(engine.replace("dask", "dask+tls"), PATIENCE_S, lambda text: None).__enter__()
    gc.collect()  # Dask's client would close itself once more here, and say that it cannot.
    assert unraisable == []
