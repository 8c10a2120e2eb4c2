"""The benchmark's large recording, and that its contenders agree; how fast they are is for `make bench` to say."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import __main__ as command
from benchmarks import big_recording, cluster, contenders, scale, stages
from orchestrator import recording as rec

FAULTS = 30_011


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scale") / "trials" / "000" / "recording.bin"
    path.parent.mkdir(parents=True)
    big_recording.write(path, FAULTS)
    return path


def test_the_recording_is_valid_and_the_same_each_time(path: Path, tmp_path: Path) -> None:
    found = rec.read(path)
    assert (found.nr_faults, found.header.nr_vcpus, len(found.windows)) == (FAULTS, 4, big_recording.WINDOWS)
    for faults in found.chunks(FAULTS):
        assert (np.diff(faults.start_tsc.astype(np.int64)) > 0).all()
        assert faults.start_tsc[0] >= found.header.start_tsc and faults.start_tsc[-1] <= found.header.end_tsc
    assert path.stat().st_size == pytest.approx(big_recording.file_bytes(FAULTS), rel=0.01)
    big_recording.write(tmp_path / "again", FAULTS)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_contenders_agree_on_every_quantile(path: Path) -> None:
    cycles = np.sort(np.concatenate([faults.latency_cycles for faults in rec.read(path).chunks()]))
    ranks = {"p50": 15005, "p90": 27009, "p99": 29710, "p99_9": 29980, "max": 30010}
    expected = {name: float(cycles[rank]) * (1e9 / big_recording.TSC_HZ) for name, rank in ranks.items()}
    measured = contenders.measure(lambda: contenders.tables(path), path)
    assert (measured.ns, measured.faults) == (expected, FAULTS) and measured.seconds > 0
    assert contenders.measure(lambda: contenders.analysis(path), path).ns == expected
    # pandas counts ranks from (n - 1) q: the neighbour at most.
    for name, value in contenders.with_pandas(path).items():
        near = cycles[max(0, ranks[name] - 1) : ranks[name] + 2] * (1e9 / big_recording.TSC_HZ)
        assert near.min() <= value <= near.max()


def test_eight_times_the_faults_take_no_more_memory(tmp_path: Path) -> None:
    """Of the whole analysis: quantiles, curves, attribution, timeline. numpy's arrays are what tracemalloc sees."""
    peaks = []
    for faults in (1 << 18, 1 << 21):
        path = tmp_path / "trials" / f"{faults}" / "recording.bin"
        path.parent.mkdir(parents=True)
        big_recording.write(path, faults)
        tracemalloc.start()
        try:
            contenders.analysis(path)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + (2 << 20) and peaks[1] < 64 << 20


def test_a_contenders_peak_is_its_own_and_not_that_of_the_process_which_started_it(path: Path) -> None:
    ours = np.ones(400 << 20, np.uint8)
    measured, peak_bytes = scale.run("tables", path)
    assert measured.faults == FAULTS and 10 << 20 < peak_bytes < ours.nbytes


def test_hdrhistogram_is_held_against_the_exact_quantiles_of_the_same_faults(path: Path) -> None:
    pytest.importorskip("hdrh")
    found = contenders.with_hdrhistogram(path)
    assert found.faults == pytest.approx(FAULTS / contenders.HDR_STEP, abs=4)
    assert found.ns == pytest.approx(found.exact_ns, rel=10**-contenders.HDR_DIGITS)


def test_the_table_says_what_was_read_from_where_and_whether_quantiles_differ(path: Path) -> None:
    ours = contenders.measure(lambda: contenders.tables(path), path)
    other = contenders.Measured(FAULTS, 2.0, 1.0, 0, {**ours.ns, "p99": 1.0})
    few = contenders.Measured(300, 0.5, 0.5, 0, {"p50": 1010.0}, {"p50": 1000.0})
    cold, warm = (item for item in scale.CONTENDERS if item.name == "tables")
    pandas, histogram = (
        next(item for item in scale.CONTENDERS if item.name == name) for name in ("pandas", "hdrhistogram")
    )
    rows = [
        scale.Row(cold, ours, 50 << 20, False),
        scale.Row(warm, ours, 50 << 20, False),
        scale.Row(pandas, other, 50 << 20, False),
        scale.Row(histogram, few, 50 << 20, False),
    ]
    lines = scale.table(rows)
    assert len({len(line) for line in lines}) == 1 and len(lines) == 6
    assert [cell.strip() for cell in lines[4].split("|")][2:7] == ["cache", "30,011", "2.00", "1.00", "0.0"]
    said = "\n".join(scale.notes(rows))
    assert "read and quantile: OTHER quantiles." in said
    assert "of the same 300 faults: p50 +1.000%" in said
    assert "no line is the disk's speed" in said


def test_too_small_a_disk_and_memory_are_named(tmp_path: Path) -> None:
    pytest.importorskip("hdrh")
    with pytest.raises(SystemExit, match=r"MiB free, \d+ are needed: name another --folder, or --faults"):
        scale.main(10**12, tmp_path)
    assert list(tmp_path.iterdir()) == []
    pandas = next(item for item in scale.CONTENDERS if item.name == "pandas")
    assert scale.memory_lacking(pandas, 10**12).startswith("needs 53405761 MiB of memory, ")
    assert scale.memory_lacking(pandas, 1000) == ""


@pytest.mark.parametrize(
    ("words", "begun"),
    [
        ([], ["stages", "cluster", 7]),
        (["stages"], ["stages"]),
        (["cluster"], ["cluster"]),
        (["scale"], [7]),
    ],
)
def test_all_parts_are_run_if_none_is_named(
    words: list[str], begun: list[str | int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | int] = []
    monkeypatch.setattr(stages, "main", lambda: seen.append("stages"))
    monkeypatch.setattr(cluster, "main", lambda: seen.append("cluster"))
    monkeypatch.setattr(scale, "main", lambda faults, folder, write: seen.append(faults))
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words, "--faults", "7"])
    command.main()
    assert seen == begun


def test_the_table_is_put_between_the_marks_of_a_file_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scale.BEGIN}\nold\n{scale.END}\nafter\n")
    scale.put(page, "| new |")
    assert page.read_text() == f"before\n{scale.BEGIN}\n| new |\n{scale.END}\nafter\n"
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match="has no place for the table"):
        scale.put(page, "| new |")
    assert page.read_text() == "no marks\n"
    (Path(__file__).parents[2] / "docs" / "scale.md").read_text().index(scale.BEGIN)
