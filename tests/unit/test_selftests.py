"""The kernel's selftests in a config and in the plan, built from a toy tree, and put into the machine."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from ktapfile import Ran, built, experiment, report_text
from toykernel import Toy

from orchestrator import selftests
from orchestrator.engine import Runner
from orchestrator.errors import ConfigError, UserError
from orchestrator.experiment import Arm, Experiment, Selftest, TargetSpec, load
from orchestrator.experiment.reader import parse
from orchestrator.image import Guests, write_initramfs
from orchestrator.kernel.selftests import BuiltSelftests, build_selftests
from orchestrator.plan import Plan, make_plan
from orchestrator.progress import Reporter
from orchestrator.results import Outcome, TrialResult
from orchestrator.store import Store, load_json, to_json
from orchestrator.target.target import RECORDING, STATUS, Evidence, Job
from orchestrator.trial import run_trial
from orchestrator.trials import Conductor, phases

ROOT = Path(__file__).parents[2]
KVM = "tools/testing/selftests/kvm"
MAKEFILE = """\
TESTS := good_test x86_64/state_test
all: $(addprefix $(OUTPUT)/,$(TESTS))
$(OUTPUT)/%: %.c
	@mkdir -p $(@D)
	gcc $(LDFLAGS) -I$(INSTALL_HDR_PATH)/include -o $@ $<
"""
# Out of tree, as the kernel's: into INSTALL_HDR_PATH and with what O= has, never into the tree.
HEADERS_INSTALL = """
headers_install:
	@mkdir -p $(INSTALL_HDR_PATH)/include
	@cp $(src)/include/kvm.h $(INSTALL_HDR_PATH)/include/uapi.h
