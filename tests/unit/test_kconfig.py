"""Fragments as they are read, merged with tinyconfig, and checked."""

from __future__ import annotations

from pathlib import Path

import pytest
from toykernel import TOY

from orchestrator.errors import ConfigError
from orchestrator.kernel import kconfig

HOST = Path(__file__).parents[2] / "configs" / "kernel" / "host.config"


def fragment(folder: Path, text: str, name: str = "x.config") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_fragment_line_by_line(tmp_path: Path) -> None:
    path = fragment(
        tmp_path, '# why\nCONFIG_B=y\n\nCONFIG_A="a \\" b"\n# CONFIG_C is not set\nCONFIG_D=0x1f\nCONFIG_E=n\n'
    )
    assert [(request.symbol, request.value, request.line) for request in kconfig.read([path])] == [
        ("A", '"a \\" b"', 4),
        ("B", "y", 2),
        ("C", "n", 5),
        ("D", "0x1f", 6),
        ("E", "n", 7),
    ]


def test_a_later_fragment_wins(tmp_path: Path) -> None:
    one, two = fragment(tmp_path, "CONFIG_A=y\n"), fragment(tmp_path, "# CONFIG_A is not set\n", "two.config")
    (request,) = kconfig.read([one, two])
    assert (request.value, request.fragment, request.text) == ("n", two, "# CONFIG_A is not set")


@pytest.mark.parametrize(
    "line", ["CONFIG_A", "CONFIG_A =y", "CONFIG_A=yes", "A=y", "CONFIG_A=y # why", "CONFIG_A=$(shell id)"]
)
def test_what_is_no_option_is_an_error(tmp_path: Path, line: str) -> None:
    path = fragment(tmp_path, f"# fine\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        kconfig.read([path])
    assert caught.value.problems == (f"{path}:2: expected CONFIG_X=value or a comment, found {line!r}",)


def test_all_problems_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        kconfig.read([fragment(tmp_path, "CONFIG_A=m\nnonsense\n"), tmp_path / "none.config"])
    assert len(caught.value.problems) == 3
    assert "x.config:1: CONFIG_A: expected y, found m" in caught.value.problems[0]
    assert "none.config" in caught.value.problems[2]


def test_the_digest_is_of_the_options_alone(tmp_path: Path) -> None:
    one = fragment(tmp_path, "CONFIG_A=y\n# CONFIG_B is not set\n")
    two = fragment(tmp_path, "# other words\nCONFIG_B=n\nCONFIG_A=y\n", "two.config")
    three = fragment(tmp_path, "CONFIG_A=y\nCONFIG_B=y\n", "three.config")
    digests = [kconfig.digest(kconfig.read([path])) for path in (one, two, three)]
    assert digests[0] == digests[1] != digests[2]


def test_tinyconfig_gives_way_to_the_requests(tmp_path: Path) -> None:
    requests = kconfig.read([fragment(tmp_path, "CONFIG_INPUT=y\nCONFIG_KVM=y\n")])
    assert kconfig.all_config(TOY, requests).splitlines() == ["CONFIG_EMBEDDED=y", "CONFIG_INPUT=y", "CONFIG_KVM=y"]


@pytest.mark.parametrize(
    ("asked", "config", "reason"),
    [
        ("CONFIG_KVM=y", "", "it depends on NET; NET is not set"),
        ("CONFIG_KVM=y", "CONFIG_NET=y", "it depends on NET, or another choice excludes it"),
        # The `if NET` around it counts, too.
        ("CONFIG_VHOST=y", "CONFIG_KVM=y", "it depends on NET; NET is not set"),
        (
            "CONFIG_VHOST=y",
            "CONFIG_NET=y\nCONFIG_KVM=y\nCONFIG_EMBEDDED=y",
            "it depends on KVM && !EMBEDDED; EMBEDDED is set",
        ),
        ("CONFIG_TYPO=y", "", "this tree has no such option"),
        ("# CONFIG_MMU_NOTIFIER is not set", "CONFIG_MMU_NOTIFIER=y", "another option selects it"),
        (
            'CONFIG_LOCALVERSION="-a"',
            'CONFIG_LOCALVERSION=""',
            "another choice excludes it, or its value is out of range",
        ),
    ],
)
def test_why_an_option_vanished(tmp_path: Path, asked: str, config: str, reason: str) -> None:
    path = fragment(tmp_path, f"{asked}\n")
    (problem,) = kconfig.check(kconfig.read([path]), f"# a comment\n{config}\n", TOY)
    assert problem.startswith(f"{path}:1: expected {asked}, found ")
    assert problem.endswith(reason)


def test_a_config_that_honours_everything(tmp_path: Path) -> None:
    requests = kconfig.read([fragment(tmp_path, 'CONFIG_A=y\nCONFIG_B=7\nCONFIG_C=""\n# CONFIG_D is not set\n')])
    assert kconfig.check(requests, 'CONFIG_A=y\nCONFIG_B=7\nCONFIG_C=""\n', TOY) == ()


def test_every_line_of_the_host_fragment_has_its_reason() -> None:
    """A reason is a comment above the line, or above the block of lines that it stands in."""
    reasoned = False
    for number, line in enumerate(HOST.read_text().splitlines(), 1):
        if kconfig.SET.fullmatch(line) or kconfig.UNSET.fullmatch(line):
            assert reasoned, f"host.config:{number}: {line} has no reason"
        elif line.startswith("#"):
            reasoned = True
        else:
            assert not line
            reasoned = False
    values = {request.symbol: request.value for request in kconfig.read([HOST])}
    assert values["KVM"] == values["PVH"] == values["USERFAULTFD"] == values["CC_OPTIMIZE_FOR_PERFORMANCE"] == "y"
