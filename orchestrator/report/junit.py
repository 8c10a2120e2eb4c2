"""junit.xml: one test case for each cell and arm, each check, and each of the kernel's selftests, for CI servers."""

from __future__ import annotations

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from orchestrator.analysis.correctness import SelftestRow
from orchestrator.analysis.model import CheckResult, Comparison, FailedTrial
from orchestrator.report.style import clean

# The kernel or the target fell over: an error. The guest program's own verdict: a failure.
FAILURES = ("failed", "stale")


def render(comparison: Comparison) -> bytes:
    """The XML document."""
    document = JUnitXml(clean(comparison.name))
    trials = TestSuite("trials")
    for item in comparison.summaries:
        trials.add_testcase(_trial(comparison, item.cell, item.arm))
    checks = TestSuite("checks")
    for check in comparison.checks:
        checks.add_testcase(_check(check))
    document.add_testsuite(trials)
    document.add_testsuite(checks)
    if comparison.selftests:
        selftests = TestSuite("kvm_selftests")
        for row in comparison.selftests:
            selftests.add_testcase(_selftest(row))
        document.add_testsuite(selftests)
    document.update_statistics()  # type: ignore[no-untyped-call]
    text: bytes = document.tostring()  # type: ignore[no-untyped-call]
    return text


def _trial(comparison: Comparison, cell: str, arm: str) -> TestCase:
    summary = comparison.summary(cell, arm)
    case = TestCase(clean(arm), classname=clean(cell), time=None)
    bad = [item for item in comparison.failures if (item.cell, item.arm) == (cell, arm)]
    if summary.outcome == "not run":
        case.result = [Skipped("not run")]
    elif summary.outcome == "build failed":
        error = next(item.error for item in comparison.arms if item.name == arm)
        case.result = [_problem("error", "build failed", error)]
    else:
        kinds = ("failure" if item.outcome in FAILURES else "error" for item in bad)
        case.result = [
            _problem(kind, f"{item.outcome}: {item.reason}", _console(item))
            for kind, item in zip(kinds, bad, strict=True)
        ]
    verdict = next((item for item in comparison.verdicts if (item.cell, item.arm) == (cell, arm)), None)
    if verdict is not None:
        case.system_out = clean(f"{verdict.verdict}: {verdict.summary}")
    return case


def _console(item: FailedTrial) -> str:
    lines = (*item.trace, *(("console ends:", *item.console_tail) if item.console_tail else ()))
    return "\n".join((*lines, f"log: {item.console}", f"again: {item.rerun}"))


def _check(check: CheckResult) -> TestCase:
    where = ", ".join(part for part in (check.cell, check.arm) if part) or "the run"
    case = TestCase(clean(where), classname=clean(f"check.{check.name}"))
    if check.status == "failed":
        case.result = [_problem("failure", check.why, check.why)]
    elif check.status == "not covered":
        case.result = [Skipped(clean(check.why))]
    return case


def _selftest(row: SelftestRow) -> TestCase:
    """One of the kernel's own tests on one arm. What the base fails as well, or only sometimes, is no failure here."""
    case = TestCase(clean(row.arm), classname=clean(f"kvm_selftests.{row.test}"), time=row.seconds)
    said = f"{row.shown}: {row.reason}" if row.reason else row.shown
    if row.finding in ("regression", "warning"):
        text = "\n".join((said, *row.warnings))
        case.result = [_problem("failure", f"{row.finding}: {said}", text)]
    elif row.shown == "skip":
        case.result = [Skipped(clean(row.reason))]
    elif row.shown != "pass":
        case.result = [Skipped(clean(f"{row.finding}, not gated: {said}"))]
    return case


def _problem(kind: str, message: str, text: str) -> Error | Failure:
    made = Error(clean(message), kind) if kind == "error" else Failure(clean(message), kind)
    made.text = clean(text)
    return made
