"""nights/history.py and chronicle.py: which runs, which values, and since when; as text, CSV and plots."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from nightruns import Past

from orchestrator.analysis.model import METRICS, CellSummary, Comparison, Metric
from orchestrator.errors import StoreError, UserError
from orchestrator.manifest import Manifest
from orchestrator.nights import chronicle, plots
from orchestrator.nights.history import Change, History, Series, collect
from orchestrator.report.canvas import Grid

replace = dataclasses.replace
CELLS, ARMS = ("cell0", "cell1"), ("base", "v1")
PLACE = 33


def tcg(item: Manifest) -> Manifest:
    return replace(item, accel="tcg")


def noise(draw: np.random.Generator, spread: float = 0.01) -> dict[tuple[str, str, Metric], float]:
    """A factor for every metric of every cell and arm."""
    return {
        (cell, arm, metric): float(np.exp(draw.normal(0, spread)))
        for cell in CELLS for arm in ARMS for metric in METRICS
    }  # fmt: skip


@pytest.fixture(scope="module")
def sixty(night_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Past:
    """A seeded history of 60 runs in which, from run 33 on, the p99 of v1 in cell1 is 5 % slower."""
    past = Past(tmp_path_factory.mktemp("sixty") / "results", night_template)
    draw = np.random.default_rng(2026)
    for number in range(60):
        factors = noise(draw)
        if number >= PLACE:
            factors["cell1", "v1", "p99"] *= 1.05
        past.night(number, factors, manifest=tcg, version=f"5.10.{200 + number // 7}")
    return past


def test_the_planted_step_is_found_within_two_runs_of_its_place_and_none_elsewhere(sixty: Past) -> None:
    history = collect(sixty.results, "simulated")
    assert len(history.runs) == 60 and len(history.series) == 28 and not history.left_out and not history.exact
    ((series, change),) = history.changes
    assert (series.cell, series.arm, series.metric) == ("cell1", "v1", "p99")
    assert abs(change.index - PLACE) <= 2
    assert change.direction == "regressed" and change.ratio == pytest.approx(1.05, abs=0.01)


def test_the_history_says_it_in_text_csv_and_title(sixty: Past, tmp_path: Path, no_plots: None) -> None:
    history = collect(sixty.results, "simulated")
    written = chronicle.write(history, tmp_path / "out")
    text = written.text.read_text()
    assert text.startswith("simulated, tcg: 60 runs, 2026-09-01 to 2026-10-30\n\nChanges, the latest first\n")
    assert re.search(r"since 2026-10-0[2-6], simulated-202610\d\d-010000 \(simulated 5\.10\.204\)\n", text)
    assert re.search(r"    cell1, v1: p99 5\.0\d\d → 5\.3\d\d µs \(\+[45]\.\d %\), regressed\n", text)
    assert re.search(r"\n  cell1, v1 +60 .*  5\.0\d\d \(3[1-5]\) → 5\.3\d\d \(2[5-9]\)\n", text)
    assert "1 % of such histories would show a change somewhere" in text
    rows = list(csv.DictReader(io.StringIO(written.values.read_text())))
    assert len(rows) == 60 * 28
    assert [row["change"] for row in rows if row["change"]] == ["regressed"]
    ours = [float(row["value"]) for row in rows if (row["cell"], row["arm"], row["metric"]) == ("cell1", "v1", "p99")]
    assert ours == list(history.get("cell1", "v1", "p99").values)


def test_only_the_metrics_that_were_asked_for(past: Past) -> None:
    for number in range(3):
        past.night(number)
    history = collect(past.results, "simulated", ["p50", "max"])
    assert {series.metric for series in history.series} == {"p50", "max"}


# --- which runs -------------------------------------------------------------------------------------------------------


def failed(item: Comparison) -> Comparison:
    return replace(item, status="failed")


def test_runs_that_are_left_out_are_named_with_the_reason(past: Past, no_plots: None, tmp_path: Path) -> None:
    past.night(0, manifest=lambda item: replace(item, qemu_version="QEMU 6"))
    past.night(1, manifest=lambda item: replace(item, qemu_version="QEMU 6"))
    past.night(2, manifest=lambda item: replace(item, seeds=(99,)))
    past.night(3, status="failed", comparison=failed)
    past.night(4, status=None)
    damaged = past.night(5)
    (damaged / "comparison.json").write_text("{")
    newest = past.night(6)
    history = collect(past.results, "simulated")
    assert [run.name for run in history.runs] == [newest.name]
    text = chronicle.write(history, tmp_path).text.read_text()
    left_out = " ".join(text.partition("Left out\n")[2].split())
    assert (
        "2 runs, simulated-20260901-010000 to simulated-20260902-010000: not like simulated-20260907-010000: QEMU"
        in left_out
    )
    assert "simulated-20260903-010000: not like simulated-20260907-010000: other seeds" in left_out
    assert "simulated-20260904-010000: it failed: no trial ended well" in left_out
    assert "simulated-20260905-010000: it has not ended" in left_out
    assert f"simulated-20260906-010000: cannot read {damaged}" in left_out


def test_an_experiment_that_is_not_there_names_those_that_are(past: Past) -> None:
    past.night(0)
    with pytest.raises(UserError, match=r"no run of 'quick' in .*: it has runs of: simulated"):
        collect(past.results, "quick")
    with pytest.raises(UserError, match="it has no runs at all"):
        collect(past.results / "nowhere", "quick")


@pytest.mark.parametrize("name", ["../x", "/etc", "", "A"])
def test_what_is_no_name_never_becomes_a_path(past: Past, name: str) -> None:
    with pytest.raises(UserError, match="is no name of an experiment"):
        collect(past.results, name)


def test_an_experiment_that_measures_nothing_has_runs_and_no_tables(past: Past, tmp_path: Path) -> None:
    past.night(0, experiment=lambda item: replace(item, cells=()), comparison=lambda item: replace(item, cells=()))
    written = chronicle.write(collect(past.results, "simulated"), tmp_path / "out")
    assert written.drawn == () and "p50" not in written.text.read_text()
    assert "   1  2026-09-01  simulated-20260901-010000" in written.text.read_text()


def test_a_folder_that_cannot_be_made_is_named(past: Past, tmp_path: Path) -> None:
    past.night(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot make the folder .*/file/x"):
        chronicle.write(collect(past.results, "simulated"), tmp_path / "file/x")


def test_an_experiment_without_a_usable_run_says_why_of_each(past: Past) -> None:
    past.night(0, status=None)
    with pytest.raises(UserError, match="can be used:\n  simulated-20260901-010000: it has not ended"):
        collect(past.results, "simulated")


def lost(cell: str, arm: str) -> Mapping[str, object]:
    def comparison(item: Comparison) -> Comparison:
        def gone(summary: CellSummary) -> CellSummary:
            if (summary.cell, summary.arm) != (cell, arm):
                return summary
            return replace(summary, outcome="panic", latency=None, retries_per_fault=None, boots=0, per_boot=())

        return replace(item, status="partial", summaries=tuple(gone(summary) for summary in item.summaries))

    return {"status": "partial", "comparison": comparison}


def test_a_cell_that_did_not_end_well_is_a_gap_and_no_change(past: Past, tmp_path: Path) -> None:
    for number in range(6):
        past.night(number, **(lost("cell0", "v1") if number == 3 else {}))  # type: ignore[arg-type]
    history = collect(past.results, "simulated")
    values = history.get("cell0", "v1", "p50").values
    assert len(history.runs) == 6 and values[3] is None and None not in values[:3] + values[4:]
    assert not history.changes and None not in history.get("cell0", "base", "p50").values
    assert ", partial" in chronicle.render(history)
    assert ",p50,," in chronicle.render_csv(history)


def test_under_icount_each_change_beyond_the_margin_is_one(past: Past) -> None:
    for number, factor in enumerate([1.0, 1.0, 1.0, 1.01, 1.0, 1.06, 1.06]):
        past.night(number, {("cell0", "base", "p50"): factor})
    history = collect(past.results, "simulated")
    ((series, change),) = history.changes
    assert history.exact and (series.cell, series.arm, series.metric) == ("cell0", "base", "p50")
    assert change.index == 5 and change.ratio == pytest.approx(1.06) and change.direction == "regressed"
    assert "there is no noise" in chronicle.render(history)


def test_the_latest_run_alone_can_be_a_change_under_icount(past: Past) -> None:
    past.night(0)
    past.night(1, {("cell0", "base", "mean"): 0.5})
    ((series, change),) = collect(past.results, "simulated").changes
    assert (series.metric, change.index, change.direction) == ("mean", 1, "improved")


# --- the plots --------------------------------------------------------------------------------------------------------


def made_up(past: Past, values: list[float | None], metric: Metric = "p50") -> History:
    """A history of one series, as many runs as values."""
    for number in range(len(values)):
        past.night(number)
    found = collect(past.results, "simulated", [metric])
    changes = (Change(2, 5_000.0, 5_500.0, 1.1, "regressed"),)
    series = (Series("cell0", "base", metric, tuple(values), (5_000.0, 5_500.0), changes),)
    return replace(found, cells=("cell0",), arms=("base",), series=series)


def test_a_plot_for_each_metric_shows_the_change_in_its_title(past: Past, tmp_path: Path) -> None:
    (plot,) = plots.draw(made_up(past, [5_000.0, None, 5_500.0, 5_500.0]), tmp_path)
    assert plot.title == "p50: +10.0 % for base in cell0 since 2026-09-03"
    assert plot.svg.read_text().startswith("<?xml") and plot.png.read_bytes()[1:4] == b"PNG"
    assert len(plot.panels) == 1


def test_a_metric_without_any_value_has_no_plot(past: Past, tmp_path: Path) -> None:
    history = made_up(past, [5_000.0, 5_000.0, 5_500.0])
    empty = replace(history, series=(replace(history.series[0], values=(None,) * 3, levels=(), changes=()),))
    assert plots.draw(empty, tmp_path) == ()


def test_no_label_of_a_change_covers_another_or_leaves_the_panel() -> None:
    draw = np.random.default_rng(4)
    runs, grid = 30, Grid(1, 2, 1.35)
    arms = [
        Series("cell0", arm, "p50", (), (), tuple(
            Change(int(index), 1.0, 1.1, 1.1, "regressed") for index in sorted(draw.choice(range(1, runs), 6, False))
        ))
        for arm in ("base", "a-patch-with-a-long-name")
    ]  # fmt: skip
    labels = plots._labels(arms, runs, grid)
    assert len(labels) == 12 and {label.index for label in labels} == {0, 1}
    run_pt = grid.inner * 72 / runs
    spans = []
    for label in labels:
        end = label.place + label.side * plots.LETTER_PT * len(label.text) / run_pt
        low, high = sorted((label.place, end))
        assert low >= -0.6 and high <= runs - 0.4
        assert all(row != label.row or high < other or top < low for row, other, top in spans)
        spans.append((label.row, low, high))


def test_two_drawings_of_one_history_are_equal(past: Past, tmp_path: Path) -> None:
    history = made_up(past, [0.0, 0.001, 0.5, 0.5], "retries_per_fault")
    (first,), (second,) = plots.draw(history, tmp_path / "a"), plots.draw(history, tmp_path / "b")
    assert first.svg.read_bytes() == second.svg.read_bytes()
