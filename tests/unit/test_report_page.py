"""report.html: what it says first, where every figure leads, and how it is built for those who cannot see it."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import simulate
from simulate import Effect, Plant, cell

from orchestrator.analysis.analyse import analyse
from orchestrator.analysis.causes import CAUSES, Cause, CauseShare, SlowFault, TraceCost, TracedBoot
from orchestrator.analysis.model import (
    Bimodal,
    BootGroup,
    CellComparison,
    CellStop,
    CheckResult,
    Comparison,
    MetricComparison,
)
from orchestrator.analysis.plotted import Curves
from orchestrator.report import causes, figures, html, plots, text
from orchestrator.report.drawings import telling_cells
from orchestrator.report.said import parts, smallest, standing
from orchestrator.report.verdicts import make_matrix
from orchestrator.results import Outcome, Provenance

PROVENANCE = Provenance("orch run configs/quickstart.yaml --results results", (("QEMU", "7.2.22"),))
CELLS = (
    cell("quiet"), cell("outside", "outside", preempted=True), cell("overlap", "overlap"),
    cell("shadow", "outside", tdp=False), cell("worse", "outside"),
)  # fmt: skip
VOID = ("meta", "br", "path", "use", "rect")


@dataclass
class Element:
    """A tag as a browser sees it, with what is inside."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, *tags: str) -> list[Element]:
        """Every element of these tags (of any if none is given), in order."""
        found = [self] if not tags or self.tag in tags else []
        return found + [item for child in self.children for item in child.all(*tags)]

    def get(self, name: str) -> str:
        return self.attributes.get(name, "")

    @property
    def words(self) -> str:
        return " ".join([self.text, *(child.words for child in self.children)]).strip()


class Page(HTMLParser):
    """The page as a tree."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            while self._open.pop().tag != tag:
                pass

    def handle_data(self, data: str) -> None:
        self._open[-1].text += data


@dataclass(frozen=True)
class Made:
    """A run with its trials' files, written."""

    folder: Path
    comparison: Comparison
    curves: Curves
    source: str
    root: Element


def make(folder: Path, plant: Plant, *, planned: int | None = None, draw: bool = False) -> Made:
    """Simulate a run and render its page; ``draw``: with its plots, which takes most of the time."""
    results = simulate.simulate(plant, folder / "trials")
    for item in results:
        (folder / "trials" / item.id).mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "console.log"):
            (folder / "trials" / item.id / name).write_text("{}\n")
    found = analyse(
        simulate.experiment(plant), results, [simulate.BuiltLike(arm) for arm in plant.arms],  # type: ignore[misc]
        folder / "trials", run="run-1", accel=plant.accel, planned=planned or len(results),
    )  # fmt: skip
    drawn = plots.draw_all(found.comparison, found.curves, folder / "plots") if draw else ()
    source = html.render(found.comparison, drawn, PROVENANCE)
    return Made(folder, found.comparison, found.curves, source, Page(source).root)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Five cells, two boots, a patch that helps, harms and panics."""
    plant = Plant(
        CELLS, boots=2, faults=1500,
        effects={
            ("outside", "base"): Effect(retries=0.28, stall_cycles=9_000_000),
            ("outside", "v1"): Effect(retries=0.002, stall_cycles=6_000_000),
            ("worse", "v1"): Effect(scale=1.3),
            ("overlap", "v1"): Effect(outcome=Outcome.PANIC, reason="Kernel panic", trace=("Oops",)),
        },
    )  # fmt: skip
    return make(tmp_path_factory.mktemp("run"), plant, draw=True)


def anchors(root: Element) -> dict[str, Element]:
    return {item.get("id"): item for item in root.all() if item.get("id")}


def test_every_link_leads_somewhere(made: Made) -> None:
    known = anchors(made.root)
    links = [item.get("href") for item in made.root.all("a")]
    assert len(links) > 100
    for link in links:
        if link.startswith("#"):
            assert link[1:] in known, link
        else:
            assert not link.startswith("/") and (made.folder / unquote(link)).exists(), link


def test_a_figure_leads_to_its_boots_and_these_to_their_files(made: Made) -> None:
    """From the verdict over the cell's figures to the trials of that arm: 1 click each."""
    known = anchors(made.root)
    matrix = next(item for item in made.root.all("table") if "matrix" in item.get("class"))
    (row,) = (item for item in matrix.all("tr") if item.all("th")[0].words.startswith("outside"))
    section = row.all("td")[1].all("a")[0].get("href")
    assert known[section[1:]].words == "outside"
    after = made.root.all("h3", "table")
    figures = after[after.index(known[section[1:]]) + 1]
    (v1,) = (item for item in figures.all("tr") if item.all("th")[0].words == "v1")
    hrefs = {item.get("href") for item in v1.all("td")[0].all("a")}
    assert len(hrefs) == 1
    boots = known[hrefs.pop()[1:]]
    rows = boots.all("tr")
    assert [item.get("id") for item in rows] == ["trial-005", "trial-007"]
    assert [item.get("href") for item in rows[0].all("a")] == [
        "trials/005/", "trials/005/result.json", "trials/005/console.log", "trials/005/recording.bin"
    ]  # fmt: skip
    assert "orch run c.yaml --trial 005" in rows[0].words


