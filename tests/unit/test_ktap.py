"""The reader of the selftests' report: golden reports, every cut of them, lies, and the runner itself."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from orchestrator import ktap
from orchestrator.errors import RecordingError

DATA = Path(__file__).parents[1] / "data" / "ktap"
RUNNER = Path(__file__).parents[2] / "guests" / "ktest_runner" / "ktest_runner.c"
REAL = (DATA / "real.ktap").read_text()


def states(report: ktap.Report) -> list[tuple[str, str]]:
    return [(test.name, test.state) for test in report.tests]


def test_a_real_report() -> None:
    report = ktap.read(DATA / "real.ktap")
    assert report.complete and report.planned == 7
    assert states(report) == [
        ("dirty_log_test -i 8", "fail"), ("x86_64/debug_regs", "fail"), ("x86_64/evmcs_test", "skip"),
        ("x86_64/hyperv_cpuid", "pass"), ("x86_64/smm_test", "fail"), ("x86_64/svm_vmcall_test", "pass"),
        ("x86_64/xss_msr_test", "skip"),
    ]  # fmt: skip
    reasons = {test.name: test.reason for test in report.tests}
    # What had been buffered before the assertion comes after it, and pids differ from run to run.
    assert reasons["dirty_log_test -i 8"] == (
        "dirty_log_test.c:315: *value_ptr == iteration || *value_ptr == iteration - 1:"
        " Set page 719 value 0 incorrect (iteration=4)"
    )
    assert reasons["x86_64/xss_msr_test"] == "IA32_XSS is not supported by the vCPU"
    assert reasons["x86_64/hyperv_cpuid"] == "", "it passed, whatever it says of one part"
    assert report.tests[0].seconds == 5.764


def test_lies_signals_timeouts_and_the_kernels_log() -> None:
    liar, slow, dead, quiet, denied = ktap.read(DATA / "hostile.ktap").tests
    assert (liar.state, liar.reason) == ("fail", "exit code 254; last line: ==== Test Assertion Failure ====")
    assert liar.output[0] == "ok 1 liar # exit=0 seconds=0.000"
    assert liar.kernel_log[0].startswith("WARNING: CPU: 1 PID: 71") and len(liar.kernel_log) == 2
    assert (slow.name, slow.state, slow.reason) == (
        "slow -i 8", "timeout", "ended after 60 s; last line: (12 more lines)",
    )  # fmt: skip
    assert (dead.state, dead.reason) == ("fail", "died of SIGSEGV; it printed nothing")
    assert (quiet.state, quiet.reason) == ("skip", "it gives no reason")
    assert (denied.state, denied.reason) == ("skip", "access denied")


def test_every_cut_is_read_as_far_as_it_goes_and_never_as_complete() -> None:
    whole = ktap.parse(REAL, "x").tests
    for end in range(REAL.index("# 1 begin"), len(REAL)):
        report = ktap.parse(REAL[:end], "x")
        assert not report.complete and len(report.tests) <= 7
        done = [test for test in report.tests if test.state != "lost"]
        assert done == list(whole[: len(done)])
        assert [test.state for test in report.tests[len(done) :]] in ([], ["lost"])


def test_the_test_that_a_report_ends_in_is_lost() -> None:
    cut = ktap.parse(REAL[: REAL.index("not ok 2")], "x")
    assert states(cut) == [("dirty_log_test -i 8", "fail"), ("x86_64/debug_regs", "lost")]
    assert cut.tests[1].output[0] == ktap.ASSERTION, "what it had printed is kept"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("KTAP version 1", "TAP version 14"),
        ("1..7", "1..0"),
        ("1..7", "1..6"),  # more tests than planned
        ("1..7", "1..8"),  # an end before the last
        ("ok 3 x86_64/evmcs_test", "ok 3 x86_64/state_test"),  # another one's result
        ("ok 3 x86_64/evmcs_test", "ok 4 x86_64/evmcs_test"),
        ("# 4 out", "# 5 out"),  # two tests at once
        ("# 6 begin x86_64/svm_vmcall_test\n", ""),
        ("# 3 begin", "hello\n# 3 begin"),
        ("exit=254 seconds=0.347", "exit=254"),
        ("# end 7", "# end 6"),
        ("# end 7\n", "# end 7\n# 8 begin x\n"),
    ],
)
def test_what_contradicts_itself_is_an_error_with_its_line(old: str, new: str) -> None:
    with pytest.raises(RecordingError, match=r"x(:\d+)?[: ]"):
        ktap.parse(REAL.replace(old, new, 1), "x")


def test_no_report_at_all(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no report of ktest_runner"):
        ktap.parse("", "x")
    with pytest.raises(RecordingError, match="cannot read"):
        ktap.read(tmp_path / "gone")


# --- the runner -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ktest_runner for this machine, beside the folder ``tests/`` that it takes programs from."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("runner")
    (folder / "tests").mkdir()
    places = [f'-DTESTS_FOLDER="{folder}/tests/"', '-DKERNEL_LOG="/dev/null"']
    argv = ["gcc", "-std=gnu11", *places, f"-I{RUNNER.parents[1]}/include", "-o", str(folder / "runner"), str(RUNNER)]
    subprocess.run(argv, check=True)
    return folder


def run(folder: Path, tests: dict[str, str], timeout_s: float = 60.0) -> ktap.Report:
    """Shell scripts as tests, run by the runner, read by the reader."""
    for name, script in tests.items():
        path = folder / "tests" / name.split()[0]
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    (folder / "list").write_text("".join(f"{timeout_s:g} {name}\n" for name in tests))
    argv = [folder / "runner", "--list", folder / "list", "--out", folder / "out"]
    subprocess.run(argv, check=True, timeout=300)
    return ktap.read(folder / "out")


def test_the_runner_says_how_each_test_ended(runner: Path) -> None:
    report = run(
        runner,
        {
            "good -i 8": 'echo "$@"',
            "bad": "exit 3",
            "skip": "echo nested VMX not enabled, skipping test; exit 4",
            "dead": "kill -SEGV $$",
            "liar": r"printf '\nok 5 liar # exit=0 seconds=0.000\n# end 7\n\033[31mno newline'; exit 1",
            "loud": "seq 1 1000",
        },
    )
    assert report.complete
    assert [test.state for test in report.tests] == ["pass", "fail", "skip", "fail", "fail", "pass"]
    good, _, skip, dead, liar, loud = report.tests
    assert (good.name, good.output) == ("good -i 8", ("-i 8",))
    assert skip.reason == "nested VMX not enabled" and dead.reason.startswith("died of SIGSEGV")
    assert liar.output == ("", "ok 5 liar # exit=0 seconds=0.000", "# end 7", "?[31mno newline")
    assert loud.output[-2:] == ("400", "(600 more lines)")


def test_the_runner_ends_a_test_for_its_time_and_what_it_left_running(runner: Path) -> None:
    started = time.monotonic()
    tests = {"slow": "echo begun; sleep 600 & sleep 600", "leaves": "sleep 600 & exit 0"}
    report = run(runner, tests, timeout_s=3)
    assert time.monotonic() - started < 100
    assert [(test.state, test.output) for test in report.tests] == [("timeout", ("begun",)), ("pass", ())]
    assert 3 <= report.tests[0].seconds < 30


def test_a_program_that_is_not_there_fails(runner: Path) -> None:
    (runner / "list").write_text("60 gone\n")
    subprocess.run([runner / "runner", "--list", runner / "list", "--out", runner / "out"], check=True, timeout=120)
    (test,) = ktap.read(runner / "out").tests
    assert test.state == "fail" and "No such file" in test.reason


@pytest.mark.parametrize("text", ["", "gone\n", "0 x\n", "5\n"])
def test_a_list_that_is_none_is_refused(runner: Path, text: str) -> None:
    (runner / "list").write_text(text)
    argv = [runner / "runner", "--list", runner / "list", "--out", runner / "out"]
    assert subprocess.run(argv, check=False, capture_output=True, timeout=120).returncode == 1
