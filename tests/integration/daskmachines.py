"""A Dask scheduler and ``orch worker`` processes on this machine, as docs/dask.md starts them, for tests to kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchcli import ORCH, ROOT
from ports import free_port

DASK = Path(sys.executable).with_name("dask")


@dataclass
class Machines:
    """A scheduler and workers; each worker has a cache of its own, as on a machine of its own."""

    folder: Path
    port: int
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def engine(self) -> str:
        return f"dask://127.0.0.1:{self.port}"

    def start(self, name: str, *argv: object) -> None:
        environment = os.environ | {"ORCH_CACHE": str(self.folder / name)}
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [str(word) for word in argv], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def worker(self, name: str, *offer: object) -> None:
        self.start(name, ORCH, "worker", self.engine, "--name", name, *offer)

    def kill(self, name: str) -> None:
        self.running[name].send_signal(signal.SIGKILL)
        self.running[name].wait()

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@contextmanager
def scheduler(folder: Path) -> Iterator[Machines]:
    """A scheduler; it and all workers are killed when the block ends."""
    port = free_port()
    folder.mkdir()
    found = Machines(folder, port)
    found.start("scheduler", DASK, "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
    try:
        yield found
    finally:
        for name in found.running:
            found.kill(name)
