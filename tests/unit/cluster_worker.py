"""A worker process for other processes to kill: ``orch worker`` with a target that copies recordings made before.

``cluster_worker.py FOLDER ENGINE NAME ACCEL=N``: the trial of an arm, cell and seed takes ``SECONDS`` and leaves
``FOLDER/ARM-CELL-SEED.bin``; ``FOLDER/notes`` gets a line for each that begins. The N-th line of a worker's there, and
those after it, do not end while the file ``FOLDER/NAME.hold`` is there and says N. It imports as little as it can.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator import doctor
from orchestrator.doctor import AccelChoice
from orchestrator.engine import kit, worker
from orchestrator.target.target import CONSOLE, RECORDING, STATUS, Evidence, Job

SECONDS = "CLUSTER_WORKER_SECONDS"  # environment
PATIENCE_S = 300.0


@dataclass(frozen=True)
class CopyTarget:
    """Leaves what a good boot would."""

    folder: Path
    name: str

    def run(self, job: Job, folder: Path) -> Evidence:
        words = dict(zip(job.words[::2], job.words[1::2], strict=True))
        what = f"{words['--arm'].rstrip()}-{words['--cell']}-{words['--seed']}"
        with (self.folder / "notes").open("a") as notes:
            notes.write(f"{self.name} {what}\n")
        time.sleep(float(os.environ.get(SECONDS, "0")))
        while self._held():
            time.sleep(0.01)
        (folder / CONSOLE).write_text("")
        (folder / STATUS).write_text("pid1 0.1\nstart 1.1\nexit 0\nend 1.2\n")
        shutil.copy(self.folder / f"{what}.bin", folder / RECORDING)
        return Evidence("ended", 0, 0.7, 2.0)

    def _held(self) -> bool:
        try:
            at = int((self.folder / f"{self.name}.hold").read_text())
            lines = (self.folder / "notes").read_text().splitlines()
        except FileNotFoundError:
            return False
        return sum(line.startswith(f"{self.name} ") for line in lines) >= at


def main() -> None:
    folder, engine, name, offer = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kit.make_emulator = lambda accel, machine, guests: CopyTarget(Path(folder), name)  # type: ignore[assignment,return-value]
    doctor.pick_accel = lambda wanted, cpus: AccelChoice(wanted, "")  # type: ignore[assignment,arg-type]
    worker.work(
        engine, worker.Offers((worker.parse_offer(offer),)), name, PATIENCE_S, lambda text: print(text, flush=True)
    )


if __name__ == "__main__":
    main()
