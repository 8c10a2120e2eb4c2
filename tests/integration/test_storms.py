"""Every storm at every place, once, in a real kernel."""

from __future__ import annotations

import pytest
from orchcli import Run, check_samples, derive, run
from realkernel import PLANTED

from orchestrator.results import Outcome

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]

OPS = ("madvise_dontneed", "madvise_free", "madvise_pageout", "munmap", "mprotect", "mremap")  # as REC_OP_* count
PLACEMENTS = ("outside", "disjoint", "adjacent", "overlap", "other-process")


@pytest.fixture(scope="session")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Each op at each place, once, on base.

    With pauses: back to back, a call like MADV_FREE of pages that are free already is an invalidation nearly all the
    time, and base's vCPU retries through most of its time slices. The program would take minutes, as it should.
    """
    folder = tmp_path_factory.mktemp("storms")
    storm = {
        "op": list(OPS),
        "placement": list(PLACEMENTS),
        "size_kib": 512,
        "period_us": 500,
        "cpu": "same",
        "preempted": True,
    }
    cells = {"storm": {"guest": {"mem_mib": 4, "rounds": 2}, "storm": storm}}
    config = derive(
        PLANTED, folder, name="storms", arms={"base": []}, cells=cells, defaults={}, checks=["kernel_log", "controls"]
    )
    return run(config, folder / "results")


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("op", OPS)
def test_each_storm_blows_where_it_should(storms: Run, op: str, placement: str) -> None:
    cell = f"storm,op={op},placement={placement}"
    result = storms.results[cell, "base"]
    assert result.outcome is Outcome.OK and result.warnings == (), (result.reason, result.trace)
    recording = storms.recording(cell, "base")
    windows, header = recording.windows, recording.header
    assert len(windows) >= 1 and (windows["end_tsc"] > windows["start_tsc"]).all()
    assert set(windows["op"]) == {OPS.index(op) + 1} and set(windows["bytes"]) == {512 << 10}
    start, end = header.mem_hva, header.mem_hva + header.mem_bytes
    inside = (windows["hva"] >= start) & (windows["hva"] + windows["bytes"] <= end)
    assert inside.all() if placement == "overlap" else not inside.any()
    if placement == "adjacent":
        assert set(windows["hva"]) == {end}


def test_every_storm_leaves_whole_samples(storms: Run) -> None:
    assert storms.ended.code == 0 and len(storms.results) == len(OPS) * len(PLACEMENTS), storms.ended.text
    check_samples(storms)


def test_no_storm_of_another_process_makes_a_fault_retry(storms: Run) -> None:
    for op in OPS:
        assert storms.cell(f"storm,op={op},placement=other-process", "base")["retries_per_fault"] == 0
