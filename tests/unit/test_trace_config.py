"""Traced boots in a config, in the plan, and as jobs; and what comes of the trace that they bring back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import simulate
from tracefile import Event, trace_bytes

from orchestrator import hosttrace
from orchestrator.errors import ConfigError
from orchestrator.experiment import Experiment, TracedCell, load
from orchestrator.experiment.reader import parse
from orchestrator.plan import Plan, Trial, make_plan
from orchestrator.results import Outcome
from orchestrator.store import load_json, to_json
from orchestrator.target.target import RECORDING, TRACE, Evidence, Job
from orchestrator.trial import make_job, run_trial

ROOT = Path(__file__).parents[2]
STORM = "{op: munmap, placement: outside, size_kib: 4}"
CELLS = f"cells: {{quiet: {{storm: none}}, outside: {{guest: {{tdp: [true, false]}}, storm: {STORM}}}}}"
HOST = ROOT / "configs/kernel/host.config"


def config(trace: str = "trace: {}", *, fragment: Path | str = HOST, more: str = "", cells: str = CELLS) -> str:
    """A config whose trace section stands in line 6."""
    return (
        "name: x\n"
        f"kernel: {{sources: [{{tree: linux}}], fragments: ['{fragment}']}}\n"
        "arms: {base: [], v1: [/dev/null]}\n"
        "target: {kind: qemu, mem_mib: 300}\n"
        f"{cells}\n{trace}\n{more}\n"
    )


def read(text: str) -> Experiment:
    return parse(text.encode(), Path("/nonexistent/x.yaml"))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return [problem.split(":", 1)[1] for problem in caught.value.problems]


def names(text: str) -> list[str]:
    return [cell.name for cell in read(text).traced_cells]


def test_cells_are_named_as_written_or_as_expanded() -> None:
    both = ["traced,outside,tdp=on", "traced,outside,tdp=off"]
    assert names(config()) == ["traced,quiet", *both]
    assert names(config("trace: {cells: [outside]}")) == both
    assert names(config("trace: {cells: ['outside,tdp=off']}")) == both[1:]
    assert names(config("")) == []


def test_what_a_trace_section_may_not_say() -> None:
    assert problems(config("trace: {cells: [inside, 3, quiet, quiet]}")) == [
        "6: trace.cells[0]: expected a name of cells, or of one that a list there expands to, found 'inside'",
        "6: trace.cells[1]: expected a name of cells, or of one that a list there expands to, found 3",
        "6: trace.cells[3]: expected each cell once, found 'quiet'",
    ]
    assert problems(config("trace: {cells: []}")) == ["6: trace.cells: expected at least one cell, found none"]
    assert problems(config("trace: {buffer_mib: 0}")) == ["6: trace.buffer_mib: expected at least 1, found 0"]
    assert "6: trace.buffers: expected the key 'buffer_mib'" in problems(config("trace: {buffers: 1}"))[0]


def test_a_kernel_that_cannot_trace_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    fragment = tmp_path / "small.config"
    fragment.write_text("CONFIG_FTRACE=y\n# CONFIG_KPROBE_EVENTS=y\n# CONFIG_KPROBE_EVENTS is not set\n")
    (problem,) = problems(config(fragment=fragment))
    assert problem.startswith("2: kernel.fragments: expected a fragment with the line CONFIG_KPROBE_EVENTS=y (and")
    assert read(config("", fragment=fragment)).trace is None
    fragment.write_text("CONFIG_KPROBE_EVENTS=y\n")
    assert read(config(fragment=fragment)).trace is not None


def test_the_shipped_kernels_can_trace_and_each_line_that_takes_is_there() -> None:
    lines = HOST.read_text().splitlines()
    assert {"CONFIG_FTRACE=y", "CONFIG_KPROBES=y", "CONFIG_KPROBE_EVENTS=y"} <= set(lines)


def test_buffers_must_fit_beside_the_cell() -> None:
    (problem,) = problems(config("trace: {cells: [quiet], buffer_mib: 200}"))
    assert problem.startswith(
        "6: trace.buffer_mib: expected what fits target.mem_mib, 300, found 393 MiB in cell quiet"
    )
    assert problem.endswith(", 200 of them for events")


def test_only_a_kernel_of_ours_is_traced_and_only_with_cells() -> None:
    local = "name: x\narms: {base: []}\ntarget: {kind: local}\ncells: {quiet: {storm: none}}\ntrace: {}\n"
    assert problems(local) == ["5: trace: expected target.kind: qemu, whose kernel is ours to trace, found local"]
    (problem,) = problems(config(cells="cells: {}", more="checks: [stale_mapping]"))
    assert problem == "6: trace: expected cells to trace, found none"


def test_the_attribution_check_wants_traced_boots() -> None:
    (problem,) = problems(config("", more="checks: [attribution]"))
    assert problem == "7: checks[0]: expected a section trace, whose boots this check looks at, found none"
    assert read(config(more="checks: [attribution]")).checks == ("attribution",)


def test_names_that_are_a_traced_boots_are_refused() -> None:
    (problem,) = problems(config("trace: {}", cells="cells: {'traced,quiet': {storm: none}}"))
    assert "expected another name (this one is a traced boot's)" in problem
    (problem,) = problems(config("trace: {}", cells=f"cells: {{{'x' * 90}: {{storm: none}}}}"))
    assert "expected a name of at most 88 characters, to trace it" in problem


def test_traced_boots_come_after_the_measured_ones_with_the_first_seed(tmp_path: Path) -> None:
    chosen = read(config("trace: {cells: [outside]}", more="schedule: {boots: 3}"))
    plan = make_plan(chosen)
    traced = [trial for trial in plan.trials if isinstance(trial.cell, TracedCell)]
    assert [(trial.id, trial.arm, trial.cell.name, trial.boot) for trial in traced] == [
        ("018", "base", "traced,outside,tdp=on", 0), ("019", "v1", "traced,outside,tdp=on", 0),
        ("020", "base", "traced,outside,tdp=off", 0), ("021", "v1", "traced,outside,tdp=off", 0),
    ]  # fmt: skip
    assert plan.trials[-4:] == tuple(traced)
    assert {trial.seed for trial in traced} == {plan.trials[0].seed}
    assert [block.index for block in plan.blocks] == list(range(11))
    path = tmp_path / "plan.json"
    path.write_bytes(to_json(plan))
    assert load_json(path, Plan) == plan


def traced_trial() -> tuple[Experiment, Trial]:
    chosen = read(config("trace: {cells: [quiet], buffer_mib: 8}"))
    return chosen, next(trial for trial in make_plan(chosen).trials if isinstance(trial.cell, TracedCell))


def test_the_job_is_the_untraced_one_but_for_the_trace() -> None:
    chosen, trial = traced_trial()
    assert isinstance(trial.cell, TracedCell)
    job = make_job(trial, chosen.target, Path("/vmlinux"))
    plain = make_job(replace(trial, cell=trial.cell.cell), chosen.target, Path("/vmlinux"))
    assert plain.trace_kib == 0 and job == replace(plain, trace_kib=8192)


class Leaves:
    """A target whose program ends well and leaves these files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = {"status.log": b"pid1 0.1\nstart 1.0\nexit 0\nend 2.0\n", **files}

    def run(self, job: Job, folder: Path) -> Evidence:
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return Evidence("ended", 0, 1.0, 2.0)


