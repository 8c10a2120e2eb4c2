"""engine/roster.py, remote.py and worker.py: who may work, who may not, and what workers offer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from test_engine import experiment
from test_shipping import built

from orchestrator import doctor
from orchestrator.doctor import AccelChoice
from orchestrator.engine import remote, worker
from orchestrator.engine.facts import WorkerFacts, load, record, rows
from orchestrator.engine.identity import Identity, dask_version, own_identity
from orchestrator.engine.kit import pack
from orchestrator.engine.link import Resident
from orchestrator.engine.need import HostId, Need
from orchestrator.engine.roster import Roster
from orchestrator.errors import TargetError, UserError
from orchestrator.lab import LabHost
from orchestrator.store import Store

OURS = own_identity()
ICOUNT = Need("icount", 1)


@dataclass
class Cluster:
    """In place of a link: workers by address, what they answer, and what was asked of them."""

    residents_: dict[str, Resident] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    identities: dict[str, Identity | Exception] = field(default_factory=dict)
    prepared: Any = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    engine: str = "dask://here:1"

    def add(
        self, name: str, resources: dict[str, float], identity: Identity | Exception = OURS, threads: int = 8
    ) -> str:
        address = f"tcp://{name}:1"
        self.residents_[address] = Resident(address, name, threads, tuple(resources.items()))
        self.versions[address] = dask_version()
        self.identities[address] = identity
        return address

    def residents(self) -> dict[str, Resident]:
        return self.residents_

    def dask_versions(self) -> dict[str, str]:
        return self.versions

    def ask(self, workers: tuple[str, ...], function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        assert function is remote.identify
        return {address: self.identities[address] for address in workers}

    def ask_one(self, address: str, function: Callable[..., Any], *args: Any) -> Any:
        self.asked.append((address, function.__name__))
        if function is remote.missing:
            return tuple(sha for sha in args[0] if sha not in self.files)
        if function is remote.put:
            sha, _, offset, data, _ = args
            self.files[sha] = self.files.get(sha, b"")[:offset] + data
            return None
        if isinstance(self.prepared, Exception):
            raise self.prepared
        return self.prepared


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def roster(cluster: Cluster, tmp_path: Path) -> Roster:
    guests, kernels, _ = built(tmp_path / "client")
    packing = pack(experiment().target, ("icount", None), guests, kernels, ())
    said: list[str] = []
    made = Roster(cluster, said.append, packing)  # type: ignore[arg-type]
    made.said = said  # type: ignore[attr-defined]
    return made


def said(roster: Roster) -> list[str]:
    found: list[str] = roster.said  # type: ignore[attr-defined]
    return found


# --- who may work -----------------------------------------------------------------------------------------------------


def test_a_worker_gets_what_its_machine_lacks_once(cluster: Cluster, roster: Roster) -> None:
    first = cluster.add("w1", {"qemu-icount": 2})
    roster.look()
    assert list(roster.ready(ICOUNT)) == [first]
    puts = cluster.asked.count((first, "put"))
    assert puts == 5 and roster.packing is not None
    assert {sha: path.read_bytes() for sha, path in roster.packing.files.items()} == cluster.files
    second = cluster.add("w2", {"qemu-icount": 1})
    roster.look()
    assert set(roster.ready(ICOUNT)) == {first, second}
    assert (second, "put") not in cluster.asked, "on the same machine it is there already"
    assert cluster.asked.count((first, "put")) == puts
    assert said(roster) == [
        "worker w1 (tcp://w1:1) is ready: 2 x icount, 0.0 MiB shipped to it",
        "worker w2 (tcp://w2:1) is ready: 1 x icount",
    ]
    assert set(roster.facts) == {"w1", "w2"}


def test_another_dask_is_not_even_asked(cluster: Cluster, roster: Roster) -> None:
    address = cluster.add("old", {"qemu-icount": 1})
    cluster.versions[address] = "2020.1.0"
    cluster.identities.clear()
    roster.look()
    assert roster.ready(ICOUNT) == {} and not cluster.asked
    assert said(roster) == [f"worker old (tcp://old:1) is not used: it has Dask 2020.1.0, here is {dask_version()}"]


def test_another_tool_and_none_at_all(cluster: Cluster, roster: Roster) -> None:
    cluster.add("new", {"qemu-icount": 1}, replace(OURS, tool="2.0", sources_id="cd" * 32))
    cluster.add("bare", {"qemu-icount": 1}, ModuleNotFoundError("No module named 'orchestrator'"))
    cluster.add("odd", {"qemu-icount": 1}, "hello\x1b[31m")  # type: ignore[arg-type]
    roster.look()
    assert roster.ready(ICOUNT) == {}
    lines = roster.refusals()
    assert lines[0] == f"new (tcp://new:1) has orch 2.0, here is {OURS.tool}"
    assert "bare (tcp://bare:1) has no orch that answers: ModuleNotFoundError: No module named" in lines[1]
    assert "\x1b" not in lines[2] and "hello" in lines[2]


def test_the_qemu_that_most_have_is_the_one(cluster: Cluster, roster: Roster) -> None:
    for name, version in (("a", "QEMU 9"), ("b", "QEMU 8"), ("c", "QEMU 9"), ("d", "QEMU 7")):
        cluster.add(name, {"qemu-tcg": 1} if name == "d" else {"qemu-icount": 1}, replace(OURS, qemu=version))
    roster.look()
    assert roster.choose_qemu("icount") == "QEMU 9"
    assert {member.resident.name for member in roster.ready(ICOUNT).values()} == {"a", "c"}
    assert any(line.startswith("b (tcp://b:1) has QEMU 8, the others have QEMU 9") for line in roster.refusals())
    cluster.add("e", {"qemu-icount": 1}, replace(OURS, qemu=""))
    roster.look()
    assert any("e (tcp://e:1) has no QEMU, the others have QEMU 9" in line for line in roster.refusals())


def test_among_equals_this_machines_qemu_is_the_one(cluster: Cluster, roster: Roster) -> None:
    cluster.add("a", {"qemu-icount": 1}, replace(OURS, qemu="QEMU zzz"))
    cluster.add("b", {"qemu-icount": 1})
    roster.look()
    assert roster.choose_qemu("icount") == OURS.qemu


def test_what_a_worker_does_not_offer_it_is_not_asked_for(cluster: Cluster, roster: Roster) -> None:
    cluster.add("w", {"GPU": 4, "qemu-tcg": 1})
    cluster.add("plain", {})
    roster.look()
    assert roster.ready(ICOUNT) == {} and not roster.refusals() and not cluster.asked


def test_no_more_slots_than_threads(cluster: Cluster, roster: Roster) -> None:
    cluster.add("w", {"qemu-icount": 4}, threads=1)
    roster.look()
    (member,) = roster.ready(ICOUNT).values()
    assert member.room(ICOUNT) == {"qemu-icount": 1}


@pytest.mark.parametrize(("slots", "cpus", "good"), [(2, 2, True), (3, 2, False), (1, 8, True), (4, 1, True)])
def test_timed_boots_need_a_cpu_for_each_emulated_one(
    cluster: Cluster, roster: Roster, slots: int, cpus: int, good: bool
) -> None:
    cluster.add("w", {"qemu-tcg": slots}, replace(OURS, cpus=4))
    roster.look()
    assert bool(roster.ready(Need("tcg", cpus))) == good
    if not good:
        assert "offers 3 boots at once with 2 emulated CPUs each, and has 4 CPUs" in roster.refusals()[0]


def test_a_machine_that_cannot_do_what_its_worker_offers_is_refused_with_the_reason(
    cluster: Cluster, roster: Roster
) -> None:
    cluster.add("w", {"qemu-kvm": 1})
    cluster.prepared = "accel: kvm cannot work here: /dev/kvm is missing"
    roster.look()
    assert roster.ready(Need("kvm", 1)) == {}
    assert roster.refusals() == (
        "w (tcp://w:1) cannot run these trials: accel: kvm cannot work here: /dev/kvm is missing",
    )


def test_a_worker_that_does_not_answer_is_looked_at_again_but_not_for_ever(cluster: Cluster, roster: Roster) -> None:
    cluster.add("w", {"qemu-icount": 1})
    cluster.prepared = ConnectionResetError("reset")
    for _ in range(10):
        roster.look()
        assert roster.ready(ICOUNT) == {}
    assert cluster.asked.count(("tcp://w:1", "prepare")) == 4
    assert "does not answer: ConnectionResetError: reset" in roster.refusals()[0]


def test_a_labs_machine_is_offered_by_name_and_known_by_its_description(cluster: Cluster, roster: Roster) -> None:
    a, b, c = (HostId(name, "ab" * 32) for name in "abc")
    need = Need("ssh", 1, (a, b))
    cluster.add("w1", {"lab-a": 1, "lab-c": 1}, replace(OURS, lab=(a, c)))
    cluster.add("w2", {"lab-b": 1, "lab-a": 1}, replace(OURS, lab=(replace(a, sha256="cd" * 32), b)))
    cluster.add("w3", {"lab-b": 1})  # Declared with `dask worker --resources`: nobody there knows such a machine.
    cluster.add("w4", {"qemu-icount": 4})
    roster.look()
    assert {member.resident.name: member.room(need) for member in roster.ready(need).values()} == {"w1": {"lab-a": 1}}
    assert roster.refusals() == ("w2 (tcp://w2:1) describes a otherwise than this machine's lab file",)
    assert "worker w1 (tcp://w1:1) is ready: lab-a, 0.0 MiB shipped to it" in said(roster)


def test_who_goes_is_told_and_comes_back_as_new(cluster: Cluster, roster: Roster) -> None:
    address = cluster.add("w", {"qemu-icount": 1})
    roster.look()
    roster.ready(ICOUNT)
    resident = cluster.residents_.pop(address)
    roster.look()
    assert roster.ready(ICOUNT) == {} and "w (tcp://w:1) has gone; what it was running runs again" in said(roster)[-1]
    cluster.residents_[address] = resident
    roster.look()
    assert list(roster.ready(ICOUNT)) == [address]


# --- inside a worker --------------------------------------------------------------------------------------------------


def test_boots_of_one_kind_run_together_and_never_beside_another() -> None:
    gate = remote.Gate()
    inside: list[str] = []
    seen: list[tuple[str, ...]] = []
    lock = threading.Lock()
    together = threading.Event()

    def boot(kind: str) -> None:
        with gate.hold(kind):
            with lock:
                inside.append(kind)
                seen.append(tuple(inside))
                if len(inside) > 1:
                    together.set()
            together.wait(60)
            time.sleep(0.05)
            with lock:
                inside.remove(kind)

    threads = [threading.Thread(target=boot, args=(kind,)) for kind in ("icount", "tcg") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(seen) == 8 and all(len(set(kinds)) == 1 for kinds in seen)
    assert max(len(kinds) for kinds in seen) > 1


@pytest.mark.parametrize(
    ("text", "offer"), [("icount=2", ("icount", 2)), ("kvm=1", ("kvm", 1)), ("tcg=64", ("tcg", 64))]
)
def test_an_offer(text: str, offer: tuple[str, int]) -> None:
    found = worker.parse_offer(text)
    assert (found.accel, found.slots) == offer


@pytest.mark.parametrize("text", ["", "icount", "icount=", "icount=0", "icount=-1", "xen=1", "tcg=1.5", "tcg=1 kvm=1"])
def test_an_offer_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="offers nothing: expected ACCEL=N with kvm, tcg, icount"):
        worker.parse_offer(text)


def test_what_a_worker_offers_as_dask_knows_it() -> None:
    host = LabHost(name="a", address="10.0.0.1", user="root", known_hosts=Path("/k"), agent=True)
    offers = worker.Offers((worker.Offer("icount", 4), worker.Offer("tcg", 1)), (host,))
    assert offers.resources == {"qemu-icount": 4, "qemu-tcg": 1, "lab-a": 1} and offers.threads == 4
    assert str(offers) == "4 x icount, 1 x tcg, a" and worker.Offers((), (host,)).threads == 1
    with pytest.raises(UserError, match="--host names a machine of a lab file"):
        worker.find_hosts(None, ["a"])


def test_what_is_offered_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def pick_accel(wanted: str, cpus: int) -> AccelChoice:
        if wanted == "kvm":
            raise TargetError("accel: kvm cannot work here: no device")
        return AccelChoice(wanted, "")  # type: ignore[arg-type]

    monkeypatch.setattr(doctor, "pick_accel", pick_accel)
    monkeypatch.setattr(worker.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert worker.find_offers([]) == (worker.Offer("icount", 3), worker.Offer("tcg", 1))
    assert worker.find_offers([worker.Offer("tcg", 2)]) == (worker.Offer("tcg", 2),)
    with pytest.raises(TargetError, match="no device"):
        worker.find_offers([worker.Offer("kvm", 1)])


# --- who it was -------------------------------------------------------------------------------------------------------


def test_workers_of_all_starts_of_a_run_are_remembered(tmp_path: Path) -> None:
    store = Store(tmp_path, None)
    assert load(tmp_path) == ()
    record(store, [])
    assert not (tmp_path / "workers.json").exists()
    other = replace(OURS.host, cpu="Another CPU", cores=64)
    facts = {name: WorkerFacts(name, "1.0", "QEMU 7", OURS.host) for name in ("b", "a")}
    record(store, facts.values())
    record(store, [WorkerFacts("c", "1.0", "QEMU 7", other), replace(facts["a"], tool="1.1")])
    found = load(tmp_path)
    assert [item.name for item in found] == ["a", "b", "c"] and found[0].tool == "1.1"
    assert [label for label, _ in rows(found)] == ["workers", "workers"]
    assert rows(found)[0][1].startswith(f"a, b: {OURS.host.cpu}, ") and rows(found)[1][1].startswith(
        "c: Another CPU, 64"
    )
