"""Two real nights of a small experiment: about 20 s, with kernels that other tests have built."""

from __future__ import annotations

import json
from pathlib import Path

import kcidb_io
import pytest
from orchcli import ROOT, derive, orch
from realkernel import PLANTED

from orchestrator.kernel.build import BuiltKernel
from orchestrator.nights.nightly import read_nights

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]


def test_a_second_night_is_identical_to_the_first_and_says_so(kernels: dict[str, BuiltKernel], tmp_path: Path) -> None:
    # An arm that changes nothing: of so few faults the slowest differ by more than the margin for any other.
    arms = {"base": [], "comment": [str(ROOT / "patches/planted/comment.patch")]}
    config = derive(PLANTED, tmp_path / "config", name="night", arms=arms)
    results = tmp_path / "results"
    for _ in range(2):
        ended = orch("nightly", config, "--results", results, "--jobs", "2", "--gate")
        assert ended.code == 0, ended.text
    second, first = (night.entries[0] for night in read_nights(results).nights)
    assert (first.state, first.no_reference) == ("fine", "it is the first")
    assert (second.state, second.reference, second.worse, second.better) == ("fine", first.run, (), ())
    assert second.tree.startswith("Debian linux-source-5.10 ") and second.notes == ()

    compared = orch("compare", results / first.run, results / second.run)
    assert compared.code == 0 and compared.out.count(": equivalent: identical\n") == 2, compared.text
    history = orch("history", "night", "--results", results, "--metric", "p50")
    assert history.code == 0 and "No change of level in any cell, arm or metric." in history.out, history.text
    exported = orch("export", "--kcidb", results / second.run)
    assert exported.code == 0, exported.text
    document = json.loads(exported.out)
    kcidb_io.schema.V5_3.validate_exactly(document)
    assert {test["status"] for test in document["tests"]} == {"PASS", "DONE"}
    assert (results / "nights/index.html").read_text().count("<script") == 0
