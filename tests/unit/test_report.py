"""Every form of the report: its contract, its limits, and text that wants to be more than text."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import simulate
from simulate import SEVEN_CELLS, Effect, Plant, cell

from orchestrator.analysis.model import Analysis, Comparison, from_json
from orchestrator.analysis.plotted import Curves
from orchestrator.analysis.samples import write_samples
from orchestrator.errors import StoreError
from orchestrator.report import html, junit, plots, summary, text
from orchestrator.report.style import clean, duration, microseconds, per_fault
from orchestrator.report.write import write_all
from orchestrator.results import Outcome, Provenance

PROVENANCE = Provenance("orch run configs/quickstart.yaml --results results", (("QEMU", "7.2.22"), ("seeds", "1")))
# Markup, an attribute, an escape to the terminal, a right-to-left override, a null, a line break, mathtext, XML's own
# end mark.
HOSTILE = "<script>alert('x')</script>\" onclick=\"x\x1b[31m\u202egnp.exe\x00$\\frac$\r\n]]>&--><b>"


@dataclass(frozen=True)
class Written:
    analysis: Analysis
    folder: Path
    files: tuple[Path, ...]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A whole run of three cells with one panic, written once for all tests that only look."""
    folder = tmp_path_factory.mktemp("run")
    panic = Effect(
        outcome=Outcome.PANIC, reason="Kernel panic - not syncing: Fatal exception",
        trace=("BUG: kernel NULL pointer dereference, address: 08", "RIP: 0010:direct_page_fault+0x1/0x2"),
    )  # fmt: skip
    plant = Plant(
        (cell("quiet"), cell("outside", "outside", preempted=True), cell("overlap", "overlap")),
        effects={
            ("outside", "base"): Effect(retries=0.28, stall_cycles=9_000_000),
            ("outside", "v1"): Effect(retries=0.0003, stall_cycles=6_000_000),
            ("overlap", "base"): Effect(retries=1.0),
            ("overlap", "v1"): panic,
        },
    )
    analysis = simulate.run(plant, folder / "trials")
    return Written(analysis, folder, write_all(analysis.comparison, analysis.curves, PROVENANCE, folder))


@pytest.fixture(scope="module")
def hostile(written: Written) -> Comparison:
    """The same comparison with every text from outside replaced by a hostile one."""
    found = written.analysis.comparison
    swap = {"v1": f"v1{HOSTILE}", "overlap": f"overlap{HOSTILE}"}

    def named(item):  # type: ignore[no-untyped-def]
        names = {
            key: swap.get(getattr(item, key), getattr(item, key))
            for key in ("arm", "cell", "name")
            if hasattr(item, key)
        }
        return replace(item, **names)

    return replace(
        found,
        headline_pieces=tuple(
            tuple(
                replace(piece, text=f"{piece.text}{HOSTILE}", cell=piece.cell and f"{piece.cell}{HOSTILE}")
                for piece in line
            )
            for line in found.headline_pieces
        ),
        name=HOSTILE,
        description=HOSTILE,
        headlines=(HOSTILE * 4,),
        why=(HOSTILE,),
        arms=tuple(replace(named(item), patches=(HOSTILE,), error=HOSTILE) for item in found.arms),
        cells=tuple(replace(named(item), storm=HOSTILE) for item in found.cells),
        summaries=tuple(map(named, found.summaries)),
        comparisons=tuple(map(named, found.comparisons)),
        verdicts=tuple(replace(named(item), summary=HOSTILE) for item in found.verdicts),
        checks=tuple(replace(named(item), name=item.name, status="failed", why=HOSTILE) for item in found.checks),
        trials=tuple(replace(named(item), outcome=HOSTILE, rerun=HOSTILE) for item in found.trials),
        failures=tuple(
            replace(named(item), reason=HOSTILE, trace=(HOSTILE,), console_tail=(HOSTILE,), rerun=HOSTILE)
            for item in found.failures
        ),
    )


