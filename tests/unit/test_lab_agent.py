"""guests/lab_agent, the real program: what it starts outlives everything, and its lease goes to exactly one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_proc import gone_within

from orchestrator import image, proc
from orchestrator.experiment import Cell, Guest
from orchestrator.lab.lease import own_boot_id, start_time
from orchestrator.results import Outcome
from orchestrator.target.target import Evidence
from orchestrator.trial import classify

GUESTS = Path(__file__).parents[2] / "guests"
QUIET = Cell("quiet", Guest(), None)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("build")
    proc.run(["make", "-s", "-C", GUESTS, f"BUILD={build}", f"{build}/bin/{image.LAB_AGENT}"], deadline_s=600)
    return build / "bin" / image.LAB_AGENT


def run(agent: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([agent, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)


def start(
    agent: Path, folder: Path, script: str, *options: str, deadline: float = 120
) -> subprocess.CompletedProcess[str]:
    argv = ["--dir", folder, "--deadline", deadline, "--log", "new", *options, "--", "/bin/sh", "-c", script]
    return run(agent, "run", *argv)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, sorted(item.name for item in path.parent.iterdir())
        time.sleep(0.01)


def status(folder: Path) -> list[str]:
    """Lines of status.log, times left out."""
    lines = (folder / "status.log").read_text().splitlines()
    timed = ("pid1", "start", "deadline", "end")
    return [line.partition(" ")[0] if line.partition(" ")[0] in timed else line for line in lines]


def test_a_program_leaves_what_a_trial_leaves(agent: Path, tmp_path: Path) -> None:
    started = start(agent, tmp_path, 'echo "two words" >&2; echo out; echo data >recording.bin; exit 3')
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    wait_for(tmp_path / "done")
    assert status(tmp_path) == ["pid1", "start", "stderr two words", "stderr out", "exit 3", "end"]
    assert (tmp_path / "recording.bin").read_text() == "data\n" and (tmp_path / "kernel.log").exists()
    assert not (tmp_path / "reserve").exists()
    outcome, reason, _ = classify(Evidence("ended", 0, 0.0, 1.0), tmp_path)
    assert (outcome, reason) == (Outcome.FAILED, "the program exited with 3: out")


def test_it_outlives_who_asked_for_it(agent: Path, tmp_path: Path) -> None:
    """The starter's session dies as that of a broken connection does: hang-up and kill of its whole group."""
    program = "until [ -e told ]; do sleep 0.05; done; echo late"
    words = ["--dir", str(tmp_path), "--deadline", "120", "--log", "new", "--", "/bin/sh", "-c", program]
    script = '"$@" </dev/null; kill -HUP 0; kill -KILL 0'
    argv = ["setsid", "sh", "-c", script, "sh", str(agent), "run", *words]
    subprocess.run(argv, capture_output=True, timeout=120, check=False)
    assert not (tmp_path / "done").exists()
    (tmp_path / "told").touch()
    wait_for(tmp_path / "done")
    assert status(tmp_path)[-3:] == ["stderr late", "exit 0", "end"]


def test_a_program_that_does_not_end_is_killed_with_all_its_children(agent: Path, tmp_path: Path) -> None:
    start(agent, tmp_path, "sleep 600 & echo $! >child; sleep 600", deadline=3)
    wait_for(tmp_path / "done")
    assert status(tmp_path) == ["pid1", "start", "deadline", "end"]
    assert gone_within(int((tmp_path / "child").read_text()), 60), "dead, whoever inherits it"


@pytest.mark.parametrize(("script", "line"), [("kill -SEGV $$", "signal 11"), ("exec /nowhere", "exit 127")])
def test_how_a_program_can_end(agent: Path, tmp_path: Path, script: str, line: str) -> None:
    start(agent, tmp_path, script)
    wait_for(tmp_path / "done")
    assert status(tmp_path)[-2:] == [line, "end"]


def test_a_program_that_is_not_there_is_said(agent: Path, tmp_path: Path) -> None:
    run(agent, "run", "--dir", tmp_path, "--deadline", 5, "--log", "new", "--", "/nowhere/fault_vmm")
    wait_for(tmp_path / "done")
    assert any("exec of /nowhere/fault_vmm: No such file" in line for line in status(tmp_path))


def test_asked_twice_it_starts_once(agent: Path, tmp_path: Path) -> None:
    assert start(agent, tmp_path, "echo >>count").returncode == 0
    assert start(agent, tmp_path, "echo >>count").returncode == 3
    wait_for(tmp_path / "done")
    assert (tmp_path / "count").read_text() == "\n"


def test_the_keeper_is_named_so_that_nothing_else_can_be_taken_for_it(agent: Path, tmp_path: Path) -> None:
    start(agent, tmp_path, "sleep 600")
    pid, began, boot, program = (tmp_path / "keeper").read_text().split()
    assert boot == own_boot_id() and start_time(int(pid)) == int(began) and start_time(int(program)) > 0
    wrong = (tmp_path / "keeper").read_text().replace(began, "1")
    (tmp_path / "keeper").write_text(wrong)
    assert run(agent, "stop", tmp_path).returncode == 0 and start_time(int(program)) > 0, "another process"
    (tmp_path / "keeper").write_text(f"{pid} {began} {boot} {program}\n")
    assert run(agent, "stop", tmp_path).returncode == 0
    end = time.monotonic() + 60
    while start_time(int(program)) or start_time(int(pid)):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not (tmp_path / "done").exists()
    assert run(agent, "stop", tmp_path).returncode == 0, "twice is as good as once"