def test_every_value_of_a_measured_arm_is_a_link(made: Made) -> None:
    known = anchors(made.root)
    for number, info in enumerate(made.comparison.cells, 1):
        after = made.root.all("h3", "table")
        table = after[after.index(known[f"cell-{number}"]) + 1]
        for row in table.all("tr")[1:]:
            arm = row.all("th")[0].words.split()[0]
            linked = [bool(item.all("a")) for item in row.all("td")[:8]]
            assert linked == [bool(made.comparison.summary(info.name, arm).boots)] * 8, (info.name, arm)


def unlinked(root: Element) -> list[str]:
    """Figures in tables that lead nowhere. Rows of trials are where all lead: these have their files beside them."""
    found = []
    for table in root.all("table"):
        for row in (row for body in table.all("tbody") for row in body.all("tr")):
            if row.get("id").startswith("trial-"):
                assert row.all("a"), row.words
                continue
            for item in row.all("td"):
                # Sentences, names and commands have the row's links.
                text = set(item.get("class").split()) & {"text", "word", "again", "files"}
                if re.search(r"\d", item.words) and not (row if text else item).all("a"):
                    found.append(f"{table.words[:40]}: {item.words}")
    return found


def test_every_figure_of_every_table_is_a_link(made: Made, explained: Made) -> None:
    assert unlinked(made.root) == [] and unlinked(explained.root) == []
    assert unlinked(Page(html.render(with_noise_stops_and_groups(made), (), PROVENANCE)).root) == []
    # That the question can fail: a table as it was before.
    bare = "<table><tbody><tr><th>v1</th><td class='text'>median</td><td>5.374</td></tr></tbody></table>"
    assert len(unlinked(Page(bare).root)) == 1


def test_each_figure_of_a_headline_leads_to_its_cell(made: Made) -> None:
    known = anchors(made.root)
    (line,) = (item for item in made.root.all("li") if item.get("class").startswith("verdict "))
    (source,) = re.findall(r'<li class="verdict [a-z]+">(.*?)</li>', made.source)
    assert unescape(re.sub("<[^>]*>", "", source)) == made.comparison.headlines[0]
    links = {item.words: known[item.get("href")[1:]].words for item in line.all("a")}
    assert links["improved 1 cell"] == links["retries −99.3 %"] == "outside"
    assert links["regressed 1 cell"] == "worse" and links["equivalent 2"] == "Verdicts"
    assert links["2 trials did not end well (panic)"] == "Trials that did not end well"
    assert known[line.all("a")[-1].get("href")[1:]].words == "Checks"
    assert not re.search(r"\d", line.text.replace("v1", "")), "what is not in a link has no figure"
    for item in (item for item in made.root.all("p") if item.get("class") == "standing"):
        assert item.all("a")[0].get("href")[1:] in known and not item.text.strip()


