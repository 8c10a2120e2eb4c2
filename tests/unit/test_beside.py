"""nights/several.py, beside.py and besidepage.py: several configs by one command, and their runs side by side."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import simulated_orch
from simulated_orch import SimulatedTarget, write_config

from orchestrator import cli, doctor, run
from orchestrator.doctor import Accel, AccelChoice
from orchestrator.errors import StoreError
from orchestrator.experiment import Experiment
from orchestrator.nights import besidepage, catalogue, several
from orchestrator.nights.beside import Absent, Beside, side_by_side
from orchestrator.nights.besidepage import render_html, render_text, write
from orchestrator.nights.catalogue import Run
from orchestrator.nights.several import Session
from orchestrator.store import STATUS, load_json
from orchestrator.target import labtarget
from orchestrator.target.pool import LabPool
from orchestrator.target.target import Evidence, Job

LAB = """hosts:
  lab1: {address: 10.0.0.1, user: root, agent: true, known_hosts: known_hosts}
  lab2: {address: 10.0.0.2, user: root, agent: true, known_hosts: known_hosts}
"""
pytestmark = pytest.mark.usefixtures("no_plots")
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


@dataclass(frozen=True)
class Machine:
    """A machine of a lab that leaves what QEMU would."""

    name: str

    def contact(self) -> None:
        pass

    def close(self) -> None:
        pass

    def run(self, job: Job, folder: Path) -> Evidence:
        return replace(SimulatedTarget().run(job, folder), machine=self.name)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Orch = Callable[..., Ended]


@pytest.fixture
def orch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Orch:
    """``orch`` in this process, with targets that make recordings up."""
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    simulated_orch.install(monkeypatch.setattr)

    def pick(wanted: Accel, cpus: int) -> AccelChoice:
        return AccelChoice(wanted, f"{wanted}, simulated")

    monkeypatch.setattr(doctor, "pick_accel", pick)
    monkeypatch.setattr(
        labtarget, "make_pool", lambda hosts, *_: LabPool({host.name: Machine(host.name) for host in hosts})
    )

    def run_orch(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["orch", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, captured.out, captured.err)

    return run_orch


def three(tmp_path: Path, arms: tuple[str, ...] = ("base", "v1"), boots: int = 1) -> tuple[Path, Path, Path]:
    """One experiment nested and on each of two machines of a lab: only the target's lines differ."""
    (tmp_path / "known_hosts").write_text("")
    (tmp_path / "lab.yaml").write_text(LAB)
    nested = write_config(tmp_path, arms, boots=boots)
    return nested, *(_elsewhere(nested, f"{{kind: ssh, lab: lab.yaml, hosts: [{name}]}}") for name in ("lab1", "lab2"))


def _elsewhere(config: Path, target: str) -> Path:
    names = re.findall(r"hosts: \[(\w+)\]", target) or re.findall(r"accel: (\w+)", target)
    path = config.with_name(f"{names[0]}.yaml")
    path.write_text(config.read_text().replace("{kind: qemu, accel: icount}", target))
    return path


def runs_of(results: Path) -> list[Run]:
    return [catalogue.open_run(path.parent) for path in sorted(results.glob(f"*/{STATUS}"))]


