"""lab/reader.py: a lab file, and every mistake in it at once, with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import lab
from orchestrator.errors import ConfigError, UserError
from orchestrator.experiment.types import NAME_WORDS
from orchestrator.lab.reader import parse
from orchestrator.lab.types import Deadlines, Lab, LabHost

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def known_hosts(tmp_path: Path) -> Path:
    path = tmp_path / "known_hosts"
    path.write_text("")
    return path


def read(text: str, folder: Path) -> Lab:
    return parse(text.encode(), folder / "lab.yaml")


def problems(text: str, folder: Path) -> list[str]:
    """``LINE: KEY: expected …, found …`` of each."""
    with pytest.raises(ConfigError) as caught:
        read(text, folder)
    start = f"{folder / 'lab.yaml'}:"
    assert all(problem.startswith(start) for problem in caught.value.problems)
    return [problem.removeprefix(start) for problem in caught.value.problems]


def host(more: str, folder: Path) -> str:
    """A lab with one host on line 3; ``known_hosts`` is there."""
    (folder / "known_hosts").touch()
    return f"hosts:\n  a:\n    {{address: localhost, user: root, known_hosts: known_hosts, {more}}}\n"


def test_the_example_is_a_valid_lab_and_shows_every_key() -> None:
    found = lab.load(CONFIGS / "lab.example.yaml")
    assert [item.name for item in found.hosts] == ["rack1", "rack2"]
    assert found.fragments == (CONFIGS / "kernel/host.config",)
    assert found.hosts[0].cpus == (2, 3, 4, 5) and found.hosts[1].port == 22
    assert found.hosts[0].may_change == lab.KNOBS and found.hosts[0].deadlines == Deadlines()
    text = (CONFIGS / "lab.example.yaml").read_text()
    for cls in (LabHost, Deadlines):
        for key in set(cls.__dataclass_fields__) - {"name"}:
            assert f"{key}:" in text, key


def test_hosts_take_what_they_do_not_say_from_the_defaults(known_hosts: Path, tmp_path: Path) -> None:
    found = read(
        "defaults: {user: root, known_hosts: known_hosts, agent: true, deadlines: {boot_s: 60, copy_s: 5}}\n"
        "hosts:\n"
        "  a: {address: 127.0.0.1, port: 2201, deadlines: {boot_s: 90.5}, power: [cycle, 'a b; rm -rf /']}\n"
        "  b: {address: 127.0.0.1, port: 2202, user: joe, sudo: true}\n",
        tmp_path,
    )
    first, second = found.hosts
    assert (first.user, second.user, second.sudo) == ("root", "joe", True)
    assert (first.deadlines.boot_s, first.deadlines.copy_s, second.deadlines.boot_s) == (90.5, 5.0, 60.0)
    assert first.known_hosts == known_hosts and first.power == ("cycle", "a b; rm -rf /")
    assert first.id != second.id and first.id.startswith("a-")


def test_a_password_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    for word in ("password", "Passphrase"):
        found = problems(host(f"agent: true, {word}: geheim", tmp_path), tmp_path)
        assert found == [
            f"3: hosts.a.{word}: expected key: FILE or agent: true (no password is ever read, kept or sent),"
            " found a secret"
        ]
        assert "geheim" not in "".join(found)
    text = "defaults: {password: x}\n" + host("agent: true", tmp_path)
    assert problems(text, tmp_path)[0].startswith("1: defaults.password: expected key: FILE or agent: true")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("port: 22", "2: hosts.a: expected exactly one of key and agent: true"),
        ("agent: true, key: known_hosts", "2: hosts.a: expected exactly one of key and agent: true"),
        ("agnt: true", "3: hosts.a.agnt: expected the key 'agent', found the unknown key 'agnt'"),
        ("agent: true, cpus: [3, 2]", "2: hosts.a: expected cpus in ascending order, each once"),
        ("agent: true, cpus: [2, x]", "3: hosts.a.cpus[1]: expected a whole number, found 'x'"),
        ("agent: true, power: reboot", "3: hosts.a.power: expected a list ([] for none), found 'reboot'"),
        ('agent: true, power: ["a\\nb"]', "3: hosts.a.power[0]: expected printable text, found 'a�b'"),
        ("agent: true, append: [a b]", "3: hosts.a.append[0]: expected one word without blanks and quotes, found"),
        ("agent: true, folder: ../x", "2: hosts.a: expected a folder without '..'"),
        ("agent: true, folder: 'x; reboot'", "3: hosts.a.folder: expected folder on the host"),
        ("agent: true, console_break: x", "2: hosts.a: expected a console for console_break"),
        ("agent: true, boot: none, append: [x]", "2: hosts.a: expected no append and no initrd with boot: none"),
        ("agent: true, boot: pxe", "3: hosts.a.boot: expected 'kexec', 'grub' or 'none', found 'pxe'"),
        ("agent: true, deadlines: {bot_s: 1}", "3: hosts.a.deadlines.bot_s: expected the key 'boot_s'"),
        ("agent: true, deadlines: {boot_s: 0}", "3: hosts.a.deadlines.boot_s: expected more than 0.0, found 0.0"),
        ("key: missing", "3: hosts.a.key: expected an existing file, found nothing at"),
        ("agent: true, name: b", "3: hosts.a.name: expected no such key: the host's name is the key above, found 'b'"),
    ],
)  # fmt: skip
def test_mistakes_of_a_host(more: str, problem: str, tmp_path: Path) -> None:
    assert any(found.startswith(problem) for found in problems(host(more, tmp_path), tmp_path))


@pytest.mark.parametrize("address", ["-oProxyCommand=x", "a b", "a;b", ""])
def test_an_address_is_no_option_and_no_command(address: str, tmp_path: Path) -> None:
    text = host("agent: true", tmp_path).replace("localhost", f"'{address}'")
    assert problems(text, tmp_path)[0].startswith("3: hosts.a.address: expected a host name or IP address")


def test_mistakes_of_the_whole_file_come_together(known_hosts: Path, tmp_path: Path) -> None:
    text = (
        "fragments: [nowhere.config]\n"
        "defaults: {user: root, known_hosts: known_hosts, agent: true, address: x}\n"
        "hosts:\n"
        "  Rack: {address: h1}\n"
        "  b: {port: 1}\n"
    )
    assert problems(text, tmp_path) == [
        f"1: fragments[0]: expected an existing file or folder, found nothing at {tmp_path / 'nowhere.config'}",
        "2: defaults.address: expected a key that hosts can share, found address, of which each has one",
        f"4: hosts.Rack.name: expected {NAME_WORDS}, found 'Rack'",
    ]
    assert problems("hosts: {}\n", tmp_path) == ["1: hosts: expected at least one host, found none"]


def test_two_names_for_one_machine_are_refused(known_hosts: Path, tmp_path: Path) -> None:
    text = (
        "defaults: {user: root, known_hosts: known_hosts, agent: true}\nhosts:\n  a: {address: h}\n  b: {address: h}\n"
    )
    assert problems(text, tmp_path) == ["4: hosts.b: expected a machine of its own, found the address and port of a"]


def test_what_is_measured_does_not_depend_on_how_the_machine_is_rescued(tmp_path: Path) -> None:
    (plain,) = read(host("agent: true", tmp_path), tmp_path).hosts
    (rescued,) = read(host("agent: true, power: [x], deadlines: {boot_s: 1}", tmp_path), tmp_path).hosts
    (tuned,) = read(host("agent: true, may_change: [thp]", tmp_path), tmp_path).hosts
    assert plain.identity == rescued.identity != tuned.identity


def test_an_initramfs_is_what_it_holds_and_not_where_it_lies(tmp_path: Path) -> None:
    def identity(path: str, content: str) -> str:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
        (found,) = read(host(f"agent: true, initrd: {path}", tmp_path), tmp_path).hosts
        return found.identity

    one = identity("my.cpio", "one")
    assert one == identity("elsewhere/other.cpio", "one") != identity("my.cpio", "two")
    assert str(tmp_path) not in one
    (gone,) = read(host("agent: true, initrd: my.cpio", tmp_path), tmp_path).hosts
    (tmp_path / "my.cpio").unlink()
    with pytest.raises(UserError, match=r"the initrd .*my\.cpio of the lab file cannot be read"):
        assert gone.identity
