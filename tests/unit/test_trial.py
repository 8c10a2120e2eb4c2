"""trial.py: what a target left behind becomes an outcome, and a cell becomes the guest program's arguments."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate import recording_bytes

from orchestrator.experiment import Cell, Guest, LinuxGuest, Storm, TargetSpec
from orchestrator.plan import Trial
from orchestrator.results import Outcome, TrialResult
from orchestrator.target.target import CONSOLE, INITRAMFS, RECORDING, STATUS, Ending, Evidence, Job
from orchestrator.trial import TRACE_LINES, classify, find_warnings, make_job, program_words, run_trial

CONSOLES = Path(__file__).parents[1] / "data" / "consoles"
GUESTS = Path(__file__).parents[2] / "guests"
WELL = "pid1 0.08\nstart 1.08\nexit 0\nend 1.14\n"
CUT_SHORT = "pid1 0.08\nstart 1.08\n"
QUIET = Cell("quiet", Guest(rounds=1), None)


def leave(folder: Path, console: str | bytes = "ok.log", status: str | None = WELL) -> Path:
    """A trial's folder: a golden console by name (or its bytes), and what init said."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(console, str):
        shutil.copy(CONSOLES / console, folder / CONSOLE)
    else:
        (folder / CONSOLE).write_bytes(console)
    if status is not None:
        (folder / STATUS).write_text(status)
    return folder


def evidence(ending: Ending = "ended", returncode: int = 0) -> Evidence:
    return Evidence(ending, returncode, boot_seconds=0.7, wall_seconds=3.25)


# --- what the kernel printed ------------------------------------------------------------------------------------------


def test_a_trial_that_ended_well(tmp_path: Path) -> None:
    assert classify(evidence(), leave(tmp_path)) == (Outcome.OK, "", ())


@pytest.mark.parametrize("name", ["panic", "panic-prefixes", "panic-bare", "panic-interleaved"])
def test_a_panic_whatever_stands_before_its_lines(tmp_path: Path, name: str) -> None:
    outcome, reason, trace = classify(evidence(), leave(tmp_path, f"{name}.log", CUT_SHORT))
    assert (outcome, reason) == (Outcome.PANIC, "Kernel panic - not syncing: planted: guest page fault 1000")
    assert trace[0].endswith(reason) and any("direct_page_fault.cold+0x2e/0x2e" in line for line in trace)
    assert "CPU: 0 PID: 23 Comm: fault_vmm Not tainted 5.10.262 #1" in trace
    assert len(trace) == TRACE_LINES


def test_an_oops_after_which_the_host_went_on_to_its_deadline(tmp_path: Path) -> None:
    """What came first explains the rest: the task died with KVM's locks held, so the program never ended."""
    folder = leave(tmp_path, "oops.log", f"{CUT_SHORT}deadline 61.08\nend 61.08\n")
    outcome, reason, trace = classify(evidence(), folder)
    assert outcome is Outcome.OOPS
    assert reason == ("BUG: kernel NULL pointer dereference, address: 0000000000000000 in direct_page_fault+0x51/0xa80")
    assert trace[0].startswith("BUG: kernel NULL") and "RIP: 0010:direct_page_fault+0x51/0xa80" in trace


def test_a_warning_that_was_told_to_panic_is_named(tmp_path: Path) -> None:
    """As a KASAN kernel printed it; its own start has a line with WARNING as well."""
    console = (
        "[    0.344105] Speculative Return Stack Overflow: WARNING: See https://kernel.org/doc\n"
        "[    2.281121] ------------[ cut here ]------------\n"
        "[    2.281381] WARNING: CPU: 0 PID: 22 at include/linux/kvm_host.h:1252 direct_page_fault+0x8b2/0x1210\n"
        "[    2.281653] RIP: 0010:direct_page_fault+0x8b2/0x1210\n"
        "[    2.290000] Kernel panic - not syncing: kernel: panic_on_warn set ...\n"
    )
    outcome, reason, trace = classify(evidence(), leave(tmp_path, console.encode(), CUT_SHORT))
    assert outcome is Outcome.PANIC and trace[0] == reason.removesuffix(" (panic_on_warn)")
    assert reason.startswith("WARNING: CPU: 0 PID: 22 at include/linux/kvm_host.h:1252 direct_page_fault+0x8b2")


