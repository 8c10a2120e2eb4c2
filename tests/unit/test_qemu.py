"""target/qemu.py: the argument list word for word, and the watch over a QEMU that does not behave.

A change of ``tests/data/qemu_arguments.txt`` is a change of the experiment. To accept one, run this file as a program.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from orchestrator import proc
from orchestrator.doctor import Accel
from orchestrator.errors import TargetError
from orchestrator.image import Guests
from orchestrator.manifest import QEMU
from orchestrator.target import qemu
from orchestrator.target.qemu import QemuTarget
from orchestrator.target.target import COMMAND, CONSOLE, INITRAMFS, RECORDING, STATUS, Job

GOLDEN = Path(__file__).parents[1] / "data" / "qemu_arguments.txt"
GUESTS = Guests(Path("/g/init"), Path("/g/fault_vmm"), Path("/g/tsc_khz"), "id")


def job(**changes: object) -> Job:
    values: dict[str, object] = {
        "vmlinux": Path("/k/vmlinux"), "words": ("--arm", "base"), "tdp": True, "swap": False, "cpus": 1,
        "mem_mib": 512, "deadline_s": 60.0, "guest_deadline_s": 30.0,
    }  # fmt: skip
    return Job(**(values | changes))  # type: ignore[arg-type]


def target(accel: Accel = "icount", machine: str = "microvm") -> QemuTarget:
    return QemuTarget(accel, machine, GUESTS, 2_100_000)


def all_arguments() -> str:
    """Every combination, each as a heading and one word a line."""
    lines = []
    for accel in ("icount", "tcg", "kvm"):
        for machine in ("microvm", "q35"):
            for cpus, tdp in ((1, True), (2, False)):
                if accel == "icount" and cpus > 1:
                    continue  # refused by the experiment reader and by the doctor
                lines.append(f"# {accel} {machine} cpus={cpus} tdp={tdp}")
                lines += target(accel, machine).arguments(job(cpus=cpus, tdp=tdp))  # type: ignore[arg-type]
    return "\n".join(lines) + "\n"


def test_the_argument_lists_are_the_golden_ones() -> None:
    assert all_arguments() == GOLDEN.read_text()


def test_every_accelerator_is_in_the_golden_file() -> None:
    headings = [line for line in GOLDEN.read_text().splitlines() if line.startswith("# ")]
    assert {heading.split()[1] for heading in headings} == set(get_args(Accel)) and len(headings) == 10


def test_time_and_randomness_are_fixed_under_icount_only() -> None:
    fixed = {"-icount", "shift=0,sleep=off", "-rtc", "base=2021-01-25,clock=vm"}
    assert fixed <= set(target("icount").arguments(job()))
    assert not fixed & set(target("tcg").arguments(job())) and not fixed & set(target("kvm").arguments(job()))


def test_the_first_warning_is_the_last_one_if_asked_for() -> None:
    """core_param(panic_on_warn) is an int: without a value the kernel ignores it."""
    words = " ".join(target().arguments(job(panic_on_warn=True))).split()
    assert "panic_on_warn=1" in words
    assert not any("panic_on_warn" in word for word in target().arguments(job()))


def test_a_hostile_path_stays_one_word() -> None:
    path = Path("/k/a b;$(reboot),file=x/vmlinux")
    argv = target().arguments(job(vmlinux=path))
    assert argv[argv.index("-kernel") + 1] == str(path)


# --- the watch --------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on PATH whose qemu-system-x86_64 each test writes; yields the program's path."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    yield tmp_path / "bin" / QEMU


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def trial_folder(tmp_path: Path) -> Path:
    (tmp_path / "trial").mkdir()
    return tmp_path / "trial"


def test_an_end_with_the_time_to_pid_1(fake: Path, tmp_path: Path) -> None:
    write(fake, f"sleep 0.3; echo 'pid1 0.1' >{STATUS}; sleep 2; exit 3")
    folder = trial_folder(tmp_path)
    seen = qemu.watch([str(fake)], folder, 30)
    assert (seen.ending, seen.returncode) == ("ended", 3)
    assert 0.25 < seen.boot_seconds < seen.wall_seconds - 0.2


def test_a_kill_from_outside_is_seen(fake: Path, tmp_path: Path) -> None:
    write(fake, "kill -9 $$")
    seen = qemu.watch([str(fake)], trial_folder(tmp_path), 30)
    assert (seen.ending, seen.returncode, seen.boot_seconds) == ("killed", -9, 0.0)


def test_the_wall_deadline_ends_what_ignores_everything(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "NMI_GRACE_S", 0.2)
    write(fake, "trap '' TERM INT; sleep 600")
    started = time.monotonic()
    seen = qemu.watch([str(fake)], trial_folder(tmp_path), 0.3)
    assert seen.ending == "wall-deadline" and seen.returncode == -9
    assert 0.3 < seen.wall_seconds <= time.monotonic() - started < 30


def test_at_the_wall_deadline_the_kernel_is_asked_where_it_is(tmp_path: Path) -> None:
    """Two commands over QMP, both answered, however long the folder's name is (a socket's path holds 107 bytes)."""
    folder = tmp_path / ("deep" * 40)
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"/proc/self/fd/{here}/{qemu.MONITOR}")
    server.listen(1)
    heard: list[str] = []

    def answer() -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("r") as stream:
            connection.sendall(b'{"QMP": {}}\n')
            for line in stream:
                heard.append(json.loads(line)["execute"])
                connection.sendall(b'{"return": {}}\n')
                stream.flush()

    thread = threading.Thread(target=answer)
    thread.start()
    qemu.inject_nmi(folder)
    thread.join(60)
    server.close()
    os.close(here)
    assert heard == ["qmp_capabilities", "inject-nmi"]


def test_a_monitor_that_is_not_there_or_dead_does_no_harm(tmp_path: Path) -> None:
    before = open_files()
    qemu.inject_nmi(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / qemu.MONITOR))
    qemu.inject_nmi(tmp_path)
    assert stat.S_ISSOCK((tmp_path / qemu.MONITOR).stat().st_mode)
    assert open_files() <= before


def open_files() -> set[str]:
    """What this process has open, of all its threads: some of other tests' may close theirs at any time."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{descriptor.name} {descriptor.readlink()}")
    return found