"""
GOOD = '#include "uapi.h"\nint main(void) { return 0; }\n'


def config(section: str, checks: str = "[kvm_selftests]", target: str = "{kind: qemu}") -> str:
    return (
        "name: x\nkernel: {sources: [{tree: linux}], fragments: [/dev/null]}\narms: {base: [], v1: [/dev/null]}\n"
        f"target: {target}\nchecks: {checks}\n{section}\n"
    )


def read(section: str) -> Experiment:
    return parse(config(section).encode(), Path("/nonexistent/x.yaml"))


# --- config -----------------------------------------------------------------------------------------------------------


def test_the_projects_own_config_and_the_defaults() -> None:
    own = load(ROOT / "configs" / "selftests.yaml").selftests
    assert own is not None and len(own.tests) >= 27 and own.base_runs == 2
    defaults = read("").selftests
    assert defaults is not None and len(defaults.tests) >= 15 and (defaults.accel, defaults.cpus) == ("tcg", 2)


def test_tests_are_names_or_say_more() -> None:
    spec = read("selftests: {tests: [smm_test, {test: a/b_test, args: ['-b', 1G], timeout_s: 5, cpus: 2}]}").selftests
    assert spec is not None
    assert spec.tests == (Selftest("smm_test"), Selftest("a/b_test", ("-b", "1G"), 5, 2))
    assert spec.tests[1].label == "a/b_test -b 1G" and spec.guest_deadline_s > 65


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("selftests: {tests: []}", "6: selftests.tests: expected at least one test"),
        ("selftests: {tests: [a, a]}", "6: selftests.tests[1]: expected each test with the same arguments once"),
        ("selftests: {tests: [../../bin/sh]}", "6: selftests.tests[0].test: expected a test of tools"),
        (
            "selftests: {tests: [{test: a, args: ['x y']}]}",
            "6: selftests.tests[0].args[0]: expected an argument of letters",
        ),
        (
            "selftests: {tests: [{test: a, args: ['#']}]}",
            "6: selftests.tests[0].args[0]: expected an argument of letters",
        ),
        ("selftests: {tests: [{test: a, time: 5}]}", "unknown key"),
        ("selftests: {accel: icount}", "6: selftests.cpus: expected 1 with accel: icount"),
        ("selftests: {accel: auto}", "selftests.accel"),
        ("selftests: {cpus: 1, tests: [{test: a, cpus: 2}]}", "selftests.cpus: expected what at least one"),
    ],
)
def test_what_cannot_work_is_said_with_its_place(section: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(section)
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_the_section_needs_the_check_and_the_check_a_machine() -> None:
    for text in (config("selftests: {cpus: 2}", checks="[]"), config("", target="{kind: local}")):
        with pytest.raises(ConfigError, match="selftests"):
            parse(text.encode(), Path("/nonexistent/x.yaml"))


def test_a_test_that_the_tree_does_not_have_is_an_error_before_anything_is_built() -> None:
    spec = experiment("x86_64/smm_tset").selftests
    assert spec is not None
    with pytest.raises(UserError, match=r"did you mean x86_64/smm_test\?"):
        selftests.check_names(spec, ("x86_64/smm_test", "steal_time"), "Linux 5.10")


# --- plan -------------------------------------------------------------------------------------------------------------


def test_the_base_runs_on_either_side_of_the_arms() -> None:
    plan = make_plan(experiment("smm_test", arms=("base", "v1", "v2"), base_runs=3))
    (block,) = plan.blocks
    assert [(trial.arm, trial.boot) for trial in block.trials] == [
        ("base", 0), ("base", 1), ("v1", 0), ("v2", 0), ("base", 2),
    ]  # fmt: skip
    assert [trial.id for trial in block.trials] == ["000", "001", "002", "003", "004"]


def test_a_plan_with_selftests_is_read_back_as_it_was(tmp_path: Path) -> None:
    plan = make_plan(experiment(Selftest("smm_test", ("-i", "8")), base_runs=2))
    (tmp_path / "plan.json").write_bytes(to_json(plan))
    assert load_json(tmp_path / "plan.json", Plan) == plan


def test_they_run_last_and_one_boot_at_a_time_unless_time_is_counted() -> None:
    both = load(ROOT / "configs" / "quickstart.yaml")
    both = replace(both, selftests=experiment("smm_test").selftests, checks=("kvm_selftests",))
    plan = make_plan(both)
    measuring, tests = phases(plan)
    assert (measuring + tests, len(tests)) == (plan.blocks, 1)

    executed: list[tuple[int, str, int | None]] = []

    class Noted:
        def resume(self, plan: Plan, done: Sequence[TrialResult]) -> Sequence[TrialResult]:
            return done

        def runs(self, trial: object) -> bool:
            return True

        def execute(self, plan: Plan, finished: object, accel: str, jobs: int | None, on_result: object) -> None:
            executed.append((len(plan.blocks), accel, jobs))

    conductor = Conductor(both, plan, "icount", 2, cast(Store, None), cast(Runner, Noted()), Reporter())
    conductor.run(())
    assert executed == [(len(measuring), "icount", 2), (1, "tcg", 1)]


# --- build ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    toy = Toy(tmp_path)
    folder = toy.origin / KVM
    (folder / "x86_64").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "good_test.c").write_text(GOOD)
    (folder / "x86_64/state_test.c").write_text(GOOD)
    (folder / "lib/kvm_util.c").write_text("no test\n")
    makefile = toy.origin / "Makefile"
    makefile.write_text(makefile.read_text() + HEADERS_INSTALL)
    return toy


def build(toy: Toy, **arms: Path) -> dict[str, BuiltSelftests]:
    specs = [Arm("base", ()), *(Arm(name, (path,)) for name, path in arms.items())]
    return {item.arm: item for item in build_selftests(toy.tree(), specs, toy.cache, lambda line: None)}


def test_programs_are_static_cached_and_the_tree_stays_clean(toy: Toy) -> None:
    base = build(toy)["base"]
    assert (base.build, base.cached, [item.name for item in base.programs]) == (
        "ok", False, ["good_test", "x86_64/state_test"],
    )  # fmt: skip
    program = base.program("x86_64/state_test")
    assert program is not None and subprocess.run([program], check=False).returncode == 0
    assert b"/lib64/ld-linux" not in program.read_bytes(), "it would need files that the machine does not have"
    again = build(toy)["base"]
    assert again.cached and replace(again, cached=False) == base
    assert not list(toy.tree().path.rglob("*.o")) and not (toy.tree().path / "usr").exists()


def test_a_patch_that_breaks_a_test_takes_no_other_one_with_it(toy: Toy) -> None:
    broken = toy.patch("broken", {f"{KVM}/good_test.c": lambda text: text + "int x = y;\n"})
    v1 = build(toy, v1=broken)["v1"]
    assert v1.build == "ok" and v1.program("good_test") is None and v1.program("x86_64/state_test") is not None
    assert "good_test.c:3:" in v1.error_of("good_test") and "'y' undeclared" in v1.error_of("good_test")


def test_a_patch_that_breaks_an_exported_header_is_classified_and_the_base_is_not_touched(toy: Toy) -> None:
    broken = toy.patch("broken", {"include/kvm.h": lambda text: text + "int x = y;\n"})
    found = build(toy, v1=broken)
    assert (found["base"].build, found["v1"].build, found["v1"].folder) == ("ok", "failed", None)
    assert "'y' undeclared" in found["v1"].error and found["v1"].program("good_test") is None
    assert "DO NOT COMPILE" in selftests.describe(found["v1"]) and "2 of 2" in selftests.describe(found["base"])


def test_a_damaged_program_in_the_cache_is_built_again(toy: Toy) -> None:
    base = build(toy)["base"]
    program = base.program("good_test")
    assert program is not None
    program.write_bytes(b"x")
    assert not build(toy)["base"].cached and program.read_bytes() != b"x"


# --- the trial --------------------------------------------------------------------------------------------------------


class Machine:
    """A target that leaves ``report``, and keeps what it was asked."""

    def __init__(self, report: str) -> None:
        self.report = report
        self.jobs: list[Job] = []

    def run(self, job: Job, folder: Path) -> Evidence:
        self.jobs.append(job)
        (folder / STATUS).write_text("pid1 0.1\nstart 1.0\nexit 0\nend 9.0\n")
        (folder / RECORDING).write_text(self.report)
        return Evidence("ended", 0, 0.5, 9.0)


def test_a_trial_gets_the_programs_that_it_can_run(tmp_path: Path) -> None:
    chosen = experiment(Selftest("a", ("-i", "8"), 5), Selftest("b", cpus=9), "c", "x86_64/d", mem_mib=2048)
    machine = Machine(report_text({"a -i 8": Ran("fail"), "x86_64/d": Ran("pass")}))
    item = make_plan(chosen).trials[0]
    tests = built("base", {"a": "", "b": "", "c": "c.c:1: error: x", "x86_64/d": ""})
    result = run_trial(item, TargetSpec("qemu"), Path("/vmlinux"), machine, tmp_path, "again", None, tests)
    assert result.outcome is Outcome.OK and result.recording_sha256, "a test that fails is a result, not a failed trial"
    (job,) = machine.jobs
    assert (job.program, job.cpus, job.mem_mib, job.guest_deadline_s) == ("ktest_runner", 2, 2048, 60.0 + 5 + 3 * 60)
    assert [file.path for file in job.files] == ["trial/selftests.list", "selftests/a", "selftests/x86_64/d"]
    assert (tmp_path / "selftests.list").read_text() == "5 a -i 8\n60 x86_64/d\n"


def test_a_report_without_an_end_is_a_failed_trial(tmp_path: Path) -> None:
    machine = Machine(report_text({"a": Ran("pass"), "b": Ran("lost")}).rpartition("\n")[0] + "\n")
    item = make_plan(experiment("a", "b")).trials[0]
    result = run_trial(item, TargetSpec("qemu"), None, machine, tmp_path, "", None, built("base", {"a": "", "b": ""}))
    assert result.outcome is Outcome.FAILED and "ends after 2 of 2 tests" in result.reason


def test_files_lie_in_the_initramfs_and_the_runner_with_them(tmp_path: Path) -> None:
    for name in ("init", "fault_vmm", "ktest_runner", "list"):
        (tmp_path / name).write_text(name)
    guests = Guests(tmp_path / "init", tmp_path / "fault_vmm", tmp_path / "tsc_khz", "x")
    files = [selftests.GuestFile("selftests/x86_64/d", tmp_path / "list")]
    write_initramfs(guests, ["/bin/ktest_runner"], tmp_path / "x.cpio", files)
    listed = subprocess.run(["cpio", "-t"], input=(tmp_path / "x.cpio").read_bytes(), capture_output=True, check=True)
    names = listed.stdout.decode().split()
    assert {"bin/ktest_runner", "selftests/x86_64/d", "init"} <= set(names) and "bin/fault_vmm" not in names
