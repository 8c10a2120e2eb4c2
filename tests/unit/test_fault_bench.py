"""guests/fault_bench: its parts that need no guest, on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestrator import proc

HERE = Path(__file__).parent
GUESTS = HERE.parents[1] / "guests"
HUGE = 512  # pages


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("build") / "parts"
    folders = [
        f"-I{GUESTS}",
        *(f"-I{GUESTS / name}" for name in ("include", "storm", "vmm", "fault_vmm", "fault_bench")),
    ]
    sources = [HERE / "fault_bench_parts.c", GUESTS / "fault_bench/pagemap.c"]
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-pthread"]
    proc.run(["gcc", *flags, *folders, "-o", program, *sources])
    return program


def say(parts: Path, *words: object) -> list[int]:
    done = subprocess.run([parts, *map(str, words)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout
    return [int(word) for word in done.stdout.split()]


def test_one_stall_is_one_late_wakeup_and_its_missed_periods_are_counted(parts: Path) -> None:
    """500 wakeups a millisecond apart, 2 µs late each; the 100th comes 26 ms later."""
    assert say(parts, "jitter", 500, 1000, 99, 26_000) == [2_000, 2_000, 26_002_000, 500, 26]


@pytest.mark.parametrize(
    ("wakeups", "stall_us", "late_ns", "missed"),
    [
        (10, 0, 2_000, 0),
        (10, 997, 999_000, 0),
        (10, 998, 1_000_000, 0),
        (10, 999, 1_001_000, 1),
        (1, 5_000, 5_002_000, 0),
    ],
)
def test_a_wakeup_that_comes_within_the_period_misses_none(
    parts: Path, wakeups: int, stall_us: int, late_ns: int, missed: int
) -> None:
    _, _, worst, counted, skipped = say(parts, "jitter", wakeups, 1000, 0, stall_us)
    assert (worst, counted, skipped) == (late_ns, wakeups, missed)


@pytest.mark.parametrize(
    ("frames", "pages", "expected"),
    [
        (range(1024), 512, [0, 512]),
        (range(1023, -1, -1), 512, [1023, 512]),  # a guest's memory is often mapped from its end
        (range(100, 1600), 512, [412, 512]),  # from the first multiple of 2 MiB on
        (range(100, 1023), 512, [-1, 511]),
        ([*range(0, 511), *range(1024, 1536)], 512, [511, 512]),
        ([*range(0, 511), *range(512, 1000)], 512, [-1, 511]),
        (range(1, 500), 1, [-1, 0]),
        ([512], 1, [0, 1]),
    ],
)
def test_a_run_is_contiguous_and_starts_at_a_multiple_of_2_mib(
    parts: Path, frames: list[int], pages: int, expected: list[int]
) -> None:
    assert say(parts, "run", pages * 4096, *frames) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is shown where pages lie")
@pytest.mark.parametrize("kind", ["anonymous", "file"])
def test_pages_are_moved_into_order_and_the_rest_is_given_back(parts: Path, kind: str) -> None:
    order = [*range(32, 64), 7, 6, 5, 1, 2, 3, *range(8, 16), 0]
    assert say(parts, "move", kind, *order) == order
