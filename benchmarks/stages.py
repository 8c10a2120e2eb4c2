"""How long the tool's own work takes, without kernels and QEMU.

Each line is the median of five runs. What is slow here is waited for in every run, on every machine.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from orchestrator import doctor, recording
from orchestrator.experiment import Experiment, load
from orchestrator.plan import Plan, make_plan
from orchestrator.results import Outcome, TrialResult
from orchestrator.store import Store, file_sha256, load_json, to_json

REPEAT = 5
FAULTS = 4_194_304  # 64 MiB of samples
CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def main() -> None:
    experiment = load(CONFIG)
    many = dataclasses.replace(experiment, schedule=dataclasses.replace(experiment.schedule, boots=7143))
    plan = make_plan(many)
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as name:
        folder = Path(name)
        (folder / "plan.json").write_bytes(to_json(plan))
        (folder / "recording.bin").write_bytes(synthetic_recording(FAULTS))
        measure("read and check a config", lambda: load(CONFIG))
        measure(f"plan {len(plan.trials)} trials", lambda: make_plan(many))
        measure("write that plan", lambda: to_json(plan))
        measure("read that plan", lambda: load_json(folder / "plan.json", Plan))
        measure(f"read a recording of {FAULTS} faults", lambda: recording.read(folder / "recording.bin"))
        measure("hash that recording", lambda: file_sha256(folder / "recording.bin"))
        measure("store one trial, synced to disk", lambda: store_trial(folder, experiment))
        measure("examine this machine", doctor.examine)


def measure(what: str, work: Callable[[], object]) -> None:
    """Print the median wall time of ``work``."""
    seconds = []
    for _ in range(REPEAT):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    print(f"{what:45} {statistics.median(seconds) * 1000:10.1f} ms")


def store_trial(folder: Path, experiment: Experiment) -> None:
    """Begin and finish a trial with a recording of 1 MiB, as often as one likes."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    store = Store(run, None)
    running = store.begin_trial("000")
    (running / "recording.bin").write_bytes(bytes(1 << 20))
    result = TrialResult(
        id="000", arm=experiment.base.name, cell=experiment.cells[0].name, boot=0, block=0, seed=1, outcome=Outcome.OK,
        reason="", trace=(), warnings=(), boot_seconds=0.0, wall_seconds=0.0,
        recording_sha256=file_sha256(running / "recording.bin"), rerun="",
    )  # fmt: skip
    store.finish_trial(result)


def synthetic_recording(faults: int) -> bytes:
    """A valid recording of one vCPU with ``faults`` faults of 1,000 cycles."""
    header = np.zeros(1, recording.HEADER)
    header["magic"], header["version"] = recording.MAGIC, recording.VERSION
    header["header_bytes"], header["arch"], header["tsc_hz"] = recording.HEADER_BYTES, 62, 1_000_000_000
    header["page_bytes"], header["rounds"], header["nr_vcpus"] = 4096, 1, 1
    vcpu = np.zeros(1, recording.VCPU)
    vcpu["nr_faults"] = faults
    samples = np.zeros(faults, recording.FAULT)
    samples["start_tsc"] = np.arange(faults, dtype=np.uint64) * np.uint64(2000)
    samples["latency_page"] = 1000
    trailer = np.zeros(1, recording.TRAILER)
    trailer["magic"], trailer["nr_faults"] = recording.TRAILER_MAGIC, faults
    data = b"".join(part.tobytes() for part in (header, vcpu, samples, trailer))[:-4]
    return data + zlib.crc32(data).to_bytes(4, "little")