# --- a whole job ------------------------------------------------------------------------------------------------------


@pytest.fixture
def guests(tmp_path: Path) -> Guests:
    """Programs that are never run."""
    for name in ("init", "fault_vmm", "tsc_khz"):
        (tmp_path / name).write_text(name)
    return Guests(tmp_path / "init", tmp_path / "fault_vmm", tmp_path / "tsc_khz", "id")


def test_a_job_is_packed_started_in_its_folder_and_noted_down(fake: Path, tmp_path: Path, guests: Guests) -> None:
    write(fake, f'printf "%s\\n" "$@" >arguments; cpio -t --quiet <{INITRAMFS} >names; echo "pid1 0" >{STATUS}')
    folder = trial_folder(tmp_path)
    wanted = job(words=("--cell", "a b"), swap=True, guest_deadline_s=12.5)
    seen = QemuTarget("icount", "microvm", guests, 0).run(wanted, folder)
    assert (seen.ending, seen.returncode) == ("ended", 0)
    arguments = QemuTarget("icount", "microvm", guests, 0).arguments(wanted)
    assert (folder / "arguments").read_text().splitlines() == arguments
    assert {"init", "bin/fault_vmm", "trial/argv"} <= set((folder / "names").read_text().split())
    trial = (folder / INITRAMFS).read_bytes()
    words = b"\0".join(
        [b"@deadline=12.5", b"@swap", b"/bin/fault_vmm", b"--cell", b"a b", b"--out", b"@recording", b""]
    )
    assert words in trial
    note, line = (folder / COMMAND).read_text().splitlines()
    assert note.startswith("# In a copy of this folder") and line == proc.quote([fake, *arguments])


@pytest.mark.parametrize(("deadline_s", "boot"), [(120.0, "108"), (600.0, "540"), (0.5, "1"), (86400.0, "77760")])
def test_a_linux_guest_may_boot_for_most_of_its_deadline(
    fake: Path, tmp_path: Path, guests: Guests, deadline_s: float, boot: str
) -> None:
    write(fake, f'echo "pid1 0" >{STATUS}')
    wanted = job(words=("--cell", "a"), guest_deadline_s=deadline_s)
    linux = replace(wanted, program="vmm_run")
    assert (wanted.arguments, linux.arguments) == (wanted.words, ("--cell", "a", "--boot-seconds", boot))
    (tmp_path / "vmm_run").write_text("")
    folder = trial_folder(tmp_path)
    QemuTarget("icount", "microvm", guests, 0).run(linux, folder)
    assert b"\0--boot-seconds\0" + boot.encode() + b"\0" in (folder / INITRAMFS).read_bytes()


def test_a_qemu_that_does_not_start_is_an_error_with_its_words(fake: Path, tmp_path: Path, guests: Guests) -> None:
    write(fake, "echo 'unknown machine type' >&2; exit 1")
    with pytest.raises(TargetError, match="QEMU did not start") as caught:
        QemuTarget("icount", "microvm", guests, 0).run(job(), trial_folder(tmp_path))
    assert "unknown machine type" in caught.value.render() and caught.value.hint == "orch doctor"


def test_the_outputs_lie_in_the_trials_folder_under_the_names_that_the_classifier_reads() -> None:
    text = " ".join(target().arguments(job()))
    assert all(f"path={name}" in text for name in (CONSOLE, STATUS, RECORDING))


@pytest.mark.parametrize("printed", ["", "0", "-5", "fast", "1e6"])
def test_a_tsc_frequency_that_is_none(tmp_path: Path, printed: str) -> None:
    write(tmp_path / "tsc_khz", f"echo '{printed}'")
    with pytest.raises(TargetError, match="not a frequency in kHz"):
        qemu.measure_tsc_khz(Guests(Path(), Path(), tmp_path / "tsc_khz", ""))


def test_a_tsc_frequency(tmp_path: Path) -> None:
    write(tmp_path / "tsc_khz", "echo 2100000")
    assert qemu.measure_tsc_khz(Guests(Path(), Path(), tmp_path / "tsc_khz", "")) == 2_100_000


if __name__ == "__main__":
    GOLDEN.write_text(all_arguments())