def test_a_sentence_about_a_cell_leads_to_it(made: Made) -> None:
    section = next(item for item in made.root.all("section") if item.get("aria-labelledby") == "why")
    said = [item for item in section.all("p") if item.all("a")]
    assert {item.all("a")[0].words for item in said} <= {info.name for info in made.comparison.cells}
    assert len(said) == len(made.comparison.why) > 0
    names = ["outside", "outside, far"]
    assert html._cell_of(names, "outside, far: of the 100") == "outside, far"
    assert html._cell_of(names, "outside, observed in traced boots: of") == "outside"
    assert html._cell_of(names, "Outsiders: x") == ""


def test_a_trial_that_failed_has_its_row_too(made: Made) -> None:
    row = anchors(made.root)["trial-009"]
    assert "panic" in row.words and "trials/009/console.log" in [item.get("href") for item in row.all("a")]
    assert not (made.folder / "trials/009/recording.bin").exists()


def test_headings_are_in_order_and_none_is_skipped(made: Made) -> None:
    levels = [int(item.tag[1]) for item in made.root.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    order = [item.words for item in made.root.all("h2")]
    wanted = [
        "Verdicts", "Trials that did not end well", "What changed", "Why the slow faults are slow", "Checks", "Figures",
        "How sure", "Trials", "Environment", "To repeat",
    ]  # fmt: skip
    assert order == wanted


def test_every_drawing_says_what_it_shows(made: Made) -> None:
    drawings = [item for item in made.root.all("svg") if item.get("role") == "img"]
    assert len(drawings) == 5 + 5 + 10 + 5
    labels = [item.get("aria-label") for item in drawings]
    assert len(set(labels)) == len(labels)
    assert "Retries per fault, outside: base 0.2800; v1 0.0020" in labels
    assert any(label.startswith("Slowest faults, outside: base p99.9 ") for label in labels)
    assert any(label.endswith(", overlap: v1 panic") for label in labels)
    hidden = [item for item in made.root.all("svg") if item.get("role") != "img"]
    assert hidden and all(item.get("aria-hidden") == "true" for item in hidden)


def test_tables_say_what_heads_what_and_scroll_by_key(made: Made) -> None:
    tables = made.root.all("table")
    boxes = [item for item in made.root.all("div") if item.get("class") == "scroll"]
    assert len(tables) == len(boxes) > 10
    assert all(
        item.get("tabindex") == "0" and item.get("role") == "region" and item.get("aria-label") for item in boxes
    )
    assert all(item.get("scope") in ("col", "row", "rowgroup") for table in tables for item in table.all("th"))


def test_the_cells_that_tell_most_are_in_view_and_the_others_folded(made: Made) -> None:
    assert telling_cells(made.comparison) == ("worse", "outside", "overlap")
    figure = made.root.all("figure")[1]
    folded = [item.get("aria-label") for item in figure.all("details")[0].all("svg") if item.get("role") == "img"]
    assert [label.split(":")[0] for label in folded] == ["Slowest faults, quiet", "Slowest faults, shadow"]
    assert "2 more cells: quiet; shadow" in figure.words


def test_the_page_is_small_enough_to_be_mailed(made: Made) -> None:
    drawn = sum(
        (made.folder / f"plots/{name}.svg").stat().st_size for name in ("retries", "tail", "timeline", "percentiles")
    )
    assert len(made.source) < 0.8 * drawn


@pytest.mark.parametrize("name", ["p50", "p99.9", "retries"])
def test_each_metric_is_told_in_full(made: Made, name: str) -> None:
    known = anchors(made.root)
    after = made.root.all("h3", "table")
    table = after[after.index(known["cell-2"]) + 2]
    (row,) = (item for item in table.all("tr")[1:] if item.all("td")[0].words == name)
    metric = made.comparison.metrics("outside", "v1")[
        {"p50": "p50", "p99.9": "p99_9", "retries": "retries_per_fault"}[name]
    ]  # type: ignore[index]
    assert metric.verdict in row.words and str(metric.pairs) in [item.words for item in row.all("td")]
    assert " to " in row.all("td")[4].words or metric.ci[0] == metric.ci[1]


def interval_heads(root: Element) -> set[str]:
    """What the tables call their intervals."""
    heads = [head.words for table in root.all("table") for head in table.all("th")]
    return {head for head in heads if "interval" in head or "range" in head}


def test_a_range_over_few_exact_seeds_is_not_called_an_interval(made: Made, tmp_path: Path) -> None:
    assert interval_heads(made.root) == {"range over seeds", "interval"}, "the latter where there is none: a panic"
    assert {item.ci_kind for item in made.comparison.comparisons if item.cell == "quiet"} == {"range"}
    seeds = make(tmp_path / "seeds", Plant((cell("quiet"),), boots=6, faults=200))
    assert interval_heads(seeds.root) == {"95 % interval"}
    # One boot of an arm panicked: five pairs are left of this arm alone.
    few = tuple(replace(item, p_value=None) if item.metric == "p50" else item for item in seeds.comparison.comparisons)
    root = Page(html.render(replace(seeds.comparison, comparisons=few), (), PROVENANCE)).root
    assert interval_heads(root) == {"95 % interval or range over seeds"}
    (table,) = (item for item in root.all("table") if "95 % interval or range over seeds" in item.words)
    kinds = {row.all("td")[0].words: row.all("td")[4].words.split("  ")[-1] for row in table.all("tr")[1:]}
    assert kinds.pop("p50").endswith("range over seeds")
    assert all(text.endswith("95 % interval") for text in kinds.values())


def test_an_interval_without_an_upper_end_says_so() -> None:
    open_ = replace(metric("retries_per_fault", 0.01), ci=(0.9, None), p_value=0.2)
    assert figures.metric_row(open_).interval == "−10.0 % or more" and open_.ci_kind == "interval"


# --- honest about what the run is not ---------------------------------------------------------------------------------


def lines(comparison: Comparison) -> str:
    return " ".join(text.render(comparison, PROVENANCE).split())


def test_an_unfinished_run_says_so_before_any_verdict(tmp_path: Path) -> None:
    made = make(tmp_path, Plant((cell("quiet"),), faults=200), planned=14)
    said = "Not whole: 2 of 14 trials have run; what is missing is missing below."
    assert standing(made.comparison)[0] == said
    assert lines(made.comparison).index(said) < lines(made.comparison).index("v1: ")
    header = made.root.all("header")[0].words
    assert header.index(said) < header.index("v1: ") and "2 of 14 trials" in " ".join(header.split())


def test_a_run_of_which_nothing_has_run_says_that_as_well(made: Made) -> None:
    nothing = replace(made.comparison, done=0, planned=20, failures=())
    assert standing(nothing)[0].startswith("Not whole: 0 of 20 trials have run; ")


def test_a_run_without_a_verdict_does_not_look_like_one_without_a_change(tmp_path: Path) -> None:
    made = make(tmp_path, Plant((cell("quiet"),), faults=200, accel="tcg"))
    assert {item.verdict for item in made.comparison.verdicts} == {"inconclusive"}
    assert standing(made.comparison) == (
        "Undecided: no cell has a verdict. This run shows neither a change nor that there is none.",
    )
    (line,) = (item for item in made.root.all("li") if item.get("class").startswith("verdict "))
    assert line.get("class") == "verdict inconclusive"


def test_a_run_that_decided_everything_has_nothing_to_add(made: Made) -> None:
    whole = replace(made.comparison, failures=(), verdicts=made.comparison.verdicts[:2])
    assert standing(whole) == ()
    some = replace(whole, verdicts=(*whole.verdicts, replace(whole.verdicts[0], verdict="inconclusive")))
    assert standing(some) == ("1 of 3 verdicts are inconclusive: they say neither changed nor the same.",)


def test_an_arm_that_did_not_build_is_why_trials_are_missing(made: Made) -> None:
    base, v1 = made.comparison.arms
    broken = replace(made.comparison, arms=(base, replace(v1, build="failed")), planned=40)
    assert standing(broken)[0].startswith("Not whole: 20 of 40 trials have run (v1 did not build); ")


def test_a_base_that_differs_from_itself_is_said_first(made: Made) -> None:
    moved = replace(metric("p50", 0.01), cell="quiet", verdict="regressed")
    assert standing(replace(made.comparison, aa=(moved,)))[0] == (
        "DO NOT TRUST the verdicts of quiet: there the base differs from itself."
    )
    assert not standing(replace(made.comparison, aa=(replace(moved, verdict="equivalent"),)))[0].startswith("DO NOT")


def test_a_verdict_is_taken_apart_into_figures_and_reason() -> None:
    def taken(verdict: str, summary: str) -> tuple[tuple[str, ...], str]:
        return parts(CellComparison("c", "v1", verdict, summary))  # type: ignore[arg-type]

    assert taken("improved", "retries −99.9 %, p50 +0.3 %") == (("retries −99.9 %", "p50 +0.3 %"), "")
    assert taken("inconclusive", "p50 +3.0 %: the interval holds both, and 0") == (
        ("p50 +3.0 %",), "the interval holds both, and 0"
    )  # fmt: skip
    assert taken("inconclusive", "hang: hang") == ((), "hang: hang")
    assert taken("regressed", "retries 0 → 0.01") == (("retries 0 → 0.01",), "")


def test_nothing_measured_is_said_and_not_hidden(tmp_path: Path) -> None:
    hang = Effect(outcome=Outcome.HANG, reason="no end within the deadline")
    made = make(tmp_path, Plant((cell("quiet"),), effects={("quiet", "base"): hang, ("quiet", "v1"): hang}))
    assert standing(made.comparison)[0] == "Nothing was measured: none of 2 trials ended well."
    assert "nothing to draw" in made.source
    (line,) = (item for item in made.root.all("li") if item.get("class").startswith("verdict "))
    assert line.get("class") == "verdict failed"


def metric(name: str, smallest_effect: float | None, *, base: float = 1.0, decides: bool = True) -> MetricComparison:
    return MetricComparison(
        "c", "base", "v1", name, base, 1.0, 1.0, (1.0, 1.0), None, None, 8, smallest_effect, "equivalent", "", decides  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_smallest_effect_stands_beside_the_verdict() -> None:
    both = {"p50": metric("p50", 0.004), "p99_9": metric("p99_9", 0.06), "max": metric("max", 0.06)}
    assert smallest(both) == "0.4 % in p50, 6.0 % in p99.9 and max"  # type: ignore[arg-type]
    same = {"p50": metric("p50", 0.02), "retries_per_fault": metric("retries_per_fault", 0.001, base=0.0)}
    assert smallest(same) == "2.0 %"  # type: ignore[arg-type]
    none = {"p50": metric("p50", 0.02), "p99_9": metric("p99_9", None), "max": metric("max", 0.1, decides=False)}
    assert smallest(none) == "2.0 % in p50, none in p99.9"  # type: ignore[arg-type]
    assert smallest({}) == ""


def test_the_smallest_effect_is_in_text_and_page(made: Made) -> None:
    seen = smallest(made.comparison.metrics("quiet", "v1"))
    assert seen == "2.0 %"
    assert "sees 2.0%" in lines(made.comparison)
    matrix = next(item for item in made.root.all("table") if "matrix" in item.get("class"))
    assert "sees 2.0 %" in matrix.words


def test_many_arms_stand_below_one_another(tmp_path: Path) -> None:
    arms = ("base", *(f"mutant-{number}" for number in range(7)))
    made = make(tmp_path, Plant((cell("quiet"),), arms=arms, faults=100))
    matrix = make_matrix(made.comparison, {"quiet": "#cell-1"})
    assert matrix.corner == "arm" and [row.name for row in matrix.rows] == list(arms)
    assert [name for name, _ in matrix.heads] == ["quiet", "kernel_log", "needed_retries", "controls"]
    assert [entry.column for entry in matrix.rows[1].entries][:2] == ["quiet", "kernel_log"]
    said = [line for line in text.render(made.comparison, PROVENANCE).splitlines() if line.startswith("  => ")]
    assert said[0].startswith("  => equivalent: mutant-0, mutant-1, mutant-2") and len(said) == 1


def test_failures_that_are_alike_are_told_once(tmp_path: Path) -> None:
    panic = Effect(outcome=Outcome.PANIC, reason="Kernel panic", trace=("RIP: 0010:direct_page_fault",))
    made = make(tmp_path, Plant((cell("quiet"),), boots=3, faults=100, effects={("quiet", "v1"): panic}))
    assert made.source.count("RIP: 0010:direct_page_fault") == 1
    section = anchors(made.root)["failures"]
    assert section.words == "Trials that did not end well"
    links = [item.get("href") for item in made.root.all("section")[1].all("a")]
    assert links == ["trials/001/console.log", "trials/003/console.log", "trials/005/console.log"]


def test_checks_that_say_the_same_of_several_arms_are_told_once_in_the_text(made: Made) -> None:
    def failed(arm: str, cell: str, why: str) -> CheckResult:
        return CheckResult("kernel_log", arm, cell, "failed", why)

    checks = (
        failed("v1", "quiet", "WARNING at mmu.c:560"), failed("v2", "quiet", "WARNING at mmu.c:560"),
        failed("v3", "quiet", "first"), failed("v3", "outside", "second"), failed("v3", "overlap", "third"),
    )  # fmt: skip
    said = text.render(replace(made.comparison, checks=checks), PROVENANCE).splitlines()
    section = said[said.index("Checks") + 2 :]
    assert [line.strip() for line in section[: section.index("")]] == [
        "kernel_log: held in 0 of 5, FAILED in 5",
        "FAILED quiet, v1, v2: WARNING at mmu.c:560 (and 1 more)",
        "FAILED quiet, v3: first (and 2 more)",
    ]


def with_noise_stops_and_groups(made: Made) -> Comparison:
    own = metric("p50", 0.01)
    return replace(
        made.comparison,
        aa=(replace(own, cell="outside", arm="base", reason="the base against itself"),),
        comparisons=tuple(replace(item, noise=(0.99, 1.02), boots_needed=40) for item in made.comparison.comparisons),
        bimodal=(Bimodal("outside", "v1", "p50", BootGroup(5000.0, ("005",)), BootGroup(9000.0, ("007",)), 0.003),),
        looks=(4, 8),
        stops=(CellStop("outside", 4, 1, "decided", ()), CellStop("quiet", 8, 2, "at most", ("v1 p50",))),
    )


def test_noise_stops_and_groups_of_boots_are_shown_if_they_are_there(made: Made) -> None:
    root = Page(html.render(with_noise_stops_and_groups(made), (), PROVENANCE)).root
    words = " ".join(root.words.split())
    assert "base against itself" in words and "−1.0 % to +2.0 %" in words and "about 40 boots would decide" in words
    groups = next(item for item in root.all("table") if "low" in [head.words for head in item.all("th")])
    assert [item.get("href") for item in groups.all("a")] == ["#cell-2", "#trial-005", "#trial-007", "#cell-2"]
    assert "5.000: trial" in " ".join(groups.words.split()) and "9.000: trial" in " ".join(groups.words.split())
    assert "4, 8 boots of each arm" in words and "at most" in words and "v1 p50" in words
    assert not re.search(r"noise of base", Page(made.source).root.words)


# --- causes -----------------------------------------------------------------------------------------------------------

SPENT_NS = {
    "base": {"handled": 1e6, "unrelated": 7e6, "preempted": 2e6},
    "v1": {"handled": 1e6, "preempted": 2e6},
}


def traced(arm: str, trial: str, spent: dict[str, float]) -> TracedBoot:
    """A boot of 100 slow faults that spent its time so, in all faults as in the slowest."""
    times = [spent.get(cause, 0.0) for cause in CAUSES]
    counts = [round(100 * time / sum(times)) for time in times]
    shares = tuple(
        CauseShare(cause, count, count * 3, time, count, count * 3, time)
        for cause, count, time in zip(CAUSES, counts, times, strict=True)
    )
    worst: tuple[float, ...] = tuple(time / 100 for time in times)
    kind: Cause = "unrelated" if "unrelated" in spent else "preempted"
    fault = SlowFault(2.5e6, sum(worst), 0, 77, kind, worst, 2345, 0x7F0000000000, 65536, 4)
    return TracedBoot(
        trial, "outside", arm, 1000, 0, 1500, 1500, 1800, 1500, 300, 0, 280, 15, 5, 270, 300, 1800, 1800, sum(times),
        shares, (fault,) * 100, TraceCost("003", (1.0, 2.0), (5000.0, 6500.0), (1.0, 2.0), (1.0, 2.0), (290, None)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def explained(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    boots = (traced("base", "004", SPENT_NS["base"]), traced("v1", "005", SPENT_NS["v1"]))
    why = ("quiet: inferred", "outside, observed in traced boots: of the 100 slowest faults in base, 70 spun.")
    found = replace(made.comparison, traced=boots, traced_notes=("Tracing itself changes the p50.",), why=why)
    folder = tmp_path_factory.mktemp("explained")
    alone = Curves(1, tuple(curve for curve in made.curves.curves if curve.cell == "outside"))
    source = html.render(found, plots.draw_all(found, alone, folder / "plots"), PROVENANCE)
    return Made(folder, found, alone, source, Page(source).root)


def test_traced_boots_say_what_the_time_went_to(explained: Made) -> None:
    table = next(item for item in explained.root.all("table") if "of what" in [head.words for head in item.all("th")])
    rows = {(row.all("td")[-8].words): [cell.words for cell in row.all("td")[-7:]] for row in table.all("tr")[1:5]}
    assert rows["time of all faults"] == ["10 %", "70 %", "0 %", "0 %", "0 %", "20 %", "0 %"]
    assert rows["the 100 slowest, counted"] == ["10", "70", "0", "0", "0", "20", "0"]
    assert rows["attempts in vain"] == ["", "210", "0", "0", "0", "", ""]
    for body, trial in zip(table.all("tbody"), ("#trial-004", "#trial-005"), strict=True):
        links = [item.get("href") for item in body.all("a")]
        assert links[:2] == ["#cell-2", trial] and set(links[2:]) == {trial} and len(links) > 20
    words = " ".join(explained.root.words.split())
    assert "tracing itself" in words and "p50 5,000 → 6,500 ns, retries 290 → n/a" in words
    assert "of the 100 slowest faults in base, 70 spun." in words and "Tracing itself changes the p50." in words
    assert "0x7f0000000000, 64 KiB, window 4 of the storm" in words and "2,345" in words
    assert (
        words.index("observed in traced boots") < words.index("1 more of these sentences") < words.index(": inferred")
    )


def test_the_bars_of_each_boot_add_up_to_all_of_its_time(explained: Made) -> None:
    (figure,) = (item for item in explained.root.all("figure") if "spun on an unrelated" in item.words)
    (drawing,) = (item for item in figure.all("svg") if item.get("role") == "img")
    label = drawing.get("aria-label")
    assert "base, slowest faults: 70 % spun on an unrelated invalidation, 20 % lost the CPU, 10 % handled" in label
    assert "v1, slowest faults: 67 % lost the CPU, 33 % handled" in label
    key = [item.words for item in figure.all("li") if item.all("svg")]
    assert key == ["handled", "spun on an unrelated invalidation", "lost the CPU"]
    made = causes.draw(explained.comparison, "Time")
    assert made is not None
    (axes,) = made[0].axes
    ends = {}
    for bar in axes.patches:
        ends.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append(
            (bar.get_x(), bar.get_x() + bar.get_width())
        )
    assert len(ends) == 4
    for spans in ends.values():
        assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(1)
        assert all(before[1] == pytest.approx(after[0]) for before, after in itertools.pairwise(spans))


def test_without_traced_boots_there_is_no_such_plot(made: Made) -> None:
    assert causes.draw(made.comparison, "Time") is None and "Observed, fault by fault" not in made.source
