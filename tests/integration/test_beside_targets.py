"""One experiment on two lab hosts and nested, by one command, with nothing but the target's lines different.

Costs twelve boots, one after the other: four nested, and on each of two hosts four by kexec with their returns, each a
minute and a half on a loaded machine.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from labhosts import MARKS, LabVm, lab_file
from labruns import STORM
from orchcli import derive, orch
from realkernel import PLANTED

from orchestrator.kernel.build import BuiltKernel
from orchestrator.nights import catalogue
from orchestrator.nights.beside import side_by_side
from orchestrator.results import Outcome
from orchestrator.store import STATUS, Store

pytestmark = [*MARKS, pytest.mark.dear, pytest.mark.usefixtures("at_home")]

VERDICTS = {"improved", "regressed", "mixed", "equivalent", "inconclusive"}
# One CPU, nested as there: icount has no other.
CELLS = {"quiet": {"storm": "none"}, "storm": {"storm": STORM | {"cpu": "same", "preempted": True, "period_us": 20000}}}


def three(folder: Path, hosts: tuple[LabVm, ...]) -> tuple[Path, ...]:
    """The experiment, nested and on each host."""
    lab = lab_file(folder, *((host, {}) for host in hosts))
    nested = derive(
        PLANTED,
        folder,
        name="beside",
        arms={"base": [], "v1": ["../../patches/hva-retry/v1.patch"]},
        defaults={"guest": {"mem_mib": 16, "rounds": 1}},
        cells=CELLS,
    )
    document = yaml.safe_load(nested.read_text())
    paths = [nested]
    for host in hosts:
        target = {"kind": "ssh", "lab": str(lab), "hosts": [host.name], "deadline_s": 120}
        paths.append(folder / f"{host.name}.yaml")
        paths[-1].write_text(yaml.safe_dump(document | {"target": target}, sort_keys=False))
    return tuple(paths)


def test_one_command_shows_two_lab_hosts_and_nested_side_by_side(
    lab: tuple[LabVm, ...], lab_kernels: dict[str, BuiltKernel], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    ended = orch("run", *three(tmp_path, lab), "--results", results)
    assert ended.code == 0 and "Traceback" not in ended.err, ended.text
    runs = sorted((catalogue.open_run(path.parent) for path in results.glob(f"*/{STATUS}")), key=lambda run: run.name)
    assert len(runs) == 3
    found = side_by_side(runs)
    assert [column.label for column in found.columns] == ["nested icount (qemu)", "lab1 (ssh)", "lab2 (ssh)"]
    assert found.sentences[0].startswith("Nothing but the target's lines differs in the configs: target.kind, ")
    assert [(row.cell, row.arm) for row in found.rows] == [("quiet", "v1"), ("storm", "v1")]
    for row in found.rows:
        assert all(item and item.verdict in VERDICTS for item in row.verdicts)
        assert row.outcomes == ("base 1 ok; v1 1 ok",) * 3
    for run, machine in zip(runs, ("", "lab1", "lab2"), strict=True):
        trials = Store.read(run.folder).finished_trials()
        assert {(item.outcome, item.machine) for item in trials} == {(Outcome.OK, machine)} and len(trials) == 4
    for run in runs[1:]:
        assert [kernel.build_id for kernel in run.kernels] == [lab_kernels[arm].build_id for arm in ("base", "v1")]
    shown = re.search(r"^page: (.*beside\.html)$", ended.out, re.MULTILINE)
    assert shown
    page = Path(shown[1]).read_text()
    for run in runs:
        assert f"../../{run.name}/report.html" in page
    assert page.count(">lab2 (ssh): </span>") == 2 * 7 + len(found.rows) + len(found.checks) + len(found.differences)
    assert Path(shown[1]).with_name("beside.txt").read_text() in ended.out
