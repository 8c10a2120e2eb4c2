"""linuxguest.py and trial.py: a cell with a Linux guest becomes a job with its files, here and on a worker."""

from __future__ import annotations

import dataclasses
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_engine import experiment

from orchestrator import linuxguest, trial
from orchestrator.engine import kit
from orchestrator.engine.depot import Depot
from orchestrator.errors import BuildError, StoreError, UserError
from orchestrator.experiment import Arm, Cell, Experiment, LinuxGuest, LinuxGuestSpec, Storm, TargetSpec, TracedCell
from orchestrator.image import Guests
from orchestrator.kernel.build import BuiltKernel
from orchestrator.linuxguest import ARGV_FILE, LinuxKit
from orchestrator.plan import Trial
from orchestrator.results import Outcome
from orchestrator.store import file_sha256
from orchestrator.target.target import CONSOLE, INITRAMFS, STATUS, Evidence, Job
from orchestrator.vmm import Packed, PackedFile

CELL = Cell("outside", LinuxGuest(mem_mib=64, faults="host", jitter_wakeups=7), Storm("munmap", "outside", 4))
SPEC = TargetSpec("qemu", mem_mib=1024)


@dataclasses.dataclass
class Recorder:
    """A target that keeps the last job and says that the program failed."""

    job: Job | None = None

    def run(self, job: Job, folder: Path) -> Evidence:
        self.job = job
        (folder / CONSOLE).write_text("")
        (folder / STATUS).write_text("pid1 1\nstderr guest: Oops\nstderr the guest panicked: why\nexit 1\nend 2\n")
        return Evidence("ended", 0, 0.5, 1.0)


@pytest.fixture
def guests(tmp_path: Path) -> Guests:
    folder = tmp_path / "guests"
    folder.mkdir()
    for name in ("init", "fault_vmm", "tsc_khz", "vmm_run", "fault_bench", "libstorm.so"):
        (folder / name).write_text(f"{name}\n")
    return Guests(folder / "init", folder / "fault_vmm", folder / "tsc_khz", "g")


@pytest.fixture
def linux(tmp_path: Path, guests: Guests) -> LinuxKit:
    kept = tmp_path / "cache/vmm/ID"
    paths = ("usr/bin/qemu-system-x86_64", "lib/x86_64-linux-gnu/libc.so.6")
    for path in paths:
        (kept / path).parent.mkdir(parents=True)
        (kept / path).write_text(path)
    files = tuple(PackedFile(path, len(path), file_sha256(kept / path), "qemu", "7.2") for path in paths)
    (tmp_path / "vmlinux").write_text("base's kernel")
    packed = Packed("/usr/bin/qemu-system-x86_64", "ID", files)
    return LinuxKit(LinuxGuestSpec(), packed, kept, tmp_path / "vmlinux", guests)


def a_trial(arm: str = "v1", cell: Cell | TracedCell = CELL) -> Trial:
    return Trial("000", arm, cell, 0, 0, 42)


def test_the_job_runs_vmm_run_with_the_words_of_the_cell() -> None:
    job = trial.make_job(a_trial(), SPEC, Path("/vmlinux"))
    assert job.program == "vmm_run" and job.tdp and not job.swap
    words = dict(zip(job.words[::2], job.words[1::2], strict=True))
    assert words == {
        "--arm": "v1".ljust(31), "--cell": "outside", "--seed": "42", "--vcpus": "1", "--mem-bytes": str(64 << 20),
        "--stride-bytes": "4096", "--rounds": "4", "--access": "write", "--order": "sequential", "--faults": "host",
        "--memory": "anonymous", "--jitter-wakeups": "7", "--jitter-period-us": "1000", "--preload": "/lib/libstorm.so",
        "--vmm-argv": "/guest/argv", "--storm": "munmap", "--placement": "outside", "--storm-bytes": "4096",
        "--storm-threads": "1", "--storm-period-us": "0", "--storm-cpu": "any", "--storm-class": "other",
        "--hogs": "0", "--max-windows": "65536",
    }  # fmt: skip