def test_an_oops_then_a_panic_is_an_oops(tmp_path: Path) -> None:
    outcome, reason, trace = classify(evidence(), leave(tmp_path, "oops-then-panic.log", CUT_SHORT))
    assert outcome is Outcome.OOPS and reason.endswith("in direct_page_fault+0x51/0xa80, then panicked")
    assert trace[0].startswith("BUG: kernel NULL")


def test_a_console_that_ends_in_the_middle_of_a_trace(tmp_path: Path) -> None:
    outcome, reason, trace = classify(evidence("killed", -9), leave(tmp_path, "oops-cut.log", CUT_SHORT))
    assert outcome is Outcome.OOPS and "direct_page_fault" in reason and trace[-1] == "Call"


@pytest.mark.parametrize(("name", "first"), [("microvm", "NMI: PCI system error (SERR)"), ("q35", "Uhhuh. NMI")])
def test_the_watchdogs_nmi_is_a_hang_with_its_place(tmp_path: Path, name: str, first: str) -> None:
    folder = leave(tmp_path, f"hang-{name}.log", CUT_SHORT)
    outcome, reason, trace = classify(evidence(), folder)
    assert outcome is Outcome.HANG
    assert reason == "the kernel hung; the watchdog's NMI found it in direct_page_fault+0x47c/0xac0"
    assert trace[0].startswith(first) and "Kernel panic - not syncing: NMI: Not continuing" in trace
    assert classify(evidence("wall-deadline"), folder)[:2] == (
        Outcome.HANG,
        "no end within the deadline (wall time); an NMI found it in direct_page_fault+0x47c/0xac0",
    )


def test_nothing_of_a_console_reaches_a_terminal_as_a_command(tmp_path: Path) -> None:
    outcome, reason, trace = classify(evidence(), leave(tmp_path, "hostile.log", CUT_SHORT))
    assert outcome is Outcome.PANIC and "<script>" in reason  # Text; the HTML report escapes it.
    assert all(char.isprintable() or char == "\t" for line in (reason, *trace) for char in line)


@settings(deadline=None)  # Its first example once took longer than 200 ms on a machine with other loads.
@given(console=st.binary(max_size=300), status=st.binary(max_size=100))
def test_no_bytes_break_the_classification(
    tmp_path_factory: pytest.TempPathFactory, console: bytes, status: bytes
) -> None:
    folder = leave(tmp_path_factory.mktemp("fuzz"), console, None)
    (folder / STATUS).write_bytes(status)
    outcome, reason, trace = classify(evidence(), folder)
    assert outcome in Outcome and "\n" not in reason
    assert all(char.isprintable() or char == "\t" for line in (reason, *trace) for char in line)


def test_warnings_of_a_kernel_that_went_on_are_each_named_once(tmp_path: Path) -> None:
    folder = leave(tmp_path, "warnings.log")
    (folder / RECORDING).write_bytes(recording_bytes())
    result = run(folder)
    assert result.outcome is Outcome.OK
    assert result.warnings == (
        "WARNING: CPU: 0 PID: 23 at arch/x86/kvm/mmu/mmu.c:3713 direct_page_fault+0x51/0xa80",
        "BUG: Bad page state in process fault_vmm  pfn:02600",
        "Bad rss-counter state mm:00000000d1b0ac5f type:MM_ANONPAGES val:8",
    )


def test_a_boot_without_trouble_has_no_warnings() -> None:
    assert find_warnings((CONSOLES / "ok.log").read_text().splitlines()) == ()
    assert find_warnings((CONSOLES / "soft-lockup.log").read_text().splitlines())[0].count("soft lockup") == 1


# --- what init and the target said ------------------------------------------------------------------------------------


def test_a_deadline_in_wall_time(tmp_path: Path) -> None:
    outcome, reason, trace = classify(evidence("wall-deadline", -9), leave(tmp_path, status=CUT_SHORT))
    assert outcome is Outcome.HANG and reason == "no end within the deadline (wall time), while the program ran"
    assert trace[-1] == "reboot: Restarting system"


def test_a_kernel_that_never_came_to_init(tmp_path: Path) -> None:
    outcome, reason, _ = classify(evidence("wall-deadline", -9), leave(tmp_path, status=""))
    assert outcome is Outcome.HANG and reason.endswith("before PID 1")


def test_a_deadline_in_the_guests_time(tmp_path: Path) -> None:
    folder = leave(tmp_path, status=f"{CUT_SHORT}stderr late\ndeadline 61.0\nend 61.0\n")
    assert classify(evidence(), folder)[:2] == (
        Outcome.HANG,
        "no end within the deadline (its own time), while the program ran",
    )


