"""The real ``orch``, as a person starts it: another process, from the environment that runs the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from orchestrator import recording
from orchestrator.recording import Recording
from orchestrator.results import TrialResult
from orchestrator.store import load_json

ROOT = Path(__file__).parents[2]
ORCH = Path(sys.executable).with_name("orch")
DEADLINE_S = 1800.0


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """For an assertion's message."""
        return f"exit code {self.code}\n{self.out}\n{self.err}"


def orch(*words: object, deadline_s: float = DEADLINE_S) -> Ended:
    """Run ``orch`` to its end, in the root of the checkout."""
    argv = [str(ORCH), *map(str, words)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=deadline_s, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Run:
    """A finished run: how ``orch run`` ended, and its folder."""

    ended: Ended
    folder: Path

    @cached_property
    def summary(self) -> Any:
        return json.loads((self.folder / "summary.json").read_text())

    @cached_property
    def results(self) -> dict[tuple[str, str], TrialResult]:
        """Results of the first boot by (cell, arm)."""
        found = (load_json(path, TrialResult) for path in sorted(self.folder.glob("trials/[0-9]*/result.json")))
        return {(item.cell, item.arm): item for item in found if item.boot == 0}

    def trial(self, cell: str, arm: str) -> Path:
        """The folder of the first boot."""
        return self.folder / "trials" / self.results[cell, arm].id

    def recording(self, cell: str, arm: str) -> Recording:
        return recording.read(self.trial(cell, arm) / "recording.bin")

    def cell(self, cell: str, arm: str) -> Any:
        """The entry of summary.json."""
        (found,) = (item for item in self.summary["cells"] if (item["cell"], item["arm"]) == (cell, arm))
        return found

    def verdicts(self, arm: str, cell: str | None = None) -> dict[tuple[str, str], str]:
        """Verdict of an arm by (cell, metric)."""
        return {
            (item["cell"], item["metric"]): item["verdict"]
            for item in self.summary["comparisons"]
            if item["arm"] == arm and cell in (None, item["cell"])
        }


def run(config: Path, results: Path, *words: object) -> Run:
    """``orch run CONFIG --results RESULTS``, which must leave exactly one run there."""
    ended = orch("run", config, "--results", results, *words)
    folders = [path for path in results.iterdir() if path.is_dir()] if results.is_dir() else []
    assert len(folders) == 1, ended.text
    return Run(ended, folders[0])


def check_samples(done: Run) -> None:
    """Every fault of every recording: in its range, with a time, in order."""
    for cell, arm in done.results:
        recording = done.recording(cell, arm)
        header = recording.header
        pages = header.mem_bytes // header.page_bytes
        pieces = list(recording.chunks(recording.nr_faults))
        assert [piece.vcpu for piece in pieces] == list(range(header.nr_vcpus))
        assert recording.nr_faults == pages * header.rounds
        assert min(piece.latency_cycles.min() for piece in pieces) > 0
        pages_seen = np.concatenate([piece.page for piece in pieces])
        assert np.bincount(pages_seen, minlength=pages).tolist() == [header.rounds] * pages
        for piece in pieces:
            own = piece.start_tsc.astype(np.int64)
            assert len(own) and (np.diff(own) > 0).all()
            assert header.start_tsc <= own[0] and own[-1] <= header.end_tsc


def derive(config: Path, folder: Path, **replaced: object) -> Path:
    """A copy of a config in ``folder``, whole sections replaced; relative paths lead to the same files as before."""
    document = yaml.safe_load(config.read_text()) | replaced

    def absolute(name: str) -> str:
        return str((config.parent / name).resolve())

    document["kernel"]["fragments"] = [absolute(name) for name in document["kernel"]["fragments"]]
    document["arms"] = {arm: [absolute(name) for name in patches] for arm, patches in document["arms"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{document['name']}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