def test_a_whole_trace_is_kept_compressed(tmp_path: Path) -> None:
    chosen, trial = traced_trial()
    target = Leaves({RECORDING: simulate.recording_bytes(), TRACE: trace_bytes([Event(1, hosttrace.PAGE_FAULT)])})
    result = run_trial(trial, chosen.target, None, target, tmp_path, "again")
    assert (result.outcome, result.cell) == (Outcome.OK, "traced,quiet")
    assert not (tmp_path / TRACE).exists()
    assert len(hosttrace.read(tmp_path / hosttrace.PACKED).events) == 1


@pytest.mark.parametrize("kept", [None, 0, 100, -1])
def test_a_short_or_missing_trace_is_a_failed_trial(tmp_path: Path, kept: int | None) -> None:
    chosen, trial = traced_trial()
    whole = trace_bytes([Event(1, hosttrace.PAGE_FAULT)] * 10)
    files = {RECORDING: simulate.recording_bytes()} | ({} if kept is None else {TRACE: whole[:kept]})
    result = run_trial(trial, chosen.target, None, Leaves(files), tmp_path, "again")
    assert (result.outcome, result.recording_sha256) == (Outcome.FAILED, "")
    assert result.reason.startswith("the program said it was done, but ")
    assert not (tmp_path / hosttrace.PACKED).exists()


def test_shipped_experiments_that_trace() -> None:
    assert [cell.name for cell in load(ROOT / "configs/attribution.yaml").traced_cells]
