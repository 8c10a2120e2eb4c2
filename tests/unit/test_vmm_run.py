"""guests/vmm_run and guests/libstorm, the real programs, as far as they go without KVM: with shell scripts as VMMs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from orchestrator import proc

GUESTS = Path(__file__).parents[2] / "guests"
OUT = ("--out", "recording.bin")
STORM = ("--storm", "mprotect", "--storm-bytes", "4096")
LINES = 25 * "reboot\\n"  # more than are passed on, in one write
MAILBOX_LINE = "orch-bench: mailbox gpa=0x1000 nonce=0x2"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("build")
    targets = [f"{build}/bin/{name}" for name in ("vmm_run", "libstorm.so", "fault_bench")]
    proc.run(["make", "-j2", "-s", "-C", GUESTS, f"BUILD={build}", *targets], deadline_s=600)
    return build / "bin"


def script(folder: Path, body: str) -> Path:
    path = folder / "vmm"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def run(
    programs: Path, folder: Path, vmm: Path | str, *options: str, preload: Path | None = None
) -> subprocess.CompletedProcess[str]:
    (folder / "argv").write_bytes(f"{vmm}\0--machine\0none\0".encode())
    argv = [programs / "vmm_run", "--preload", preload or programs / "libstorm.so", "--vmm-argv", folder / "argv"]
    argv += ["--control", folder / "control", "--console", folder / "console", *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, cwd=folder)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--out FILE is needed"),
        ((*OUT, "--color", "red"), "there is no option '--color'"),
        ((*OUT, "--seed"), "--seed wants a value"),
        ((*OUT, "seed", "1"), "unexpected argument 'seed'"),
        ((*OUT, "--seed", "1x"), "--seed wants a number from 0 to 18446744073709551615, not '1x'"),
        ((*OUT, "--faults", "all"), "--faults does not know 'all'"),
        ((*OUT, "--memory", "hugetlb"), "--memory does not know 'hugetlb'"),
        ((*OUT, "--jitter-wakeups", "1000001"), "--jitter-wakeups wants a number from 0 to 1000000"),
        ((*OUT, "--mem-bytes", "5000"), "sizes are multiples of 4096"),
        ((*OUT, "--mem-bytes", "4096", "--memory", "thp"), "--memory thp wants --mem-bytes in units of 2 MiB"),
        ((*OUT, "--mem-bytes", "4096", "--vcpus", "2"), "fewer pages than vCPUs"),
        ((*OUT, *STORM), "--storm and --placement go together"),
        ((*OUT, *STORM, "--placement", "overlap", "--mem-bytes", "4096", "--storm-threads", "2"), "larger than"),
        ((*OUT, *STORM, "--placement", "overlap", "--faults", "guest"), "the guest's pages move"),
        ((*OUT, *STORM, "--placement", "adjacent", "--faults", "both"), "the guest's pages move"),
        ((*OUT, "--storm", "munmap", "--placement", "overlap"), "which another thread of the VMM may fill"),
        ((*OUT, "--storm", "mremap", "--placement", "adjacent"), "which another thread of the VMM may fill"),
        ((*OUT, "--faults", "guest", "--access", "read"), "needs --memory file"),
        ((*OUT, "--faults", "both", "--access", "read", "--memory", "file"), "--stride-bytes of at least 65536"),
        ((*OUT, "--faults", "guest", "--memory", "thp", "--stride-bytes", "65536"), "in units of 2097152"),
        ((*OUT, "--cell", "a\nb"), "--cell: no newline"),
    ],
)
def test_options_that_cannot_work_are_refused(
    programs: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = run(programs, tmp_path, script(tmp_path, "echo ran"), *options)
    assert done.returncode == 1
    assert message in last_line(done)
    assert not (tmp_path / "console").exists()  # the VMM was not started


def test_the_control_file_holds_the_librarys_options_and_no_others(programs: Path, tmp_path: Path) -> None:
    run(programs, tmp_path, script(tmp_path, "exit 0"), *OUT, "--arm", "base".ljust(31), "--rounds", "3")
    assert (tmp_path / "control").read_text().splitlines() == [
        f"console {tmp_path}/console", "out recording.bin", f"arm {'base'.ljust(31)}", "rounds 3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exit 0", "the VMM exited with 0 before the recording was complete, and said nothing"),
        ("echo no such machine >&2; exit 3", "exited with 3 before the recording was complete: no such machine"),
        ("kill -9 $$", "the VMM died of signal 9 before the recording was complete"),
        ("echo 'Kernel panic - not syncing: gone'; exit 0", "the guest's kernel panicked: gone"),
        ("kill -SYS $$", "died of signal 31 (SIGSYS: a system call that its sandbox does not allow"),
        # The guest restarts at once, and the library looks at the console every 20 ms only.
        ("echo 'orch-bench: error: no room'; exit 0", "fault_bench, in the guest: no room"),
        (f"printf 'orch-bench: error: no room\\n{LINES}booting\\n'", "fault_bench, in the guest: no room"),
        ("echo 'orch-bench: error: no room'; echo 'Kernel panic - not syncing: init'; exit 0", "guest: no room"),
        ("echo 'libstorm: the recording is complete' >&2; exit 3", "exited with 3 after the recording was complete"),
        (f"echo '{MAILBOX_LINE}'; sleep 20", "if it is a script, start the VMM with exec"),
    ],
)
def test_every_end_without_a_recording_has_its_reason_at_once(
    programs: Path, tmp_path: Path, body: str, reason: str
) -> None:
    done = run(programs, tmp_path, script(tmp_path, f"exec 9>&1\necho booting\n{body} 9>&-"), *OUT)
    assert done.returncode == 1
    assert reason in last_line(done)
    assert "guest: booting" in done.stderr
    assert not (tmp_path / "recording.bin").exists()


def test_a_guest_that_says_nothing_has_so_long_and_no_longer(programs: Path, tmp_path: Path) -> None:
    done = run(programs, tmp_path, script(tmp_path, "echo hung; exec sleep 25"), *OUT, "--boot-seconds", "1")
    assert done.returncode == 1
    assert f"fault_bench has not said in {tmp_path}/console within 1 s where its mailbox is" in last_line(done)
    assert "guest: hung" in done.stderr


def test_a_vmm_that_cannot_be_preloaded_is_refused(programs: Path, tmp_path: Path) -> None:
    assert "is statically linked" in last_line(run(programs, tmp_path, programs / "vmm_run", *OUT))
    assert "the VMM /no/such/vmm: No such file" in last_line(run(programs, tmp_path, "/no/such/vmm", *OUT))
    done = run(programs, tmp_path, script(tmp_path, "exit 0"), *OUT, preload=tmp_path / "no.so")
    assert f"the library {tmp_path}/no.so: No such file" in last_line(done)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("out", "line 1: a name, a blank and a value are wanted"),
        ("out x\ncolor red", "line 2: nothing is called 'color'"),
        ("rounds 0\nout x", "--rounds wants a number from 1"),
        ("rounds 1", "--out FILE is needed"),
    ],
)
def test_errors_of_the_control_file_end_the_vmm(programs: Path, tmp_path: Path, control: str, message: str) -> None:
    (tmp_path / "control").write_text(control + "\n")
    env = {**os.environ, "LD_PRELOAD": str(programs / "libstorm.so"), "ORCH_STORM": str(tmp_path / "control")}
    done = subprocess.run(["/bin/true"], capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 1
    assert message in done.stderr


def test_the_library_without_a_control_file_says_so(programs: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "ORCH_STORM"}
    env["LD_PRELOAD"] = str(programs / "libstorm.so")
    done = subprocess.run(["/bin/true"], capture_output=True, text=True, timeout=120, check=False, env=env)
    assert (done.returncode, "ORCH_STORM does not name its control file" in done.stderr) == (1, True)


def test_the_library_needs_libc_only_and_shows_nothing_but_ioctl(programs: Path) -> None:
    needed = proc.run(["readelf", "-d", programs / "libstorm.so"]).stdout
    assert re.findall(r"\(NEEDED\).*\[(.*)\]", needed) == ["libc.so.6"]
    shown = proc.run(["nm", "-D", "--defined-only", programs / "libstorm.so"]).stdout.split()
    assert shown[2::3] == ["ioctl"]


def test_a_script_that_starts_the_vmm_passes_the_library_on(programs: Path, tmp_path: Path) -> None:
    body = "exec /bin/sh -c 'echo \"orch-bench: error: from the second\"; exec sleep 20'"
    done = run(programs, tmp_path, script(tmp_path, body), *OUT)
    assert "fault_bench, in the guest: from the second" in last_line(done)
    assert "libstorm/attach.c" in done.stderr  # it was the library that ended the second shell


def test_both_ends_of_the_mailbox_see_one_layout(tmp_path: Path) -> None:
    """No padding that a compiler may place as it likes, and all of it in one page."""
    source = tmp_path / "layout.c"
    source.write_text('#include "mailbox.h"\n_Static_assert(sizeof(struct mailbox) <= 4096, "one page");\n')
    flags = ["-std=gnu11", "-Wall", "-Wpadded", "-Werror", f"-I{GUESTS}/include", "-fsyntax-only"]
    proc.run(["gcc", *flags, source])


def table(text: str, name: str) -> str:
    found = re.search(rf"static const struct choice {name}\[\] = {{.*?}};", text, re.DOTALL)
    assert found is not None, name
    return found.group()


@pytest.mark.parametrize("name", ["accesses", "orders", "ops", "placements", "classes", "cpus"])
def test_the_words_are_those_of_the_flat_guests_program(name: str) -> None:
    ours, flat = (GUESTS / "vmm" / "settings.c").read_text(), (GUESTS / "fault_vmm" / "main.c").read_text()
    assert table(ours, name) == table(flat, name)


@pytest.mark.parametrize("name", ["share_of", "next_random", "fill_order", "start_delay_us"])
def test_pages_and_delays_are_dealt_out_as_for_the_flat_guest(name: str) -> None:
    pattern = rf"static (?:inline )?(\w+ {name}\(.*?\n}})"
    ours = re.search(pattern, (GUESTS / "vmm" / "seeded.h").read_text(), re.DOTALL)
    flat = re.search(
        pattern, "".join((GUESTS / "fault_vmm" / file).read_text() for file in ("layout.c", "main.c")), re.DOTALL
    )
    assert ours is not None
    assert flat is not None
    assert ours.group(1) == flat.group(1)
