"""The kernel's own KVM selftests: reports of boots in, one row for each test and arm and the check's results out.

What passed in every boot of the base and does not pass in every boot of an arm is a regression. A test whose boots of
the base differ among themselves is flaky: it is shown and not gated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator import ktap
from orchestrator.analysis.built import TestPrograms
from orchestrator.analysis.checks import same_line
from orchestrator.analysis.correctness import SelftestFinding, SelftestRow, SelftestState
from orchestrator.analysis.model import CheckResult
from orchestrator.errors import RecordingError
from orchestrator.experiment import Experiment, Selftest, SelftestSpec
from orchestrator.results import WARNING, Outcome, TrialResult

CHECK = "kvm_selftests"
RECORDING_FILE = "recording.bin"
BAD: frozenset[SelftestFinding] = frozenset(("regression", "warning"))


@dataclass(frozen=True)
class Verdict:
    """What :func:`judge` comes to; rows by test, then by arm, base first."""

    rows: tuple[SelftestRow, ...]
    checks: tuple[CheckResult, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Seen:
    """One test in one boot."""

    state: SelftestState
    reason: str
    seconds: float
    warnings: tuple[str, ...]


def judge(
    experiment: Experiment, results: Sequence[TrialResult], programs: Sequence[TestPrograms], trials: Path
) -> Verdict:
    """Every test on every arm. ``programs`` are the arms' built tests, ``trials`` the folder with one folder a trial.

    Raises :class:`RecordingError` for a report of a trial that ended well and cannot be read.
    """
    spec, cell = experiment.selftests, experiment.selftest_cell
    if spec is None or cell is None:
        return Verdict((), (), ())
    ours = [item for item in results if item.cell == cell.name]
    built = {item.arm: item for item in programs}
    seen: dict[str, dict[str, list[_Seen]]] = {}
    for arm in experiment.arms:
        reports = [_report(item, trials) for item in ours if item.arm == arm.name]
        seen[arm.name] = {test.label: _look(test, spec, built.get(arm.name), reports) for test in spec.tests}
    base = experiment.base.name
    rows = [
        replace(
            _row(test.label, arm.name, seen[arm.name][test.label], seen[base][test.label], is_base=arm.name == base),
            cell=cell.name,
        )
        for test in spec.tests
        for arm in experiment.arms
    ]
    checks = [_check_base(base, rows)] if len(experiment.arms) == 1 else []
    for arm in experiment.arms[1:]:
        checks += _check(arm.name, rows, built)
    said = (_machine(spec, base), *notes(rows, [arm.name for arm in experiment.arms]))
    return Verdict(tuple(rows), tuple(checks), said)


def _report(result: TrialResult, trials: Path) -> dict[str, ktap.TestRun]:
    """What a boot says of its tests; of one that did not end well, as far as it came."""
    try:
        report = ktap.read(trials / result.id / RECORDING_FILE)
    except RecordingError:
        if result.outcome is Outcome.OK:
            raise
        return {}
    return {test.name: test for test in report.tests}


def _look(
    test: Selftest,
    spec: SelftestSpec,
    programs: TestPrograms | None,
    reports: Sequence[Mapping[str, ktap.TestRun]],
) -> list[_Seen]:
    """One test of one arm in each of its boots; once, if it could not run in any."""
    if not spec.enough_cpus(test):
        return [_Seen("skip", f"needs {test.cpus} CPUs, the target has {spec.cpus}", 0.0, ())]
    if programs is not None and programs.program(test.test) is None:
        return [_Seen("not built", programs.error_of(test.test), 0.0, ())]
    found = [report.get(test.label) for report in reports]
    return [
        _Seen("not run", "the boot ended before it", 0.0, ())
        if item is None
        else _Seen(item.state, item.reason, item.seconds, _warnings(item))
        for item in found
    ] or [_Seen("not run", "", 0.0, ())]


def _warnings(test: ktap.TestRun) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line for line in test.kernel_log if WARNING.search(line)))


def _row(test: str, arm: str, ours: Sequence[_Seen], base: Sequence[_Seen], *, is_base: bool) -> SelftestRow:
    known = {same_line(line) for item in base for line in item.warnings}
    lines = dict.fromkeys(line for item in ours for line in item.warnings)
    new = tuple(line for line in lines if is_base or same_line(line) not in known)
    states = tuple(item.state for item in ours)
    finding = _finding({item.state for item in base}, set(states), is_base=is_base)
    if finding == "same" and new and not is_base:
        finding = "warning"
    reasons = [item.reason for item in ours if item.reason]
    seconds = max(item.seconds for item in ours)
    return SelftestRow(test, arm, states, reasons[0] if reasons else "", seconds, finding, new)


def _finding(base: set[SelftestState], ours: set[SelftestState], *, is_base: bool) -> SelftestFinding:
    if len(base) > 1:
        return "flaky"
    if is_base or ours == base:
        return "same"
    if ours == {"not run"} or base == {"not run"}:
        return "not run"
    if base == {"pass"} or "lost" in ours:
        return "regression"
    return "better" if ours == {"pass"} else "changed"


def _check(arm: str, rows: Sequence[SelftestRow], built: Mapping[str, TestPrograms]) -> list[CheckResult]:
    """One result if all is well, else one for each test that is not."""
    ours = [row for row in rows if row.arm == arm]
    programs = built.get(arm)
    bad = [row for row in ours if row.finding in BAD]
    if bad and programs is not None and programs.build == "failed":
        return [CheckResult(CHECK, arm, "", "failed", f"its tests do not compile: {programs.error}")]
    if bad:
        return [CheckResult(CHECK, arm, row.test, "failed", _why(row)) for row in bad]
    good = sum(set(row.states) == {"pass"} and row.finding == "same" for row in ours)
    if not good:
        return [CheckResult(CHECK, arm, "", "not covered", f"no test passes on base and here; {_tally(ours)}")]
    cut = sum(row.finding == "not run" for row in ours)
    if cut:
        why = f"{cut} of {len(ours)} tests did not run; {_tally(ours)}"
        return [CheckResult(CHECK, arm, "", "not covered", why)]
    return [CheckResult(CHECK, arm, "", "held", f"{good} tests pass as on base; {_tally(ours)}")]


def _check_base(base: str, rows: Sequence[SelftestRow]) -> CheckResult:
    return CheckResult(CHECK, base, "", "not covered", f"no other arm to compare with; {_tally(rows)}")


def _why(row: SelftestRow) -> str:
    if row.finding == "warning":
        return f"the kernel's log: {row.warnings[0]}"
    bad = [state for state in row.states if state != "pass"]
    often = f" in {len(bad)} of {len(row.states)} boots" if len(row.states) > 1 else ""
    return f"passes on base, here: {bad[0]}{often}: {row.reason}" if bad else row.reason


def _tally(rows: Sequence[SelftestRow]) -> str:
    """``15 pass, 9 skip, 3 fail``, those that are flaky on base counted as such."""
    kinds: list[str] = ["flaky" if row.finding == "flaky" else min(row.states, key=_gravity) for row in rows]
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())


def _gravity(state: SelftestState) -> int:
    order: tuple[SelftestState, ...] = ("lost", "timeout", "fail", "not built", "not run", "skip", "pass")
    return order.index(state)


# --- in words ---------------------------------------------------------------------------------------------------------


def _machine(spec: SelftestSpec, base: str) -> str:
    """Where the tests ran, which need not be where anything was measured, and how often."""
    cpus = f"{spec.cpus} CPU{'s' if spec.cpus > 1 else ''}"
    return (
        f"{len(spec.tests)} tests by {spec.accel} with {cpus}; {base} in {spec.base_runs} boots, others in {spec.runs}"
    )


def notes(rows: Sequence[SelftestRow], arms: Sequence[str]) -> tuple[str, ...]:
    """Lines for a report: each arm's count, its differences to the base, what is flaky, what fails or skips anyway."""
    lines = []
    for arm in arms:
        ours = [row for row in rows if row.arm == arm]
        lines.append(f"{arm}: {_tally(ours)}")
        if arm == arms[0]:
            continue
        different = [row for row in ours if row.finding not in ("same", "flaky")]
        lines += [_difference(row, _base_row(rows, arms[0], row.test)) for row in different if row.finding != "not run"]
        if absent := [row for row in different if row.finding == "not run"]:
            why = f" ({absent[0].reason})" if absent[0].reason else ""
            lines.append(f"{arm}: not run{why}: {', '.join(row.test for row in absent)}")
        if not different:
            lines.append(f"{arm}: no test differs from {arms[0]}")
    base = [row for row in rows if row.arm == arms[0]]
    for row in base:
        if row.finding == "flaky":
            others = [f"{item.arm} {item.shown}" for item in rows if item.test == row.test and item.arm != row.arm]
            lines.append(f"flaky, so not gated: {row.test}: {', '.join([f'{row.arm} {row.shown}', *others])}")
    groups = dict.fromkeys((row.shown, row.reason) for row in base if row.finding != "flaky" and row.shown != "pass")
    for shown, reason in sorted(groups, key=lambda group: group[0]):
        tests = ", ".join(row.test for row in base if (row.shown, row.reason) == (shown, reason))
        already = f"skip ({reason}): {tests}" if shown == "skip" else f"{shown} on {arms[0]} already: {tests}: {reason}"
        lines.append(already)
    return tuple(lines)


def _base_row(rows: Sequence[SelftestRow], base: str, test: str) -> SelftestRow:
    return next(row for row in rows if (row.arm, row.test) == (base, test))


def _difference(row: SelftestRow, base: SelftestRow) -> str:
    if row.finding == "warning":
        return f"{row.arm}, {row.test}: WARNING, {row.shown} as on {base.arm}, but the kernel's log: {row.warnings[0]}"
    word = row.finding.upper() if row.finding in BAD else row.finding
    why = f": {row.reason}" if row.reason else ""
    return f"{row.arm}, {row.test}: {word}, {base.shown} on {base.arm}, here {row.shown}{why}"
