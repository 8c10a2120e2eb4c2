"""lab/connection.py: what a user's own configuration cannot do to it."""

from __future__ import annotations

from pathlib import Path

import fabric
import paramiko
import pytest

from orchestrator.lab import connection
from orchestrator.lab.remote import Cut
from orchestrator.lab.types import LabHost


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
