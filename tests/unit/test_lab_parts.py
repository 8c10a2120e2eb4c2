"""The smaller parts of lab/: command lines, GRUB entries, settings, the console, copies that arrive damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakehost import FOLDER, FakeHost, World, lab_host

from orchestrator.lab import boot, tuning
from orchestrator.lab.boot import Image, Refused
from orchestrator.lab.journal import Journal, KernelId, Setting, parse
from orchestrator.lab.link import Link
from orchestrator.lab.outside import RealOutside
from orchestrator.lab.remote import Cut, Reply, command_line
from orchestrator.lab.types import Deadlines
from orchestrator.store import to_json
from orchestrator.target.ssh import of_kernel


def test_a_command_is_split_into_the_words_that_it_was_made_of() -> None:
    words = ["a b", "$(x)", "`x`", "'", '"', "\\", "*", "a\nb", "", "-n", "ü"]
    assert shlex.split(command_line(words)) == words


def test_an_attempt_at_a_machine_that_is_booting_leaves_no_traceback_on_the_terminal(tmp_path: Path) -> None:
    """In a process of its own: pytest's own log handlers hide what a program without any would print."""
    attempt = """
import socket, sys, threading
from pathlib import Path
from orchestrator.lab.types import LabHost
from orchestrator.lab.connection import connect
from orchestrator.lab.remote import Cut
with socket.create_server(("127.0.0.1", 0)) as server:
    threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
    host = LabHost("x", "127.0.0.1", "root", Path(sys.argv[1]), port=server.getsockname()[1], agent=True)
    try:
        connect(host)
    except Cut as error:
        print("cut:", error)
"""
    (tmp_path / "known_hosts").write_text("")
    argv = [sys.executable, "-c", attempt, str(tmp_path / "known_hosts")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr) == ("cut: Error reading SSH protocol banner\n", "")


# --- boot -------------------------------------------------------------------------------------------------------------


def link(tmp_path: Path, host: FakeHost | None = None, **changes: object) -> Link:
    host = host or FakeHost(World())
    return Link(lab_host(tmp_path, **changes), host.connect, host.world)


def test_the_machines_own_command_line_loses_what_is_not_for_the_kernel_under_test(tmp_path: Path) -> None:
    own = "BOOT_IMAGE=/boot/x root=UUID=1-2 ro quiet splash crashkernel=256M isolcpus=2-5 console=tty0 panic=30"
    line = boot.command_line(own, lab_host(tmp_path), "PARTUUID=7", ("kvm_amd.npt=0",))
    assert line == (
        "ro isolcpus=2-5 console=tty0 panic=-1 loglevel=6 unknown_nmi_panic nokaslr norandmaps kvm_amd.npt=0"
        " root=PARTUUID=7"
    )
    mine = lab_host(tmp_path, append=("console=ttyS1,115200", "loglevel=7"))
    assert boot.command_line("console=tty0 root=/dev/sda1", mine, "", ()).endswith(
        "unknown_nmi_panic nokaslr norandmaps console=ttyS1,115200 loglevel=7"
    )


@pytest.mark.parametrize(
    ("own", "lsblk", "expected"),
    [
        ("root=/dev/nvme0n1p2", "", ""),
        ("root=PARTUUID=12-34", "", ""),
        ("root=UUID=1-2", "ab-cd part", "PARTUUID=ab-cd"),
        ("root=LABEL=x", " disk", "/dev/mapper/root"),
    ],
)
def test_a_root_that_only_an_initramfs_could_find_is_named_as_a_kernel_can(
    tmp_path: Path, own: str, lsblk: str, expected: str
) -> None:
    host = FakeHost(World())
    host.do_findmnt = lambda *words: Reply(0, "/dev/mapper/root\n", "")  # type: ignore[attr-defined]
    host.do_lsblk = lambda *words: Reply(0, f"{lsblk}\n", "")  # type: ignore[attr-defined]
    assert boot.find_root(link(tmp_path, host), own) == expected


