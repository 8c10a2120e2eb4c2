"""orch nightly: the newest tree, the last good run, one page, and an exit code for a job; with a simulated target."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import simulated_orch
from nightruns import Past
from simulated_orch import write_config

from orchestrator import cli, run
from orchestrator.analysis.model import from_json
from orchestrator.errors import StoreError
from orchestrator.experiment import Experiment
from orchestrator.nights import catalogue, nightly, page
from orchestrator.nights.nightly import Entry, Night
from orchestrator.store import take_lock

pytestmark = pytest.mark.usefixtures("no_plots")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@dataclass
class Nights:
    """``orch`` in this process with experiments beside each other; each takes its kernel's version from a file."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def orch(self, *words: object) -> Ended:
        self.monkeypatch.setattr(sys, "argv", ["orch", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = self.capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, captured.out, captured.err)

    def config(self, name: str, arms: tuple[str, ...] = ("base", "v1"), version: str = "5.10.1") -> Path:
        path = write_config(self.folder / name, arms, cells=1)
        path.write_text(path.read_text().replace("name: simulated", f"name: {name}"))
        self.offer(path, version)
        return path

    def offer(self, config: Path, version: str) -> None:
        config.with_name("version").write_text(version)

    def night(self, *configs: Path, words: tuple[str, ...] = ()) -> tuple[Ended, Night]:
        ended = self.orch("nightly", *configs, "--results", self.results, *words)
        return ended, nightly.read_nights(self.results).nights[0]

    def runs(self) -> list[str]:
        return sorted(path.parent.name for path in self.results.glob("*/manifest.json"))


@pytest.fixture
def nights(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Nights:
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    simulated_orch.install(monkeypatch.setattr)
    return Nights(tmp_path, monkeypatch, capsys)


# --- versions, references, exit codes ---------------------------------------------------------------------------------


def test_a_slow_version_is_worse_until_it_is_mended_and_the_gate_says_so(nights: Nights) -> None:
    config = nights.config("a")
    ended, night = nights.night(config, words=("--gate",))
    (entry,) = night.entries
    assert (ended.code, entry.state, entry.no_reference) == (0, "fine", "it is the first")
    good = entry.run

    nights.offer(config, "5.10.2-slow")
    ended, night = nights.night(config, words=("--gate",))
    (entry,) = night.entries
    assert (ended.code, entry.state, entry.reference) == (3, "worse", good)
    assert (
        entry.tree == "simulated 5.10.2-slow" and "kernel tree: simulated 5.10.1 | simulated 5.10.2-slow" in entry.notes
    )
    assert entry.worse[0].startswith("cell0, base: mean +50.0 %, p50 +50.0 %")
    worse = entry.run

    ended, night = nights.night(config)
    assert ended.code == 0, "without --gate"
    assert night.entries[0].state == "worse" and night.entries[0].reference == good, "not held against a worse run"

    nights.offer(config, "5.10.3")
    ended, night = nights.night(config, words=("--gate",))
    assert (ended.code, night.entries[0].state, night.entries[0].reference) == (0, "fine", good)
    assert not catalogue.is_good(catalogue.open_run(nights.results / worse))


def test_a_worse_run_that_is_accepted_is_the_new_normal(nights: Nights) -> None:
    config = nights.config("a")
    nights.night(config)
    nights.offer(config, "5.10.2-slow")
    _, night = nights.night(config)
    worse = nights.results / night.entries[0].run
    ended = nights.orch("nightly", "--accept", worse)
    assert (ended.code, ended.out) == (0, f"accepted: {worse.name}\n")
    ended, night = nights.night(config, words=("--gate",))
    assert (ended.code, night.entries[0].state, night.entries[0].reference) == (0, "fine", worse.name)


def test_only_a_complete_run_whose_checks_held_can_be_accepted(nights: Nights) -> None:
    config = nights.config("a", ("base", "panic"))
    _, night = nights.night(config)
    ended = nights.orch("nightly", "--accept", nights.results / night.entries[0].run)
    assert ended.code == 1 and "is partial: only a complete run can be accepted" in ended.err
    ended = nights.orch("nightly", "--accept", nights.folder)
    assert ended.code == 1 and "is not a run" in ended.err


@pytest.mark.parametrize(("words", "code"), [((), 0), (("--gate",), 3)])
def test_an_arm_that_regressed_against_its_base_closes_the_gate(
    nights: Nights, words: tuple[str, ...], code: int
) -> None:
    ended, night = nights.night(nights.config("a", ("base", "slow")), words=words)
    assert (ended.code, night.entries[0].state) == (code, "gate closed")
    assert night.entries[0].closed[0].startswith("cell0, slow: regressed against base: ")


def test_what_goes_wrong_in_one_experiment_does_not_stop_the_others(nights: Nights) -> None:
    mistake, away, panic = nights.config("a"), nights.config("b", version="none"), nights.config("c", ("base", "panic"))
    mistake.write_text(mistake.read_text().replace("boots: 1", "boots: none"))
    ended, night = nights.night(mistake, away, panic, nights.config("d"), words=("--gate",))
    assert [(entry.experiment, entry.state) for entry in night.entries] == [
        ("simulated", "mistake"), ("b", "stage failed"), ("c", "stage failed"), ("d", "fine"),
    ]  # fmt: skip
    assert ended.code == 2 and night.ended
    assert "schedule.boots: expected" in night.entries[0].error
    assert "no kernel source could be had" in night.entries[1].error
    assert night.entries[2].error == "" and night.entries[2].run, "the panic is a result, told in the run's report"
    text = (nights.results / "nights/index.txt").read_text()
    assert "b: STAGE FAILED" in text and "the mirror does not answer" in text and "d: FINE" in text
    assert ended.out.startswith(text)


def test_a_defect_of_ours_in_one_experiment_does_not_stop_the_others(nights: Nights) -> None:
    first, second = nights.config("a"), nights.config("b")
    real = run.take_tree

    def fail(chosen: Experiment, *words: object, **more: object) -> object:
        if chosen.name == "a":
            raise ZeroDivisionError("no")
        return real(chosen, *words, **more)  # type: ignore[arg-type]

    nights.monkeypatch.setattr(run, "take_tree", fail)
    ended, night = nights.night(first, second)
    assert ended.code == 2 and [entry.state for entry in night.entries] == ["stage failed", "fine"]
    log = next((nights.results / "nights").glob("*-1.log"))
    error = night.entries[0].error
    assert (
        error.startswith(f"error: unexpected ZeroDivisionError: no\n  log: {log}\n")
        and night.entries[0].log == log.name
    )
    assert error.endswith(f"\n  next: orch --debug run {first} --results {nights.results}")
    assert log.read_text().startswith("Traceback") and 'raise ZeroDivisionError("no")' in log.read_text()
    assert error in ended.err and "ZeroDivisionError" in (nights.results / "nights/index.txt").read_text()
    assert f'<a href="{log.name}">' in (nights.results / "nights/index.html").read_text()


@pytest.mark.parametrize(
    ("states", "code", "gated"),
    [
        (["fine"], 0, 0),
        ([], 0, 0),
        (["worse", "fine"], 0, 3),
        (["gate closed"], 0, 3),
        (["mistake", "worse"], 1, 1),
        (["mistake", "stage failed", "worse"], 2, 2),
    ],
)
def test_the_exit_code_is_that_of_the_gravest(states: list[nightly.State], code: int, gated: int) -> None:
    night = Night("", "", tuple(Entry("x.yaml", "x", state) for state in states))
    assert (nightly.exit_code(night, False), nightly.exit_code(night, True)) == (code, gated)


def test_a_run_that_is_not_like_the_last_good_one_is_not_compared_and_says_why(nights: Nights) -> None:
    config = nights.config("a")
    nights.night(config)
    config.write_text(config.read_text().replace("mem_mib: 1", "mem_mib: 2"))
    ended, night = nights.night(config, words=("--gate",))
    (entry,) = night.entries
    assert (ended.code, entry.state, entry.reference) == (0, "fine", "")
    assert entry.no_reference.endswith("is not like it: cells.cell0.guest.mem_mib: 1 | 2")


def test_a_failed_check_keeps_a_run_from_being_good(nights: Nights) -> None:
    config = nights.config("a")
    _, night = nights.night(config)
    folder = nights.results / night.entries[0].run
    document = json.loads((folder / "comparison.json").read_text())
    document["checks"][0]["status"] = "failed"
    (folder / "comparison.json").write_text(json.dumps(document))
    assert from_json(catalogue.Comparison, folder / "comparison.json").checks[0].status == "failed"
    _, night = nights.night(config)
    assert night.entries[0].no_reference == "no run before it was good"


def test_a_metric_that_decides_no_verdict_closes_no_gate(past: Past) -> None:
    found = catalogue.open_run(past.night(0)).comparison
    slower = [dataclasses.replace(item, verdict="regressed", decides=False) for item in found.comparisons]
    finished = run.Finished(past.results, dataclasses.replace(found, comparisons=tuple(slower)), ())
    assert not finished.gate_closed, "as the report says of the slowest fault of a single boot"
    decisive = dataclasses.replace(slower[0], decides=True)
    finished = dataclasses.replace(finished, comparison=dataclasses.replace(found, comparisons=(decisive,)))
    assert finished.gate_closed


# --- interruptions and locks ------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_with_its_own_tree(nights: Nights) -> None:
    config = nights.config("a", ("base", "gone"))
    ended, night = nights.night(config)
    assert ended.code == 2 and "QEMU did not start" in night.entries[0].error
    (begun,) = nights.runs()
    nights.offer(config, "5.10.2")
    nights.monkeypatch.setattr(run, "make_target", lambda setting, guests: simulated_orch.SimulatedTarget(mended=True))
    ended, night = nights.night(config)
    assert ended.code == 0 and night.entries[0].run == begun and night.entries[0].tree == "simulated 5.10.1"
    _, night = nights.night(config)
    assert night.entries[0].run != begun and night.entries[0].tree == "simulated 5.10.2"


def test_a_night_that_is_interrupted_leaves_what_it_has(nights: Nights) -> None:
    first, second = nights.config("a"), nights.config("b")
    real = run.take_tree

    def interrupt(chosen: Experiment, *words: object, **more: object) -> object:
        if chosen.name == "b":
            raise KeyboardInterrupt
        return real(chosen, *words, **more)  # type: ignore[arg-type]

    nights.monkeypatch.setattr(run, "take_tree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        nightly.run_night([first, second], nights.results, 1, ["orch"], cli.Reporter())
    (night,) = nightly.read_nights(nights.results).nights
    assert [entry.experiment for entry in night.entries] == ["a"] and night.ended == ""
    _, text = page.write(nights.results)
    assert "(has not ended: it was interrupted, or goes on)" in text.read_text()


def test_a_second_nightly_is_refused_and_told_who_runs(nights: Nights) -> None:
    config = nights.config("a")
    folder = nights.results / "nights"
    folder.mkdir(parents=True)
    with take_lock(folder / ".lock"):
        ended = nights.orch("nightly", config, "--results", nights.results)
        assert ended.code == 2 and "nights is in use by pid" in ended.err and nights.runs() == []
        with pytest.raises(StoreError):
            nightly.run_night([config], nights.results, 1, ["orch"], cli.Reporter())
    assert nights.night(config)[0].code == 0, "given back"


def test_without_a_config_there_is_nothing_to_do(nights: Nights) -> None:
    ended = nights.orch("nightly")
    assert ended.code == 1 and "CONFIG is missing" in ended.err and "next: orch nightly " in ended.err


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_every_night_links_to_reports_and_no_script(nights: Nights) -> None:
    config = nights.config("a")
    nights.night(config)
    nights.offer(config, "5.10.2-slow")
    ended, night = nights.night(config)
    html = (nights.results / "nights/index.html").read_text()
    assert ended.out.rstrip().endswith(f"page: {nights.results}/nights/index.html")
    assert html.count(f'href="../{night.entries[0].run}/report.html"') == 3, "in the strip, as the last, in the table"
    assert "worse than the last good run" in html and "cell0, base: mean +50.0 %" in html
    assert "<script" not in html and "prefers-color-scheme: dark" in html and "default-src 'none'" in html
    assert "since 20" in html and 'href="a/history.txt"' in html and (nights.results / "nights/a/history.txt").exists()


def test_nothing_from_outside_becomes_markup(nights: Nights) -> None:
    evil = "<script>alert(1)</script>\x1b[31m\u202e"
    folder = nights.results / "nights"
    folder.mkdir(parents=True)
    entry = Entry(
        config=evil, experiment="a", state="worse", run=f"../{evil}", tree=evil, reference=evil, worse=(evil,),
        better=(evil,), closed=(evil,), notes=(evil,), error=f"error: {evil}",
    )  # fmt: skip
    record = nightly.to_json(
        Night("2026-01-01T01:00:00+00:00", "", (entry, dataclasses.replace(entry, state="mistake")))
    )
    (folder / "20260101-010000.json").write_bytes(record)
    written, text = page.write(nights.results)
    assert "<script" not in written.read_text() and "&lt;script&gt;" in written.read_text()
    for path in (written, text):
        assert "\x1b" not in path.read_text() and "\u202e" not in path.read_text()


def test_a_damaged_record_is_named_and_the_others_are_told(nights: Nights) -> None:
    config = nights.config("a")
    nights.night(config)
    damaged = nights.results / "nights/20200101-010000.json"
    damaged.write_text("{")
    nights.offer(config, "5.10.2-slow")
    ended, night = nights.night(config, words=("--gate",))
    assert (ended.code, night.entries[0].state) == (3, "worse")
    said = f"record damaged, and left out: {damaged}: the file: Invalid JSON"
    assert said in " ".join(ended.out.split()) and "2 nights on record" in ended.out
    html = (nights.results / "nights/index.html").read_text()
    assert f"record damaged, and left out: <code>{damaged}</code>" in html and "worse than the last good run" in html


@pytest.mark.parametrize(("error", "said"), [
    (StoreError("cannot write x: No space left"), "error: cannot write x: No space left"),
    (ZeroDivisionError("no"), "error: unexpected ZeroDivisionError: no\n  log: "),
])  # fmt: skip
@pytest.mark.parametrize(("words", "code"), [((), 2), (("--gate",), 3)])
def test_a_page_that_cannot_be_written_loses_neither_the_night_nor_its_exit_code(
    nights: Nights, error: Exception, said: str, words: tuple[str, ...], code: int
) -> None:
    def fail(results: Path) -> None:
        raise error

    config = nights.config("a", ("base", "slow"))
    with nights.monkeypatch.context() as patch:
        patch.setattr(page, "write", fail)
        ended, night = nights.night(config, nights.config("b"), words=words)
    assert ended.code == code and [entry.state for entry in night.entries] == ["gate closed", "fine"]
    assert ended.err.count(said) == 2, "after the first experiment, and at the end"
    ended = nights.orch("nightly", "--page", "--results", nights.results)
    assert ended.code == 0 and "a: GATE CLOSED" in ended.out and "page: " in ended.out


def test_a_history_that_cannot_be_made_does_not_hide_the_nights(nights: Nights) -> None:
    nights.night(nights.config("a"))
    nights.monkeypatch.setattr(
        page.chronicle, "write", lambda *_: (_ for _ in ()).throw(StoreError("the disk is full"))
    )
    html, text = page.write(nights.results)
    assert "a: FINE" in text.read_text() and "no history: the disk is full" in text.read_text()
    assert "No history: the disk is full" in html.read_text()


def test_the_page_is_there_after_each_experiment(nights: Nights) -> None:
    seen: list[str] = []
    first, second = nights.config("a"), nights.config("b")

    def publish() -> None:
        seen.append(page.write(nights.results)[1].read_text())

    nightly.run_night([first, second], nights.results, 1, ["orch"], cli.Reporter(), publish=publish)
    (text,) = seen
    assert "a: FINE" in text and "b: " not in text and "(has not ended: it was interrupted, or goes on)" in text
