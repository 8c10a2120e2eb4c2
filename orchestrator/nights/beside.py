"""Several runs of one experiment side by side: the same cells and arms on other targets, and how the configs differ.

Nothing is computed over runs: each one's arms were compared with its own base, on its own clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.analysis.model import CellComparison, Comparison, Metric, MetricComparison
from orchestrator.experiment import Experiment
from orchestrator.manifest import FileId
from orchestrator.nights.catalogue import Run

SHOWN: tuple[Metric, ...] = ("p50", "p90", "p99", "p99_9", "max", "mean", "retries_per_fault")
SHOWN_MACHINES = 3
THERE, NOT_THERE = "there", "not there"
# What a run of the same experiment elsewhere differs in by its nature.
OF_TARGET = ("target.", "name")
OF_LAB = "fragments of the lab"
WORDS = {"None": "none", "True": "true", "False": "false"}  # As YAML has them.

_experiment = TypeAdapter(Experiment)


@dataclass(frozen=True)
class Absent:
    """A config of which there is no run that has ended, and why."""

    config: str
    why: str


@dataclass(frozen=True)
class Column:
    """A run. ``label`` says where it ran, and is unlike all others'; ``checks`` counts those that failed."""

    label: str
    run: Run
    checks: int

    @property
    def found(self) -> Comparison:
        return self.run.comparison


@dataclass(frozen=True)
class Difference:
    """A key of the configs, or another input, in which runs differ; a value for each run. ``aloud``: in more than its
    target's lines and what follows from them."""

    key: str
    values: tuple[str, ...]
    aloud: bool


@dataclass(frozen=True)
class Row:
    """An arm in a cell: for each run its verdict (None: it has none, and ``missing`` says why), how the trials of base
    and arm ended, and each metric of :data:`SHOWN`."""

    cell: str
    arm: str
    verdicts: tuple[CellComparison | None, ...]
    missing: tuple[str, ...]
    outcomes: tuple[str, ...]
    metrics: tuple[tuple[Metric, tuple[MetricComparison | None, ...]], ...]


