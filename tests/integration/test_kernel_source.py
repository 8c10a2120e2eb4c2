"""The machine's own mirror: a package is taken with Debian's signature, and not without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SourceError
from orchestrator.experiment import DebianSource
from orchestrator.kernel import debian

pytestmark = pytest.mark.network
SOURCE = DebianSource("linux-source-5.10", "bullseye-security")


def test_without_debians_key_nothing_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "KEYRING", tmp_path / "empty.gpg")
    (tmp_path / "empty.gpg").write_bytes(b"")
    with pytest.raises(SourceError, match=r"NO_PUBKEY|not signed"):
        debian.download(SOURCE, tmp_path / "download", print)
    assert not list(tmp_path.rglob("*.deb"))


def test_a_package_that_the_suite_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"linux-source-9\.99"):
        debian.download(DebianSource("linux-source-9.99", SOURCE.suite), tmp_path / "download", print)
