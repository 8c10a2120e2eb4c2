"""orch history, compare and export as a person types them: what they print, where it goes, exit codes, refusals."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import kcidb_io
import pytest
import yaml
from click.testing import CliRunner
from nightruns import Past

from orchestrator import cli, cli_nights

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def orch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["orch", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, captured.out, captured.err)

    return run


def test_history_prints_its_text_and_names_its_files(past: Past, orch: Callable[..., Ended]) -> None:
    past.night(0)
    past.night(1, {("cell0", "v1", "p50"): 1.06})
    ended = orch("history", "simulated", "--results", past.results, "--metric", "p50", "--metric", "max")
    folder = past.results / "nights/simulated"
    assert ended.code == 0 and "cell0, v1: p50 5.005 → 5.305 µs (+6.0 %), regressed" in ended.out
    named = [Path(line) for line in ended.out.splitlines() if line.startswith(str(folder))]
    assert [path.name for path in named] == [
        "history.txt", "history.csv", "history-p50.svg", "history-p50.png", "history-max.svg", "history-max.png",
    ]  # fmt: skip
    assert all(path.stat().st_size for path in named)


def test_history_goes_where_it_is_sent(past: Past, orch: Callable[..., Ended], tmp_path: Path, no_plots: None) -> None:
    past.night(0)
    assert orch("history", "simulated", "--results", past.results, "--out", tmp_path / "o").code == 0
    assert (tmp_path / "o/history.txt").exists() and not (past.results / "nights").exists()


@pytest.mark.parametrize(("words", "code"), [((), 0), (("--gate",), 3)])
def test_compare_prints_verdicts_and_gates(
    past: Past, orch: Callable[..., Ended], words: tuple[str, ...], code: int
) -> None:
    first, second = past.night(0), past.night(1, {("cell0", "v1", "p50"): 1.06})
    ended = orch("compare", first, second, *words)
    assert ended.code == code and "  v1: regressed: p50 +6.0 %" in ended.out
    assert orch("compare", second, first, *words).code == 0


def test_compare_refuses_with_the_field_and_the_next_command(past: Past, orch: Callable[..., Ended]) -> None:
    first = past.night(0)
    second = past.night(1, manifest=lambda item: dataclasses.replace(item, qemu_version="QEMU 9\x1b[31m"))
    ended = orch("compare", first, second)
    assert ended.code == 1 and "\n  QEMU: " in ended.err and "| QEMU 9\N{REPLACEMENT CHARACTER}[31m\n" in ended.err
    assert "next: orch history simulated " in ended.err and "Traceback" not in ended.err and ended.out == ""


def test_compare_wants_two_runs_that_have_ended(past: Past, orch: Callable[..., Ended], tmp_path: Path) -> None:
    ended = orch("compare", past.night(0, status=None), past.night(1))
    assert ended.code == 1 and "has not ended" in ended.err and "run its command again" in ended.err
    ended = orch("compare", tmp_path, past.night(2))
    assert ended.code == 1 and "is not a run: it has no manifest.json" in ended.err


def test_export_prints_one_valid_document(past: Past, orch: Callable[..., Ended]) -> None:
    run = past.night(0)
    ended = orch("export", "--kcidb", run, "--origin", "mylab", "--url", "https://lab.example/r")
    assert ended.code == 0 and ended.err == ""
    document = json.loads(ended.out)
    kcidb_io.schema.V5_3.validate_exactly(document)
    assert document["checkouts"][0]["origin"] == "mylab"
    assert orch("export", run).code == 1 and orch("export", "--kcidb", run, "--origin", "My Lab").code == 1


# --- the samples and the page about them ------------------------------------------------------------------------------


def test_the_samples_call_commands_and_options_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / "docs/samples/nightly.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    unit = (ROOT / "docs/samples/orch-nightly.service").read_text()
    lines = [line for text in (*steps, unit) for line in text.splitlines() if "orch nightly" in line]
    assert len(lines) >= 2
    for line in lines:
        words = line.partition("orch nightly ")[2].split("|")[0].split()
        context = cli_nights.nightly_command.make_context("nightly", words)
        assert context.params["gate"] and context.params["configs"]
        for config in context.params["configs"]:
            assert (ROOT / config).is_file(), config


def test_every_command_of_the_page_exists() -> None:
    text = (ROOT / "docs/nightly.md").read_text()
    named = set(re.findall(r"(?:`|bin/)orch ([a-z]+)", text))
    assert {"nightly", "history", "compare", "export"} <= named <= set(cli.cli.commands)


@pytest.mark.parametrize("command", cli_nights.COMMANDS, ids=lambda command: command.name)
def test_help_says_what_a_command_does_and_every_option_has_a_line(command: click.Command) -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    assert text.startswith("Usage: ") and command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))
