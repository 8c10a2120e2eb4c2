"""analysis/guestside.py and the report: what Linux guests see, and which of their exits are no retries."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulate
from simulate import Effect, Plant

from orchestrator import recording as rec
from orchestrator.analysis import guestside, latency
from orchestrator.analysis.model import CellStop, CellSummary, Comparison, from_json, to_json
from orchestrator.analysis.sequential import Stage
from orchestrator.analysis.symptoms import Symptoms
from orchestrator.experiment import Cell, Experiment, LinuxGuest, LinuxGuestSpec, Schedule, Storm
from orchestrator.report import html, summary, text
from orchestrator.results import Provenance

STORM = Storm("madvise_dontneed", "outside", 65536, cpu="same", preempted=True)
QUIET = Cell("quiet", LinuxGuest(), None)
OUTSIDE = Cell("outside", LinuxGuest(), STORM)
OWN = Cell("own", LinuxGuest(faults="guest", jitter_wakeups=0), None)
PROVENANCE = Provenance("orch run configs/linux-guest.yaml", ())


def counters(late: int, steal_ms: int = 20, wakeups: int = 500, injections: int = 40) -> dict[str, int]:
    found = {"guest_minflt": 3, "guest_steal_ns": steal_ms * 1_000_000, "irq_injections": injections}
    names = ("p50", "p99", "max", "mean") if wakeups else ()
    found |= {f"jitter_{name}_ns": late * (index + 1) for index, name in enumerate(names)}
    return found | ({"jitter_wakeups": wakeups, "jitter_missed": 6} if wakeups else {})


def effects(**changes: Effect) -> dict[tuple[str, str], Effect]:
    plain = {(cell.name, arm): Effect(counters=counters(10_000)) for cell in (QUIET, OUTSIDE) for arm in ("base", "v1")}
    plain |= {("own", arm): Effect(counters=counters(0, wakeups=0)) for arm in ("base", "v1")}
    return plain | {("outside", arm): effect for arm, effect in changes.items()}


def compared(folder: Path, *, boots: int = 1, accel: str = "icount", **changes: Effect) -> Comparison:
    plant = Plant((QUIET, OUTSIDE, OWN), boots=boots, accel=accel, effects=effects(**changes), faults=400, noise=0.01)
    results = simulate.simulate(plant, folder)
    chosen = replace(simulate.experiment(plant), linux_guest=LinuxGuestSpec())
    built = [simulate.BuiltLike(arm) for arm in plant.arms]
    return simulate.analyse(
        chosen, results, built, folder, run="r", accel=accel, planned=len(results)  # type: ignore[arg-type]
    ).comparison  # fmt: skip


def of(comparison: Comparison, cell: str = "outside") -> dict[str, tuple[str, str]]:
    return {item.metric: (item.verdict, item.reason) for item in comparison.symptoms if item.cell == cell}


def recorded(more: dict[str, int], *, retries: int = 0, others: int = 0) -> rec.Recording:
    stats = {"pf_fixed": 1000, "exits": 1000 + retries + others, "io_exits": 0, **more}
    return rec.parse(simulate.recording_bytes(latencies=[np.full(1000, 5000, np.uint64)], counters=stats), "x")


def test_the_symptoms_of_one_boot() -> None:
    assert guestside.read(recorded(counters(10_000))) == Symptoms(1e4, 2e4, 3e4, 4e4, 500, 2e7, 3, 6)
    assert guestside.read(recorded(counters(0, wakeups=0))) == Symptoms(None, None, None, None, 0, 2e7, 3)
    assert guestside.read(recorded({})) is None, "a flat guest has none"


def test_boots_are_merged_as_latencies_are() -> None:
    boots = [Symptoms(1e4, 2e4, None, 1e4, 500, 1e7, 2), Symptoms(4e4, 2e4, None, 1e4, 500, 3e7, 4)]
    assert guestside.merge(boots) == Symptoms(pytest.approx(2e4), 2e4, None, 1e4, 1000, 2e7, 3)
    merged = guestside.merge([*boots, replace(boots[0], missed=5), replace(boots[0], missed=2)])
    assert merged is not None and merged.missed == 7
    assert guestside.merge([]) is None


def test_the_exits_of_the_guests_timer_are_no_retries() -> None:
    """One uncounted MSR write for each interrupt that it takes; and only of a guest that has a timer."""
    assert latency.retries(recorded(counters(1, injections=40), others=40)) == 0
    assert latency.retries(recorded(counters(1, injections=40), retries=300, others=40)) == 300
    assert latency.retries(recorded({"irq_injections": 40}, retries=300)) == 300


def test_under_shadow_paging_its_retries_cannot_be_told() -> None:
    """Its switches of page tables are exits, too, and nothing counts them."""
    shadow, flat = recorded(counters(1), retries=300), recorded({}, retries=300)
    for found in (shadow, flat):
        object.__setattr__(found, "header", replace(found.header, tdp=False))
    assert latency.retries(shadow) is None and latency.retries(flat) == 300


def test_a_kernel_that_counts_faults_itself_needs_no_correction() -> None:
    more = counters(1, injections=40) | {"pf_taken": 1300, "pf_emulate": 0, "pf_spurious": 0, "pf_guest": 0}
    assert latency.retries(recorded(more, others=40)) == 300


def test_one_boot_under_icount_is_exact(tmp_path: Path) -> None:
    found = compared(tmp_path, v1=Effect(counters=counters(5_000, steal_ms=30)))
    assert of(found) == {
        "jitter_p50": ("improved", "exact for this seed"),
        "jitter_p99": ("inconclusive", "one boot: the latest few wakeups"),
        "jitter_max": ("inconclusive", "one boot: a single wakeup"),
        "steal": ("equivalent", "identical, exact for this seed"),
    }  # fmt: skip
    assert all(not item.decides for item in found.symptoms)
    assert {item.cell for item in found.comparisons} == {"quiet", "outside", "own"}
    assert not {"jitter_p50", "steal"} & {item.metric for item in found.comparisons}


def test_steal_that_differs_by_more_than_a_tick_is_called(tmp_path: Path) -> None:
    found = compared(tmp_path, v1=Effect(counters=counters(10_000, steal_ms=31)))
    assert of(found)["steal"] == ("regressed", "exact for this seed")
    none = compared(tmp_path / "none", v1=Effect(counters=counters(10_000, steal_ms=0)))
    assert of(none)["steal"] == ("inconclusive", "a time of 0 ns has no ratio")


def test_several_boots_are_tested_among_themselves(tmp_path: Path) -> None:
    found = compared(tmp_path, boots=10, accel="tcg", v1=Effect(counters=counters(5_000)))
    assert of(found)["jitter_max"][0] == "improved" and "over 9 comparisons" in of(found)["jitter_max"][1]
    assert of(found, "quiet")["jitter_p99"][0] == "equivalent"


UNTIL_DECIDED = Schedule(boots=12, until="decided", at_most=24)


def late_boots(folder: Path, late: float) -> tuple[Experiment, list[CellSummary]]:
    """24 boots of two cells, ``late`` in v1, and the experiment that they are of."""
    plain = compared(folder, boots=24, accel="tcg")
    rng = np.random.default_rng(2)

    def symptoms(arm: str) -> Symptoms:
        p50, p99, worst, mean = (float(value) for value in 1e4 * (late if arm == "v1" else 1) * rng.normal(1, 0.05, 4))
        return Symptoms(p50, p99, worst, mean, 500, 2e7, 3)

    summaries = [
        replace(item, per_boot=tuple(replace(boot, symptoms=symptoms(item.arm)) for boot in item.per_boot))
        for item in plain.summaries
    ]
    plant = Plant((QUIET, OUTSIDE), boots=24)
    chosen = replace(simulate.experiment(plant), schedule=UNTIL_DECIDED, linux_guest=LinuxGuestSpec())
    return chosen, summaries


def test_until_decided_they_are_judged_at_the_look_where_their_cell_ended(tmp_path: Path) -> None:
    """How many boots there are follows from what they showed: the level of a fixed number does not hold."""
    chosen, summaries = late_boots(tmp_path, 1.04)
    cut = [replace(item, per_boot=item.per_boot[:12]) if item.cell == "outside" else item for item in summaries]
    stops = (CellStop("quiet", 24, 4, "at most", ()), CellStop("outside", 12, 1, "decided", ()))
    found = guestside.judge(chosen, cut, stops, deterministic=False)
    fixed = guestside.judge(chosen, cut, (), deterministic=False)
    assert [(item.cell, item.metric) for item in found] == [(item.cell, item.metric) for item in fixed]
    looks = UNTIL_DECIDED.look_boots
    for item, alike in zip(found, fixed, strict=True):
        if item.metric == "steal":
            continue
        stage = Stage(looks, 1 if item.cell == "outside" else 4)
        assert item.p_value == alike.p_value is not None and item.p_adjusted is not None
        assert item.p_adjusted >= stage.overall(item.p_value) > item.p_value
        assert item.ci[0] < alike.ci[0] < alike.ci[1] < item.ci[1], "a look's interval is wider"  # type: ignore[operator]


def test_before_the_next_look_they_have_no_verdict(tmp_path: Path) -> None:
    chosen, summaries = late_boots(tmp_path, 3.0)
    stops = (CellStop("quiet", 24, 4, "at most", ()), CellStop("outside", 14, 1, "not reached", ()))
    found = guestside.judge(chosen, summaries, stops, deterministic=False)
    assert {item.verdict for item in found if item.cell == "quiet" and item.metric != "steal"} == {"regressed"}
    assert {(item.verdict, item.reason) for item in found if item.cell == "outside"} == {
        ("inconclusive", "before the next look")
    }
    assert all(not item.decides for item in found)


def test_what_was_not_measured_is_not_compared(tmp_path: Path) -> None:
    assert list(of(compared(tmp_path), "own")) == ["steal"]


def test_the_guests_own_faults_are_no_control_of_retries(tmp_path: Path) -> None:
    found = {cell.name: (cell.control, cell.page) for cell in compared(tmp_path).cells}
    assert found == {"quiet": ("quiet", "anonymous"), "outside": ("", "anonymous"), "own": ("", "anonymous")}


def test_every_form_of_the_report_tells_it(tmp_path: Path) -> None:
    found = compared(tmp_path, v1=Effect(counters=counters(5_000)))
    (tmp_path / "c.json").write_bytes(to_json(found))
    assert from_json(Comparison, tmp_path / "c.json") == found
    said = text.render(found, PROVENANCE)
    part = said.partition("In the Linux guests: ")[2].partition("\n\n")[0].splitlines()
    assert all(len(line) <= 72 for line in said.splitlines())
    rows = [line.split() for line in part if line.startswith(("  base", "  v1"))]
    assert rows[2] == ["base", "10.00", "20.00", "30.00", "500", "6", "20.0", "3"]
    assert rows[3] == ["v1", "5.000", "10.00", "15.00", "500", "6", "20.0", "3"]
    assert any("timer p50 -50.0% improved" in line for line in part)
    page = html.render(found, [], PROVENANCE)
    assert '<h2 id="guest">In the Linux guests</h2>' in page and '<a href="#guest">' in page
    assert re.search(r'<td class="improved"><a class="quiet" href="#trials-[-0-9]+">5.000</a><span class="move">', page)
    document = json.loads(summary.render(found))
    assert document["cells"][2]["guest"] == {
        "jitter_p50": 10000.0, "jitter_p99": 20000.0, "jitter_max": 30000.0, "jitter_mean": 40000.0, "wakeups": 500,
        "steal": 20000000.0, "minor_faults": 3, "missed": 6,
    }  # fmt: skip
    compared_ = [item for item in document["guest_comparisons"] if item["cell"] == "outside"]
    assert [item["metric"] for item in compared_] == ["jitter_p50", "jitter_p99", "jitter_max", "steal"]


def test_runs_without_linux_guests_say_nothing_of_it(tmp_path: Path) -> None:
    found = simulate.run(Plant((simulate.cell("quiet"),)), tmp_path).comparison
    assert "In the Linux guests" not in text.render(found, PROVENANCE) + html.render(found, [], PROVENANCE)
    document = json.loads(summary.render(found))
    assert "guest_comparisons" not in document and "guest" not in document["cells"][0]
