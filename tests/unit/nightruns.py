"""Runs of past nights, made up: copies of one simulated run with dates and values of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator import run
from orchestrator.analysis.model import COMPARISON_FILE, Comparison, Metric, from_json
from orchestrator.experiment import Experiment
from orchestrator.kernel.keep import TREE
from orchestrator.kernel.source import KernelTree
from orchestrator.manifest import Manifest
from orchestrator.progress import Reporter
from orchestrator.store import MANIFEST, STATUS, RunStatus, Status, load_json, to_json

FIRST = datetime(2026, 9, 1, 1, 0, tzinfo=UTC)
# Cell, arm and metric to a factor on the value of the run that is copied.
Factors = Mapping[tuple[str, str, Metric], float]


@dataclass(frozen=True)
class Past:
    """A results folder with a template; :meth:`night` adds a run to it."""

    results: Path
    template: Path

    def night(
        self,
        number: int,
        factors: Factors | None = None,
        *,
        manifest: Callable[[Manifest], Manifest] = lambda item: item,
        experiment: Callable[[Experiment], Experiment] = lambda item: item,
        comparison: Callable[[Comparison], Comparison] = lambda item: item,
        version: str = "",
        status: Status | None = "complete",
    ) -> Path:
        """A run ``number`` days after the first; ``status`` None: it has not ended."""
        started = FIRST + timedelta(days=number)
        source = load_json(self.template / MANIFEST, Manifest)
        folder = self.results / f"{source.experiment}-{started:%Y%m%d-%H%M%S}"
        folder.mkdir(parents=True)
        (folder / "kernels").mkdir()
        changed = dataclasses.replace(source, run=folder.name, started=started.isoformat(timespec="microseconds"))
        write(folder / MANIFEST, manifest(changed))
        write(folder / run.EXPERIMENT, experiment(load_json(self.template / run.EXPERIMENT, Experiment)))
        if version:
            write(folder / TREE, KernelTree(Path("/nowhere"), f"simulated {version}", version, version))
        for path in self.template.glob("kernels/*"):
            (folder / "kernels" / path.name).write_bytes(path.read_bytes())
        if (self.template / "trials").exists():
            (folder / "trials").symlink_to(self.template / "trials")
        found = from_json(Comparison, self.template / COMPARISON_FILE)
        found = dataclasses.replace(
            found, run=folder.name, status=status or "partial", summaries=_scaled(found, factors or {})
        )
        write(folder / COMPARISON_FILE, comparison(found))
        if status is not None:
            write(folder / STATUS, RunStatus(status, started.isoformat()))
        assert (folder / STATUS).exists() == (status is not None)
        return folder


def write(path: Path, value: object) -> None:
    """As the store does, but without waiting for the disk."""
    path.write_bytes(to_json(value))


def _scaled(found: Comparison, factors: Factors) -> tuple:  # type: ignore[type-arg]
    summaries = []
    for item in found.summaries:
        ours = {
            metric: factor for (cell, arm, metric), factor in factors.items() if (cell, arm) == (item.cell, item.arm)
        }
        assert item.latency is not None
        boots = tuple(dataclasses.replace(boot, latency=_scaled_latency(boot.latency, ours)) for boot in item.per_boot)
        summaries.append(dataclasses.replace(item, latency=_scaled_latency(item.latency, ours), per_boot=boots))
    return tuple(summaries)


def _scaled_latency(latency, factors):  # type: ignore[no-untyped-def]
    scaled = {name: getattr(latency, name) * factor for name, factor in factors.items() if hasattr(latency, name)}
    return dataclasses.replace(latency, **scaled)


def simulate(config: Path, results: Path) -> Path:
    """One run by the pipeline, with ``simulated_orch`` installed."""
    return run.run(config, results, 1, ["orch", "run", str(config)], Reporter()).run
