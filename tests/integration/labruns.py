"""Runs of the real ``orch`` on lab hosts, in the background, so that a test can do things to them meanwhile."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from labhosts import BOOT_S, LabVm, lab_file
from orchcli import ORCH, ROOT, Ended, Run, derive
from realkernel import PLANTED

from orchestrator import proc

UNDER_TEST = "5.10.262"  # the release of realkernel's tree
RUN_S = 900.0
ARMS: dict[str, list[str]] = {
    "base": [],
    "v1": ["../../patches/hva-retry/v1.patch"],
    "panic": ["../../patches/planted/panic.patch"],
}
CELLS: dict[str, object] = {"quiet": {"storm": "none"}}
STORM = {"op": "madvise_dontneed", "placement": "outside", "size_kib": 1024, "cpu": "other"}


@dataclass(frozen=True)
class Going:
    """An ``orch run`` that is running; ``results`` holds its run's folder."""

    child: proc.Child
    log: Path
    results: Path

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def await_said(self, pattern: str, deadline_s: float = RUN_S) -> None:
        """Wait until it has printed ``pattern``; AssertionError if it ends before, or past the deadline."""
        end = time.monotonic() + deadline_s
        while re.search(pattern, self.said) is None:
            assert self.child.poll() is None and time.monotonic() < end, f"no {pattern!r}:\n{self.said}"
            time.sleep(0.2)

    def ended(self) -> Run:
        """Wait for its end."""
        code = self.child.wait(RUN_S)
        assert code is not None, f"no end within {RUN_S:.0f} s:\n{self.said}"
        folders = [path for path in self.results.iterdir() if path.is_dir()]
        assert len(folders) == 1, self.said
        return Run(Ended(code, self.said, ""), folders[0])


def lab_config(
    folder: Path,
    *hosts: tuple[LabVm, dict[str, object]],
    arms: tuple[str, ...] = ("base",),
    cells: dict[str, object] | None = None,
    rounds: int = 1,
    deadline_s: int = 120,
) -> Path:
    """An experiment on ``hosts`` (each with what is to be replaced in its entry of the lab file); its file."""
    folder.mkdir(parents=True, exist_ok=True)
    return derive(
        PLANTED,
        folder,
        name=folder.name,
        arms={name: ARMS[name] for name in arms},
        target={"kind": "ssh", "lab": str(lab_file(folder, *hosts)), "deadline_s": deadline_s},
        defaults={"guest": {"mem_mib": 16, "rounds": rounds}},
        cells=cells or CELLS,
    )


def running_config(folder: Path, host: LabVm) -> Path:
    """An experiment that benches whatever kernel runs on ``host``; its file."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "name": folder.name,
        "description": "The kernel that is running.",
        "arms": {"running": []},
        "target": {"kind": "ssh", "lab": str(lab_file(folder, (host, {"boot": "none"}))), "deadline_s": 120},
        "defaults": {"guest": {"mem_mib": 16, "rounds": 1}},
        "cells": CELLS,
    }
    path = folder / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@contextlib.contextmanager
def going(config: Path) -> Iterator[Going]:
    """Start ``orch run CONFIG``; it is killed if the block ends before it does."""
    log, results = config.with_suffix(".log"), config.parent / "results"
    with proc.start([ORCH, "run", config, "--results", results], cwd=ROOT, log=log) as child:
        yield Going(child, log, results)


def finished(config: Path) -> Run:
    """``orch run CONFIG``, from its start to its end."""
    with going(config) as run:
        return run.ended()


def await_measuring(host: LabVm, since: int) -> None:
    """Wait until the program runs in a kernel under test that was booted after ``since``, a length of the console.

    By a connection of our own, which must not be in the proxy's way.
    """
    booted = host.await_console(rf"^\[[^\n]*Linux version {re.escape(UNDER_TEST)} ", start=since)
    host.await_console(r"^lab host: sshd starts", start=booted.end())
    host.await_ssh(UNDER_TEST)
    # [-]: the pattern must not find the command that looks for it.
    host.ssh("until pgrep -f '[-]-rounds' >/dev/null; do sleep 0.1; done", deadline_s=BOOT_S)
