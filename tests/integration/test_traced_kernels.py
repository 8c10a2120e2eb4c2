"""Traced boots of real kernels: every retry accounted for, by two counts that know nothing of each other.

Fifteen short boots of kernels that the other tests build as well: about 100 s of CPU time, reports included.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from orchcli import ROOT, Run, derive, orch, run

from orchestrator.analysis.causes import CAUSES, TracedBoot
from orchestrator.analysis.model import COMPARISON_FILE, Comparison, from_json
from orchestrator.hosttrace import PACKED
from orchestrator.kernel.build import BuiltKernel

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]

CONFIG = ROOT / "configs/attribution.yaml"
STORM = {"op": "madvise_dontneed", "size_kib": 65536, "period_us": 30000, "cpu": "same", "preempted": True}
DEFAULTS = {"guest": {"rounds": 2}, "storm": STORM}
CELLS = {"outside": {"storm": {"placement": "outside"}}, "overlap": {"storm": {"placement": "overlap"}}}


@pytest.fixture(scope="module")
def traced(kernels: dict[str, BuiltKernel], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """configs/attribution.yaml with half the rounds and two of its cells."""
    folder = tmp_path_factory.mktemp("traced")
    checks = ["kernel_log", "needed_retries", "attribution", "storm_in_vmm"]
    config = derive(CONFIG, folder, defaults=DEFAULTS, cells=CELLS, trace={"buffer_mib": 32}, checks=checks)
    return run(config, folder / "results", "--gate")


def boots(done: Run) -> dict[tuple[str, str], TracedBoot]:
    return {(boot.cell, boot.arm): boot for boot in from_json(Comparison, done.folder / COMPARISON_FILE).traced}


def test_the_experiment_ends_well_and_its_checks_hold(traced: Run) -> None:
    assert traced.ended.code == 0, traced.ended.text
    checks = from_json(Comparison, traced.folder / COMPARISON_FILE).checks
    assert {item.status for item in checks} == {"held"}
    assert sum(item.name == "attribution" for item in checks) == 4
    assert sum(item.name == "storm_in_vmm" for item in checks) == 4
    assert set(boots(traced)) == {(cell, arm) for cell in CELLS for arm in ("base", "v1")}


def test_all_sums_add_up(traced: Run) -> None:
    for boot in boots(traced).values():
        assert boot.covered == boot.faults == 32768
        assert (boot.lost, boot.missed, boot.unended, boot.unbegun) == (0, 0, 0, 0)
        assert (boot.retries, boot.exits) == (boot.counted, boot.exits_counted)
        assert boot.attempts == boot.faulting + boot.retries + boot.taken
        assert boot.retries == boot.spurious + boot.needed + boot.other
        assert [item.cause for item in boot.shares] == list(CAUSES)
        assert sum(item.faults for item in boot.shares) == boot.faults
        assert sum(item.time_ns for item in boot.shares) == pytest.approx(boot.total_ns)
        assert sum(item.slowest for item in boot.shares) == len(boot.slowest) == 100


def test_bases_spurious_retries_met_the_storm_and_v1_has_next_to_none(traced: Run) -> None:
    base, v1 = (boots(traced)["outside", arm] for arm in ("base", "v1"))
    assert base.spurious >= 1000 and base.needed == 0
    assert base.in_window >= 0.95 * base.spurious
    assert v1.retries <= 0.1 * base.retries
    spinning = base.share("unrelated")
    assert spinning.slowest_retries >= 0.9 * base.spurious, "what spins is what is slow"
    assert v1.share("unrelated").time_ns < 0.1 * spinning.time_ns


@pytest.mark.parametrize("arm", ["base", "v1"])
def test_over_the_faulting_pages_every_retry_is_needed(traced: Run, arm: str) -> None:
    boot = boots(traced)["overlap", arm]
    assert boot.needed >= 1000 and boot.spurious == 0


def test_a_traced_boot_costs_more_and_says_how_much(traced: Run) -> None:
    for boot in boots(traced).values():
        assert boot.cost is not None
        measured, with_trace = boot.cost.p50_ns
        assert 1.05 * measured < with_trace < 2 * measured
        assert measured == traced.cell(boot.cell, boot.arm)["latency"]["p50"]


def test_a_trace_repeats_byte_for_byte(traced: Run) -> None:
    first = traced.trial("traced,outside", "base")
    ended = orch("trial", traced.folder, first.name)
    assert ended.code == 0, ended.text
    (again,) = (traced.folder / "reruns").iterdir()
    assert (again / PACKED).read_bytes() == (first / PACKED).read_bytes()


def test_two_cpus_at_work_at_once_are_accounted_for_as_well(kernels: dict[str, BuiltKernel], tmp_path: Path) -> None:
    """configs/parallel.yaml, smaller: vCPU and storm run side by side, and events come from two buffers."""
    storm = {"op": "madvise_dontneed", "size_kib": 1024, "cpu": "other"}
    overlap = {"placement": "overlap", "size_kib": 16384, "period_us": 2000}
    config = derive(
        ROOT / "configs/parallel.yaml", tmp_path, arms={"base": []},
        defaults={"guest": {"mem_mib": 16, "rounds": 2}, "storm": storm},
        cells={"outside": {"storm": {"placement": "outside"}}, "overlap": {"storm": overlap}},
        schedule={"boots": 1}, trace={"buffer_mib": 32}, checks=["attribution", "storm_in_vmm"],
    )  # fmt: skip
    done = run(config, tmp_path / "results", "--gate")
    assert done.ended.code == 0, done.ended.text
    assert {item.status for item in from_json(Comparison, done.folder / COMPARISON_FILE).checks} == {"held"}
    outside, overlap_ = (boots(done)[cell, "base"] for cell in ("outside", "overlap"))
    assert outside.spurious >= 50 and outside.needed == 0
    assert overlap_.needed >= 50 and overlap_.spurious == 0


def test_a_buffer_that_is_too_small_is_said_aloud(kernels: dict[str, BuiltKernel], tmp_path: Path) -> None:
    config = derive(
        CONFIG, tmp_path, arms={"base": []}, defaults={"guest": {"rounds": 2}}, cells={"quiet": {"storm": "none"}},
        trace={"buffer_mib": 1}, checks=["attribution"],
    )  # fmt: skip
    done = run(config, tmp_path / "results", "--gate")
    assert done.ended.code == 3, done.ended.text
    (boot,) = boots(done).values()
    assert boot.lost > 0 and 0 < boot.covered < boot.faults == 32768
    # Three events a fault at the least: none is missing that is not counted.
    assert boot.events + boot.lost >= 3 * boot.faults
    report = " ".join((done.folder / "report.txt").read_text().split())
    assert "the trace is INCOMPLETE" in report and f"{boot.lost:,} events did not fit" in report