def test_a_traced_cell_is_the_same_with_tracing_around_it() -> None:
    plain = trial.make_job(a_trial(), SPEC, Path("/vmlinux"))
    traced = trial.make_job(a_trial(cell=TracedCell("traced,outside", CELL, 32)), SPEC, Path("/vmlinux"))
    assert traced == replace(plain, trace_kib=32 << 10)


@pytest.mark.parametrize("traced", [False, True])
def test_a_trial_gets_the_vmm_the_guest_and_their_command_line(tmp_path: Path, linux: LinuxKit, traced: bool) -> None:
    folder, target = tmp_path / "trial", Recorder()
    folder.mkdir()
    cell = TracedCell("traced,outside", CELL, 32) if traced else CELL
    result = trial.run_trial(a_trial(cell=cell), SPEC, Path("/vmlinux"), target, folder, "again", linux=linux)
    assert (result.outcome, result.reason) == (Outcome.FAILED, "the program exited with 1: the guest panicked: why")
    assert target.job is not None
    files = {file.path: file.source for file in target.job.files}
    assert files.pop("guest/initramfs.cpio") == folder / "guest.cpio" and files.pop("guest/argv") == folder / ARGV_FILE
    assert {path: source.read_text() for path, source in files.items()} == {
        "usr/bin/qemu-system-x86_64": "usr/bin/qemu-system-x86_64",
        "lib/x86_64-linux-gnu/libc.so.6": "lib/x86_64-linux-gnu/libc.so.6",
        "guest/vmlinux": "base's kernel", "lib/libstorm.so": "libstorm.so\n",
    }  # fmt: skip
    words = (folder / ARGV_FILE).read_bytes().decode().split("\0")
    assert words[0] == "/usr/bin/qemu-system-x86_64" and words.pop() == ""
    assert words[words.index("-m") + 1] == "192" and words[words.index("-smp") + 1] == "1"
    assert words[words.index("-kernel") + 1] == "/guest/vmlinux"
    assert words[words.index("-initrd") + 1] == "/guest/initramfs.cpio"
    assert words[-1].startswith("console=ttyS0 ") and words[-2] == "-append"


def test_the_guest_boots_the_same_bytes_in_every_cell_and_arm(tmp_path: Path, linux: LinuxKit) -> None:
    seen = set()
    for name, arm, cell in (("a", "base", CELL), ("b", "v1", Cell("quiet", CELL.guest, None))):
        folder = tmp_path / name
        folder.mkdir()
        trial.run_trial(a_trial(arm, cell), SPEC, Path(f"/{arm}"), Recorder(), folder, "again", linux=linux)
        seen.add(((folder / "guest.cpio").read_bytes(), (folder / ARGV_FILE).read_bytes()))
        assert not (folder / INITRAMFS).exists()
    assert len(seen) == 1
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=seen.pop()[0], capture_output=True, check=True).stdout
    assert listed.decode().split() == ["dev", "init", "proc", "sys", "tmp"]


def test_the_guests_kernel_is_the_arms_own_if_asked_for(tmp_path: Path, linux: LinuxKit) -> None:
    (tmp_path / "patched").write_text("arm's")
    own = replace(linux, kernel=None)
    files = linuxguest.guest_files(CELL, own, tmp_path / "patched", tmp_path)
    assert next(file.source for file in files if file.path == "guest/vmlinux") == tmp_path / "patched"
    with pytest.raises(BuildError, match="no kernel for its guest"):
        linuxguest.guest_files(CELL, own, None, tmp_path)


def chosen(**changes: object) -> Experiment:
    return replace(experiment(), cells=(CELL,), linux_guest=LinuxGuestSpec(), **changes)  # type: ignore[arg-type]


def built(path: Path, arm: str = "base") -> BuiltKernel:
    return BuiltKernel(arm, "ok", "5.10", path, file_sha256(path), None, "", None, "", 1.0, True, Path("/log"), "")


