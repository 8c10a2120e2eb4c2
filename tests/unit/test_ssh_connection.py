"""lab/connection.py: what a host that does not answer, and a user's own configuration, cannot do to it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import fabric
import paramiko
import pytest
from muteserver import MuteServer, Silence, mute_server

from orchestrator.lab import connection, lease
from orchestrator.lab.connection import SshTransport
from orchestrator.lab.lease import Keeper, make_lease
from orchestrator.lab.remote import Cut
from orchestrator.lab.types import Deadlines, LabHost
from orchestrator.target.labtarget import hurried

ANSWER_S = 0.5
LATE_S = 5.0  # What a busy machine may need on top of it.


def described(server: MuteServer, folder: Path) -> LabHost:
    deadlines = Deadlines(connect_s=10.0, answer_s=ANSWER_S)
    return LabHost(
        "mute", "127.0.0.1", "root", folder / "known_hosts", port=server.port, key=folder / "key", deadlines=deadlines
    )


def fetch(transport: SshTransport, folder: Path) -> object:
    return transport.fetch("/there", folder / "here", 0)


def append(transport: SshTransport, folder: Path) -> object:
    return transport.append("/there", folder / "key", 0)


def run(transport: SshTransport, folder: Path) -> object:
    return transport.run(("true",), deadline_s=ANSWER_S)


ACTS: dict[str, Callable[[SshTransport, Path], object]] = {
    "run": run,
    "read": lambda transport, _: transport.read("/there"),
    "write": lambda transport, _: transport.write("/there", b"x"),
    "names": lambda transport, _: transport.names("/"),
    "size": lambda transport, _: transport.size("/there"),
    "append": append,
    "fetch": fetch,
    "remove": lambda transport, _: transport.remove("/there"),
    "home": lambda transport, _: transport.home(),
}
WAYS: list[tuple[Silence, str]] = [
    *(("open", act) for act in ("run", "read")),
    *(("request", act) for act in ACTS),
    ("command", "run"),
    *(("version", act) for act in ("read", "append")),
]


@pytest.mark.parametrize(("silence", "act"), WAYS)
def test_a_host_that_does_not_answer_is_cut_off_at_the_deadline(tmp_path: Path, silence: Silence, act: str) -> None:
    with mute_server(tmp_path, silence) as server:
        transport = connection.connect(described(server, tmp_path))
        begun = time.monotonic()
        with pytest.raises(Cut, match=r"no answer within 0\.5 s|Timeout opening channel"):
            ACTS[act](transport, tmp_path)
        transport.close()
        assert time.monotonic() - begun < ANSWER_S + LATE_S
        with pytest.raises(Cut):  # It does not connect again by itself: nobody would have checked that it may.
            ACTS[act](transport, tmp_path)
        assert server.connections == 1


def test_a_keeper_whose_connection_is_mute_makes_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    with mute_server(tmp_path, "request") as server:
        host = described(server, tmp_path)
        keeper = Keeper(lambda: connection.connect(host), "/folder", make_lease("now"), lambda: None)
        end = time.monotonic() + 2 * ANSWER_S + LATE_S
        while server.connections < 3:
            assert time.monotonic() < end, "it hangs on the first one, and its lease dies"
            time.sleep(0.02)
        keeper._stop.set()
        keeper._thread.join(ANSWER_S + LATE_S)
        assert not keeper._thread.is_alive()


def test_a_keeper_is_not_as_patient_as_the_lab_file(tmp_path: Path) -> None:
    patient = Deadlines(connect_s=3600.0, answer_s=3600.0, copy_s=7200.0)
    host = LabHost("x", "h", "root", tmp_path / "known_hosts", agent=True, cpus=(2, 3), deadlines=patient)
    found = hurried(host)
    assert found.deadlines == Deadlines(connect_s=15.0, answer_s=15.0, copy_s=7200.0)
    assert dataclasses.replace(found, deadlines=patient) == host
    assert hurried(found) == found


# --- the user's own configuration -------------------------------------------------------------------------------------


def test_nothing_of_the_users_own_configuration_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host *\n  ProxyCommand false\n  IdentityFile /theirs\n  ForwardAgent yes\n")
    fabric_yml = "gateway: bastion\nforward_agent: true\nconnect_kwargs: {key_filename: /theirs, password: x}\n"
    (tmp_path / ".fabric.yml").write_text(fabric_yml)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fabric.Connection("h").gateway is not None, "Fabric by itself does read it"
    made: list[fabric.Connection] = []
    asked: list[dict[str, object]] = []

    def refuse(self: object, **words: object) -> None:
        asked.append(words)
        raise paramiko.SSHException("no")

    class Noted(fabric.Connection):  # type: ignore[misc]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(fabric, "Connection", Noted)
    monkeypatch.setattr(paramiko.SSHClient, "connect", refuse)
    (tmp_path / "known_hosts").write_text("")
    host = LabHost("x", "h", "root", tmp_path / "known_hosts", key=tmp_path / "ours")
    with pytest.raises(Cut, match="no"):
        connection.connect(host)
    assert made[0].gateway is None and made[0].forward_agent is False and not made[0].ssh_config.get("identityfile")
    assert (
        asked[0]["key_filename"] == [str(tmp_path / "ours")] and "sock" not in asked[0] and "password" not in asked[0]
    )