def test_all_files_are_there_and_nothing_half_written(written: Written) -> None:
    expected = {
        "comparison.json", "curves.json", "summary.json", "report.txt", "junit.xml", "report.html",
        *(f"plots/{name}.{kind}" for name in ("retries", "tail", "timeline", "percentiles") for kind in ("svg", "png")),
    }  # fmt: skip
    assert {str(path.relative_to(written.folder)) for path in written.files} == expected
    there = {str(path.relative_to(written.folder)) for path in written.folder.rglob("*") if path.is_file()}
    assert {name for name in there if not name.startswith("trials/")} == expected


def test_comparison_and_curves_come_back_equal(written: Written) -> None:
    assert from_json(Comparison, written.folder / "comparison.json") == written.analysis.comparison
    assert from_json(Curves, written.folder / "curves.json") == written.analysis.curves


def test_every_trial_has_a_line_with_the_files_that_are_there(written: Written) -> None:
    lines = written.analysis.comparison.trials
    assert [line.trial for line in lines] == [f"{number:03d}" for number in range(6)]
    assert [(line.cell, line.arm) for line in lines][:3] == [("quiet", "base"), ("quiet", "v1"), ("outside", "base")]
    assert {line.trial: (line.outcome, line.files) for line in lines if line.trial > "003"} == {
        "004": ("ok", ("recording.bin",)), "005": ("panic", ()),
    }  # fmt: skip
    assert lines[5].rerun == "orch run c.yaml --trial 005"


def test_a_damaged_comparison_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text('{"schema": 1}')
    with pytest.raises(StoreError, match=r"comparison\.json"):
        from_json(Comparison, tmp_path / "comparison.json")
    with pytest.raises(StoreError, match=r"cannot read .*missing\.json"):
        from_json(Comparison, tmp_path / "missing.json")


def test_a_report_made_again_from_its_files_is_the_same(written: Written, tmp_path: Path) -> None:
    comparison = from_json(Comparison, written.folder / "comparison.json")
    curves = from_json(Curves, written.folder / "curves.json")
    for path in write_all(comparison, curves, PROVENANCE, tmp_path):
        name = path.relative_to(tmp_path)
        assert path.read_bytes() == (written.folder / name).read_bytes(), name


NUMBER, MAYBE = (int, float), (int, float, type(None))
SCHEMA: dict[str, dict[str, type | tuple[type, ...]]] = {
    "arms": {"release": str, "vmlinux_sha256": str, "build": str, "build_seconds": NUMBER},
    "cells": {
        "cell": str, "arm": str, "boots": int, "outcome": str, "faults": int, "unit": str, "latency": dict,
        "exits_per_fault": MAYBE, "retries_per_fault": MAYBE,
    },
    "comparisons": {
        "cell": str, "base": str, "arm": str, "metric": str, "base_value": MAYBE, "value": MAYBE, "ratio": MAYBE,
        "ci": list, "ci_kind": (str, type(None)), "p_value": MAYBE, "verdict": str,
    },
}  # fmt: skip


def test_summary_has_exactly_the_keys_and_types_of_schema_1(written: Written) -> None:
    found = json.loads((written.folder / "summary.json").read_text())
    assert list(found) == ["schema", "run", "status", "arms", "cells", "comparisons", "checks"]
    assert (found["schema"], found["run"], found["status"]) == (1, "simulated-1", "partial")
    rows = {"arms": list(found["arms"].values()), "cells": found["cells"], "comparisons": found["comparisons"]}
    assert {name: len(items) for name, items in rows.items()} == {"arms": 2, "cells": 6, "comparisons": 21}
    for name, items in rows.items():
        for item in items:
            assert list(item) == list(SCHEMA[name])
            for key, kind in SCHEMA[name].items():
                assert isinstance(item[key], kind), (name, key, item[key])
    for item in found["cells"]:
        assert list(item["latency"]) == ["mean", "p50", "p90", "p99", "p99_9", "max"]
        assert item["outcome"] in [outcome.value for outcome in Outcome]
        assert (item["latency"]["p50"] is None) == (item["outcome"] != "ok")
    for item in found["comparisons"]:
        assert len(item["ci"]) == 2
        # One seed under icount; the arm that panicked has none.
        assert item["ci_kind"] == ("range" if item["cell"] != "overlap" else None)
        assert item["verdict"] in ("improved", "regressed", "equivalent", "inconclusive")
    assert {item["metric"] for item in found["comparisons"]} == {
        "mean", "p50", "p90", "p99", "p99_9", "max", "retries_per_fault"
    }  # fmt: skip


