"""cli.py: exit codes, what a person reads when something is wrong, and that no traceback is part of it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import simulated_orch
from simulated_orch import write_config

from orchestrator import cli, doctor, experiment, run
from orchestrator.doctor import Finding
from orchestrator.errors import BuildError

ROOT = Path(__file__).parents[2]
MAIL_TREE = ROOT / "tests/data/mail/tree"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Orch:
    """``orch`` in this process, with a target that makes recordings up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        simulated_orch.install(monkeypatch.setattr)

    def __call__(self, *words: object) -> Ended:
        self.monkeypatch.setattr(sys, "argv", ["orch", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self.capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, captured.out, captured.err)


@pytest.fixture
def orch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Orch:
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    return Orch(monkeypatch, capsys)


# --- exit codes of a run ----------------------------------------------------------------------------------------------


def test_a_good_run_prints_its_report_and_says_where_the_other_is(orch: Orch, tmp_path: Path) -> None:
    ended = orch("run", write_config(tmp_path, cells=1), "--results", tmp_path / "r", "--gate")
    assert ended.code == 0 and "v1 equivalent" in ended.out
    report = re.search(r"^report: (.*report\.html)$", ended.out, re.MULTILINE)
    assert report and Path(report.group(1)).is_file()
    assert re.search(r"^trial 00[01] \(2 of 2, .*ok$", ended.err, re.MULTILINE) and "Traceback" not in ended.err


@pytest.mark.parametrize(("words", "code"), [((), 0), (("--gate",), 3)])
def test_a_regression_closes_the_gate_only_if_asked(
    orch: Orch, tmp_path: Path, words: tuple[str, ...], code: int
) -> None:
    config = write_config(tmp_path, ("base", "slow"), cells=1)
    ended = orch("run", config, "--results", tmp_path / "r", *words)
    assert ended.code == code and "slow regressed" in ended.out


@pytest.mark.parametrize("arm", ["panic", "broken"])
def test_a_failed_trial_or_build_is_2_whatever_the_gate_says(orch: Orch, tmp_path: Path, arm: str) -> None:
    config = write_config(tmp_path, ("base", "slow", arm), cells=1)
    assert orch("run", config, "--results", tmp_path / "r", "--gate").code == 2


def test_a_target_that_does_not_start_is_2_with_the_next_command(orch: Orch, tmp_path: Path) -> None:
    ended = orch("run", write_config(tmp_path, ("base", "gone"), cells=1), "--results", tmp_path / "r")
    assert ended.code == 2
    assert ended.err.endswith("error: QEMU did not start\n  next: orch doctor\n") and "Traceback" not in ended.err


# --- errors -----------------------------------------------------------------------------------------------------------


def test_all_mistakes_of_a_config_at_once(orch: Orch, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("boots: 1", "boots: none, sede: 3"))
    for command in ("run", "plan", "build"):
        ended = orch(command, config)
        assert ended.code == 1 and ended.out == "" and ended.err.startswith("error: 2 errors in the configuration\n")
        assert re.search(rf"{re.escape(str(config))}:\d+: schedule\.boots: expected ", ended.err)
        assert "nearest" in ended.err or "seed" in ended.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run",), "Missing argument 'CONFIG...'"),
        (("run", "/nowhere.yaml"), "/nowhere.yaml"),
        (("run", "x.yaml", "--jobs", "0"), "--jobs"),
        (("plan",), "CONFIG is missing"),
        (("fly",), "No such command 'fly'"),
        (("report", "/nowhere"), "/nowhere"),
        (("trial", str(ROOT), "000"), "is not a run: it has no manifest.json"),
        (("report", str(ROOT)), "is not a run: it has no manifest.json"),
        (("patch", "recover", "/nowhere", "--tree", str(ROOT), "--out", "/x"), "/nowhere"),
        (("patch", "check", "x.patch"), "--tree"),
    ],
)
def test_the_users_mistakes_are_1(orch: Orch, words: tuple[str, ...], says: str) -> None:
    ended = orch(*words)
    assert ended.code == 1 and says in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize("words", [("--help",), ("run", "--help"), ("patch", "-h"), ("--version",)])
