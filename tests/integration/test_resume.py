"""kill -9 in the middle of a real run, and on."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from orchcli import ORCH, ROOT, Run, derive, orch, run
from realkernel import PLANTED

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network]


def finished(results: Path) -> dict[Path, int]:
    """Files of finished trials, with their times."""
    return {path: path.stat().st_mtime_ns for path in results.glob("*/trials/[0-9]*/*")}


def test_a_killed_run_goes_on_and_comes_to_the_same_bytes(planted: Run, tmp_path: Path) -> None:
    patches = {"base": [], "v1": ["../../patches/hva-retry/v1.patch"]}
    config = derive(PLANTED, tmp_path, name="killed", arms=patches, schedule={"boots": 2, "seed": 1})
    results = tmp_path / "results"
    argv = [str(ORCH), "run", str(config), "--results", str(results), "--jobs", "1"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 900
        while len(list(results.glob("*/trials/[0-9]*/result.json"))) < 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    before = finished(results)
    (folder,) = (path for path in results.iterdir() if path.is_dir())
    assert 2 <= len({path.parent for path in before}) < 4 and not (folder / "summary.json").exists()
    deadline = time.monotonic() + 60  # a guest's memory takes a while to be given back
    while qemus_in(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not qemus_in(folder), "QEMU dies with its run"

    again = run(config, results, "--jobs", "2")
    assert again.ended.code == 0 and again.folder == folder, again.ended.text
    assert "going on with" in again.ended.err and again.summary["status"] == "complete"
    assert {path: time for path, time in finished(results).items() if path in before} == before
    assert len(list(folder.glob("trials/[0-9]*/recording.bin"))) == 4 and not list(folder.glob("trials/.*"))
    for arm in ("base", "v1"):
        assert again.results["quiet", arm].recording_sha256 == planted.results["quiet", arm].recording_sha256, (
            "another run, of another name, interrupted: the same bytes"
        )
    seeds = {path.parent.name: path.read_bytes() for path in folder.glob("trials/[0-9]*/recording.bin")}
    assert len(set(seeds.values())) == 4, "another boot has another seed"


def qemus_in(folder: Path) -> list[int]:
    """Processes of QEMU whose working directory is in ``folder``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_second_start_beside_a_running_one_is_refused(planted: Run, tmp_path: Path) -> None:
    """The first one has far more to do than the second takes to start, on a loaded machine as well."""
    schedule = {"boots": 60, "seed": 1}
    config = derive(
        PLANTED, tmp_path, name="twice", arms={"base": []}, cells={"a": {"storm": "none"}}, schedule=schedule
    )
    results = tmp_path / "results"
    argv = [str(ORCH), "run", str(config), "--results", str(results), "--jobs", "1"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 300
            while not list(results.glob("*/trials/.0*")) and time.monotonic() < deadline:
                time.sleep(0.02)
            second = orch("run", config, "--results", results)
            assert process.poll() is None, "it was still running when the second one gave up"
        finally:
            process.send_signal(signal.SIGKILL)
    assert second.code == 2 and "is in use by pid" in second.err and "Traceback" not in second.err, second.text
