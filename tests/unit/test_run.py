"""run.py: the pipeline on a target that makes recordings up: what is kept, killed, resumed, repeated."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import simulated_orch
from simulated_orch import write_config

from orchestrator import again, run, store
from orchestrator.errors import StoreError, TargetError, UserError
from orchestrator.experiment import load
from orchestrator.kernel import build
from orchestrator.kernel.build import BuiltKernel
from orchestrator.plan import make_plan
from orchestrator.progress import Reporter
from orchestrator.results import Outcome

COMMAND = ["orch", "run", "simulated.yaml"]
DRIVER = simulated_orch.__file__


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every run here is simulated; yields the file that notes each trial that begins."""
    simulated_orch.install(monkeypatch.setattr)
    monkeypatch.setenv(simulated_orch.NOTES, str(tmp_path / "notes"))
    return tmp_path / "notes"


def go(config: Path, jobs: int | None = 2) -> tuple[run.Finished, str]:
    """Run, and what was said meanwhile."""
    said = io.StringIO()
    finished = run.run(config, config.parent / "results", jobs, COMMAND, Reporter(said))
    return finished, said.getvalue()


def summary(finished: run.Finished) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((finished.run / "summary.json").read_text())
    return loaded


def begun(notes: Path) -> Counter[str]:
    return Counter(notes.read_text().splitlines()) if notes.exists() else Counter()


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[run.Finished, str]]:
    """One run of good and bad arms, shared by the tests that only look."""
    with pytest.MonkeyPatch.context() as patch:
        simulated_orch.install(patch.setattr)
        folder = tmp_path_factory.mktemp("mixed")
        yield go(write_config(folder, ("base", "v1", "slow", "panic", "oops", "lost", "broken"), cells=1))


def test_bad_arms_do_not_touch_the_good_ones(mixed: tuple[run.Finished, str]) -> None:
    finished, _ = mixed
    written = summary(finished)
    outcomes = {cell["arm"]: cell["outcome"] for cell in written["cells"]}  # type: ignore[attr-defined]
    assert outcomes == {
        "base": "ok", "v1": "ok", "slow": "ok", "panic": "panic", "oops": "oops", "lost": "lost",
    }  # fmt: skip
    assert written["arms"]["broken"]["build"] == "failed"  # type: ignore[index]
    assert written["status"] == "partial" and finished.failed_stage and finished.gate_closed
    assert store.Store.read(finished.run).status.status == "partial"  # type: ignore[union-attr]


def test_everything_that_a_reader_needs_is_in_the_folder(mixed: tuple[run.Finished, str]) -> None:
    folder = mixed[0].run
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "manifest.json", "experiment.json", "plan.json", "status.json", "comparison.json", "curves.json",
        "summary.json", "report.txt", "report.html", "junit.xml", "samples.parquet", "kernels/base.json",
        "kernels/broken.json", "trials/000/recording.bin", "trials/003/console.log", "trials/003/result.json",
    } <= names  # fmt: skip
    assert not [name for name in names if ".tmp" in name or ".part" in name or "trials/006" in name]


def test_what_is_said_while_it_runs(mixed: tuple[run.Finished, str]) -> None:
    _, said = mixed
    assert "target: qemu, icount, simulated" in said and "7 trials: 7 arms, 1 cells, 2 at a time" in said
    assert "cell0 base, 2.0 s, ok\n" in said
    assert "cell0 panic, 2.0 s, PANIC: Kernel panic - not syncing: planted: guest page fault 1000\n" in said
    assert "(6 of 6, about 0 s left)" in said, "the arm that was not built has no trial to wait for"


def test_each_trial_carries_the_command_that_repeats_it(mixed: tuple[run.Finished, str]) -> None:
    folder = mixed[0].run
    results = store.Store.read(folder).finished_trials()
    assert [item.rerun for item in results] == [f"orch trial {folder} {item.id}" for item in results]


def test_the_report_is_made_again_byte_for_byte(mixed: tuple[run.Finished, str]) -> None:
    first = mixed[0]
    before = {path: path.read_bytes() for path in first.written}
    again = run.redraw(first.run)
    assert again.written == first.written and {path: path.read_bytes() for path in again.written} == before


def test_a_report_needs_no_file_but_the_runs_own(mixed: tuple[run.Finished, str]) -> None:
    config = mixed[0].run.parents[1] / "simulated.yaml"
    config.rename(config.with_suffix(".away"))
    try:
        assert run.redraw(mixed[0].run).comparison == mixed[0].comparison
    finally:
        config.with_suffix(".away").rename(config)