def test_the_program_runs_on_the_cpus_it_was_given(agent: Path, tmp_path: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    start(agent, tmp_path, "grep Cpus_allowed_list /proc/self/status", "--cpus", str(cpu))
    wait_for(tmp_path / "done")
    assert f"stderr Cpus_allowed_list:\t{cpu}" in (tmp_path / "status.log").read_text()
    bad = tmp_path / "bad"
    bad.mkdir()
    assert "not a list of CPUs" in start(agent, bad, "true", "--cpus", "1,x").stderr


def test_a_full_disk_leaves_room_to_say_so(agent: Path, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", tmp_path], check=False)
    if mounted.returncode != 0:
        pytest.skip("no mount is possible here")
    try:
        start(agent, tmp_path, "exec cat /dev/zero >recording.bin")
        wait_for(tmp_path / "done")
        said = status(tmp_path)
        assert said[-2:] == ["exit 1", "end"] and any("No space left" in line for line in said)
        full = tmp_path / "full"
        full.mkdir()
        assert "no room in the folder" in start(agent, full, "true").stderr
    finally:
        end = time.monotonic() + 60
        # The keeper, whose folder it is, ends a moment after it has said that all is done.
        while subprocess.run(["umount", tmp_path], check=False, capture_output=True).returncode:
            assert time.monotonic() < end, "something still runs there"
            time.sleep(0.05)


# --- leases -----------------------------------------------------------------------------------------------------------


def test_a_lease_is_replaced_only_by_who_knows_it(agent: Path, tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    assert run(agent, "swap-token", lease, "-", "one {}\n").returncode == 0
    held = run(agent, "swap-token", lease, "-", "two {}\n")
    assert (held.returncode, held.stdout) == (3, "one {}\n")
    assert run(agent, "swap-token", lease, "zero", "two {}\n").returncode == 3
    assert run(agent, "swap-token", lease, "one", "two {}\n").returncode == 0 and lease.read_text() == "two {}\n"
    assert run(agent, "swap-token", lease, "two", "").returncode == 0 and not lease.exists()
    assert run(agent, "swap-token", lease, "two", "").returncode == 3
    assert [item.name for item in tmp_path.iterdir()] == []


def test_of_many_who_want_a_lease_one_gets_it(agent: Path, tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    with ThreadPoolExecutor(8) as pool:
        for expected in ("-", "dead", "again"):
            lease.unlink(missing_ok=True)
            if expected != "-":
                lease.write_text(f"{expected} {{}}\n")
            asked = [
                pool.submit(run, agent, "swap-token", lease, expected, f"{expected}{number}x {{}}\n")
                for number in range(16)
            ]
            won = [number for number, future in enumerate(asked) if future.result().returncode == 0]
            assert len(won) == 1 and lease.read_text() == f"{expected}{won[0]}x {{}}\n"
    assert [item.name for item in tmp_path.iterdir()] == ["lease"]


def test_settings_are_written_and_refusals_told(agent: Path, tmp_path: Path) -> None:
    (tmp_path / "knob").write_text("old")
    assert run(agent, "set", tmp_path / "knob", "new").returncode == 0 and (tmp_path / "knob").read_text() == "new"
    refused = run(agent, "set", "/proc/version", "x")
    assert refused.returncode == 1 and "/proc/version" in refused.stderr
    assert not (tmp_path / "none").exists() and run(agent, "set", tmp_path / "none", "x").returncode == 1
    for words in ((), ("nonsense",), ("set", "x"), ("swapon", "/nowhere")):
        assert run(agent, *words).returncode == 1 and run(agent, *words).stderr


def test_later_is_when_the_connection_is_gone(agent: Path, tmp_path: Path) -> None:
    took = []
    for number in range(5):  # One of them comes to its end at once, whatever else the machine has to do.
        began = time.monotonic()
        assert run(agent, "later", "touch", tmp_path / f"$(x) {number}").returncode == 0
        took.append(time.monotonic() - began)
        wait_for(tmp_path / f"$(x) {number}")
        assert time.monotonic() - began > 0.9
        if took[-1] < 0.9:
            break
    assert min(took) < 0.9


def test_kill_of_the_keeper_is_not_taken_for_an_end(agent: Path, tmp_path: Path) -> None:
    start(agent, tmp_path, "sleep 600")
    pid, _, _, program = map(str, (tmp_path / "keeper").read_text().split())
    os.kill(int(pid), signal.SIGKILL)
    os.killpg(int(program), signal.SIGKILL)
    outcome, reason, _ = classify(Evidence("killed", 0, 0.0, 1.0, note="the keeper is gone"), tmp_path)
    assert (outcome, reason) == (Outcome.LOST, "the keeper is gone")
