"""Reports of the kernel's selftests, made up, and trials that left them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.experiment import (
    Arm,
    Experiment,
    KernelSpec,
    ReportSpec,
    Schedule,
    Selftest,
    SelftestSpec,
    TargetSpec,
)
from orchestrator.kernel.selftests import BuiltSelftests, Program
from orchestrator.results import Outcome, TrialResult

ENDINGS = {
    "pass": "ok {} {} # exit=0 seconds=0.100",
    "fail": "not ok {} {} # exit=254 seconds=0.200",
    "skip": "ok {} {} # SKIP exit=4 seconds=0.001",
    "timeout": "not ok {} {} # TIMEOUT seconds=60.000",
}


@dataclass(frozen=True)
class Ran:
    """How a made-up test ended, what it said, and what the kernel said; ``lost``: the report ends in it."""

    state: str
    said: str = ""
    log: tuple[str, ...] = field(default=())


def report_text(tests: Mapping[str, Ran]) -> str:
    """A report of ``tests`` by label; it ends early in one that is ``lost``."""
    lines = ["KTAP version 1", f"1..{len(tests)}"]
    for number, (label, ran) in enumerate(tests.items(), 1):
        lines.append(f"# {number} begin {label}")
        lines += [f"# {number} out {ran.said}"] if ran.said else []
        lines += [f"# {number} log {line}" for line in ran.log]
        if ran.state == "lost":
            return "\n".join(lines) + "\n# cut in the mid"
        lines.append(ENDINGS[ran.state].format(number, label))
    return "\n".join([*lines, f"# end {len(tests)}"]) + "\n"


def experiment(*tests: str | Selftest, arms: tuple[str, ...] = ("base", "v1"), **spec: object) -> Experiment:
    """An experiment that runs only these tests."""
    chosen = tuple(Selftest(test) if isinstance(test, str) else test for test in tests)
    return Experiment(
        name="selftests", description="", path=Path("/x.yaml"), kernel=KernelSpec((), ()),
        arms=tuple(Arm(name, ()) for name in arms), target=TargetSpec("qemu"), cells=(), schedule=Schedule(),
        checks=("kvm_selftests",), report=ReportSpec(),
        selftests=SelftestSpec(chosen, **spec),  # type: ignore[arg-type]
    )  # fmt: skip


def trial(folder: Path, number: str, arm: str, tests: Mapping[str, Ran], boot: int = 0) -> TrialResult:
    """A finished trial below ``folder`` with its report."""
    (folder / number).mkdir(parents=True)
    (folder / number / "recording.bin").write_text(report_text(tests))
    lost = any(ran.state == "lost" for ran in tests.values())
    outcome, reason = (Outcome.PANIC, "Kernel panic") if lost else (Outcome.OK, "")
    return TrialResult(
        number, arm, "kvm-selftests", boot, 0, 1, outcome, reason, (), (), 1.0, 9.0, "", f"orch trial RUN {number}"
    )


def built(arm: str, programs: Mapping[str, str] | None = None, error: str = "") -> BuiltSelftests:
    """An arm's tests: names with the compiler's error, empty for those that compiled; ``error``: none did."""
    found = tuple(Program(name, "" if why else "ab" * 32, why) for name, why in (programs or {}).items())
    folder = None if error else Path("/selftests")
    return BuiltSelftests(arm, "failed" if error else "ok", folder, found, 1.0, False, Path("/build.log"), error)