@dataclass(frozen=True)
class CheckRow:
    """A check: for each run how many of its results failed, were not covered, and are there in all."""

    name: str
    counts: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Beside:
    """Runs side by side, in the order in which they were named."""

    name: str
    columns: tuple[Column, ...]
    absent: tuple[Absent, ...]
    differences: tuple[Difference, ...]
    rows: tuple[Row, ...]
    checks: tuple[CheckRow, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is to be said first: how the runs differ, and whether they agree."""
        return (*_differ(self), *_agree(self))


def side_by_side(runs: Sequence[Run], absent: Sequence[Absent] = ()) -> Beside:
    """Put runs side by side; they may differ in anything, which is said."""
    found = [run.comparison for run in runs]
    names = dict.fromkeys(item.name for item in found)
    pairs = dict.fromkeys(
        (cell.name, arm.name) for item in found for cell in item.cells for arm in item.arms if arm.name != item.base
    )
    checks = dict.fromkeys(check.name for item in found for check in item.checks)
    return Beside(
        ", ".join(names) or "nothing",
        tuple(
            Column(label, run, sum(check.status == "failed" for check in run.comparison.checks))
            for label, run in zip(_labels(runs), runs, strict=True)
        ),
        tuple(absent),
        tuple(_differences(runs)),
        tuple(_row(found, cell, arm) for cell, arm in _in_order(pairs)),
        tuple(CheckRow(name, tuple(_counts(item, name) for item in found)) for name in checks),
    )


def _in_order(pairs: Mapping[tuple[str, str], None]) -> list[tuple[str, str]]:
    """By cell, in the order in which cells were first seen: a later run may have arms of its own."""
    cells = list(dict.fromkeys(cell for cell, _ in pairs))
    return sorted(pairs, key=lambda pair: cells.index(pair[0]))


# --- where a run ran --------------------------------------------------------------------------------------------------


def _labels(runs: Sequence[Run]) -> list[str]:
    """Names by target; where these are the same, with as much more as tells them apart."""
    more: tuple[Callable[[Run], str], ...] = (
        lambda run: "",
        lambda run: f", {run.comparison.name}",
        lambda run: f", {run.name}",
    )
    labels: list[str] = []
    for add in more:
        labels = [f"{_where(run)}{add(run)}" for run in runs]
        if len(set(labels)) == len(labels):
            break
    return labels


def _where(run: Run) -> str:
    kind, manifest = run.experiment.target.kind, run.manifest
    if kind == "qemu":
        return f"nested {manifest.accel} (qemu)"
    if kind == "local":
        return f"{manifest.host.node} (local)"
    names = [machine.partition(" (")[0] for machine in manifest.machines]
    rest = len(names) - SHOWN_MACHINES
    shown = ", ".join(names[:SHOWN_MACHINES]) + (f" and {rest} more" if rest > 0 else "")
    return f"{shown} (ssh)"


# --- what they say ----------------------------------------------------------------------------------------------------


def _row(found: Sequence[Comparison], cell: str, arm: str) -> Row:
    verdicts = tuple(
        next((item for item in one.verdicts if (item.cell, item.arm) == (cell, arm)), None) for one in found
    )
    metrics = [one.metrics(cell, arm) for one in found]
    return Row(
        cell,
        arm,
        verdicts,
        tuple("" if item else _missing(one, cell, arm) for item, one in zip(verdicts, found, strict=True)),
        tuple(_outcomes(one, cell, arm) for one in found),
        tuple((name, tuple(ours.get(name) for ours in metrics)) for name in SHOWN),
    )


def _missing(found: Comparison, cell: str, arm: str) -> str:
    if cell not in {item.name for item in found.cells} or arm not in {item.name for item in found.arms}:
        return "not in this run"
    bad = [name for name in (found.base, arm) if not found.summary(cell, name).boots]
    return ", ".join(f"{name}: {found.summary(cell, name).outcome}" for name in bad) or "not compared"


def _outcomes(found: Comparison, cell: str, arm: str) -> str:
    """``base 2 ok; v1 1 ok, 1 hang``."""
    said = []
    for name in (found.base, arm):
        counts = Counter(item.outcome for item in found.trials if (item.cell, item.arm) == (cell, name))
        if counts:
            said.append(f"{name} {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    return "; ".join(said)


def _counts(found: Comparison, name: str) -> tuple[int, int, int]:
    ours = [item.status for item in found.checks if item.name == name]
    return ours.count("failed"), ours.count("not covered"), len(ours)


# --- how they differ --------------------------------------------------------------------------------------------------


def _differences(runs: Sequence[Run]) -> Iterator[Difference]:
    """Of the configs key by key, then of what else went in."""
    settings = [_settings(run) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    some = tuple(
        f"{key}."
        for key in keys
        if any(one.get(key) == THERE for one in settings) and any(key not in one for one in settings)
    )
    for key in keys:
        if key.startswith(some):
            continue
        yield from _differ_in(key, [one.get(key, NOT_THERE) for one in settings], aloud=not key.startswith(OF_TARGET))
    others = [_others(run) for run in runs]
    lab = any(one[OF_LAB] != others[0][OF_LAB] for one in others)
    for key in dict.fromkeys(key for one in others for key in one):
        follows = key == OF_LAB or (lab and key.startswith("vmlinux of "))
        yield from _differ_in(key, [one.get(key, NOT_THERE) for one in others], aloud=not follows)


def _differ_in(key: str, values: Sequence[str], *, aloud: bool) -> Iterator[Difference]:
    if len(set(values)) > 1:
        yield Difference(key, tuple(values), aloud)


def _settings(run: Run) -> dict[str, str]:
    """A run's experiment as flat keys; files by name and content, wherever they lie."""
    content = _experiment.dump_python(run.experiment, mode="json", exclude={"path", "description"})
    own = len(run.experiment.kernel.fragments)
    content["kernel"]["fragments"] = _files(run.manifest.fragments[:own])
    content["arms"] = {item.arm: _files(item.patches) for item in run.manifest.arms}
    if content["target"]["lab"]:
        content["target"]["lab"] = Path(content["target"]["lab"]).name
    return dict(_flat("", content))


def _others(run: Run) -> dict[str, str]:
    """What went in besides the config."""
    manifest = run.manifest
    own = len(run.experiment.kernel.fragments)
    kernels = {f"vmlinux of {kernel.arm}": kernel.vmlinux_sha256[:16] or kernel.build for kernel in run.kernels}
    return {
        "kernel tree": run.tree_text if run.tree is not None else NOT_THERE,
        "tool": f"{manifest.tool_version} {manifest.tool_commit[:12]}",
        "guest programs": manifest.guests_id[:16],
        OF_LAB: ", ".join(_files(manifest.fragments[own:])) or "none",
    } | kernels


def _files(files: Sequence[FileId]) -> list[str]:
    return [f"{Path(item.path).name} ({item.sha256[:12]})" for item in files]


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        value = {item["name"]: {key: part for key, part in item.items() if key != "name"} for item in value}
        if prefix == "cells.":  # One that only some runs have is one difference, not one for each of its keys.
            yield from ((f"{prefix}{name}", THERE) for name in value)
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(f"{prefix}{key}.", part)
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else WORDS.get(str(value), str(value))
        yield prefix.removesuffix("."), text or "none"


# --- in words ---------------------------------------------------------------------------------------------------------


def _differ(found: Beside) -> Iterator[str]:
    if len(found.columns) < 2:
        return
    aloud = [item for item in found.differences if item.aloud]
    if aloud:
        said = "; ".join(f"{item.key} ({' | '.join(item.values)})" for item in aloud)
        yield f"THESE RUNS DIFFER IN MORE THAN THEIR TARGET: {said}"
    else:
        keys = ", ".join(item.key for item in found.differences if item.key.startswith("target."))
        yield f"Nothing but the target's lines differs in the configs: {keys}" if keys else "The configs are the same."


def _agree(found: Beside) -> Iterator[str]:
    """For each arm: in how many cells all runs say the same, and where they do not."""
    if len(found.columns) < 2:
        return
    for arm in dict.fromkeys(row.arm for row in found.rows):
        rows = [row for row in found.rows if row.arm == arm]
        whole = [row for row in rows if all(row.verdicts)]
        kinds = {row.cell: [item.verdict for item in row.verdicts if item] for row in whole}
        same = [cell for cell, said in kinds.items() if len(set(said)) == 1]
        against = [cell for cell, said in kinds.items() if {"improved", "regressed"} <= set(said)]
        alike = [cell for cell, said in kinds.items() if cell not in same and len({*said} - {"inconclusive"}) == 1]
        line = f"{arm}: in {len(same)} of {len(rows)} cells all {len(found.columns)} runs have the same verdict"
        if alike:
            line += f"; in {len(alike)} more some are inconclusive and the others agree"
        if against:
            line += f"; OPPOSITE verdicts in {', '.join(against)}"
        if len(whole) < len(rows):
            line += f"; {len(rows) - len(whole)} not measured in every run"
        yield line