def test_a_finished_run_is_followed_by_a_new_one(tmp_path: Path, simulated: Path) -> None:
    config = write_config(tmp_path, cells=1)
    first, _ = go(config)
    second, _ = go(config)
    assert second.run != first.run and not first.failed_stage and not first.gate_closed
    assert set(begun(simulated).values()) == {2}
    for trial in ("000", "001"):
        paths = [item.run / "trials" / trial / "recording.bin" for item in (first, second)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


# --- killed and resumed -----------------------------------------------------------------------------------------------


def test_a_target_that_does_not_start_ends_the_run_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: Path
) -> None:
    config = write_config(tmp_path, ("base", "v1", "gone"), cells=1)
    with pytest.raises(TargetError, match="QEMU did not start"):
        go(config, jobs=1)
    (folder,) = (path for path in (tmp_path / "results").iterdir() if path.is_dir())
    assert [item.id for item in store.Store.read(folder).finished_trials()] == ["000", "001"]
    times = {path: path.stat().st_mtime_ns for path in folder.glob("trials/0*/*")}
    monkeypatch.setattr(run, "make_target", lambda setting, guests: simulated_orch.SimulatedTarget(mended=True))
    finished, said = go(config)
    assert finished.run == folder and f"going on with {folder} (2 of 3 trials are done)" in said
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert begun(simulated) == Counter({line: 2 if line.startswith("gone") else 1 for line in begun(simulated)})
    assert len(times) > 6


def test_a_failure_in_the_report_costs_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: Path
) -> None:
    config = write_config(tmp_path, cells=1)
    with monkeypatch.context() as patch:
        patch.setattr(run, "report", lambda store: (_ for _ in ()).throw(StoreError("disk full")))
        with pytest.raises(StoreError, match="disk full"):
            go(config)
    finished, said = go(config)
    assert "(2 of 2 trials are done)" in said and begun(simulated).total() == 2
    assert summary(finished)["status"] == "complete"


def test_an_experiment_that_changed_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, cells=1)
    with monkeypatch.context() as patch:
        patch.setattr(run, "report", lambda store: (_ for _ in ()).throw(StoreError("disk full")))
        with pytest.raises(StoreError):
            go(config)
    (tmp_path / "v1.patch").write_text("another patch\n")
    assert "run: " in go(config)[1]
    assert len([path for path in (tmp_path / "results").iterdir() if path.is_dir()]) == 2


def test_killed_at_random_moments_it_repeats_nothing_that_was_finished(tmp_path: Path, simulated: Path) -> None:
    """kill -9 of `orch run`, again and again; at most the trials that were running are run again."""
    config = write_config(tmp_path, boots=4)  # 16 trials
    argv = [sys.executable, DRIVER, "run", str(config), "--results", str(tmp_path / "results"), "--jobs", "2"]
    environment = os.environ | {simulated_orch.NOTES: str(simulated), simulated_orch.SECONDS: "0.2"}
    rng = random.Random(5)
    kills = 0
    expected = {trial.id for trial in make_plan(load(config)).trials}
    times: dict[str, int] = {}
    while True:
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kills < 3:
            wait_for_lines(simulated, begun(simulated).total() + 2, process)
            wait_for_results(tmp_path, len(times) + 1, process)
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        if process.wait(600) == 0:
            break
        assert kills < 3, "the run that nobody killed failed"
        kills += 1
        folder = only_run(tmp_path)
        times = {**finished_times(folder), **times}
    folder = only_run(tmp_path)
    assert finished_times(folder).keys() == expected
    assert {trial: finished_times(folder)[trial] for trial in times} == times and len(times) >= 2
    assert begun(simulated).total() <= len(expected) + 2 * kills, "at most two ran at each kill"
    assert json.loads((folder / "summary.json").read_text())["status"] == "complete"
    assert not list(folder.glob("trials/.*"))


def wait_for_lines(notes: Path, count: int, process: subprocess.Popen[Any]) -> None:
    wait_until(process, lambda: begun(notes).total() >= count)


def wait_until(process: subprocess.Popen[Any], what: Callable[[], bool]) -> None:
    """Or until a process has ended, which its test will see."""
    deadline = time.monotonic() + 120
    while not what() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def wait_for_results(tmp_path: Path, count: int, process: subprocess.Popen[Any]) -> None:
    wait_until(process, lambda: len(list(tmp_path.glob("results/*/trials/[0-9]*/result.json"))) >= count)


def only_run(tmp_path: Path) -> Path:
    (folder,) = (path for path in (tmp_path / "results").iterdir() if path.is_dir())
    return folder