def test_summary_says_null_for_what_was_not_counted(tmp_path: Path) -> None:
    plant = Plant((cell("quiet"),), effects={("quiet", "v1"): Effect(retries=None)})
    found = json.loads(summary.render(simulate.run(plant, tmp_path).comparison))
    assert [item["retries_per_fault"] for item in found["cells"]] == [0.0, None]
    assert [item["exits_per_fault"] is None for item in found["cells"]] == [False, True]


def test_text_fits_a_mail_and_says_what_happened(written: Written) -> None:
    lines = (written.folder / "report.txt").read_text(encoding="ascii").splitlines()
    assert max(map(len, lines)) <= 72
    whole = " ".join(" ".join(lines).split())
    assert "1 of 6 trials did not end well; the figures are of the others." in whole
    assert "v1: improved 1 cell (retries -99.9%, p99.9 -33.3%)" in whole
    assert "overlap, v1: panic: Kernel panic - not syncing: Fatal exception" in whole
    assert "RIP: 0010:direct_page_fault" in whole
    assert "orch run c.yaml --trial 005" in whole
    assert "trials/005/console.log" in whole


def test_text_never_shows_a_mean_alone(written: Written) -> None:
    lines = (written.folder / "report.txt").read_text().splitlines()
    heads = [line.split() for line in lines if "mean" in line.split()]
    assert heads
    assert all(head == ["p50", "p99", "p99.9", "max", "mean", "retries"] for head in heads)


def test_text_of_missing_counters_says_not_available(tmp_path: Path) -> None:
    plant = Plant((cell("quiet"),), effects={("quiet", arm): Effect(retries=None) for arm in ("base", "v1")})
    said = text.render(simulate.run(plant, tmp_path).comparison, PROVENANCE)
    row = next(line for line in said.splitlines() if line.startswith("  v1 "))
    assert row.split()[-1] == "n/a"


def test_text_with_hostile_names_still_fits_and_is_ascii(hostile: Comparison) -> None:
    long = replace(hostile, arms=tuple(replace(arm, error="x" * 200 + "\n" + HOSTILE) for arm in hostile.arms))
    said = text.render(long, Provenance("orch run " + "a/" * 80 + " --results b", ((HOSTILE, HOSTILE),)))
    assert said.isascii()
    for line in said.splitlines():
        assert len(line) <= 72
        assert line.isprintable()


def test_a_long_command_can_still_be_pasted() -> None:
    command = "orch run configs/quickstart.yaml --results /srv/results/of/the/night --jobs 2 --trial 001 --arm patched"
    lines = text._command(command, "  ")
    assert len(lines) > 1
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert " ".join(line.removesuffix("\\").strip() for line in lines) == command


