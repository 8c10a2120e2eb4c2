"""Linux guests along the axes that test_linux_guest.py does not go: who has discarded the page, what the guest maps it
with, a storm beside it, the arm's own kernel, several vCPUs. About 50 s on two CPUs with kernels built."""

from __future__ import annotations

from pathlib import Path

import pytest
from orchcli import ROOT, Run, check_samples, derive, run

from orchestrator.experiment import Cell, LinuxGuest, load
from orchestrator.results import Outcome

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]

CONFIG = ROOT / "tests/integration/linux_axes.yaml"
CELLS = {cell.name: cell for cell in load(CONFIG).linux_cells}
# Under icount a host has one CPU, and so has its guest.
TCG = {"kind": "qemu", "accel": "tcg", "cpus": 2, "mem_mib": 1024, "deadline_s": 600, "guest_deadline_s": 300}
TWO = {
    "two": {
        "guest": {"vcpus": 2, "faults": "both", "memory": "file", "access": "read", "stride_pages": 16},
        "storm": {"placement": "outside", "period_us": 50000, "cpu": "any", "preempted": False},
    }
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(CONFIG, tmp_path_factory.mktemp("axes") / "results", "--jobs", "2")


def counted(done: Run, cell: str) -> tuple[int, int, int]:
    """Samples, the guest's own faults, and KVM's."""
    found = done.recording(cell, "base")
    return found.nr_faults, found.counter("guest_minflt") or 0, found.counter("pf_fixed") or 0


def guest_of(cell: Cell) -> LinuxGuest:
    assert isinstance(cell.guest, LinuxGuest)
    return cell.guest


def test_every_trial_ends_well_with_whole_samples(done: Run) -> None:
    assert done.ended.code == 0, done.ended.text
    assert {cell for cell, _ in done.results} == set(CELLS)
    assert {item.outcome for item in done.results.values()} == {Outcome.OK}
    check_samples(done)
    assert "the guests' kernel: each arm's own" in " ".join((done.folder / "report.txt").read_text().split())


@pytest.mark.parametrize("cell", CELLS)
def test_each_sample_is_a_fault_of_the_kind_that_was_asked_for(done: Run, cell: str) -> None:
    guest = guest_of(CELLS[cell])
    samples, own, fixed = counted(done, cell)
    assert samples == guest.nr_faults and own == (0 if guest.faults == "host" else samples)
    # A huge page of the guest's, which the host has discarded, is 512 faults of the host's.
    pages = guest.stride_pages if guest.memory == "thp" and guest.faults == "both" else 1
    if guest.faults == "guest":
        assert fixed == 0, "the host backs what the guest gives"
    else:
        assert pages * samples <= fixed < 1.1 * pages * samples + 100


@pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if cell.storm is not None])
def test_the_storm_is_where_the_cell_says(done: Run, cell: str) -> None:
    found, storm = done.recording(cell, "base"), CELLS[cell].storm
    assert storm is not None and len(found.windows)
    places = {int(row["hva"]) - found.header.mem_hva for row in found.windows}
    (place,) = places
    mem = found.header.mem_bytes
    match storm.placement:
        case "adjacent":
            assert place == mem
        case "disjoint":
            assert mem + (2 << 20) <= place < mem + (6 << 20)
        case _:
            assert not -(256 << 20) < place < 256 << 20


def test_each_vcpu_of_several_has_a_share(tmp_path: Path) -> None:
    done = run(derive(CONFIG, tmp_path / "config", target=TCG, cells=TWO), tmp_path / "results")
    assert done.ended.code == 0, done.ended.text
    check_samples(done)
    pieces = list(done.recording("two", "base").chunks(1 << 20))
    assert [len(piece.page) for piece in pieces] == [64, 64]
    samples, own, _ = counted(done, "two")
    assert samples == own == 128
