"""The last stage: a Comparison and its Curves in, every file of the report out. Computes nothing."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.analysis.model import COMPARISON_FILE, CURVES_FILE, Comparison, to_json
from orchestrator.analysis.plotted import Curves
from orchestrator.report import html, junit, plots, summary, text
from orchestrator.results import Provenance


def write_all(comparison: Comparison, curves: Curves, provenance: Provenance, out: Path) -> tuple[Path, ...]:
    """Write all forms of the report into the run's folder ``out`` and return their paths.

    comparison.json and curves.json come first, so that ``orch report`` can make the others again from these two.
    Each file appears whole or not at all.
    """
    written = [
        _write(out / COMPARISON_FILE, to_json(comparison)),
        _write(out / CURVES_FILE, to_json(curves)),
        _write(out / "summary.json", summary.render(comparison).encode()),
        _write(out / "report.txt", text.render(comparison, provenance).encode()),
        _write(out / "junit.xml", junit.render(comparison)),
    ]
    drawn = plots.draw_all(comparison, curves, out / "plots")
    written += [path for plot in drawn for path in (plot.svg, plot.png)]
    written.append(_write(out / "report.html", html.render(comparison, drawn, provenance).encode()))
    return tuple(written)


def _write(path: Path, content: bytes) -> Path:
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_bytes(content)
    partial.replace(path)
    return path
