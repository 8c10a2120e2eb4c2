"""summary.json, schema 1: what other tools read. The keys are a contract (design, section 5)."""

from __future__ import annotations

import json
from dataclasses import asdict

from orchestrator.analysis.correctness import StaleCount
from orchestrator.analysis.model import ArmSummary, CellSummary, CheckResult, Comparison, MetricComparison

SCHEMA = 1


def render(comparison: Comparison) -> str:
    """The text of summary.json. What was not measured is null; cells that never ran are left out."""
    document: dict[str, object] = {
        "schema": SCHEMA,
        "run": comparison.run,
        "status": comparison.status,
        "arms": {arm.name: _arm(arm) for arm in comparison.arms},
        "cells": [_cell(item) for item in comparison.summaries if item.boots or item.outcome not in NEVER_RAN],
        "comparisons": [_comparison(item) for item in comparison.comparisons],
        "checks": {
            "results": [_check(item) for item in comparison.checks],
            "stale_mapping": [_stale(item) for item in comparison.stale],
            "kvm_selftests": [asdict(item) for item in comparison.selftests],
        },
    }
    if comparison.symptoms:  # Only runs with Linux guests have them.
        document["guest_comparisons"] = [_comparison(item) for item in comparison.symptoms]
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


NEVER_RAN = ("build failed", "not run")


def _arm(arm: ArmSummary) -> dict[str, object]:
    return {
        "release": arm.release,
        "vmlinux_sha256": arm.vmlinux_sha256,
        "build": "failed" if arm.build == "not built" else arm.build,
        "build_seconds": arm.build_seconds,
    }


def _cell(item: CellSummary) -> dict[str, object]:
    names = ("mean", "p50", "p90", "p99", "p99_9", "max")
    return {
        "cell": item.cell,
        "arm": item.arm,
        "boots": item.boots,
        "outcome": item.outcome,
        "faults": item.faults,
        "unit": "ns",
        "latency": asdict(item.latency) if item.latency else dict.fromkeys(names),
        "exits_per_fault": item.exits_per_fault,
        "retries_per_fault": item.retries_per_fault,
        **({"guest": asdict(item.symptoms)} if item.symptoms else {}),
    }


def _comparison(item: MetricComparison) -> dict[str, object]:
    return {
        "cell": item.cell,
        "base": item.base,
        "arm": item.arm,
        "metric": item.metric,
        "base_value": item.base_value,
        "value": item.value,
        "ratio": item.ratio,
        "ci": list(item.ci),
        "ci_kind": item.ci_kind,
        "p_value": item.p_value,
        "verdict": item.verdict,
    }


def _check(item: CheckResult) -> dict[str, object]:
    return {"check": item.name, "arm": item.arm, "cell": item.cell, "status": item.status, "why": item.why}


def _stale(item: StaleCount) -> dict[str, object]:
    return asdict(item)