def test_a_root_that_no_kernel_can_mount_is_refused_with_what_to_do(tmp_path: Path) -> None:
    host = FakeHost(World())
    host.do_findmnt = lambda *words: Reply(0, "/dev/mapper/root\n", "")  # type: ignore[attr-defined]
    host.do_lsblk = lambda *words: Reply(0, " lvm\n", "")  # type: ignore[attr-defined]
    with pytest.raises(Refused, match="cannot mount without an initramfs") as caught:
        boot.find_root(link(tmp_path, host), "root=UUID=1")
    assert caught.value.hint == "set initrd, or append: [root=…], for rack1 in the lab file"


def test_a_menu_entry_holds_its_words_in_quotes_and_replaces_only_itself() -> None:
    entry = boot.grub_entry("12-34", Image("/orch/k", "/orch/i"), "ro a=$b;c {x}")
    assert entry.splitlines() == [
        boot.BEGIN,
        "menuentry 'kernel under test' --id 'orch-test' {",
        "\tsearch --no-floppy --fs-uuid --set=root '12-34'",
        "\tlinux '/orch/k' 'ro' 'a=$b;c' '{x}'",
        "\tinitrd '/orch/i'",
        "}",
        boot.END,
    ]
    assert boot.without_entry(f"before\n{entry}after\n") == "before\nafter\n" == boot.without_entry("before\nafter\n")
    with pytest.raises(Refused, match="cannot stand in a menu entry"):
        boot.grub_entry("12-34", Image("/k", ""), "a='b'")


def test_kexec_says_why_it_refuses_and_without_it_the_package_is_named(tmp_path: Path) -> None:
    host = FakeHost(World())
    host.do_kexec = lambda *words: Reply(127, "", "sh: 1: kexec: not found")  # type: ignore[method-assign]
    with pytest.raises(Refused, match="kexec refused: sh: 1: kexec: not found") as caught:
        boot.load(link(tmp_path, host), Image("/k", ""), "ro", "/scratch")
    assert caught.value.hint == "apt-get install kexec-tools"
    segments = "entry       = 0x3ffff730 flags = 0x3e0000\nnr_segments = 7\nsegment[6].memsz = 0x2bf000\n"
    said = f"kexec_load failed: Operation not permitted\n{segments}"
    host.do_kexec = lambda *words: Reply(255, "", said)  # type: ignore[method-assign]
    with pytest.raises(Refused, match=r"kexec refused: kexec_load failed: Operation not permitted$"):
        boot.load(link(tmp_path, host), Image("/k", ""), "ro", "/scratch")
    host.do_kexec = lambda *words: Reply(0, "", "")  # type: ignore[method-assign]
    with pytest.raises(Refused, match="kexec_loaded says no"):
        boot.load(link(tmp_path, host), Image("/k", ""), "ro", "/scratch")


# --- settings ---------------------------------------------------------------------------------------------------------


def test_only_known_settings_are_ever_written() -> None:
    """They come from a file on the host: what it says is written as root there, and nowhere else."""
    assert tuning.is_known(Setting("thp", tuning.THP, "always"))
    assert tuning.is_known(Setting("governor", tuning.GOVERNOR.format("cpu12"), "powersave"))
    assert tuning.is_known(Setting("swap", "/dev/vda2", "on"))
    for setting in (
        Setting("thp", "/etc/passwd", "x"),
        Setting("ksm", tuning.THP, "always"),
        Setting("governor", f"{tuning.CPU}/cpu0/../../../../etc/passwd", "x"),
        Setting("swap", "relative", "on"),
        Setting("swap", "/dev/vda2", "off"),
    ):
        assert not tuning.is_known(setting)


def test_smt_comes_back_before_the_governors_of_its_cpus() -> None:
    before = (Setting("governor", "g1", "powersave"), Setting("smt", tuning.SMT, "on"), Setting("ksm", "k", "1"))
    now = (Setting("smt", tuning.SMT, "off"), Setting("ksm", "k", "1"))
    assert [setting.knob for setting in tuning.undo(now, before)] == ["smt", "governor"]