class _Page(HTMLParser):
    """Rows of all tables as lists of their cells' texts, links, and whether there is a script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.hrefs: list[str] = []
        self.tags: set[str] = set()
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.hrefs += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        return next([" ".join(cell.split()) for cell in row] for row in self.rows if row and row[0].startswith(name))


# --- one command ------------------------------------------------------------------------------------------------------


def test_one_command_shows_nested_and_two_machines_side_by_side(orch: Orch, tmp_path: Path) -> None:
    results = tmp_path / "results"
    ended = orch("run", *three(tmp_path, ("base", "slow")), "--results", results, "--gate")
    assert ended.code == 3, ended.err
    assert len(runs_of(results)) == 3
    found = re.search(r"^page: (.*beside\.html)$", ended.out, re.MULTILINE)
    assert found
    html = unescape(Path(found[1]).read_text())
    page = _Page(html)
    labels = ["nested icount (qemu)", "lab1 (ssh)", "lab2 (ssh)"]
    assert page.row("cell, arm") == ["cell, arm", *labels]
    for cell in ("cell0", "cell1"):
        _, *entries = page.row(cell)
        assert len(entries) == 3 and entries[0].startswith("nested icount (qemu): regressed ")
        assert all("(base 1 ok; slow 1 ok)" in entry for entry in entries)
    _, *medians = page.row("p50")
    assert all(re.search(r": 5\.\d{3} \+\d\d\.\d % .*(regressed|inconclusive)", median) for median in medians), medians
    assert page.row("target.hosts") == ["target.hosts", f"{labels[0]}: none", "lab1 (ssh): lab1", "lab2 (ssh): lab2"]
    assert "Nothing but the target's lines differs in the configs: target.kind, target.accel, " in html
    assert "MORE THAN THEIR TARGET" not in html and "script" not in page.tags
    for href in page.hrefs:
        assert href.startswith("#") or (Path(found[1]).parent / href).is_file(), href
    assert sum(href.endswith("/report.html") for href in page.hrefs) == 6
    assert "nested icount (qemu): regressed (base 1 ok; slow 1 ok)" in ended.out
    text = Path(found[1]).with_name("beside.txt").read_text()
    assert text in ended.out and text.isascii() and max(map(len, text.splitlines())) <= 72


def test_every_mistake_of_every_config_comes_before_anything_is_built(orch: Orch, tmp_path: Path) -> None:
    nested, first, second = three(tmp_path)
    nested.write_text(nested.read_text().replace("boots: 1", "boots: none"))
    first.write_text(first.read_text().replace("cell0:", "cell 0:"))
    ended = orch("run", nested, first, second, "--results", tmp_path / "r")
    assert ended.code == 1 and "errors in the configuration" in ended.err
    assert f"{nested}:" in ended.err and f"{first}:" in ended.err and not (tmp_path / "r").exists()
    second.write_text(second.read_text().replace("[lab2]", "[lab9]"))
    ended = orch("run", nested, second, "--results", tmp_path / "r")
    assert ended.code == 1 and ended.err.startswith("error: 2 configs cannot work\n") and "lab9" in ended.err
    assert not (tmp_path / "r").exists()
    ended = orch("run", first, tmp_path / "x/../lab1.yaml")
    assert ended.code == 1 and "is named twice" in ended.err


def test_one_that_fails_does_not_stop_the_others_and_only_it_runs_again(
    orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, configs = tmp_path / "results", three(tmp_path)
    carry_out = run.carry_out

    def broken(ready: run.Prepared, *rest: object, **more: object) -> run.Finished:
        if ready.setting.accel == "ssh" and ready.setting.hosts[0].name == "lab1":
            raise StoreError("the disk is full", hint="make room")
        return carry_out(ready, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "carry_out", broken)
    ended = orch("run", *configs, "--results", results)
    assert ended.code == 2 and len(runs_of(results)) == 2
    # Where the line is broken is up to the length of the config's path.
    assert re.search(
        r"NO\s+RUN\s+THAT\s+HAS\s+ENDED\n  \| error: the disk is full\n  \|   next: make room\n", ended.out
    )
    (session,) = (results / "beside").glob("*/session.json")
    assert load_json(session, Session).runs[1] == "" and not load_json(session, Session).ended
    monkeypatch.setattr(run, "carry_out", carry_out)
    ended = orch("run", *configs, "--results", results)
    assert ended.code == 0 and len(runs_of(results)) == 3
    assert ended.err.count("has ended: it stands until all configs have") == 2
    assert list((results / "beside").glob("*/session.json")) == [session] and load_json(session, Session).ended
    assert orch("run", *configs, "--results", results).code == 0
    assert len(runs_of(results)) == 6 and len(list((results / "beside").glob("*/session.json"))) == 2


def test_a_run_that_has_ended_does_not_stand_for_another_patch(
    orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, configs = tmp_path / "results", three(tmp_path)[:2]
    with monkeypatch.context() as context:
        context.setattr(besidepage, "write", lambda *_: (_ for _ in ()).throw(StoreError("the disk is full")))
        assert orch("run", *configs, "--results", results).code == 2
    (tmp_path / "v1.patch").write_text("another patch\n")
    ended = orch("run", *configs, "--results", results)
    assert ended.code == 0 and "it stands" not in ended.err and len(runs_of(results)) == 4


# --- runs that exist --------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(orch: Orch, tmp_path: Path) -> list[Run]:
    """The same experiment under icount and tcg."""
    nested = write_config(tmp_path, ("base", "v1", "panic"))
    other = _elsewhere(nested, "{kind: qemu, accel: tcg}")
    assert orch("run", nested, other, "--results", tmp_path / "results").code == 2
    return runs_of(tmp_path / "results")


def test_runs_that_exist_are_shown_where_one_says(pair: list[Run], orch: Orch, tmp_path: Path) -> None:
    ended = orch("beside", *(item.folder for item in pair), "--output", tmp_path / "out/page")
    assert ended.code == 0 and ended.out.endswith(f"page: {tmp_path / 'out/page/beside.html'}\n")
    page = _Page((tmp_path / "out/page/beside.html").read_text())
    assert page.row("cell, arm")[1:] == ["nested icount (qemu)", "nested tcg (qemu)"]
    rows = [row for row in page.rows if row[0].startswith("cell0panic")]
    assert "inconclusive panic: panic (base 1 ok; panic 1 panic)" in " ".join(rows[0][1].split())
    assert {href for href in page.hrefs if not href.startswith("#")} == {
        "beside.txt", *(f"../../results/{item.name}/report.html" for item in pair),
    }  # fmt: skip
    for words in ((pair[0].folder,), (pair[0].folder, tmp_path)):
        refused = orch("beside", *words, "--output", tmp_path / "no")
        assert refused.code == 1 and not (tmp_path / "no").exists()


def test_a_range_over_seeds_is_not_called_an_interval(pair: list[Run], tmp_path: Path) -> None:
    one, other = pair

    def with_ci(item: Run, p_value: float | None) -> Run:
        rows = tuple(replace(row, ci=(0.9, 1.2), p_value=p_value) for row in item.comparison.comparisons)
        return replace(item, comparison=replace(item.comparison, comparisons=rows))

    exact, sampled = with_ci(one, None), with_ci(other, 0.2)
    alone = render_text(side_by_side([exact, exact]))
    assert "range over seeds" in alone and "interval" not in alone.partition("cell0")[2]
    both = [line.strip() for line in render_text(side_by_side([exact, sampled])).splitlines()]
    rows = [index for index, line in enumerate(both) if line.startswith("p50, us")]
    for row in rows:
        shown = both[row + 1 : row + 4]
        assert both[row].endswith("95 % interval")
        assert shown[0].endswith("-10.0%..+20.0%") and shown[1] == "(range over seeds)", shown
        assert shown[2].endswith("-10.0%..+20.0%")
    assert rows and render_html(side_by_side([exact, sampled]), tmp_path).count("(seeds)") == len(
        one.comparison.comparisons
    )


def changed(item: Run, **fields: object) -> Run:
    return replace(item, experiment=replace(item.experiment, **fields))  # type: ignore[arg-type]


def said(found: Beside) -> dict[str, tuple[tuple[str, ...], bool]]:
    return {item.key: (item.values, item.aloud) for item in found.differences}


def test_what_differs_beyond_the_target_is_said_aloud(pair: list[Run]) -> None:
    one, other = pair
    found = side_by_side(pair)
    assert said(found) == {"target.accel": (("icount", "tcg"), False)}
    assert found.sentences[0] == "Nothing but the target's lines differs in the configs: target.accel"
    schedule = replace(other.experiment.schedule, boots=3)
    more = replace(
        changed(other, schedule=schedule, cells=other.experiment.cells[:1], name="other"),
        manifest=replace(other.manifest, tool_commit="f" * 40),
    )
    found = side_by_side([one, more])
    keys = said(found)
    assert keys["schedule.boots"] == (("1", "3"), True) and keys["cells.cell1"] == (("there", "not there"), True)
    assert keys["name"] == (("simulated", "other"), False) and keys["tool"][1]
    assert not [key for key in keys if key.startswith("cells.cell1.")]
    assert found.sentences[0].startswith("THESE RUNS DIFFER IN MORE THAN THEIR TARGET: cells.cell1 (there | not there)")
    assert "schedule.boots (1 | 3)" in found.sentences[0]
    assert "schedule.boots   (NOT of the target)" in render_text(found)


def test_patches_differ_by_content_and_kernels_of_a_lab_by_its_fragments(pair: list[Run]) -> None:
    one, other = pair
    kernels = tuple(replace(kernel, vmlinux_sha256="ef" * 32) for kernel in other.kernels)
    odd = side_by_side([one, replace(other, kernels=kernels)])
    assert said(odd)["vmlinux of base"][1]
    fragments = (*other.manifest.fragments, replace(other.manifest.fragments[0], path="/l/lab.config"))
    lab = side_by_side([one, replace(other, kernels=kernels, manifest=replace(other.manifest, fragments=fragments))])
    assert not said(lab)["vmlinux of base"][1] and not said(lab)["fragments of the lab"][1]
    assert said(lab)["fragments of the lab"][0][1].startswith("lab.config (")
    moved = replace(other.manifest.arms[1].patches[0], path="/elsewhere/v1.patch")
    arms = (other.manifest.arms[0], replace(other.manifest.arms[1], patches=(moved,)), *other.manifest.arms[2:])
    assert "arms.v1" not in said(side_by_side([one, replace(other, manifest=replace(other.manifest, arms=arms))]))
    arms = (arms[0], replace(arms[1], patches=(replace(moved, sha256="0" * 64),)), *arms[2:])
    again = side_by_side([one, replace(other, manifest=replace(other.manifest, arms=arms))])
    assert said(again)["arms.v1"][1]


def test_opposite_verdicts_are_said(pair: list[Run]) -> None:
    one, other = pair

    def with_verdict(item: Run, verdict: str) -> Run:
        verdicts = tuple(
            replace(cell, verdict=verdict if cell.cell == "cell0" else "equivalent")  # type: ignore[arg-type]
            for cell in item.comparison.verdicts
        )
        return replace(item, comparison=replace(item.comparison, verdicts=verdicts))

    same = side_by_side([with_verdict(one, "improved"), with_verdict(other, "improved")])
    assert "v1: in 2 of 2 cells all 2 runs have the same verdict" in same.sentences[1]
    half = side_by_side([with_verdict(one, "improved"), with_verdict(other, "inconclusive")])
    assert half.sentences[1].endswith(
        "v1: in 1 of 2 cells all 2 runs have the same verdict; in 1 more some are inconclusive and the others agree"
    )
    against = side_by_side([with_verdict(one, "improved"), with_verdict(other, "regressed")])
    assert against.sentences[1].startswith("v1: in 1 of 2 cells")
    assert "OPPOSITE verdicts in cell0" in against.sentences[1]


def test_runs_of_one_target_are_told_apart(pair: list[Run]) -> None:
    one, _ = pair
    second = replace(one, folder=one.folder.with_name("later"))
    assert [column.label for column in side_by_side([one, second]).columns] == [
        f"nested icount (qemu), {one.name}", "nested icount (qemu), later",
    ]  # fmt: skip


def test_foreign_text_is_only_text(pair: list[Run], tmp_path: Path) -> None:
    one, other = pair
    evil = replace(
        other,
        manifest=replace(other.manifest, accel_why=HOSTILE, config=replace(other.manifest.config, path=HOSTILE)),
        comparison=replace(
            other.comparison,
            name=HOSTILE,
            cells=tuple(replace(cell, name=HOSTILE) for cell in other.comparison.cells[:1]),
            verdicts=tuple(replace(item, cell=HOSTILE, summary=HOSTILE) for item in other.comparison.verdicts[:1]),
            summaries=tuple(replace(item, cell=HOSTILE) for item in other.comparison.summaries),
        ),
    )
    found = side_by_side([one, evil], [Absent(HOSTILE, HOSTILE)])
    html = render_html(found, tmp_path)
    page = _Page(html)
    assert "script" not in page.tags and "&lt;script&gt;" in html and "\x1b" not in html and "\u202e" not in html
    text = render_text(found)
    assert text.isascii() and "\x1b" not in text and max(map(len, text.splitlines())) <= 72


def test_the_page_is_written_whole_or_not(pair: list[Run], tmp_path: Path) -> None:
    written = write(side_by_side(pair), tmp_path / "out")
    assert [path.name for path in written] == ["beside.html", "beside.txt"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["beside.html", "beside.txt"]


def test_an_experiment_in_a_session_is_read_as_any_other(tmp_path: Path, orch: Orch) -> None:
    found = several.check_all(three(tmp_path))
    assert all(isinstance(item, Experiment) for item in found) and [item.target.kind for item in found] == [
        "qemu", "ssh", "ssh",
    ]  # fmt: skip
