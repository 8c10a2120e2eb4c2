"""lab/lease.py: one holder at a time, a holder that is dead loses the machine, and whoever is refused hears by whom."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path

import pytest
from fakehost import FOLDER, FakeHost, World, cut, lab_host

from orchestrator.lab import lease
from orchestrator.lab.lease import BEAT_S, DEAD_S, Held, Lease, make_lease
from orchestrator.lab.link import Link
from orchestrator.lab.remote import Cut

AGENT = f"{FOLDER}/files/agent"
PATH = f"{FOLDER}/lease"


class Bench:
    """A machine, and tools that want it."""

    def __init__(self, folder: Path) -> None:
        self.world = World()
        self.host = FakeHost(self.world)
        self.host.folders.add(FOLDER)
        self.described = lab_host(folder)
        self.said: list[str] = []

    def link(self) -> Link:
        return Link(self.described, self.host.connect, self.world)

    def take(self, wanted: Lease) -> None:
        lease.take(self.link(), AGENT, FOLDER, wanted, self.said.append)

    def beats(self, holder: Lease, seconds: float) -> None:
        """As a Keeper does it, for so long."""
        for count in range(int(seconds / BEAT_S)):
            data = f"{count}\n".encode()
            self.world.later(
                count * BEAT_S, lambda data=data: self.host.files.update({f"{PATH}.{holder.token}.beat": data})
            )  # type: ignore[misc]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def elsewhere(**changes: object) -> Lease:
    """A lease of a tool on another machine."""
    mine = make_lease("2021-01-25")
    values: dict[str, object] = {"node": "desk2", "boot_id": "another", "who": "kim", "pid": 4711}
    return Lease(mine.token, dataclasses.replace(mine.owner, **(values | changes)))  # type: ignore[arg-type]


def test_a_free_machine_is_taken_kept_and_given_back(bench: Bench) -> None:
    mine = make_lease("now")
    bench.take(mine)
    assert bench.host.files[PATH].decode() == mine.text
    bench.take(mine)
    assert lease.holder_of(bench.host.connect(), FOLDER) == mine.owner
    lease.give_back(bench.link(), AGENT, FOLDER, mine)
    assert PATH not in bench.host.files and lease.holder_of(bench.host.connect(), FOLDER) is None


def test_a_machine_in_use_is_refused_with_the_holders_name(bench: Bench) -> None:
    holder = elsewhere()
    bench.take(holder)
    bench.beats(holder, 300)
    with pytest.raises(Held) as caught:
        bench.take(make_lease("now"))
    assert caught.value.what.startswith("rack1 is in use by kim@desk2, process 4711 since 2021-01-25: ")
    assert bench.world.now < 1000 + 2 * BEAT_S, "its next beat shows that it lives"
    assert bench.host.files[PATH].decode() == holder.text


def test_a_holder_that_beats_no_more_loses_the_machine(bench: Bench) -> None:
    holder = elsewhere()
    bench.take(holder)
    bench.beats(holder, 100)
    bench.world.sleep(100)
    mine = make_lease("now")
    bench.take(mine)
    assert bench.host.files[PATH].decode() == mine.text and bench.world.now >= 1100 + DEAD_S
    assert f"{PATH}.{holder.token}.beat" not in bench.host.files
    assert "no sign of life of kim@desk2" in bench.said[-1]
    bench.beats(mine, 300)
    with pytest.raises(Held, match="rack1 is in use by"):
        bench.take(holder)


def test_on_the_same_machine_a_dead_process_is_seen_at_once(bench: Bench) -> None:
    mine = make_lease("now")
    dead = Lease("dead", dataclasses.replace(mine.owner, start=mine.owner.start + 1))
    bench.take(dead)
    before = bench.world.now
    bench.take(mine)
    assert bench.host.files[PATH].decode() == mine.text and bench.world.now - before < 1
    assert dead.owner.dead and not mine.owner.dead and not elsewhere().owner.dead


def test_a_lease_that_nobody_can_read_is_respected_until_it_is_dead(bench: Bench) -> None:
    bench.host.files[PATH] = b'future {"version": 9}\n'
    mine = make_lease("now")
    bench.take(mine)
    assert bench.world.now >= 1000 + DEAD_S and "somebody (its lease cannot be read)" in bench.said[0]


def test_a_lease_given_back_while_we_wait_is_ours(bench: Bench) -> None:
    holder = elsewhere()
    bench.take(holder)
    bench.world.later(5, lambda: bench.host.files.pop(PATH))
    bench.take(make_lease("now"))
    assert bench.world.now < 1020


def test_a_jump_of_any_clock_gives_no_lease_away(bench: Bench) -> None:
    """Dates are not compared: the holder's are of next year, and it is alive; or of last year, and it is alive."""
    for since in ("2099-01-01", "1970-01-01"):
        holder = elsewhere(since=since)
        bench.host.files.pop(PATH, None)
        bench.take(holder)
        bench.beats(holder, 200)
        with pytest.raises(Held):
            bench.take(make_lease("now"))


def test_the_answer_to_taking_it_may_get_lost(bench: Bench) -> None:
    mine = make_lease("now")
    bench.host.folders.add(FOLDER)
    done: list[int] = []

    def cut_after_doing(call: str, words: tuple[str, ...]) -> None:
        if call == "run" and not done:
            done.append(1)
            bench.host.execute(words)
            cut()

    bench.host.faults.append(cut_after_doing)
    bench.take(mine)
    assert bench.host.files[PATH].decode() == mine.text


def test_a_token_from_the_host_names_no_file_elsewhere(bench: Bench) -> None:
    bench.host.files[PATH] = b"../../etc/x {}\n"
    read: list[str] = []
    bench.host.faults.append(lambda call, words: read.append(words[0]) if call in ("read", "remove") else None)
    bench.take(make_lease("now"))
    assert {path for path in read if path.endswith(".beat")} == {f"{PATH}.etcx.beat"}


def test_a_keeper_beats_over_a_connection_of_its_own_until_it_is_stopped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    mine = make_lease("now")
    path = f"{PATH}.{mine.token}.beat"
    failures = iter([True, False, True])

    def connect():  # type: ignore[no-untyped-def]
        if next(failures, False):
            raise Cut("no route")
        return bench.host.connect()

    keeper = lease.Keeper(connect, FOLDER, mine, lambda: None)
    seen: set[bytes] = set()
    ends = time.monotonic() + 60
    while len(seen) < 3 and time.monotonic() < ends:
        if path in bench.host.files:
            seen.add(bench.host.files[path])
    keeper.stop()
    keeper._thread.join(60)  # stop() waits for one beat, which is short here.
    last = bench.host.files[path]
    assert len(seen) == 3 and not keeper._thread.is_alive() and bench.host.files[path] == last


def test_a_keeper_that_has_stood_still_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a laptop that slept, whose usual clock stood still as well."""
    monkeypatch.setattr(lease, "BEAT_S", 0.01)
    slept: list[float] = [0.0]
    monkeypatch.setattr(lease, "awake_s", lambda: slept[0])
    mine = make_lease("now")
    said = threading.Event()
    keeper = lease.Keeper(bench.host.connect, FOLDER, mine, said.set)
    while f"{PATH}.{mine.token}.beat" not in bench.host.files:
        time.sleep(0.001)
    assert not said.is_set()
    slept[0] += DEAD_S + BEAT_S
    assert said.wait(10)
    keeper.stop()