def test_the_kit_takes_the_bases_kernel_its_own_or_none(
    tmp_path: Path, linux: LinuxKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own").write_text("own")
    base, own = built(tmp_path / "vmlinux", chosen().base.name), built(tmp_path / "own", "linux-guest")
    make = linuxguest.make_kit
    assert make(chosen(), linux.guests, linux.packed, None, [base]) == linux
    fragments = replace(chosen(), linux_guest=LinuxGuestSpec(kernel=(Path("/g.config"),)))
    assert make(fragments, linux.guests, linux.packed, own, [base]).kernel == tmp_path / "own"
    with pytest.raises(StoreError, match="kernel of the Linux guests is not in the cache"):
        make(fragments, linux.guests, linux.packed, None, [base])
    each = replace(chosen(), linux_guest=LinuxGuestSpec(kernel="arm"))
    assert make(each, linux.guests, linux.packed, None, [base]).kernel is None
    with pytest.raises(StoreError, match="kernel of the Linux guests is not in the cache"):
        make(chosen(), linux.guests, linux.packed, None, [])
    with pytest.raises(UserError, match="no longer in the cache"):
        make(chosen(), linux.guests, replace(linux.packed, id="gone"), None, [base])


def test_a_cell_that_does_not_fit_the_host_is_said_before_kernels_are_built(
    linux: LinuxKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = replace(linux.packed, files=(replace(linux.packed.files[0], size_bytes=600 << 20), linux.packed.files[1]))
    monkeypatch.setattr("orchestrator.vmm.pack", lambda spec, say: big)
    said: list[str] = []
    with pytest.raises(UserError) as caught:
        linuxguest.pack(chosen(target=SPEC), said.append)
    # Twice 600 MiB while the host unpacks them, and its kernel.
    assert "cell outside needs 1328 MiB of the host under test, which has 1024: 600 are the packed VMM" in str(
        caught.value
    )
    assert caught.value.hint is not None and "mem_mib: 1408" in caught.value.hint
    assert said == [
        "VMM: /usr/bin/qemu-system-x86_64 (qemu 7.2), packed in 2 files, 600 MiB; the guests' kernel: the base arm's"
    ]
    assert linuxguest.pack(chosen(target=replace(SPEC, mem_mib=1408)), said.append) == big
    assert linuxguest.pack(replace(chosen(), linux_guest=None), said.append) is None


def test_the_guests_own_kernel_is_built_from_the_bases_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def build_arms(tree, fragments, arms, cache, progress):  # type: ignore[no-untyped-def]
        asked.append((tree, fragments, tuple(arms)))
        return (built(Path("/dev/null"), arms[0].name),)

    monkeypatch.setattr("orchestrator.kernel.build.build_arms", build_arms)
    fragments = replace(chosen(), linux_guest=LinuxGuestSpec(kernel=(Path("/g.config"),)))
    base = Arm("base", (Path("/p.patch"),))
    said: list[str] = []
    assert linuxguest.build_kernel(chosen(), "tree", base, said.append) is None  # type: ignore[arg-type]
    found = linuxguest.build_kernel(fragments, "tree", base, said.append)  # type: ignore[arg-type]
    assert found is not None and found.arm == "linux-guest"
    assert asked == [("tree", (Path("/g.config"),), (Arm("linux-guest", (Path("/p.patch"),)),))]
    assert said == ["kernel of the Linux guests: 5.10, built before, in 1 s"]


@pytest.mark.parametrize("own", [True, False])
def test_a_worker_gets_it_by_content(tmp_path: Path, linux: LinuxKit, own: bool) -> None:
    linux = linux if own else replace(linux, kernel=None)
    packing = kit.pack(SPEC, ("icount", None), linux.guests, [built(tmp_path / "vmlinux")], [], linux)
    depot = Depot(tmp_path / "depot")
    for digest in depot.missing(packing.kit.hashes):
        depot.put(digest, "5e" * 16, 0, packing.files[digest].read_bytes(), True)
    bench = kit.unpack(packing.kit, depot, None, print)
    assert bench.linux is not None and bench.linux.packed == linux.packed
    assert (bench.linux.kernel is not None) == own
    for file in linux.packed.files:
        assert (bench.linux.folder / file.path).read_bytes() == (linux.folder / file.path).read_bytes()
    assert bench.linux.guests.program("libstorm.so").read_text() == "libstorm.so\n"