def test_a_target_that_was_killed(tmp_path: Path) -> None:
    outcome, reason, trace = classify(evidence("killed", -9), leave(tmp_path, status=CUT_SHORT))
    assert (outcome, reason) == (Outcome.LOST, "the target was killed by signal 9")
    assert trace[-1] == "reboot: Restarting system"


@pytest.mark.parametrize("status", [None, "", "pid1 0.0", CUT_SHORT, CUT_SHORT + "exit 0\n", CUT_SHORT + "exit 0\nen"])
def test_a_status_that_ends_early_is_lost_never_ok(tmp_path: Path, status: str | None) -> None:
    outcome, reason, _ = classify(evidence(), leave(tmp_path, status=status))
    assert (outcome, reason) == (Outcome.LOST, "the target ended before init said that it was done")


def test_every_cut_of_the_status_is_lost_until_its_last_word(tmp_path: Path) -> None:
    ended = WELL.index("end") + len("end")
    for length in range(len(WELL)):
        outcome, _, _ = classify(evidence(), leave(tmp_path, status=WELL[:length]))
        assert outcome is (Outcome.OK if length >= ended else Outcome.LOST), WELL[:length]


def test_a_target_that_exits_with_an_error(tmp_path: Path) -> None:
    assert classify(evidence(returncode=1), leave(tmp_path))[:2] == (
        Outcome.LOST,
        "the target exited with 1 before init said that it was done",
    )


def test_a_program_that_says_why_it_cannot(tmp_path: Path) -> None:
    said = "storm.c:141: madvise(21) of the storm: this kernel does not offer it: Invalid argument"
    folder = leave(tmp_path, status=f"{CUT_SHORT}stderr first\x1b[2J\nstderr {said}\nexit 1\nend 1.2\n")
    outcome, reason, trace = classify(evidence(), folder)
    assert (outcome, reason) == (Outcome.FAILED, f"the program exited with 1: {said}")
    assert trace == ("first\N{REPLACEMENT CHARACTER}[2J", said)


def test_a_program_that_fails_without_a_word_or_dies(tmp_path: Path) -> None:
    assert classify(evidence(), leave(tmp_path, status=CUT_SHORT + "exit 2\nend 1.2\n"))[:2] == (
        Outcome.FAILED,
        "the program exited with 2: it said nothing",
    )
    assert classify(evidence(), leave(tmp_path, status=CUT_SHORT + "signal 11\nend 1.2\n"))[:2] == (
        Outcome.FAILED,
        "the program died of signal 11",
    )


# --- a whole trial ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaves:
    """A target that leaves what stands in the folder already."""

    evidence: Evidence

    def run(self, job: Job, folder: Path) -> Evidence:
        (folder / INITRAMFS).write_bytes(b"cpio")
        return self.evidence


def run(folder: Path, seen: Evidence | None = None) -> TrialResult:
    trial = Trial("007", "v1", QUIET, boot=2, block=3, seed=42)
    return run_trial(trial, TargetSpec("qemu"), None, Leaves(seen or evidence()), folder, "orch trial RUN 007")


def test_the_result_names_the_trial_its_recording_and_its_rerun(tmp_path: Path) -> None:
    folder = leave(tmp_path)
    (folder / RECORDING).write_bytes(recording_bytes(arm="v1"))
    result = run(folder)
    assert (result.id, result.arm, result.cell, result.boot, result.block, result.seed) == (
        "007", "v1", "quiet", 2, 3, 42,
    )  # fmt: skip
    assert result.outcome is Outcome.OK and re.fullmatch(r"[0-9a-f]{64}", result.recording_sha256)
    assert (result.boot_seconds, result.wall_seconds, result.rerun) == (0.7, 3.25, "orch trial RUN 007")
    assert not (folder / INITRAMFS).exists()


def test_what_a_failing_trial_booted_is_kept(tmp_path: Path) -> None:
    folder = leave(tmp_path, "panic.log", CUT_SHORT)
    (folder / RECORDING).write_bytes(recording_bytes())
    result = run(folder)
    assert result.outcome is Outcome.PANIC and result.recording_sha256 == "" and result.warnings == ()
    assert (folder / INITRAMFS).read_bytes() == b"cpio"


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_good_exit_with_a_bad_recording_is_a_failure(tmp_path: Path, damage: str) -> None:
    folder = leave(tmp_path)
    data = recording_bytes()
    if damage != "missing":
        (folder / RECORDING).write_bytes(data[:-1] if damage == "cut" else data[:300] + b"\xff" + data[301:])
    result = run(folder)
    assert result.outcome is Outcome.FAILED and result.recording_sha256 == ""
    assert result.reason.startswith("the program said it was done, but ") and str(folder) in result.reason


