"""Fixtures of more than one module."""

from __future__ import annotations

from pathlib import Path

import pytest
import simulated_orch
from nightruns import Past, simulate

from orchestrator.nights import plots as history_plots
from orchestrator.report import plots


@pytest.fixture(scope="session")
def night_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One simulated run of two cells, base and v1; it is only read. Without plots, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        simulated_orch.install(patch.setattr)
        patch.setattr(plots, "draw_all", lambda *_: ())
        folder = tmp_path_factory.mktemp("template")
        return simulate(simulated_orch.write_config(folder), folder / "results")


@pytest.fixture
def past(night_template: Path, tmp_path: Path) -> Past:
    """An empty results folder to fill with past runs."""
    return Past(tmp_path / "results", night_template)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither runs nor histories draw: for tests that look at something else."""
    monkeypatch.setattr(plots, "draw_all", lambda *_: ())
    monkeypatch.setattr(history_plots, "draw", lambda *_: ())
