"""What a trial through Dask costs besides the trial itself, and what a plan of 100,000 trials costs.

A scheduler and three workers on this machine, in processes of their own, run trials whose target boots nothing: what is
left is the tool's own work, from the plan to the result that is synced to disk. Under icount each trial is a task, else
a block of them (here 14 boots) is. The CPU time is that of all these processes together.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.contenders import peak_bytes
from benchmarks.stages import CONFIG, synthetic_recording
from orchestrator.doctor import Accel
from orchestrator.engine.cluster import Cluster
from orchestrator.engine.kit import pack
from orchestrator.experiment import Arm, Experiment, load
from orchestrator.image import Guests
from orchestrator.kernel.build import BuiltKernel
from orchestrator.plan import make_plan
from orchestrator.store import Store, file_sha256, write_atomic

WORKERS = 3
TRIALS = 1000
PLANNED = 100_000
FAULTS = 65_536  # A trial of the default experiment: a recording of 1 MiB.
PATIENCE_S = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    print(f"{len(os.sched_getaffinity(0))} CPUs, load average before: {os.getloadavg()[0]:.1f}")
    seconds, peak_mib = measure_plan()
    print(f"plan of {PLANNED:,} trials, made and written: {seconds:.2f} s, peak {peak_mib:.0f} MiB of memory")
    for accel in ("icount", "tcg"):
        wall_ms, cpu_ms = measure_trials(accel, TRIALS)
        what = "a task for each trial" if accel == "icount" else "a task for each block"
        print(
            f"{TRIALS} trials of {FAULTS} faults through Dask, {WORKERS} workers, {what}:"
            f" {wall_ms:.1f} ms a trial ({cpu_ms:.1f} ms of CPU)"
        )
    print(f"load average after: {os.getloadavg()[0]:.1f}")


# --- the plan ---------------------------------------------------------------------------------------------------------


def measure_plan() -> tuple[float, float]:
    """Seconds and MiB of a process that reads the config, makes the plan, and writes plan.json."""
    argv = [sys.executable, "-m", "benchmarks.cluster", "plan"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=CONFIG.parents[1])
    found = re.fullmatch(r"([0-9.]+) ([0-9.]+)\n", done.stdout)
    if found is None:
        raise RuntimeError(f"unexpected output: {done.stdout}{done.stderr}")
    return float(found[1]), float(found[2])


def plan_once() -> None:
    """The measured process: prints seconds, imports excluded, and its peak of resident memory in MiB."""
    started = time.perf_counter()
    experiment = with_trials(load(CONFIG), PLANNED)
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as name:
        Store(Path(name), None).save("plan.json", make_plan(experiment))
    seconds = time.perf_counter() - started
    print(seconds, peak_bytes() / 2**20)


def with_trials(experiment: Experiment, trials: int) -> Experiment:
    """The experiment with so many boots that there are at least ``trials``."""
    boots = -(-trials // len(make_plan(experiment).trials))
    return dataclasses.replace(experiment, schedule=dataclasses.replace(experiment.schedule, boots=boots))


# --- trials -----------------------------------------------------------------------------------------------------------


def measure_trials(accel: Accel, trials: int) -> tuple[float, float]:
    """Wall and CPU time a trial, ms: workers are ready and have their files before the clock starts."""
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "recording.bin").write_bytes(synthetic_recording(FAULTS))
        engine, pids = stack.enter_context(machines(folder))
        cluster = stack.enter_context(Cluster(engine, PATIENCE_S, lambda text: None))
        while cluster.pick_accel(accel, 1) and cluster.workers < WORKERS:
            time.sleep(0.1)
        experiment = load(CONFIG)
        (folder / "run").mkdir()
        runner = cluster.runner(
            pack(experiment.target, (accel, None), *fake_builds(folder, experiment.arms), ()),
            (),
            Store(folder / "run", None),
        )
        warm = make_plan(with_trials(experiment, 1))
        runner.execute(warm, (), accel, None, lambda result: None)
        plan = make_plan(with_trials(experiment, trials))
        count: list[str] = []
        before, started = cpu_seconds(pids), time.perf_counter()
        runner.execute(plan, (), accel, None, lambda result: count.append(result.id))
        wall, cpu = time.perf_counter() - started, cpu_seconds(pids) - before
        if sorted(count) != [trial.id for trial in plan.trials]:
            raise RuntimeError("not every trial ran once")
        return wall * 1000 / len(count), cpu * 1000 / len(count)


def fake_builds(folder: Path, arms: Sequence[Arm]) -> tuple[Guests, list[BuiltKernel]]:
    """Guest programs and kernels that nobody runs, but that are shipped."""
    (folder / "guests").mkdir()
    paths = [folder / "guests" / name for name in ("init", "fault_vmm", "tsc_khz")]
    for path in paths:
        write_atomic(path, path.name.encode())
    vmlinux = folder / "vmlinux"
    write_atomic(vmlinux, bytes(1 << 20))
    kernels = [
        BuiltKernel(
            arm.name, "ok", "", vmlinux, file_sha256(vmlinux), None, "", None, "", 0.0, True, folder / "log", ""
        )
        for arm in arms
    ]
    return Guests(*paths, "benchmark"), kernels


@contextmanager
def machines(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """A scheduler and workers in processes of their own: the address, and the ids of all processes and of this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = f"dask://127.0.0.1:{port}"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    commands = [[*scheduler, "--no-dashboard", "--no-show"]]
    for number in range(WORKERS):
        worker = [sys.executable, "-m", "benchmarks.cluster_worker", str(folder / "recording.bin"), engine]
        commands.append([*worker, f"worker{number}"])
    environment = os.environ | {"ORCH_CACHE": str(folder / "cache")}
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("wb"))
        started = []
        for argv in commands:
            process = subprocess.Popen(argv, stdout=log, stderr=log, env=environment, cwd=CONFIG.parents[1])
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process.pid)
        yield engine, [os.getpid(), *started]


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes so far (fields 14 and 15 of /proc/PID/stat)."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


if __name__ == "__main__":
    if sys.argv[1:] == ["plan"]:
        plan_once()
    else:
        main()
