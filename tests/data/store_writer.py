"""A run without kernels: resume, "measure" what is not finished, end. Killed and restarted by test_store."""

import hashlib
import sys
from pathlib import Path

from orchestrator.experiment import load
from orchestrator.manifest import make_manifest
from orchestrator.plan import make_plan
from orchestrator.results import Outcome, TrialResult
from orchestrator.store import Store

folder = Path(sys.argv[1])
experiment = load(folder / "experiment.yaml")
plan = make_plan(experiment)
manifest = make_manifest(experiment, sys.argv, "icount", "for a test", plan.seeds)
print("ready", flush=True)
with Store.open_or_create(folder / "results", experiment, manifest) as store, (folder / "notes").open("a") as notes:
    finished = {result.id for result in store.finished_trials()}
    for trial in plan.trials:
        if trial.id in finished:
            continue
        recording = hashlib.sha256(trial.id.encode()).digest() * 2000
        running = store.begin_trial(trial.id)
        (running / "recording.bin").write_bytes(recording)
        (running / "console.log").write_text("a console\n" * 100)
        store.finish_trial(
            TrialResult(
                id=trial.id, arm=trial.arm, cell=trial.cell.name, boot=trial.boot, block=trial.block, seed=trial.seed,
                outcome=Outcome.OK, reason="", trace=(), warnings=(), boot_seconds=0.0, wall_seconds=0.0,
                recording_sha256=hashlib.sha256(recording).hexdigest(), rerun="",
            )
        )  # fmt: skip
        notes.write(f"{trial.id}\n")
        notes.flush()
