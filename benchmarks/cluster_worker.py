"""A worker of :mod:`benchmarks.cluster`: ``python -m benchmarks.cluster_worker RECORDING ENGINE NAME``.

``orch worker`` with a target that boots nothing: each trial leaves a copy of RECORDING, so that all that takes time is
the tool's own work.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator import doctor
from orchestrator.doctor import Accel, AccelChoice
from orchestrator.engine import kit, worker
from orchestrator.target.target import CONSOLE, RECORDING, STATUS, Evidence, Job

PATIENCE_S = 60.0


@dataclass(frozen=True)
class CopyTarget:
    """Leaves what a good boot would, at once."""

    recording: Path

    def run(self, job: Job, folder: Path) -> Evidence:
        """See :class:`~orchestrator.target.target.Target`."""
        (folder / CONSOLE).write_text("Linux\n")
        (folder / STATUS).write_text("pid1 0\nstart 0\nexit 0\nend 0\n")
        shutil.copyfile(self.recording, folder / RECORDING)
        return Evidence("ended", 0, 0.0, 0.0)


def pick_accel(wanted: Accel, cpus: int) -> AccelChoice:
    """Whatever is wanted: nothing is booted."""
    return AccelChoice(wanted, "simulated")


def main() -> None:
    recording, engine, name = sys.argv[1:]
    kit.make_emulator = lambda accel, machine, guests: CopyTarget(Path(recording))  # type: ignore[assignment,return-value]
    doctor.pick_accel = pick_accel  # type: ignore[assignment]
    offers = worker.Offers((worker.Offer("icount", 1), worker.Offer("tcg", 1)))
    worker.work(engine, offers, name, PATIENCE_S, lambda text: None)


if __name__ == "__main__":
    main()
