"""Which mirror is asked for a suite, from golden apt folders; and that apt is called in folders of our own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator import proc
from orchestrator.errors import CommandError, SourceError
from orchestrator.experiment import DebianSource
from orchestrator.kernel import debian
from orchestrator.kernel.debian import Entry, configured, mirrors

APT = Path(__file__).parent.parent / "data" / "apt"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_deb822_stanzas() -> None:
    assert configured(APT / "deb822") == (
        Entry("http://mirror.example/debian", "bookworm", KEYRING),
        Entry("http://mirror.example/debian", "bookworm-updates", KEYRING),
        Entry("http://mirror.example/debian-security", "bookworm-security", KEYRING),
        Entry("https://vendor.example/linux/debian", "bookworm", "/etc/apt/keyrings/vendor.asc"),
        Entry("https://node.example/node_20.x", "nodistro", ""),
    )


def test_one_line_entries() -> None:
    assert [entry for entry in configured(APT / "oneline") if not entry.uri.startswith("cdrom")] == [
        Entry("http://deb.example/debian", "bookworm", ""),
        Entry("http://sec.example/debian-security", "bookworm-security", KEYRING),
        Entry("http://other.example/debian", "bullseye", "/usr/share/keyrings/other.gpg"),
        Entry("https://unsigned.example/apt", "bookworm", ""),
        Entry("http://exact.example/debian", "bullseye", ""),
        Entry("http://old.example/debian-security", "buster/updates", ""),
    ]


@pytest.mark.parametrize(
    ("folder", "suite", "expected"),
    [
        ("deb822", "bullseye-security", ["http://mirror.example/debian-security"]),
        ("deb822", "buster/updates", ["http://mirror.example/debian-security"]),
        # Of the third parties one has its own key and the other a suite that is none of Debian's.
        ("deb822", "bullseye", ["http://mirror.example/debian"]),
        ("deb822", "bullseye-backports", ["http://mirror.example/debian"]),
        (
            "oneline",
            "bullseye",
            ["http://exact.example/debian", "http://deb.example/debian", "https://unsigned.example/apt"],
        ),
        (
            "oneline",
            "bullseye-security",
            ["http://sec.example/debian-security", "http://old.example/debian-security"],
        ),
    ],
)
def test_the_mirror_of_a_suite(folder: str, suite: str, expected: list[str]) -> None:
    assert list(mirrors(suite, configured(APT / folder), "bookworm")) == expected


@pytest.mark.parametrize("suite", ["bullseye", "bullseye-security"])
def test_without_a_mirror_the_message_says_where_to_look(suite: str) -> None:
    with pytest.raises(SourceError, match=rf"no mirror to ask for {suite}") as caught:
        mirrors(suite, configured(APT / "none"), "bookworm")
    assert caught.value.hint and "/etc/apt/sources.list" in caught.value.hint


def test_apt_works_in_our_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(argv: list[object], **kwargs: object) -> proc.Completed:
        calls.append([str(word) for word in argv])
        if "download" in calls[-1]:
            (tmp_path / "0" / "linux-source-5.10_5.10.262-1_all.deb").write_bytes(b"deb")
        return proc.Completed(tuple(calls[-1]), 0, "5.10.262-1\n", 0.0)

    monkeypatch.setattr(proc, "run", run)
    monkeypatch.setattr(proc, "require", lambda program, package: f"/usr/bin/{program}")
    monkeypatch.setattr(debian, "KEYRING", APT / "deb822/sources.list.d/debian.sources")  # Any file that exists.
    source = DebianSource("linux-source-5.10", "bullseye-security")
    package = debian.download(source, tmp_path, lambda line: None, APT / "deb822")
    assert package.version == "5.10.262-1" and package.path.name.startswith("linux-source-5.10_")
    written = (tmp_path / "0" / "apt" / "sources.list").read_text()
    assert re.fullmatch(
        r"deb \[signed-by=\S+\] http://mirror.example/debian-security bullseye-security main\n", written
    )
    for call in calls[:2]:
        options = dict(word.split("=", 1) for word in call if "::" in word)
        assert options["Dir::Etc::sourcelist"] == f"{tmp_path}/0/apt/sources.list"
        assert options["Dir::Etc::sourceparts"] == "/dev/null"
        assert options["Dir::State::lists"].startswith(str(tmp_path))
        assert options["Dir::Cache"].startswith(str(tmp_path))
        assert options["APT::Get::AllowUnauthenticated"] == "false"
    assert [call[-1] for call in calls[:2]] == ["update", "linux-source-5.10"]


def asked(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """``offered_sha256`` of an apt-get that prints ``answer``; nothing may be downloaded."""

    def run(argv: list[object], **kwargs: object) -> proc.Completed:
        words = [str(word) for word in argv]
        assert words[-1] == "update" or words[-3:-1] == ["--print-uris", "download"]
        return proc.Completed(tuple(words), 0, "" if words[-1] == "update" else answer, 0.0)

    monkeypatch.setattr(proc, "run", run)
    monkeypatch.setattr(proc, "require", lambda program, package: f"/usr/bin/{program}")
    monkeypatch.setattr(debian, "KEYRING", APT / "deb822/sources.list.d/debian.sources")
    source = DebianSource("linux-source-5.10", "bullseye-security")
    return debian.offered_sha256(source, tmp_path / "offered", lambda line: None, APT / "deb822")


def test_what_a_suite_offers_is_asked_for_without_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "linux-source-5.10_5.10.262-1_all.deb"
    line = f"'http://mirror.example/debian-security/pool/{name}' {name} 121947504 SHA256:{'4f' * 32}\n"
    assert asked(line, tmp_path, monkeypatch) == "4f" * 32


def test_an_index_without_a_sha256_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="names 0 SHA-256 for linux-source"):
        asked("'http://mirror.example/x.deb' x.deb 1 MD5Sum:00\n", tmp_path, monkeypatch)


def test_every_mirror_that_failed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[object], **kwargs: object) -> proc.Completed:
        raise CommandError("exited with 100: the signature does not verify")

    monkeypatch.setattr(proc, "run", run)
    monkeypatch.setattr(proc, "require", lambda program, package: f"/usr/bin/{program}")
    monkeypatch.setattr(debian, "KEYRING", APT / "deb822/sources.list.d/debian.sources")
    source = DebianSource("linux-source-5.10", "bullseye")
    with pytest.raises(SourceError) as caught:
        debian.download(source, tmp_path, lambda line: None, APT / "oneline")
    for uri in ("http://exact.example/debian", "http://deb.example/debian"):
        assert f"{uri}: exited with 100" in caught.value.what


def test_a_missing_keyring_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "none.gpg")
    with pytest.raises(SourceError, match=r"none\.gpg is missing") as caught:
        debian.download(DebianSource("linux-source-5.10", "bullseye"), tmp_path, lambda line: None, APT / "oneline")
    assert caught.value.hint == "apt-get install debian-archive-keyring"
