"""`orch lab`: what is known of machines, what they say, and the way out of quarantine."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakehost import FOLDER, GOOD, FakeHost, World
from test_cli import Orch

from orchestrator import cli, lab
from orchestrator.lab import connection, journal
from orchestrator.lab.journal import Journal
from orchestrator.lab.lease import make_lease
from orchestrator.lab.remote import Cut, NotTrusted, Reply
from orchestrator.lab.types import LabHost

LAB = "hosts:\n  rack1: {address: h1, user: root, agent: true, known_hosts: lab.yaml}\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabHost:
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "lab.yaml").write_text(LAB)
    (found,) = lab.load(tmp_path / "lab.yaml").hosts
    return found


@pytest.fixture
def orch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Orch:
    return Orch(monkeypatch, capsys)


def test_what_runs_have_met_is_listed_with_what_to_do(orch: Orch, host: LabHost) -> None:
    assert orch("lab", "status").out == ""
    journal.write(host, Journal("rack1", "testing", "noon", "kim@desk", GOOD, "boot-1"))
    journal.quarantine(host, "does not come back\x1b[2J", "one", "returning")
    said = orch("lab", "status")
    assert said.code == 0 and said.out.splitlines() == [
        f"{host.id}: testing since noon, known-good kernel 6.1.0-18-amd64 (build id aaaaaaaaaaaa)",
        "  left by kim@desk; the next run brings it home",
        f"{host.id}: QUARANTINED since one: it does not come back\N{REPLACEMENT CHARACTER}[2J",
        f"  next: look after it, then: orch lab release {host.id}",
    ]
    assert (
        orch("lab", "release", "rack1").out == "rack1 is released; it does not come back\N{REPLACEMENT CHARACTER}[2J\n"
    )
    assert journal.quarantined(host) is None and journal.vouched(host)
    again = orch("lab", "release", "rack1")
    assert again.code == 1 and "no machine called 'rack1' is in quarantine" in again.err


def test_a_damaged_quarantine_still_keeps_the_machine_out(orch: Orch, host: LabHost) -> None:
    journal.quarantine(host, "x", "y", "z")
    (journal.folder(host) / journal.QUARANTINE).write_text("{")
    found = journal.quarantined(host)
    assert found is not None and "cannot be read" in found.reason
    assert orch("lab", "release", host.id).code == 0 and journal.quarantined(host) is None


def test_each_machine_of_a_file_is_asked(
    orch: Orch, host: LabHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = FakeHost(World())
    installed = {"sha256sum", "df", "mkdir", "mv", "rm", "kexec"}
    machine.do_id = lambda *words: Reply(0, "0\n", "")  # type: ignore[attr-defined]
    machine.do_sh = lambda c, script: Reply(0 if script.split()[-1] in installed else 1, "", "")  # type: ignore[attr-defined]
    monkeypatch.setattr(connection, "connect", lambda host: machine.connect())
    mine = make_lease("noon")
    machine.files[f"{FOLDER}/lease"] = mine.text.encode()
    said = orch("lab", "status", tmp_path / "lab.yaml")
    assert said.code == 0, said.out
    assert said.out.splitlines() == [
        "rack1: runs 6.1.0-18-amd64 (build id aaaaaaaaaaaa), TDP, load 0.10",
        f"  leased to {mine.owner}",
    ]
    installed.remove("kexec")
    machine.do_id = lambda *words: Reply(0, "1000\n", "")  # type: ignore[attr-defined]
    said = orch("lab", "status", tmp_path / "lab.yaml")
    assert said.code == 2 and "  problem: the program kexec is not installed" in said.out
    assert "  problem: root is not root, and sudo is false" in said.out
    assert not any(call[0] not in ("id", "sh") for call in machine.calls), "nothing was changed"


@pytest.mark.parametrize("error", [Cut("no route"), NotTrusted("another key", hint="ssh-keyscan")])
def test_a_machine_that_does_not_answer_is_named(
    orch: Orch, host: LabHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def connect(host: LabHost) -> None:
        raise error

    monkeypatch.setattr(connection, "connect", connect)
    said = orch("lab", "status", tmp_path / "lab.yaml")
    expected = "cannot be reached: no route" if isinstance(error, Cut) else "another key; ssh-keyscan"
    assert said.code == 2 and said.out == f"rack1: {expected}\n"
    assert cli.cli.commands["lab"].help