# --- the program's arguments ------------------------------------------------------------------------------------------


def options(cell: Cell) -> dict[str, str]:
    words = program_words("v1", cell, 42)
    return dict(zip(words[::2], words[1::2], strict=True))


def test_the_words_of_a_quiet_cell() -> None:
    cell = Cell("quiet,tdp=on", Guest(vcpus=2, mem_mib=3, rounds=5, stride_pages=4, access="read", page="2m"), None)
    assert program_words("v1", cell, 42) == (
        "--arm", "v1".ljust(31), "--cell", "quiet,tdp=on", "--seed", "42", "--vcpus", "2", "--mem-bytes", str(3 << 20),
        "--stride-bytes", "16384", "--rounds", "5", "--access", "read", "--order", "sequential", "--page", "2m",
        "--backing", "absent",
    )  # fmt: skip


def test_no_arm_differs_from_another_by_the_length_of_its_name() -> None:
    lengths = {tuple(map(len, program_words(arm, QUIET, 42))) for arm in ("a", "base", "x" * 31)}
    assert len(lengths) == 1


def test_the_words_of_a_storm() -> None:
    storm = Storm(
        op="madvise_pageout", placement="other-process", size_kib=8, threads=3, period_us=7, cpu="other", hogs=2
    )
    given_words = options(Cell("x", Guest(order="random", backing="present", rounds=1), storm))
    assert {key: value for key, value in given_words.items() if "storm" in key or key in ("--placement", "--hogs")} == {
        "--storm": "madvise_pageout", "--placement": "other-process", "--storm-bytes": "8192", "--storm-threads": "3",
        "--storm-period-us": "7", "--storm-cpu": "other", "--storm-class": "other", "--hogs": "2",
    }  # fmt: skip
    assert given_words["--order"] == "random" and given_words["--backing"] == "present"


@pytest.mark.parametrize(
    ("cpu", "preempted", "expected"),
    [("same", True, "other"), ("same", False, "fifo"), ("other", False, "other"), ("any", True, "other")],
)
def test_only_a_storm_that_shares_the_cpu_and_is_not_preempted_has_priority(
    cpu: str, preempted: bool, expected: str
) -> None:
    storm = Storm(op="munmap", placement="outside", size_kib=4, period_us=1, cpu=cpu, preempted=preempted, hogs=1)  # type: ignore[arg-type]
    assert options(Cell("x", Guest(rounds=1), storm))["--storm-class"] == expected


def test_the_program_knows_every_option_and_every_value() -> None:
    """Both sides of the border: what is sent must be in a table of the C side."""
    source = "".join(path.read_text() for path in sorted(GUESTS.rglob("*.c")))
    storm = Storm(op="munmap", placement="outside", size_kib=4)
    for option in options(Cell("x", Guest(rounds=1), storm)):
        assert f'{{ "{option[2:]}", required_argument' in source, option
    settings = "".join(path.read_text() for name in ("vmm", "vmm_run") for path in (GUESTS / name).glob("*.c"))
    for option in options(Cell("x", LinuxGuest(), storm)):
        assert f'"{option[2:]}"' in settings, option
    values = [
        value
        for cls in (Guest, LinuxGuest, Storm)
        for name, kind in get_type_hints(cls).items()
        for value in literal_values(kind)
        if name != "kind"
    ]
    assert {"madvise_pageout", "other-process", "2m", "same", "absent", "random", "read"} <= set(values)
    for value in values:
        assert f'{{ "{value}", ' in source, value


def literal_values(kind: object) -> tuple[str, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def test_swap_is_made_for_pageout_only() -> None:
    trial = Trial("000", "base", QUIET, 0, 0, 1)
    spec = TargetSpec("qemu", cpus=2, mem_mib=300, deadline_s=5.0, guest_deadline_s=4.0)
    job = make_job(trial, spec, Path("/vmlinux"))
    assert job == Job(Path("/vmlinux"), program_words("base", QUIET, 1), True, False, 2, 300, 5.0, 4.0)
    storm = Storm(op="madvise_pageout", placement="outside", size_kib=4)
    paging = replace(trial, cell=Cell("x", Guest(rounds=1, tdp=False), storm))
    assert make_job(paging, spec, None).swap and not make_job(paging, spec, None).tdp