def test_help_is_no_mistake(orch: Orch, words: tuple[str, ...]) -> None:
    ended = orch(*words)
    assert ended.code == 0 and ended.out and ended.err == ""


def test_an_error_shows_its_log_and_with_debug_a_traceback(
    orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "build.log"
    log.write_text("first\nlast \x1b[31m\n")

    def fail(*_: object) -> None:
        raise BuildError("it does not compile", log=log, hint="read it")

    monkeypatch.setattr(run, "build_kernels", fail)
    config = write_config(tmp_path)
    plain, debug = orch("build", config), orch("--debug", "build", config)
    rendered = (
        f"error: it does not compile\n  log: {log}\n  | first\n  | last \N{REPLACEMENT CHARACTER}[31m\n"
        "  next: read it\n"
    )
    assert plain.code == debug.code == 2
    assert plain.err == rendered
    assert debug.err.startswith("Traceback") and debug.err.endswith(rendered) and "in fail" in debug.err


def test_a_bug_of_ours_is_no_mistake_of_the_users(orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("x\x1b[2J")

    monkeypatch.setattr(run, "build_kernels", fail)
    config = write_config(tmp_path)
    plain, debug = orch("build", config), orch("--debug", "build", config)
    assert plain.code == debug.code == 2
    assert plain.err == (
        f"error: unexpected KeyError: 'x\\x1b[2J'\n  next: orch --debug build {config}   (says where)\n"
    )
    assert debug.err.startswith("Traceback") and "next:" not in debug.err


def test_a_reader_that_goes_away_is_told_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path, boots=2000)
    argv = [sys.executable, "-m", "orchestrator.cli", "plan", str(config)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith("0000 ")
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait(300)


# --- the other commands -----------------------------------------------------------------------------------------------


def test_plan_lists_the_trials_and_builds_nothing(orch: Orch, tmp_path: Path) -> None:
    ended = orch("plan", write_config(tmp_path, boots=2, cells=1))
    lines = ended.out.splitlines()
    assert ended.code == 0 and ended.err == "" and len(lines) == 5
    assert [line.split()[:3] for line in lines[:4]] == [
        ["000", "cell0", "base"], ["001", "cell0", "v1"], ["002", "cell0", "v1"], ["003", "cell0", "base"],
    ]  # fmt: skip
    assert lines[0].endswith("boot 0  256 faults") and lines[4].startswith("4 trials in 2 blocks; seeds ")
    assert not (tmp_path / "results").exists()


def test_plan_keys_names_every_key_once(orch: Orch) -> None:
    ended = orch("plan", "--keys")
    keys = re.findall(r"^([a-z]\S*): ", ended.out, re.MULTILINE)
    assert ended.code == 0 and len(keys) == len(set(keys)) > 30
    assert {"kernel.fragments", "target.accel", "schedule.boots", "report.margin"} <= set(keys)


# All but the description of a lab, which is no experiment.
EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "lab.example.yaml")


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: path.name)
def test_the_configs_that_come_with_it_can_be_planned(orch: Orch, config: Path) -> None:
    ended = orch("plan", config)
    assert ended.code == 0 and f"{len(experiment.load(config).cells)} cells" not in ended.err
    assert " trials in " in ended.out


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 2)])
def test_the_doctor_prints_each_finding_with_its_fix(
    orch: Orch, monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    findings = (Finding("QEMU", "ok", "works"), Finding("tools", status, "missing: bc", "apt-get install bc"))  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    ended = orch("doctor")
    assert ended.code == code
    assert ended.out == (
        f"[ok  ] QEMU: works\n[{status.ljust(4) if status != 'fail' else 'FAIL'}] tools: missing: bc\n"
        "        fix: apt-get install bc\n"
    )


def test_build_says_where_each_kernel_is(orch: Orch, tmp_path: Path) -> None:
    ended = orch("build", write_config(tmp_path))
    assert (ended.code, ended.out) == (0, "base: /nowhere\nv1: /nowhere\n")
    ended = orch("build", write_config(tmp_path, ("base", "broken")))
    assert (ended.code, ended.out) == (2, "base: /nowhere\nbroken: not built\n")


def test_boot_refuses_what_it_cannot_boot(orch: Orch, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    ended = orch("boot", config, "--arm", "v9")
    assert ended.code == 1 and "has no arm 'v9': it has base, v1" in ended.err
    config.write_text("name: x\narms: {base: []}\ntarget: {kind: local}\ncells: {quiet: {storm: none}}\n")
    ended = orch("boot", config, "--arm", "base")
    assert ended.code == 1 and "target: local boots nothing here" in ended.err


def test_report_names_the_files_that_it_made_and_trial_repeats(orch: Orch, tmp_path: Path) -> None:
    config = write_config(tmp_path, ("base", "panic"), cells=1)
    orch("run", config, "--results", tmp_path / "r")
    (folder,) = (path for path in (tmp_path / "r").iterdir() if path.is_dir())
    ended = orch("report", folder)
    assert ended.code == 0 and {str(folder / "report.txt"), str(folder / "junit.xml")} <= set(ended.out.splitlines())
    for path in folder.glob("kernels/*.json"):
        path.write_text(path.read_text().replace('"/nowhere"', f'"{config}"'))
    ended = orch("trial", folder, "000")
    assert ended.code == 0
    assert ended.out.splitlines()[:2] == [
        "trial 000 (cell0, base): ok ",
        "recording: identical to the first one, byte for byte",
    ]
    ended = orch("trial", folder, "001")
    assert ended.code == 2 and "panic Kernel panic - not syncing" in ended.out and "  | Call Trace:" in ended.out


def test_patch_check_says_what_it_found(orch: Orch, tmp_path: Path) -> None:
    patch = ROOT / "tests/data/mail/toy.patch"
    applies = orch("patch", "check", patch, "--tree", MAIL_TREE)
    assert applies.code == 0 and "applies" in applies.out
    conflicts = orch("patch", "check", patch, patch, "--tree", MAIL_TREE)
    assert conflicts.code == 1 and "conflicts" in conflicts.out
    refused = orch("patch", "check", ROOT / "tests/data/mail/dotdot.patch", "--tree", MAIL_TREE)
    assert refused.code == 1 and refused.err.startswith("error: ")


def test_patch_recover_writes_the_patch_and_says_whose_it_is(orch: Orch, tmp_path: Path) -> None:
    out = tmp_path / "toy.patch"
    ended = orch("patch", "recover", ROOT / "tests/data/mail/intact.eml", "--tree", MAIL_TREE, "--out", out)
    assert ended.code == 0
    whole, recovered = (ROOT / "tests/data/mail/toy.patch").read_bytes(), out.read_bytes()
    assert recovered[recovered.index(b"diff --git") :] == whole[whole.index(b"diff --git") :]
    assert f"{out}: " in ended.out and "hunks in" in ended.out
    before = out.read_bytes()
    ended = orch("patch", "recover", ROOT / "tests/data/mail/ambiguous.eml", "--tree", MAIL_TREE, "--out", out)
    assert ended.code == 1 and ended.err.startswith("error: ") and out.read_bytes() == before


def test_reporter_writes_to_the_standard_error_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    cli.Reporter().say("here")
    assert stream.getvalue() == "here\n"


# --- trials elsewhere -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "x.yaml", "--patience", "3"], "--patience is for --engine dask://HOST:PORT"),
        (["run", "x.yaml", "--engine", "127.0.0.1:1"], "'127.0.0.1:1' is no address of a scheduler"),
        (["nightly", "x.yaml", "--engine", "tcp://127.0.0.1:1"], "is no address of a scheduler"),
        (["worker", "dask://127.0.0.1:1", "--offer", "xen=1"], "'xen=1' offers nothing"),
        (["worker", "127.0.0.1", "--offer", "icount=1"], "'127.0.0.1' is no address of a scheduler"),
    ],
)
def test_where_trials_run_is_checked_first(
    words: list[str], says: str, orch: Orch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path).rename(tmp_path / "x.yaml")
    ended = orch(*words)
    assert ended.code == 1 and says in ended.out + ended.err