def finished_times(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("trials/[0-9]*/result.json")}


def test_an_interrupt_says_how_to_go_on_and_leaves_at_once(tmp_path: Path, simulated: Path) -> None:
    config = write_config(tmp_path)
    argv = [sys.executable, DRIVER, "run", str(config), "--results", str(tmp_path / "results")]
    environment = os.environ | {simulated_orch.NOTES: str(simulated), simulated_orch.SECONDS: "600"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_lines(simulated, 1, process)
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130 and time.monotonic() - started < 60
    assert f"interrupted; to go on: orch run {config}" in stderr and "Traceback" not in stderr


# --- one trial again --------------------------------------------------------------------------------------------------


@pytest.fixture
def with_kernels(mixed: tuple[run.Finished, str], tmp_path: Path) -> Iterator[Path]:
    """The shared run with a file for each kernel; yields its folder."""
    folder = mixed[0].run
    texts = {path: path.read_text() for path in folder.glob("kernels/*.json")}
    (tmp_path / "vmlinux").write_text("a kernel")
    for path in texts:
        kernel = json.loads(path.read_text())
        if kernel["build"] == "ok":
            path.write_text(json.dumps(kernel | {"vmlinux": str(tmp_path / "vmlinux")}))
    yield folder
    for path, text in texts.items():
        path.write_text(text)


def test_a_repeated_trial_is_compared_with_the_first(with_kernels: Path) -> None:
    said = io.StringIO()
    before = (with_kernels / "trials/000/recording.bin").read_bytes()
    result, folder, same = again.repeat_trial(with_kernels, "000", Reporter(said))
    assert (result.outcome, same) == (Outcome.OK, True)
    assert folder.parent == with_kernels / "reruns" and (folder / "recording.bin").read_bytes() == before
    assert (with_kernels / "trials/000/recording.bin").read_bytes() == before


def test_a_repeated_trial_that_differs_says_so(with_kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = simulated_orch.make_recording
    monkeypatch.setattr(simulated_orch, "make_recording", lambda arm, cell, seed: original(arm, cell, seed + 1))
    assert again.repeat_trial(with_kernels, "000", Reporter(io.StringIO()))[2] is False


def test_a_repeated_crash_is_a_crash_again(with_kernels: Path) -> None:
    result, folder, same = again.repeat_trial(with_kernels, "003", Reporter(io.StringIO()))
    assert (result.outcome, same) == (Outcome.PANIC, None) and "Kernel panic" in (folder / "console.log").read_text()


def test_what_cannot_be_repeated(with_kernels: Path, tmp_path: Path) -> None:
    quiet = Reporter(io.StringIO())
    with pytest.raises(UserError, match="has no trial 999: they go from 000 to 006"):
        again.repeat_trial(with_kernels, "999", quiet)
    with pytest.raises(UserError, match=r"has no trial \.\./\.\./x"):
        again.repeat_trial(with_kernels, "../../x", quiet)
    with pytest.raises(StoreError, match="arm broken did not compile") as caught:
        again.repeat_trial(with_kernels, "006", quiet)
    assert "'x' undeclared" in caught.value.render()
    (tmp_path / "vmlinux").unlink()
    with pytest.raises(StoreError, match="kernel of arm base is no longer in the cache") as caught:
        again.repeat_trial(with_kernels, "000", quiet)
    assert (caught.value.hint or "").startswith("orch build ")
    with pytest.raises(UserError, match="is not a run"):
        again.repeat_trial(tmp_path, "000", quiet)


# --- words ------------------------------------------------------------------------------------------------------------


def kernel(arm: str, seconds: float, cached: bool = False, error: str = "") -> BuiltKernel:
    path = Path("/k")
    return BuiltKernel(
        arm, "failed" if error else "ok", "5.10.262", path, "ab" * 32, path, "", path, "", seconds, cached, path, error
    )


def test_the_cost_of_each_kernel_is_told() -> None:
    lines = build.describe(
        [kernel("base", 200), kernel("v1", 18), kernel("v2", 20, True), kernel("v3", 2, error="mmu.c:3: error")]
    )
    assert lines[0] == "kernel base: 5.10.262, built in 200 s; vmlinux abababababababab"
    assert lines[1] == "kernel v1: 5.10.262, built in 18 s, 9% of base's; vmlinux abababababababab"
    assert "built before, in 20 s, 10% of base's" in lines[2]
    assert lines[3] == "kernel v3: DOES NOT COMPILE: mmu.c:3: error\n  log: /k"
