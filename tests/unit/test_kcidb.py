"""nights/kcidb.py: every kind of result becomes what KCIDB's own schema and vocabulary say."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kcidb_io
import pytest
from nightruns import Past

from orchestrator.analysis.correctness import SelftestRow
from orchestrator.analysis.model import ArmSummary, CellSummary, CheckResult, Comparison, FailedTrial, MetricComparison
from orchestrator.errors import StageError, UserError
from orchestrator.kernel.source import KernelTree
from orchestrator.manifest import ArmFiles, FileId, Manifest
from orchestrator.nights import catalogue, kcidb

replace = dataclasses.replace
Change = Callable[[Comparison], Comparison]


def exported(past: Past, change: Change = lambda item: item, url: str = "", **night: Any) -> Any:
    """The document of a run whose comparison was changed, held against the schema once more."""
    document = json.loads(kcidb.export(catalogue.open_run(past.night(0, comparison=change, **night)), "mylab", url))
    kcidb_io.schema.V5_3.validate_exactly(document)
    return document


def test_of(document: Any, arm: str, path: str) -> Any:
    (found,) = (item for item in document["tests"] if (item["misc"]["arm"], item["path"]) == (arm, path))
    return found


test_of.__test__ = False  # type: ignore[attr-defined]


def with_verdict(metric: str, **fields: object) -> Change:
    """Change the comparison of one metric of v1 in cell0."""

    def change(item: Comparison) -> Comparison:
        def one(found: MetricComparison) -> MetricComparison:
            ours = (found.cell, found.arm, found.metric) == ("cell0", "v1", metric)
            return replace(found, **fields) if ours else found  # type: ignore[arg-type]

        return replace(item, comparisons=tuple(one(found) for found in item.comparisons))

    return change


def with_outcome(outcome: str, *, measured: bool = False) -> Change:
    """v1 ended so in cell0."""

    def change(item: Comparison) -> Comparison:
        def one(found: CellSummary) -> CellSummary:
            if (found.cell, found.arm) != ("cell0", "v1"):
                return found
            gone = {} if measured else {"latency": None, "retries_per_fault": None, "exits_per_fault": None, "boots": 0}
            return replace(found, outcome=outcome, **gone)  # type: ignore[arg-type]

        failure = FailedTrial(
            "001", "v1", "cell0", outcome, "it broke\x1b[31m", ("RIP: 0010:kvm_mmu",), "orch trial",
            "trials/001/console.log", (),
        )  # fmt: skip
        return replace(item, summaries=tuple(one(found) for found in item.summaries), failures=(failure,))

    return change


def test_arms_are_checkouts_and_builds_and_every_id_is_there_once(past: Past) -> None:
    document = exported(past)
    assert document["version"] == {"major": 5, "minor": 3}
    assert [item["id"] for item in document["checkouts"]] == [item["id"] for item in document["builds"]]
    builds = {item["id"]: item for item in document["builds"]}
    assert [item["status"] for item in builds.values()] == ["PASS", "PASS"]
    for build in builds.values():
        assert build["checkout_id"] == build["id"] and build["architecture"] == "x86_64"
    ids = [item["id"] for item in document["tests"]]
    assert len(ids) == len(set(ids)) and {item["build_id"] for item in document["tests"]} == set(builds)
    assert {item["origin"] for kind in ("checkouts", "builds", "tests") for item in document[kind]} == {"mylab"}


@pytest.mark.parametrize(
    ("verdict", "status"),
    [("improved", "PASS"), ("equivalent", "PASS"), ("regressed", "FAIL"), ("inconclusive", "DONE")],
)
def test_a_verdict_is_the_status_of_its_metric(past: Past, verdict: str, status: str) -> None:
    document = exported(past, with_verdict("p99", verdict=verdict, reason="because"))
    metric = test_of(document, "v1", "kvm_fault.cell0.p99")
    assert metric["status"] == status and metric["comment"] == f"{verdict} against base: because"
    assert metric["number"]["value"] == pytest.approx(5.05e-6, rel=0.01)
    assert (metric["number"]["unit"], metric["number"]["prefix"]) == ("s", "metric")
    assert metric["misc"]["verdict"] == verdict and metric["misc"]["base_value"] == pytest.approx(5055, rel=0.01)
    assert metric["misc"]["ci_kind"] == "range", "under icount, of few seeds"
    worst = "FAIL" if status == "FAIL" else "PASS"
    assert test_of(document, "v1", "kvm_fault.cell0")["status"] == worst, "of all its metrics"
    assert test_of(document, "base", "kvm_fault.cell0.p99")["status"] == "DONE", "no verdict is asked of the base"
    assert test_of(document, "base", "kvm_fault.cell0")["misc"]["p99_9_ns"] > 5000


def test_a_metric_that_decides_nothing_fails_nothing(past: Past) -> None:
    document = exported(past, with_verdict("max", verdict="regressed", decides=False))
    assert test_of(document, "v1", "kvm_fault.cell0.max")["status"] == "DONE"
    assert test_of(document, "v1", "kvm_fault.cell0")["status"] == "PASS"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("panic", "FAIL"), ("oops", "FAIL"), ("hang", "FAIL"), ("stale", "FAIL"), ("lost", "ERROR"), ("failed", "ERROR"),
     ("build failed", "SKIP"), ("not run", "SKIP")],
)  # fmt: skip
def test_an_outcome_is_the_status_of_its_cell(past: Past, outcome: str, status: str) -> None:
    document = exported(past, with_outcome(outcome), url="https://lab.example/results/")
    cell = test_of(document, "v1", "kvm_fault.cell0")
    assert cell["status"] == status and cell["log_excerpt"] == "RIP: 0010:kvm_mmu"
    assert cell["comment"] == f"{outcome}: it broke\N{REPLACEMENT CHARACTER}[31m"
    assert cell["log_url"] == "https://lab.example/results/simulated-20260901-010000/trials/001/console.log"
    assert not [
        item
        for item in document["tests"]
        if item["path"].startswith("kvm_fault.cell0.") and item["misc"]["arm"] == "v1"
    ]


def test_a_cell_with_a_failed_boot_fails_and_keeps_its_figures(past: Past) -> None:
    document = exported(past, with_outcome("panic", measured=True))
    assert test_of(document, "v1", "kvm_fault.cell0")["status"] == "FAIL"
    assert test_of(document, "v1", "kvm_fault.cell0.p50")["status"] == "PASS"
    assert "log_url" not in test_of(document, "v1", "kvm_fault.cell0"), "no address was given"


def test_checks_and_selftests(past: Past) -> None:
    def change(item: Comparison) -> Comparison:
        checks = (
            CheckResult("controls", "v1", "cell0", "held", ""),
            CheckResult("kernel_log", "", "", "failed", "WARNING: x"),
            CheckResult("stale_mapping", "v1", "inside,op=madvise", "not covered", "no round"),
            CheckResult("stale_mapping", "v1", "inside,op=madvise", "held", "again"),
        )  # fmt: skip
        states = [("pass",), ("pass", "fail"), ("timeout",), ("lost",), ("skip",), ("not built",), ("not run",), ()]
        rows = tuple(
            SelftestRow(f"x86_64/test.{number}", "v1", found, "why", 1.5, "same", ())  # type: ignore[arg-type]
            for number, found in enumerate(states)
        )
        return replace(item, checks=checks, selftests=rows)

    document = exported(past, change)
    assert test_of(document, "v1", "kvm_check.controls.cell0")["status"] == "PASS"
    whole = test_of(document, "base", "kvm_check.kernel_log")
    assert (whole["status"], whole["comment"]) == ("FAIL", "WARNING: x")
    stale = [item for item in document["tests"] if item["path"] == "kvm_check.stale_mapping.inside_op_madvise"]
    assert [item["status"] for item in stale] == ["SKIP", "PASS"] and stale[0]["id"] != stale[1]["id"]
    found = [test_of(document, "v1", f"kselftest.kvm.x86_64_test_{number}")["status"] for number in range(8)]
    assert found == ["PASS", "FAIL", "FAIL", "FAIL", "SKIP", "SKIP", "SKIP", "SKIP"]


def test_a_build_that_failed_or_was_not_reached(past: Past) -> None:
    def change(item: Comparison) -> Comparison:
        failed = ArmSummary("v1", ("a.patch",), "failed", "", "", 3.0, False, "mmu.c:3: error\n" + "x" * 20_000)
        missing = ArmSummary("v2", (), "not built", "", "", 0.0, False, "")
        return replace(item, arms=(item.arms[0], failed, missing))

    document = exported(past, change)
    _, failed, missing = document["builds"]
    assert failed["status"] == "FAIL" and failed["log_excerpt"].startswith("mmu.c:3: error") and failed["duration"] == 3
    assert len(failed["log_excerpt"]) == 16384
    assert missing["status"] == "MISS" and [item["valid"] for item in document["checkouts"]] == [True, True, False]


def test_two_cells_whose_names_differ_only_in_what_a_path_cannot_hold(past: Past) -> None:
    def change(item: Comparison) -> Comparison:
        cells = (replace(item.cells[0], name="a=b"), replace(item.cells[1], name="a.b"))
        names = dict(zip(("cell0", "cell1"), ("a=b", "a.b"), strict=True))
        summaries = tuple(replace(found, cell=names[found.cell]) for found in item.summaries)
        return replace(item, cells=cells, summaries=summaries, comparisons=())

    document = exported(past, change)
    names = {item["path"]: item["misc"]["name"] for item in document["tests"] if item["path"].count(".") == 1}
    assert names["kvm_fault.a_b"] == "a=b" and names["kvm_fault.a_b-2"] == "a.b"


def test_the_commit_and_the_patchset(past: Past, tmp_path: Path) -> None:
    first, quoted = tmp_path / "one.patch", tmp_path / "mail.txt"
    first.write_text("one\n")
    quoted.write_text("> quoted\n")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, quoted)]

    def patched(item: Manifest) -> Manifest:
        files = (FileId(str(first), digests[0]), FileId(str(quoted), digests[1]))
        return replace(item, arms=(item.arms[0], ArmFiles("v1", files)))

    folder = past.night(0, manifest=patched)
    (folder / "patches/v1").mkdir(parents=True)
    (folder / "patches/v1/mail.patch").write_text("recovered\n")
    run = catalogue.open_run(folder)
    run = replace(run, tree=KernelTree(Path("/x"), "git main (abc)", "ab" * 32, "6.1", "0123456789" * 4))
    base, arm = json.loads(kcidb.export(run, "mylab"))["checkouts"]
    lines = f"{digests[0]}\n{hashlib.sha256(b'recovered' + bytes([10])).hexdigest()}\n"
    assert arm["patchset_hash"] == hashlib.sha256(lines.encode()).hexdigest()
    assert base["patchset_hash"] == "" and base["git_commit_hash"] == "0123456789" * 4
    first.write_text("changed since\n")
    assert "patchset_hash" not in json.loads(kcidb.export(run, "mylab"))["checkouts"][1], "it is not known any more"


@pytest.mark.parametrize(
    ("origin", "url", "says"),
    [("My Lab", "", "is no origin"), ("", "", "is no origin"), ("lab", "javascript:x", "is not an http"),
     ("lab", "file:///etc", "is not an http")],
)  # fmt: skip
def test_what_cannot_be_an_origin_or_an_address_is_refused(past: Past, origin: str, url: str, says: str) -> None:
    run = catalogue.open_run(past.night(0))
    with pytest.raises(UserError, match=says):
        kcidb.export(run, origin, url)


def test_a_document_that_is_not_valid_names_the_field(past: Past) -> None:
    document = exported(past)
    document["tests"][3]["status"] = "GOOD"
    with pytest.raises(StageError, match=r"schema v5\.3: \$\.tests\[3\]\.status: 'GOOD'"):
        kcidb.validate(document)
    document["tests"][3]["status"] = "PASS"
    document["tests"][3]["start_time"] = "yesterday"
    with pytest.raises(StageError, match="start_time"):
        kcidb.validate(document)
