"""scripts/setup: what it does on a machine that lacks things, with every command that it calls replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
REAL = ("sh", "dirname", "sed", "tr", "cat", "sha256sum", "rm", "env", "pwd", "printf")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing but the script, and a PATH of stand-ins that note their calls in ``calls``."""
    (tmp_path / "scripts").mkdir()
    script = (REPOSITORY / "scripts/setup").read_text().replace("/usr/bin/python3", "debian-python3")
    (tmp_path / "scripts/setup").write_text(script)
    (tmp_path / "scripts/setup").chmod(0o755)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "bin").mkdir()
    for name in REAL:
        found = shutil.which(name)
        if found:
            (tmp_path / "bin" / name).symlink_to(found)
    stand_in(tmp_path, "dpkg-query", 'for word; do last=$word; done; [ "$last" = cpio ] || printf installed')
    stand_in(tmp_path, "id", "echo 0")
    stand_in(tmp_path, "apt-get", 'echo "apt-get $*" >>"$CALLS"')
    stand_in(
        tmp_path,
        "python3",
        """case "$*" in
        *venv*--clear*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; : >.venv/bin/orch; chmod +x .venv/bin/orch ;;
        *'pip install'*) echo pip >>"$CALLS" ;;
        -V) echo Python 3.12 ;;
        esac""",
    )
    for name in ("mkdir", "cp", "chmod"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    return tmp_path


def stand_in(checkout: Path, name: str, body: str) -> None:
    path = checkout / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def setup(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(checkout / "bin"), "CALLS": str(checkout / "calls")}
    argv = [os.fspath(checkout / "scripts/setup"), *words]
    return subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def calls(checkout: Path) -> list[str]:
    path = checkout / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_root_installs_only_what_is_missing_and_says_so(checkout: Path) -> None:
    done = setup(checkout)
    assert done.returncode == 0, done.stderr
    assert "setup: installing Debian packages: cpio\n" in done.stdout
    assert calls(checkout) == ["apt-get update -q", "apt-get install -y -q --no-install-recommends cpio", "pip"]


def test_only_the_tests_get_a_browser(checkout: Path) -> None:
    stand_in(
        checkout, "dpkg-query", 'for word; do last=$word; done; [ "${last#chromium}" != "$last" ] || printf installed'
    )
    assert setup(checkout).returncode == 0 and calls(checkout) == ["pip"]
    done = setup(checkout, "test")
    assert done.returncode == 0 and "setup: installing Debian packages: chromium chromium-driver\n" in done.stdout
    assert calls(checkout)[-1] == "apt-get install -y -q --no-install-recommends chromium chromium-driver"


def test_an_unknown_word_is_refused(checkout: Path) -> None:
    done = setup(checkout, "tests")
    assert done.returncode == 1 and "tests is not known" in done.stderr and calls(checkout) == []


def test_a_second_run_has_nothing_to_do_until_the_project_changes(checkout: Path) -> None:
    stand_in(checkout, "dpkg-query", "printf installed")
    assert setup(checkout).returncode == 0
    again = setup(checkout)
    assert again.stdout == "setup: nothing to do\n" and calls(checkout) == ["pip"]
    (checkout / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert setup(checkout).returncode == 0
    assert calls(checkout) == ["pip", "pip"]


def test_without_root_and_sudo_the_line_to_type_is_printed(checkout: Path) -> None:
    stand_in(checkout, "id", "echo 1000")
    done = setup(checkout)
    assert done.returncode == 1 and calls(checkout) == []
    assert "\n    apt-get update && apt-get install --no-install-recommends cpio\n" in done.stderr


def test_what_only_the_tests_need_is_installed_for_them_and_opens_no_port(checkout: Path) -> None:
    stand_in(checkout, "dpkg-query", 'for word; do last=$word; done; [ "$last" = openssh-server ] || printf installed')
    stand_in(checkout, "systemctl", 'echo "systemctl $*" >>"$CALLS"')
    assert setup(checkout).returncode == 0 and calls(checkout) == ["pip"]
    done = setup(checkout, "test")
    assert done.returncode == 0 and "the service ssh stays off" in done.stdout
    assert calls(checkout)[1:] == [
        "systemctl mask ssh.service ssh.socket",
        "apt-get update -q",
        "apt-get install -y -q --no-install-recommends openssh-server",
    ]


def test_sudo_is_used_where_it_asks_no_password(checkout: Path) -> None:
    stand_in(checkout, "id", "echo 1000")
    stand_in(checkout, "sudo", '[ "$1" = -n ] && exit 0; echo sudo >>"$CALLS"; exec "$@"')
    assert setup(checkout).returncode == 0
    assert calls(checkout)[:2] == ["sudo", "apt-get update -q"]


def test_without_a_python_that_makes_environments_debians_is_installed(checkout: Path) -> None:
    stand_in(checkout, "python3", "exit 1")
    done = setup(checkout)
    assert done.returncode == 1 and "cpio" in done.stdout and "python3 python3-venv" in done.stdout


def test_debians_python_serves_where_the_first_one_is_too_old(checkout: Path) -> None:
    (checkout / "bin/python3").rename(checkout / "bin/debian-python3")
    stand_in(checkout, "python3", "exit 1")
    done = setup(checkout)
    assert (
        done.returncode == 0
        and f"making the Python environment .venv with {checkout}/bin/debian-python3" in done.stdout
    )


def test_no_usable_python_at_all_is_said(checkout: Path) -> None:
    stand_in(checkout, "dpkg-query", "printf installed")
    stand_in(checkout, "python3", "exit 1")
    done = setup(checkout)
    assert "setup: no Python of at least 3.11 with venv and ensurepip found" in done.stderr
    assert done.returncode == 1
