"""`target: ssh` against a real OpenSSH server: this machine itself, whose running kernel is benched (boot: none)."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from orchcli import check_samples, orch, run
from sshserver import SshServer, ssh_server

from orchestrator import kvmdev, lab, proc
from orchestrator.lab import connection
from orchestrator.lab.remote import CannotWrite, NoSuchFile, NotTrusted
from orchestrator.lab.types import LabHost
from orchestrator.store import load_json
from orchestrator.target import local
from orchestrator.target.ssh import MachineRecord

HOSTILE = ("a b", "$(touch /tmp/orch-test-pwned)", "`id`", "'", '"', "\\", "*", "~", "a;b", "a\nb", "", "-n", "ü", "#")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd")) as started:
        yield started


def described(server: SshServer, more: str = "") -> LabHost:
    path = server.folder / "lab.yaml"
    path.write_text(server.lab(f", boot: none{more}"))
    (host,) = lab.load(path).hosts
    return host


def test_words_arrive_as_they_are_whatever_they_hold(server: SshServer) -> None:
    transport = connection.connect(described(server))
    reply = transport.run(("printf", "[%s]\n", *HOSTILE), deadline_s=20)
    assert reply.stdout == "".join(f"[{word}]\n" for word in HOSTILE) and reply.returncode == 0
    assert transport.run(("sh", "-c", "echo no >&2; exit 7"), deadline_s=20).said == "no"
    assert transport.run(("sh", "-c", "kill -9 $$"), deadline_s=20).returncode in (137, 255)
    transport.close()


def test_files_go_there_and_back_whole_or_from_the_middle(server: SshServer, tmp_path: Path) -> None:
    transport = connection.connect(described(server))
    data = bytes(range(256)) * 5000
    (tmp_path / "in").write_bytes(data)
    there = str(server.folder / "there")
    transport.append(there, tmp_path / "in", 0)
    assert transport.size(there) == len(data)
    (server.folder / "there").write_bytes(data[:1000])
    transport.append(there, tmp_path / "in", 1000)
    (tmp_path / "out").write_bytes(data[:5])
    transport.fetch(there, tmp_path / "out", 5)
    assert (tmp_path / "out").read_bytes() == data == (server.folder / "there").read_bytes()
    transport.write(there, b"new")
    assert transport.read(there) == b"new" and "there" in transport.names(str(server.folder))
    assert transport.read("/proc/sys/kernel/random/boot_id") == Path("/proc/sys/kernel/random/boot_id").read_bytes()
    assert transport.home() == str(Path(f"~{getpass.getuser()}").expanduser())
    transport.remove(there)
    assert transport.size(there) == -1
    with pytest.raises(NoSuchFile):
        transport.read(there)
    with pytest.raises(CannotWrite, match="cannot write /nowhere/x"):
        transport.write("/nowhere/x", b"")
    transport.close()


def test_a_host_with_another_key_or_none_is_not_trusted(server: SshServer, tmp_path: Path) -> None:
    other = tmp_path / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    stranger = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    good = described(server)
    other.write_text(f"[127.0.0.1]:{server.port} {stranger}\n")
    with pytest.raises(NotTrusted, match="here has another key than") as caught:
        connection.connect(_with(good, known_hosts=other))
    assert caught.value.hint is not None and f"ssh-keyscan -p {server.port} 127.0.0.1" in caught.value.hint
    other.write_text("")
    with pytest.raises(NotTrusted, match="has no key of here"):
        connection.connect(_with(good, known_hosts=other))
    assert other.read_text() == "", "and nothing was learnt"
    with pytest.raises(NotTrusted, match="does not accept the key"):
        connection.connect(_with(good, key=tmp_path / "other"))


def test_a_key_may_stay_with_the_agent(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = tmp_path / "agent"
    host = _with(described(server), key=None, agent=True)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    with proc.start([proc.require("ssh-agent", "openssh-client"), "-D", "-a", socket], log=tmp_path / "log"):
        end = time.monotonic() + 60
        while not socket.exists():
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        with pytest.raises(NotTrusted, match="no ssh-agent with a key is at hand"):
            connection.connect(host)
        other = tmp_path / "other"
        proc.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other])
        proc.run(["ssh-add", "-q", other])
        with pytest.raises(NotTrusted, match="here does not accept any key of the agent"):
            connection.connect(host)
        proc.run(["ssh-add", "-q", server.key])
        transport = connection.connect(host)
        assert transport.run(("true",), deadline_s=20).returncode == 0
        transport.close()


def _with(host: LabHost, **changes: object) -> LabHost:
    values = {name: getattr(host, name) for name in host.__dataclass_fields__}
    return LabHost(**(values | changes))  # type: ignore[arg-type]


def config(server: SshServer, folder: Path, rounds: int, cells: str, boots: int) -> Path:
    described(server, ", max_load: 1000, min_free_mib: 1")
    path = folder / "ssh.yaml"
    tdp = str(local.running_tdp()).lower()
    target = f"{{kind: ssh, lab: {server.folder / 'lab.yaml'}, deadline_s: 120}}"
    path.write_text(
        f"name: loopback\narms: {{running: []}}\ntarget: {target}\n"
        f"defaults: {{guest: {{mem_mib: 4, rounds: {rounds}, tdp: {tdp}}}, storm: {{size_kib: 64, period_us: 100}}}}\n"
        f"cells:\n{cells}schedule: {{boots: {boots}}}\n"
    )
    return path


QUIET = "  quiet: {storm: none}\n"
OUTSIDE = "  outside: {storm: {op: madvise_dontneed, placement: outside}}\n"


def needs_kvm() -> None:
    device = kvmdev.probe()
    if not device.runs_flat_guest:
        pytest.skip(f"no guest can run here: {device.error or device.flat_guest_error}")


def test_the_machine_is_measured_over_ssh(server: SshServer, tmp_path: Path) -> None:
    needs_kvm()
    done = run(config(server, tmp_path, 20, QUIET + OUTSIDE, 1), tmp_path / "r")
    assert done.ended.code == 0 and done.summary["status"] == "complete", done.ended.text
    check_samples(done)
    assert len(done.recording("outside", "running").windows) >= 1
    record = load_json(done.trial("quiet", "running") / "machine.json", MachineRecord)
    assert (
        record.machine == "here" and record.known_good.release == Path("/proc/sys/kernel/osrelease").read_text().strip()
    )
    assert {item.machine for item in done.results.values()} == {"here"}
    left = [path.name for path in (server.folder / "remote").iterdir()]
    assert "lease" not in left and not list((server.folder / "remote/trials").iterdir()), left


def test_a_connection_cut_in_the_middle_of_each_trial_costs_nothing(server: SshServer, tmp_path: Path) -> None:
    needs_kvm()
    stop = threading.Event()

    def cut_now_and_then() -> list[int]:
        """Each time that a program runs, kill the connections under it; how many there were each time."""
        cuts = []
        seen: set[Path] = set()
        while not stop.wait(0.02):
            for started in (server.folder / "remote/trials").glob("*/keeper"):
                if started not in seen:
                    seen.add(started)
                    with held(started):
                        # The tool's question is answered by now: it waits for the program, over a connection.
                        time.sleep(1)
                        cuts.append(server.cut())
        return cuts

    with ThreadPoolExecutor(1) as pool:
        cutter = pool.submit(cut_now_and_then)
        try:
            done = run(config(server, tmp_path, 150, QUIET, 2), tmp_path / "r")
        finally:
            stop.set()
        cuts = cutter.result()
    assert done.ended.code == 0 and done.summary["status"] == "complete", done.ended.text
    assert len(cuts) == 2 and all(cuts), "a cut a trial"
    assert "connected again; the trial went on meanwhile" in done.ended.err
    check_samples(done)


@contextlib.contextmanager
def held(keeper: Path) -> Iterator[None]:
    """Let the program of a trial stand still, so that it does not end: on a fast machine it takes no second."""
    program = int(keeper.read_text().split()[3])
    os.killpg(program, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(program, signal.SIGCONT)


def test_two_runs_never_share_a_machine(server: SshServer, tmp_path: Path) -> None:
    """The first one's program stands still until the second one has been refused, however long that takes to start."""
    needs_kvm()
    slow = config(server, tmp_path, 150, QUIET, 1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, slow, tmp_path / "one")
        while not (keepers := list((server.folder / "remote/trials").glob("*/keeper"))):
            assert not first.done(), first.result().ended.text
            time.sleep(0.02)
        with held(keepers[0]):
            ended = orch("run", slow, "--results", tmp_path / "two", deadline_s=120)
        assert first.result().ended.code == 0
    assert ended.code == 2 and "here is in use by" in ended.err and "orch run" in ended.err, ended.text
