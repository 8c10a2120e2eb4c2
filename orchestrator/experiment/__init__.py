"""YAML to a frozen :class:`Experiment`; all validation; every error with file, line and key, all at once."""

from orchestrator.experiment.reader import load
from orchestrator.experiment.types import (
    Arm,
    Cell,
    Check,
    DebianSource,
    Experiment,
    GitSource,
    Guest,
    KernelSpec,
    Op,
    Placement,
    ReportSpec,
    Schedule,
    Source,
    Storm,
    TarballSource,
    TargetSpec,
    TreeSource,
)

__all__ = [
    "Arm",
    "Cell",
    "Check",
    "DebianSource",
    "Experiment",
    "GitSource",
    "Guest",
    "KernelSpec",
    "Op",
    "Placement",
    "ReportSpec",
    "Schedule",
    "Source",
    "Storm",
    "TarballSource",
    "TargetSpec",
    "TreeSource",
    "load",
]