class Tags(HTMLParser):
    """Collects tags and attributes as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_html_is_self_contained_and_has_no_script(written: Written) -> None:
    tags = parsed((written.folder / "report.html").read_text())
    assert {"svg", "style", "table", "h2"} <= set(tags.tags)
    assert not {"script", "img", "iframe", "object", "link", "base", "form"} & set(tags.tags)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    links = [value for name, value in tags.attributes if name in ("href", "xlink:href", "src")]
    assert links
    for link in links:
        assert link.startswith(("#", "plots/", "trials/")), link
    for link in (item for item in links if item.startswith("plots/")):
        assert (written.folder / link).is_file()
    style = re.findall(r"url\([^)]*\)", (written.folder / "report.html").read_text())
    assert all(item.startswith("url(#") for item in style)


def test_html_has_every_reference_inside_its_drawings(written: Written) -> None:
    tags = parsed((written.folder / "report.html").read_text())
    known = [value for name, value in tags.attributes if name == "id"]
    wanted = {value[1:] for name, value in tags.attributes if name.endswith("href") and value.startswith("#")}
    wanted |= {value[5:-1] for name, value in tags.attributes if name == "clip-path" and value.startswith("url(#")}
    assert wanted
    assert wanted <= set(known)
    assert len(known) == len(set(known))


def test_html_escapes_everything_from_outside(hostile: Comparison, written: Written, tmp_path: Path) -> None:
    drawn = plots.draw_all(hostile, written.analysis.curves, tmp_path)
    page = html.render(hostile, drawn, Provenance(HOSTILE, ((HOSTILE, HOSTILE),)))
    tags = parsed(page)
    assert not {"script", "b"} & set(tags.tags)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert sum("<script>alert('x')</script>" in piece for piece in tags.text) >= 10
    for char in "\x1b\x00\u202e\r":
        assert char not in page


def test_html_links_a_failed_trial_to_its_console(written: Written) -> None:
    page = (written.folder / "report.html").read_text()
    assert '<a href="trials/005/console.log">' in page
    assert "RIP: 0010:direct_page_fault" in page


def test_junit_has_a_case_for_each_cell_arm_and_check(written: Written) -> None:
    root = ET.parse(written.folder / "junit.xml").getroot()
    suites = {suite.get("name"): suite for suite in root.iter("testsuite")}
    cases = {(case.get("classname"), case.get("name")): case for case in suites["trials"].iter("testcase")}
    assert set(cases) == {(name, arm) for name in ("quiet", "outside", "overlap") for arm in ("base", "v1")}
    bad = [key for key, case in cases.items() if case.find("error") is not None or case.find("failure") is not None]
    assert bad == [("overlap", "v1")]
    error = cases["overlap", "v1"].find("error")
    assert error is not None and "RIP: 0010:direct_page_fault" in (error.text or "")
    assert error.get("message") == "panic: Kernel panic - not syncing: Fatal exception"
    assert len(list(suites["checks"].iter("testcase"))) == len(written.analysis.comparison.checks)


def test_junit_tells_errors_from_failures_and_skips(tmp_path: Path) -> None:
    effects = {("quiet", "base"): Effect(outcome=Outcome.FAILED, reason="no /dev/kvm"), ("quiet", "v1"): Effect()}
    found = simulate.run(Plant((cell("quiet"), cell("other", "other-process")), effects=effects), tmp_path).comparison
    arms = (found.arms[0], replace(found.arms[1], build="failed", error="mmu.c:7: error"))
    summaries = tuple(
        replace(item, outcome="build failed" if item.arm == "v1" else "not run") if item.cell == "other" else item
        for item in found.summaries
    )
    root = ET.fromstring(junit.render(replace(found, arms=arms, summaries=summaries)))
    cases = {(case.get("classname"), case.get("name")): case for case in root.iter("testcase")}
    assert [child.tag for child in cases["quiet", "base"]] == ["failure"]
    assert next(child.tag for child in cases["other", "base"]) == "skipped"
    error = cases["other", "v1"].find("error")
    assert error is not None and error.text == "mmu.c:7: error"
    assert root.get("failures") == "1" and root.get("errors") == "1"


def test_junit_with_hostile_text_is_still_xml(hostile: Comparison) -> None:
    root = ET.fromstring(junit.render(hostile))
    messages = [item.get("message") or "" for item in root.iter("error")]
    assert any("<script>" in message for message in messages)
    assert not [message for message in messages if "\x1b" in message or "\u202e" in message]


def svg_texts(path: Path) -> Iterator[str]:
    yield from re.findall(r"<!-- (.*?) -->", path.read_text())


def test_plots_name_units_arms_and_cells(written: Written) -> None:
    said = {
        name: set(svg_texts(written.folder / f"plots/{name}.svg"))
        for name in ("tail", "retries", "timeline", "percentiles")
    }
    assert {"latency of at least", "share of faults", "100 µs", "0.1 %", "quiet", "base", "v1"} <= said["tail"]
    assert {"0.28", "n/a", "panic"} & said["retries"] == {"0.28", "panic"}
    assert {"latency", "0 ms", "system call of the storm", "outside", "v1", "panic"} <= said["timeline"]
    assert {"p50", "p99.9", "percentile (each decade ten times rarer)"} <= said["percentiles"]


def test_plots_of_seven_cells_and_of_none(tmp_path: Path) -> None:
    found = simulate.run(replace(simulate.showcase(), faults=500), tmp_path / "trials")
    drawn = plots.draw_all(found.comparison, found.curves, tmp_path / "seven")
    assert {plot.name: len(plot.panels) for plot in drawn} == {
        "retries": 7,
        "tail": 7,
        "timeline": 14,
        "percentiles": 7,
    }
    hang = Effect(outcome=Outcome.HANG)
    nothing = simulate.run(
        Plant(SEVEN_CELLS[:1], effects={("quiet", "base"): hang, ("quiet", "v1"): hang}), tmp_path / "t"
    )
    assert plots.draw_all(nothing.comparison, nothing.curves, tmp_path / "none") == ()
    assert "nothing to draw" in html.render(nothing.comparison, (), PROVENANCE)


def test_plots_and_page_of_many_arms_in_one_cell(tmp_path: Path) -> None:
    arms = tuple(f"arm{number}-of-a-longer-name" for number in range(9))
    made = simulate.run(simulate.Plant(cells=(simulate.cell("quiet"),), arms=arms, faults=200), tmp_path / "trials")
    drawn = {plot.name: plot for plot in plots.draw_all(made.comparison, made.curves, tmp_path / "plots")}
    boxes = [panel.box for panel in drawn["timeline"].panels]
    assert [panel.arm for panel in drawn["timeline"].panels] == list(arms)
    assert all(left >= 0 and left + width < 7.8 * 72 for left, _, width, _ in boxes)
    assert len({top for _, top, _, _ in boxes}) == 3
    assert all(arm in html.render(made.comparison, tuple(drawn.values()), PROVENANCE) for arm in arms)


def test_samples_have_one_row_a_fault(tmp_path: Path) -> None:
    plant = Plant(
        (cell("quiet"), cell("overlap", "overlap")),
        faults=500,
        boots=2,
        effects={("quiet", "v1"): Effect(outcome=Outcome.LOST)},
    )
    results = simulate.simulate(plant, tmp_path / "trials")
    path = write_samples(simulate.experiment(plant), results, tmp_path / "trials", tmp_path / "samples.parquet")
    table = pd.read_parquet(path)
    assert list(table.columns) == [
        "trial", "arm", "cell", "boot", "vcpu", "seq", "start_ns", "latency_ns", "page", "storm",
        "window", "windows",
    ]  # fmt: skip
    assert len(table) == 500 * 6
    assert {str(table[name].dtype) for name in ("boot", "vcpu", "seq", "page")} == {"uint32"}
    assert {str(table[name].dtype) for name in ("trial", "arm", "cell", "storm")} == {"category"}
    assert table.groupby("trial", observed=True)["seq"].max().tolist() == [499] * 6
    assert ("quiet", "v1") not in set(zip(table["cell"], table["arm"], strict=True))
    assert set(table.loc[table["cell"] == "quiet", "storm"]) == {"none"}
    assert "needed" in set(table.loc[table["cell"] == "overlap", "storm"])
    assert ((table["window"] >= 0) == (table["storm"] != "none")).all()
    assert ((table["windows"] > 0) == (table["storm"] != "none")).all()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["samples.parquet", "trials"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5374.0, "5.374"), (58_170.0, "58.17"), (135_100.0, "135.1"), (12_005_000.0, "12,005"), (None, "n/a")],
)
def test_microseconds(value: float | None, expected: str) -> None:
    assert microseconds(value) == expected


def test_figures_in_words() -> None:
    assert [duration(value) for value in (950.0, 5374.0, 12e6, 999_999.0, 2e9)] == [
        "950 ns",
        "5.37 µs",
        "12 ms",
        "1 ms",
        "2 s",
    ]
    assert [per_fault(value) for value in (None, 0.0, 0.28, 0.00001, 3.1)] == ["n/a", "0", "0.2800", "1.0e-05", "3.100"]
    assert clean("a\x1b[0m\u202eb\nc") == "a\ufffd[0m\ufffdb\nc"


def test_a_comparison_holds_no_number_that_json_cannot(written: Written) -> None:
    json.dumps(asdict(written.analysis.comparison), allow_nan=False)
    json.dumps(asdict(written.analysis.curves), allow_nan=False)
