"""target/ssh.py on a simulated machine: a trial that goes well, and every fault of docs/lab.md's table."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fakehost import FOLDER, GOOD, OK, FakeHost, FakeOutside, Once, Program, World, cut, lab_host, machine
from simulate import recording_bytes

from orchestrator.experiment import Cell, Guest, Storm, TargetSpec
from orchestrator.image import Guests
from orchestrator.kernel.build import BuiltKernel
from orchestrator.lab import journal, status
from orchestrator.lab.journal import KernelId
from orchestrator.lab.machine import MachineGone
from orchestrator.lab.remote import CannotWrite, Cut, Reply
from orchestrator.lab.types import LabHost
from orchestrator.plan import Trial
from orchestrator.results import Outcome, TrialResult
from orchestrator.store import load_json
from orchestrator.target.ssh import MachineRecord, SshTarget
from orchestrator.trial import run_trial

QUIET = Cell("quiet", Guest(rounds=1), None)
TEST = KernelId("5.10.262", "#1 SMP", "bb" * 20)
KERNEL = b"\x7fELF the kernel under test" * 400
PANIC = (
    "[    0.000000] Linux version 5.10.262 (x)\n"
    "[    3.100000] BUG: unable to handle page fault for address: 0000000000001000\n"
    "[    3.100001] RIP: 0010:direct_page_fault+0x1c3/0x850\n"
    "[    3.100002] Kernel panic - not syncing: Fatal exception\n"
)


@dataclass
class Lab:
    """One simulated machine and the target over it."""

    folder: Path
    described: LabHost
    world: World = field(default_factory=World)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host = FakeHost(self.world, {KERNEL: TEST})
        self.host.program.recording = recording_bytes()
        self.outside = FakeOutside(self.host)
        self.vmlinux = self.folder / "vmlinux"
        self.vmlinux.write_bytes(KERNEL)
        for name in ("fault_vmm", "lab_agent"):
            (self.folder / name).write_bytes(f"the program {name}".encode() * 300)
        self.target = self.new_target()

    def new_target(self) -> SshTarget:
        """As a tool that starts now has it."""
        found = machine(self.host, self.outside, self.described, self.folder / "lab_agent", self.said)
        guests = Guests(*(self.folder / "fault_vmm",) * 3, content_id="id")
        kernel = BuiltKernel(
            "base", "ok", TEST.release, self.vmlinux, hashlib.sha256(KERNEL).hexdigest(), None, "", None,
            TEST.build_id, 1.0, True, self.folder / "log", "",
        )  # fmt: skip
        return SshTarget(found, guests, (kernel,))

    def run(self, number: int = 0, cell: Cell = QUIET, **spec: float) -> TrialResult:
        folder = self.folder / f"trial-{number}"
        folder.mkdir()
        vmlinux = self.vmlinux if self.described.boot != "none" else None
        target = TargetSpec("ssh", lab=self.folder, deadline_s=spec.get("deadline_s", 300.0))
        return run_trial(Trial("000", "base", cell, 0, 0, 1), target, vmlinux, self.target, folder, "orch trial")

    @property
    def state(self) -> str:
        """Of the machine, here and there; they must agree."""
        here = journal.read(self.described)
        there = journal.parse(self.host.files[f"{FOLDER}/journal.json"])
        assert here is not None and here == there
        return here.state

    @property
    def quarantine(self) -> str:
        found = journal.quarantined(self.described)
        return found.reason if found is not None else ""

    def console(self, number: int = 0) -> str:
        return (self.folder / f"trial-{number}" / "console.log").read_text()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path, lab_host(tmp_path))


def at_home(lab: Lab) -> None:
    """The machine is back: the known-good kernel, its own settings, nothing running, and it can be used again."""
    assert (lab.host.kernel, lab.state, lab.quarantine) == (GOOD, "idle", "")
    found = journal.read(lab.described)
    assert found is not None and found.settled
    assert lab.host.settings == lab.host.defaults and lab.host.swap == ["/dev/vda2"]
    lab.host.faults.clear()
    lab.host.on_program = lambda: None
    lab.host.on_boot = lambda kernel: kernel
    lab.host.program = Program(recording=recording_bytes())
    assert lab.run(number=99).outcome is Outcome.OK


# --- a trial that goes well -------------------------------------------------------------------------------------------


def test_a_trial_boots_the_kernel_under_test_measures_and_returns(lab: Lab) -> None:
    states: list[str] = []
    lab.host.faults.append(lambda call, words: states.append(state_of(lab)) if call == "run" else None)
    result = lab.run()
    assert (result.outcome, result.machine, result.machine_lost) == (Outcome.OK, "rack1", ""), result
    assert result.boot_seconds > 20 and lab.host.history == [GOOD, TEST, GOOD]
    assert list(dict.fromkeys(states)) == ["", "reachable", "prepared", "booting", "testing", "returning", "idle"]
    assert (lab.folder / "trial-0/recording.bin").read_bytes() == lab.host.program.recording
    assert lab.console() == lab.host.program.kernel_log
    record = load_json(lab.folder / "trial-0/machine.json", MachineRecord)
    assert (record.machine, record.known_good, record.booted) == (
        "rack1",
        GOOD,
        KernelId(TEST.release, "", TEST.build_id),
    )
    at_home(lab)


def state_of(lab: Lab) -> str:
    found = journal.read(lab.described)
    return found.state if found is not None else ""


def test_the_kernel_gets_the_machines_own_root_and_consoles_and_our_words(lab: Lab) -> None:
    lab.described = dataclasses.replace(lab.described, append=("mitigations=off", "root=/dev/vdb"))
    lab.target = lab.new_target()
    assert lab.run(cell=dataclasses.replace(QUIET, guest=Guest(rounds=1, tdp=True))).outcome is Outcome.OK
    (load,) = (call for call in lab.host.calls if call[:2] == ("kexec", "--load"))
    assert load[3] == "--args-linux" and load[4] == (
        "--command-line=ro console=ttyS0,115200 panic=-1 loglevel=6 unknown_nmi_panic nokaslr norandmaps"
        " kvm_amd.npt=1 kvm_intel.ept=1 mitigations=off root=/dev/vdb"
    )


def test_the_program_gets_its_words_cpus_and_deadline_and_nothing_is_copied_twice(lab: Lab) -> None:
    lab.described = dataclasses.replace(lab.described, cpus=(2, 3))
    lab.target = lab.new_target()
    lab.run()
    (run,) = (call for call in lab.host.calls if call[1:2] == ("run",))
    assert run[4:11] == ("--deadline", "120", "--log", "whole", "--cpus", "2,3", "--")
    assert run[11].startswith(f"{FOLDER}/files/") and run[-2:] == ("--out", "recording.bin") and "--vcpus" in run
    copied = [path for path in lab.host.files if path.startswith(f"{FOLDER}/files/")]
    sent: list[str] = []
    lab.host.faults.append(lambda call, words: sent.append(words[0]) if call == "append" else None)
    lab.run(number=1)
    assert len(copied) == 3 and sent == []
    assert not [path for path in lab.host.files if "/trials/" in path], "nothing of a trial is left on the machine"


def test_boot_none_benches_what_runs(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lab_host(tmp_path, boot="none"))
    result = lab.run()
    assert result.outcome is Outcome.OK and lab.host.history == [GOOD] and result.boot_seconds == 0
    (run,) = (call for call in lab.host.calls if call[1:2] == ("run",))
    assert run[6:8] == ("--log", "new")
    at_home(lab)


def grub_lab(folder: Path) -> Lab:
    """A machine whose owner has something in custom.cfg."""
    lab = Lab(folder, lab_host(folder, boot="grub"))
    (folder / "bzImage").write_bytes(b"bzImage")
    lab.host.kernels[b"bzImage"] = TEST
    lab.host.files["/boot/grub/custom.cfg"] = b"# the admin's own\n"
    lab.host.folders |= {"/boot", "/boot/grub"}
    return lab


def test_grub_boots_once_and_leaves_the_menu_of_others_alone(tmp_path: Path) -> None:
    lab = grub_lab(tmp_path)
    menus: list[str] = []
    lab.host.on_program = lambda: menus.append(lab.host.files["/boot/grub/custom.cfg"].decode())
    for number in range(2):
        result = lab.run(number)
        assert result.outcome is Outcome.OK, result.reason
        assert lab.host.files["/boot/grub/custom.cfg"] == b"# the admin's own\n"
    assert [menu.count("menuentry") for menu in menus] == [1, 1]
    menu = menus[-1]
    assert menu.startswith("# the admin's own\n# orch: begin")
    assert "search --no-floppy --fs-uuid --set=root '1234-uuid'" in menu and "'root=/dev/vda1'" in menu
    assert lab.host.history == [GOOD, TEST, GOOD, TEST, GOOD] and "/boot/grub/next_entry" not in lab.host.files


def test_without_the_file_that_grub_needs_the_trial_is_not_run(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lab_host(tmp_path, boot="grub"))
    result = lab.run()
    assert result.outcome is Outcome.NOT_RUN and "bzImage, which boot: grub needs, is not there" in result.reason
    at_home_state(lab)


def at_home_state(lab: Lab) -> None:
    assert (lab.host.kernel, lab.state, lab.quarantine) == (GOOD, "idle", "")


def test_an_ordinary_user_runs_by_sudo_what_needs_root_and_nothing_else(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lab_host(tmp_path, sudo=True))
    asked: list[tuple[str, ...]] = []

    def do_sudo(*words: str) -> Reply:
        asked.append(words)
        return lab.host.execute(words[2:])

    lab.host.do_sudo = do_sudo  # type: ignore[attr-defined]
    lab.outside.console_sysrq = ""
    assert lab.run().outcome is Outcome.OK
    assert all(words[:2] == ("-n", "--") for words in asked)
    names = {words[2].rpartition("/")[2] if "/" not in words[2] else "agent" for words in asked}
    assert names == {"agent", "kexec", "systemctl", "find", "rm"}


# --- settings ---------------------------------------------------------------------------------------------------------

ALL = ("governor", "turbo", "smt", "thp", "ksm", "numa_balancing", "swap")


def test_settings_are_made_for_the_measurement_and_put_back(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lab_host(tmp_path, may_change=ALL))
    seen: dict[str, str] = {}
    lab.host.on_program = lambda: seen.update(lab.host.settings, swap=" ".join(lab.host.swap))
    assert lab.run().outcome is Outcome.OK
    assert list(seen.values()) == ["performance", "performance", "0", "off", "madvise", "0", "0", ""]
    record = load_json(tmp_path / "trial-0/machine.json", MachineRecord)
    assert {setting.knob for setting in record.conditions.settings} == set(ALL) - {"swap"}
    assert record.conditions.swap_kib == 0 and record.conditions.online_cpus == "0-1"
    at_home(lab)


def test_nothing_is_set_that_may_not_be_changed_but_everything_is_recorded(lab: Lab) -> None:
    seen: dict[str, str] = {}
    lab.host.on_program = lambda: seen.update(lab.host.settings)
    assert lab.run().outcome is Outcome.OK and seen == lab.host.defaults
    record = load_json(lab.folder / "trial-0/machine.json", MachineRecord)
    recorded = {setting.path: setting.value for setting in record.conditions.settings}
    assert recorded["/sys/kernel/mm/transparent_hugepage/enabled"] == "always" and len(recorded) == 8


def test_a_cell_that_needs_swap_keeps_it_or_is_not_run(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lab_host(tmp_path, may_change=("swap",)))
    seen: list[str] = []
    lab.host.on_program = lambda: seen.extend(lab.host.swap)
    paging = Cell("p", Guest(rounds=1), Storm(op="madvise_pageout", placement="outside", size_kib=64))
    assert lab.run(cell=paging).outcome is Outcome.OK and seen == ["/dev/vda2"]
    in_test = lambda call, words: "/proc/swaps" in words and lab.host.kernel == TEST  # noqa: E731
    Once(lab.host, in_test, lambda: lab.host.swap.clear())
    result = lab.run(1, cell=paging)
    assert result.outcome is Outcome.NOT_RUN and result.reason.startswith("no swap space, which the cell needs")


def test_a_setting_that_the_machine_refuses_is_no_measurement(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lab_host(tmp_path, may_change=("smt",)))
    refuse = lambda path, value: Reply(1, "", f"write of {value} to {path}: Operation not permitted")  # noqa: E731
    lab.host.agent_set = refuse  # type: ignore[method-assign]
    result = lab.run()
    assert result.outcome is Outcome.NOT_RUN
    assert result.reason.startswith("cannot set smt to off: write of off to") and "not permitted" in result.reason
    at_home_state(lab)


def test_a_trial_waits_for_a_quiet_machine_but_not_for_ever(lab: Lab) -> None:
    lab.host.busy_rate = 1.0
    lab.world.later(50.0, lambda: setattr(lab.host, "busy_rate", 0.0))
    assert lab.run().outcome is Outcome.OK
    lab.host.busy_rate = 1.0
    result = lab.run(1)
    assert (result.outcome, result.reason) == (Outcome.NOT_RUN, "not quiet: 1.00 CPUs busy after 30 s")
    lab.host.busy_rate = 0.0
    at_home(lab)


def test_the_other_kind_of_paging_is_not_measured(lab: Lab) -> None:
    lab.host.tdp = False
    result = lab.run()
    assert result.outcome is Outcome.NOT_RUN
    assert result.reason == "the running KVM uses shadow paging, and the cell asks for TDP"


# --- faults -----------------------------------------------------------------------------------------------------------


def is_call(name: str, part: str = "") -> Callable[[str, tuple[str, ...]], bool]:
    return lambda call, words: call == name and part in " ".join(words)


def test_connection_cut_while_copying_goes_on_where_it_was(lab: Lab) -> None:
    fault = Once(lab.host, is_call("append-block", hashlib.sha256(KERNEL).hexdigest()[:40]), cut, nth=6)
    starts: list[str] = []
    lab.host.faults.append(lambda call, words: starts.append(words[1]) if call == "append-block" else None)
    assert lab.run().outcome is Outcome.OK and fault.struck
    assert starts.count("0") == 3, "the kernel was not sent from its beginning again"
    at_home(lab)


def test_connection_cut_while_booting_is_no_event(lab: Lab) -> None:
    fault = Once(lab.host, is_call("read", "osrelease"), cut, nth=3)
    assert lab.run().outcome is Outcome.OK and fault.struck
    at_home(lab)


def test_connection_cut_by_the_boot_command_itself_does_not_boot_twice(lab: Lab) -> None:
    def at_systemctl() -> None:
        lab.host.execute(("systemctl", "kexec"))
        cut()

    Once(lab.host, is_call("run", "systemctl kexec"), at_systemctl)
    assert lab.run().outcome is Outcome.OK and lab.host.history == [GOOD, TEST, GOOD]


def test_connection_cut_while_measuring_leaves_the_trial_alone(lab: Lab) -> None:
    """For longer than the program runs: it has ended when the connection is there again."""
    away: list[float] = []

    def break_down() -> None:
        until = lab.world.now + 60
        lab.host.faults.append(lambda call, words: cut() if lab.world.now < until else away.append(0.0))

    Once(lab.host, is_call("size", "/done"), break_down, nth=2)
    result = lab.run()
    assert result.outcome is Outcome.OK and away and result.recording_sha256
    assert sum(call[1:2] == ("run",) for call in lab.host.calls) == 1
    assert any("connected again" in line for line in lab.said)
    at_home(lab)


def test_connection_cut_when_the_program_is_started_does_not_start_it_twice(lab: Lab) -> None:
    def at_start() -> None:
        run = next(words for words in started if words[1:2] == ("run",))
        lab.host.execute(run)
        cut()

    started: list[tuple[str, ...]] = []
    lab.host.faults.append(lambda call, words: started.append(words) if call == "run" else None)
    Once(lab.host, is_call("run", "--deadline"), at_start)
    count: list[int] = []
    lab.host.on_program = lambda: count.append(1)
    assert lab.run().outcome is Outcome.OK and len(count) == 1


def test_connection_cut_while_fetching_goes_on_where_it_was(lab: Lab) -> None:
    lab.host.program.recording = recording_bytes(windows=[(1, 2, 3, 4)] * 500)
    fault = Once(lab.host, is_call("fetch-block", "recording.bin"), cut, nth=4)
    assert lab.run().outcome is Outcome.OK and fault.struck


@pytest.mark.parametrize("by", ["console", "pstore", "nothing"])
def test_the_host_panics_in_a_trial(lab: Lab, by: str) -> None:
    lab.outside.has_console = by == "console"
    lab.described = dataclasses.replace(lab.described, console=("console",) if by == "console" else ())
    lab.target = lab.new_target()

    def panic() -> None:
        lab.outside.print("[  999.0] watchdog: the kernel before\n" + PANIC)
        if by == "pstore":
            lab.host.pstore["/var/lib/systemd/pstore/dmesg-efi-1"] = PANIC
        lab.host.restart(GOOD)

    lab.host.pstore["/var/lib/systemd/pstore/old"] = PANIC.replace("direct_page_fault", "of_another_day")
    lab.host.on_program = lambda: lab.world.later(5.0, panic)
    result = lab.run()
    if by == "nothing":
        assert (result.outcome, result.reason) == (Outcome.LOST, "the machine restarted in the middle of the trial")
    else:
        assert result.outcome is Outcome.OOPS and result.reason.endswith(
            "in direct_page_fault+0x1c3/0x850, then panicked"
        )
    assert result.machine_lost == "" and "watchdog" not in lab.console()
    at_home(lab)


def test_a_panic_on_the_console_is_not_waited_for_over_a_connection_that_is_silent(lab: Lab) -> None:
    asked: list[str] = []

    def silent(call: str, words: tuple[str, ...]) -> None:
        if not lab.host.up and state_of(lab) == "testing":
            asked.append(call)
            lab.world.sleep(lab.described.deadlines.answer_s)

    def panic() -> None:
        lab.outside.print(PANIC)
        lab.host.restart(GOOD, seconds=200.0)

    lab.host.faults.append(silent)
    lab.host.on_program = lambda: lab.world.later(5.0, panic)
    assert lab.run().outcome is Outcome.OOPS and asked == ["read"]  # the lease, on the way home
    lab.host.faults.clear()
    at_home(lab)


def test_the_kernel_under_test_panics_while_it_boots(lab: Lab) -> None:
    def on_boot(kernel: KernelId) -> KernelId | None:
        if kernel is GOOD:
            return GOOD
        lab.world.later(8.0, lambda: lab.outside.print(PANIC))
        lab.world.later(10.0, lambda: lab.host.restart(GOOD))
        return None

    lab.host.on_boot = on_boot
    result = lab.run()
    assert result.outcome is Outcome.OOPS and result.wall_seconds < 60
    at_home(lab)


def test_the_kernel_under_test_never_answers_and_the_power_switch_helps(lab: Lab) -> None:
    lab.host.on_boot = lambda kernel: kernel if kernel is GOOD else None
    result = lab.run()
    assert result.outcome is Outcome.HANG
    assert result.reason.startswith("no end within the deadline (wall time) (the kernel under test did not")
    assert lab.outside.said == ["sysrq 8lw", "sysrq sb", "power"]
    at_home(lab)


def test_the_console_comes_before_the_power_switch(lab: Lab) -> None:
    lab.host.on_boot = lambda kernel: kernel if kernel is GOOD else None
    lab.outside.console_sysrq = ""
    assert lab.run().outcome is Outcome.HANG and lab.outside.said == ["sysrq 8lw", "sysrq sb"]
    at_home(lab)


def test_a_reboot_that_does_nothing_is_followed_by_sysrq_over_ssh(lab: Lab) -> None:
    lab.host.reboot_works = False
    assert lab.run().outcome is Outcome.OK and lab.outside.said == []
    assert any("does not come back by reboot over SSH" in line for line in lab.said)
    at_home_state(lab)


def test_the_host_never_comes_back(lab: Lab) -> None:
    lab.outside.power = "exited with 1: power"
    lab.host.on_program = lambda: lab.world.later(5.0, lab.host.die)
    result = lab.run(deadline_s=60.0)
    assert result.outcome is Outcome.HANG, "the deadline passed, whatever else happened"
    assert result.reason.startswith("no end within the deadline (wall time) (no end within 60 s; the machine does not")
    assert result.machine_lost.startswith("rack1 is quarantined: it does not come back to 6.1.0-18-amd64")
    assert "SysRq over the console: no console_break" in lab.quarantine
    assert "power command: exited with 1: power" in lab.quarantine
    assert f"rack1: quarantined: it {lab.quarantine}" in lab.said
    with pytest.raises(MachineGone, match=r"rack1 is in quarantine since .*does not come back"):
        lab.new_target().contact()
    (entry,) = status.release("rack1")
    assert entry.host == "rack1" and "does not come back" in entry.reason and status.release("rack1") == ()
    lab.host.restart(GOOD)
    lab.world.sleep(30)
    lab.target = lab.new_target()
    lab.target.contact()
    at_home(lab)


def test_a_host_that_is_gone_after_a_good_trial_does_not_cost_its_samples(lab: Lab) -> None:
    lab.outside.power = "no"
    lab.host.on_boot = lambda kernel: None if kernel is GOOD else kernel
    lab.host.sysrq_works = False
    result = lab.run()
    assert result.outcome is Outcome.OK and result.recording_sha256 and "is quarantined" in result.machine_lost


def test_kexec_refused(lab: Lab) -> None:
    def refuse(*words: str) -> Reply:
        return Reply(255, "", "kexec_load failed: Operation not permitted") if "--load" in words else OK

    lab.host.do_kexec = refuse  # type: ignore[method-assign]
    result = lab.run()
    assert (result.outcome, result.reason) == (
        Outcome.NOT_RUN,
        "kexec refused: kexec_load failed: Operation not permitted",
    )
    assert lab.host.history == [GOOD], "and the machine was not restarted for that"
    at_home_state(lab)


@pytest.mark.parametrize("booted", [GOOD, KernelId(TEST.release, "#1 SMP", "cc" * 20), KernelId("4.19", "#1", "")])
def test_wrong_kernel_booted(lab: Lab, booted: KernelId) -> None:
    lab.host.on_boot = lambda kernel: booted if kernel == TEST else kernel
    result = lab.run()
    assert result.outcome is Outcome.NOT_RUN
    assert result.reason.startswith(f"wrong kernel: rack1 runs {booted}, not 5.10.262 (build id bbbbbbbbbbbb)")
    assert not any(call[1:2] == ("run",) for call in lab.host.calls), "nothing was measured on it"
    at_home(lab)


def test_disk_full_while_copying_quarantines_the_host(lab: Lab) -> None:
    lab.host.free_bytes = 100 << 20
    result = lab.run()
    assert result.outcome is Outcome.NOT_RUN and result.machine_lost == result.reason
    assert result.reason.startswith("rack1 is quarantined: it has no room: 100 MiB are free for")
    assert lab.quarantine.startswith("has no room: 100 MiB are free")
    assert lab.host.kernel == GOOD and state_of(lab) == "idle"


def test_a_disk_that_fills_up_gets_room_from_what_earlier_runs_left(lab: Lab) -> None:
    assert lab.run().outcome is Outcome.OK
    lab.host.files[f"{FOLDER}/files/old-kernel"] = b"x"
    lab.host.free_bytes = 100 << 20
    free = lab.host.do_rm

    def do_rm(*words: str) -> Reply:
        if f"{FOLDER}/files/old-kernel" in words:
            lab.host.free_bytes = 8 << 30
        return free(*words)

    lab.host.do_rm = do_rm  # type: ignore[method-assign]
    assert lab.run(1).outcome is Outcome.OK


def test_disk_full_while_measuring_is_what_the_program_says(lab: Lab) -> None:
    lab.host.program.status = "start 1\nstderr record.c:12: write: No space left on device\nexit 1\nend 2\n"
    result = lab.run()
    assert result.outcome is Outcome.FAILED and "No space left on device" in result.reason
    at_home(lab)


def test_a_clock_that_jumps_moves_nothing(lab: Lab) -> None:
    """Dates are for people: a year back and forth in the middle of a trial changes no deadline and no lease."""
    dates: Iterator[str] = iter(["2020-01-01", "2030-01-01", "1999-12-31"] * 100)
    lab.world.utc = lambda: next(dates)  # type: ignore[method-assign]
    assert lab.run().outcome is Outcome.OK
    at_home(lab)


class Killed(BaseException):
    """The tool is killed with -9: an exception that nobody catches. The next tool is another object."""


def kill() -> None:
    raise Killed


def as_the_next_tool(lab: Lab) -> None:
    """What is left of a tool that was killed: what is on the disks, and a lease whose owner is seen to be dead."""
    lab.host.faults.clear()
    lab.host.files[f"{FOLDER}/lease"] = b"other " + lab.host.files[f"{FOLDER}/lease"].partition(b" ")[2].replace(
        b'"start":', b'"start":9'
    )  # A process of this machine with another start time.
    lab.target = lab.new_target()


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("kexec", "systemctl kexec"),
        ("kexec", "kexec_loaded"),
        ("kexec", "/done"),
        ("kexec", "osrelease"),
        ("kexec", "reboot"),
        ("grub", "custom.cfg.new"),
        ("grub", "sync"),  # after grub-reboot
    ],
)
@pytest.mark.parametrize("rebooted", [False, True])
def test_the_tool_is_killed_at_any_moment_and_the_next_run_brings_the_machine_home(
    tmp_path: Path, method: str, where: str, rebooted: bool
) -> None:
    """``rebooted``: somebody restarts the machine before the next run comes."""
    lab = grub_lab(tmp_path) if method == "grub" else Lab(tmp_path, lab_host(tmp_path, may_change=ALL))
    nth = 2 if where in ("/done", "osrelease") else 1
    matches = lambda call, words: where in " ".join(words)  # noqa: E731
    fault = Once(lab.host, matches, kill, nth=nth)
    with pytest.raises(Killed):
        lab.run()
    assert fault.struck
    as_the_next_tool(lab)
    if rebooted:
        lab.host.do_systemctl("reboot")
        lab.world.sleep(60)
    lab.target.contact()
    at_home(lab)


def test_a_machine_left_in_the_kernel_under_test_that_does_not_answer_is_restarted(lab: Lab) -> None:
    Once(lab.host, is_call("size", "/done"), kill)
    with pytest.raises(Killed):
        lab.run()
    lab.host.faults.clear()
    lab.host.die()
    lab.target = lab.new_target()
    lab.target.contact()
    at_home(lab)
    assert "power" in lab.outside.said


def test_a_host_that_cannot_be_reached_at_all_is_gone_but_not_in_quarantine(lab: Lab) -> None:
    lab.host.up = False
    with pytest.raises(MachineGone, match="rack1 cannot be reached: connection refused"):
        lab.run()
    assert lab.quarantine == ""


def test_a_program_that_nobody_watches_any_more_is_lost(lab: Lab) -> None:
    lab.host.on_program = lambda: lab.world.later(5.0, lambda: lab.host.files.pop("/proc/77/stat"))
    result = lab.run()
    assert (result.outcome, result.reason) == (Outcome.LOST, "the process that watches the program is gone")
    at_home(lab)


def test_a_program_that_does_not_end_is_a_hang(lab: Lab) -> None:
    lab.host.program.seconds = 1e6
    result = lab.run(deadline_s=90.0)
    assert result.outcome is Outcome.HANG and "while the program ran (no end within 90 s)" in result.reason
    lab.host.program = Program(recording=recording_bytes())
    at_home(lab)


def test_a_connection_that_never_comes_back_ends_at_the_deadline(lab: Lab) -> None:
    Once(lab.host, is_call("size", "/done"), lambda: lab.host.die())
    result = lab.run(deadline_s=90.0)
    assert result.outcome is Outcome.HANG and "the machine does not answer" in result.reason
    at_home(lab)


def test_a_restart_under_way_is_not_taken_for_being_home(lab: Lab) -> None:
    """The old kernel still answers when the boot deadline passes: it is about to be left, so it must restart first."""
    lab.host.do_systemctl = lambda verb: lab.world.later(500.0, lambda: lab.host.restart(TEST)) or Reply(0, "", "")  # type: ignore[method-assign]
    result = lab.run()
    assert result.outcome is Outcome.HANG and "it still runs the old one" in result.reason
    assert lab.host.history == [GOOD, GOOD] and lab.state == "idle"


def test_a_machine_that_went_down_between_two_trials_is_fetched_back(lab: Lab) -> None:
    assert lab.run().outcome is Outcome.OK
    lab.host.die()
    assert lab.run(1).outcome is Outcome.OK and lab.outside.said == ["sysrq sb", "power"]


def test_a_machine_that_was_given_another_kernel_between_two_trials_leaves_the_run(lab: Lab) -> None:
    assert lab.run().outcome is Outcome.OK
    newer = KernelId("6.1.0-19-amd64", "#1 SMP Debian", "dd" * 20)
    lab.host.kernel = newer
    with pytest.raises(MachineGone, match=r"rack1 now runs 6.1.0-19-amd64 .*, and ran 6.1.0-18-amd64 .* when this run"):
        lab.run(1)
    assert lab.quarantine == ""
    lab.target = lab.new_target()
    lab.target.contact()
    found = journal.read(lab.described)
    assert found is not None and found.known_good == newer, "the next run takes it as it is"


def test_a_kernel_under_test_that_cannot_write_is_not_the_machines_fault(lab: Lab) -> None:
    def read_only(call: str, words: tuple[str, ...]) -> None:
        if call == "write" and lab.host.kernel == TEST:
            raise CannotWrite(f"cannot write {words[0]}: Read-only file system")

    lab.host.faults.append(read_only)
    result = lab.run()
    assert result.outcome is Outcome.NOT_RUN and "Read-only file system" in result.reason
    at_home(lab)


def test_errors_of_the_connection_are_told(lab: Lab) -> None:
    def always(call: str, words: tuple[str, ...]) -> None:
        if call == "append":
            raise Cut("no route to host")

    lab.host.faults.append(always)
    with pytest.raises(MachineGone, match="rack1 cannot be reached: no route to host"):
        lab.run()