def test_what_cannot_be_switched_is_not_planned() -> None:
    now = (
        Setting("smt", tuning.SMT, "notsupported"),
        Setting("turbo", tuning.NO_TURBO, "0"),
        Setting("thp", tuning.THP, "madvise"),
        Setting("swap", "/dev/a", "on"),
    )
    everything = ("smt", "turbo", "thp", "swap")
    assert tuning.plan(now, everything, False) == (
        Setting("turbo", tuning.NO_TURBO, "1"),
        Setting("swap", "/dev/a", "off"),
    )
    assert tuning.plan(now, everything, True) == (Setting("turbo", tuning.NO_TURBO, "1"),)
    assert tuning.plan(now, (), False) == ()


def test_load_is_work_and_not_waiting() -> None:
    before, after = "cpu 100 0 100 1000 500 10 10 0 0 0\ncpu0", "cpu 200 10 130 9000 9000 20 30 30 0 0\n"
    assert tuning.busy_cpus(before, after, 2.0) == pytest.approx(2.0 / 2)
    assert tuning.busy_cpus(after, before, 2.0) == 0.0


def test_blanks_in_a_swap_files_name(tmp_path: Path) -> None:
    host = FakeHost(World())
    host.swap = ["/swap\\040file"]
    assert tuning.swaps(host.connect()) == (("/swap file", 1048572),)


# --- journals ---------------------------------------------------------------------------------------------------------


def test_a_damaged_journal_on_a_host_counts_as_none() -> None:
    good = Journal("h", "idle", "now", "me", KernelId("r", "v", "b"), "boot")
    assert parse(to_json(good)) == good and good.settled
    for data in (b"", b"{", b"[]", to_json(good)[:-20], to_json(good).replace(b"idle", b"busy"), b"\xff"):
        assert parse(data) is None
    for state in ("booting", "testing", "returning"):
        assert not dataclasses.replace(good, state=state).settled
    assert not dataclasses.replace(good, trial="/x").settled
    assert not dataclasses.replace(good, before=(Setting("ksm", tuning.KSM, "1"),)).settled


# --- copies -----------------------------------------------------------------------------------------------------------


def test_a_copy_that_arrives_damaged_is_sent_again(tmp_path: Path) -> None:
    host = FakeHost(World())
    source = tmp_path / "kernel"
    source.write_bytes(b"kernel" * 2000)
    host.files[f"{FOLDER}/k.part"] = b"of another file, that broke off here"
    found = link(tmp_path, host)
    found.put(source, f"{FOLDER}/k", hashlib.sha256(source.read_bytes()).hexdigest())
    assert host.files == {f"{FOLDER}/k": source.read_bytes()}
    host.do_sha256sum = lambda *words: Reply(0, "0" * 64 + "  x\n", "")  # type: ignore[method-assign]
    with pytest.raises(Cut, match="has another SHA-256 than its copy here: 0000"):
        found.put(source, f"{FOLDER}/other", "1" * 64)
    with pytest.raises(Cut, match="has another SHA-256"):
        found.get(f"{FOLDER}/k", tmp_path / "back")


# --- the console ------------------------------------------------------------------------------------------------------


def outside(tmp_path: Path, console: str = "", **changes: object) -> RealOutside:
    """A machine whose console command is a shell script."""
    words = ("/bin/sh", "-c", console) if console else ()
    return RealOutside(lab_host(tmp_path, console=words, **changes), tmp_path / "power.log")


def wait_for(condition, seconds: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_console_is_written_down_and_a_panic_on_it_seen(tmp_path: Path) -> None:
    found = outside(
        tmp_path, "echo booting; read x; echo Kernel panic - not syncing: $x; exec sleep 60", console_break="B"
    )
    log = tmp_path / "serial.log"
    found.watch(log)
    wait_for(lambda: "booting" in log.read_text())
    assert not found.panicked() and found.sysrq("c\n") == ""
    wait_for(found.panicked)
    assert "not syncing: BcB" in log.read_text()
    found.unwatch()
    found.watch(log)
    assert not found.panicked() or "booting" in log.read_text()
    found.unwatch()


def test_a_console_command_that_ends_is_started_again(tmp_path: Path) -> None:
    found = outside(tmp_path, "echo line")
    found.watch(tmp_path / "log")

    def twice() -> bool:
        found.panicked()
        return (tmp_path / "log").read_text().count("line") >= 2

    wait_for(twice)
    found.unwatch()


def test_what_cannot_be_done_from_outside_says_why(tmp_path: Path) -> None:
    none = RealOutside(lab_host(tmp_path, console=(), power=()), tmp_path / "power.log")
    none.watch(tmp_path / "log")
    assert none.sysrq("b") == "no console_break in the lab file" and not none.panicked()
    assert none.power_cycle() == "no power command in the lab file"
    gone = outside(tmp_path, "exit 1", console_break="B")
    gone.watch(tmp_path / "log")
    wait_for(lambda: gone.sysrq("b") == "the console command does not run")
    broken = RealOutside(lab_host(tmp_path, power=("/bin/sh", "-c", "echo no outlet; exit 3")), tmp_path / "power.log")
    assert "exited with 3" in broken.power_cycle() and (tmp_path / "power.log").read_text() == "no outlet\n"
    missing = RealOutside(lab_host(tmp_path, power=("/nowhere/ipmitool",)), tmp_path / "power.log")
    assert missing.power_cycle() != ""


def test_no_word_of_a_lab_files_commands_is_told_to_anybody(tmp_path: Path) -> None:
    """They may hold passwords (ipmitool -P); and what is told ends up in quarantine.json, on terminals, in reports."""
    deadlines = Deadlines(power_s=0.3)
    for power, said in (
        (("/bin/false", "-P", "hunter2"), "exited with 1: /bin/false"),
        (("/nowhere/power", "-P", "hunter2"), "exited with 127: /nowhere/power"),
        (("/bin/sh", "-c", "kill -9 $$", "hunter2"), "died of SIGKILL: /bin/sh"),
        (("/bin/sh", "-c", "sleep 60", "hunter2"), "no end after 0 s, killed: /bin/sh"),
    ):
        host = lab_host(tmp_path, power=power, console=("/nowhere/console", "-P", "hunter2"), deadlines=deadlines)
        found = RealOutside(host, tmp_path / "power.log")
        assert found.power_cycle() == f"{said} (log: {tmp_path / 'power.log'})"
        found.watch(tmp_path / "serial.log")
        wait_for(lambda: "/nowhere/console" in (tmp_path / "serial.log").read_text())
        found.unwatch()
        logs = (tmp_path / "power.log").read_text() + (tmp_path / "serial.log").read_text()
        assert "hunter2" not in logs
        (tmp_path / "serial.log").unlink()


def test_the_power_command_is_no_shell_line(tmp_path: Path) -> None:
    words = ("/bin/sh", "-c", 'printf "[%s]" "$@" >"$0"', str(tmp_path / "out"), "a b", "$(id)", "; rm x")
    assert RealOutside(lab_host(tmp_path, power=words), tmp_path / "power.log").power_cycle() == ""
    assert (tmp_path / "out").read_text() == "[a b][$(id)][; rm x]"


def test_of_a_serial_line_only_what_the_kernel_under_test_said_is_its_console() -> None:
    serial = "old kernel\n[0.0] Linux version 6.1.0 (x)\nmore\n\x00[0.0] Linux version 5.10.262 (y)\n[1.0] new\n"
    assert of_kernel(serial, "5.10.262").endswith("Linux version 5.10.262 (y)\n[1.0] new\n")
    assert "more" not in of_kernel(serial, "5.10.262")
    assert of_kernel(serial, "5.10.26") == serial == of_kernel(serial, "")
