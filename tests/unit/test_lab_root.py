"""lab/root.py and guests/lab_agent/root.c: a program with its own libraries on a lab machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fakehost import FOLDER, lab_host
from test_lab_agent import agent, status, wait_for  # noqa: F401 (agent is a fixture)
from test_ssh import Lab

from orchestrator.errors import TargetError
from orchestrator.image import GuestFile
from orchestrator.lab import root
from orchestrator.target.target import Job


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    made = Lab(tmp_path, lab_host(tmp_path))
    (tmp_path / "vmm_run").write_bytes(b"the program vmm_run" * 300)
    return made


def job(lab: Lab, *files: tuple[str, bytes]) -> Job:
    made = []
    for number, (path, content) in enumerate(files):
        (lab.folder / f"file-{number}").write_bytes(content)
        made.append(GuestFile(path, lab.folder / f"file-{number}"))
    return Job(lab.vmlinux, ("--rounds", "1"), True, False, 1, 512, 300.0, 100.0, "vmm_run", tuple(made))


def run(lab: Lab, number: int, wanted: Job) -> str:
    """The root that a trial was given, by the agent's words."""
    folder = lab.folder / f"trial-{number}"
    folder.mkdir()
    evidence = lab.target.run(wanted, folder)
    assert (evidence.ending, evidence.note) == ("ended", "")
    words = [call for call in lab.host.calls if call[1:2] == ("run",)][-1]
    assert words[words.index("--") :] == (
        "--",
        "/bin/vmm_run",
        "--rounds",
        "1",
        "--boot-seconds",
        "90",
        "--out",
        "recording.bin",
    )
    return words[words.index("--root") + 1]


def test_files_lie_at_their_paths_in_a_root_that_trials_share(lab: Lab) -> None:
    wanted = job(lab, ("usr/bin/vmm", b"VMM" * 999), ("lib/libc.so.6", b"libc"), ("usr/lib/copy.so", b"libc"))
    place = run(lab, 0, wanted)
    assert place.startswith(f"{FOLDER}/roots/")
    inside = {path.removeprefix(f"{place}/"): data for path, data in lab.host.files.items() if path.startswith(place)}
    assert inside == {
        "bin/vmm_run": b"the program vmm_run" * 300, "usr/bin/vmm": b"VMM" * 999, "lib/libc.so.6": b"libc",
        "usr/lib/copy.so": b"libc",
    }  # fmt: skip
    before = len(lab.host.calls)
    assert run(lab, 1, wanted) == place
    assert not [call for call in lab.host.calls[before:] if call[0] == "ln"], "laid out once"
    assert run(lab, 2, job(lab, ("usr/bin/vmm", b"another"))) != place


def test_a_root_that_was_half_laid_out_is_laid_out_anew(lab: Lab) -> None:
    lab.target.contact()
    files = {"usr/bin/a": lab.vmlinux, "usr/bin/b": lab.folder / "vmm_run"}

    def fault(call: str, words: tuple[str, ...]) -> None:
        if call == "run" and words[0] == "ln" and words[-1].endswith("usr/bin/b"):
            lab.host.faults.remove(fault)
            raise TargetError("the tool ends here")

    lab.host.faults.append(fault)
    with pytest.raises(TargetError, match="ends here"):
        root.lay_out(lab.target.machine, files)
    place = root.lay_out(lab.target.machine, files)
    assert lab.host.files[f"{place}/usr/bin/b"] == (lab.folder / "vmm_run").read_bytes()
    assert not [path for path in lab.host.files if ".new/" in path]


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "usr/../../outside"])
def test_no_path_leads_out_of_the_root(lab: Lab, path: str) -> None:
    lab.target.contact()
    with pytest.raises(TargetError, match="not a path below the root"):
        root.lay_out(lab.target.machine, {path: lab.vmlinux})


def test_room_is_made_of_roots_as_well(lab: Lab) -> None:
    place = run(lab, 0, job(lab, ("usr/bin/vmm", b"VMM")))
    lab.host.free_bytes = 1 << 20
    with pytest.raises(TargetError):
        lab.target.machine.make_room(1 << 20)
    assert not [path for path in lab.host.files if path.startswith(place)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_the_program_sees_its_root_and_the_trials_folder_and_the_machine_sees_no_mount(
    agent: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The static agent itself is the program in the root: it writes through /trial and /proc."""
    place, folder = tmp_path / "root", tmp_path / "trial"
    (place / "bin").mkdir(parents=True)
    folder.mkdir()
    (folder / "out").touch()
    shutil.copy(agent, place / "bin" / "only-here")
    argv = [agent, "run", "--dir", folder, "--deadline", "120", "--log", "new", "--root", place]
    argv += ["--", "/bin/only-here", "set", "out", "written inside"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    wait_for(folder / "done")
    assert status(folder) == ["pid1", "start", "exit 0", "end"]
    assert (folder / "out").read_text() == "written inside"
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert sorted(item.name for item in place.iterdir()) == ["bin", "dev", "proc", "run", "sys", "trial"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_root_that_is_not_there_fails_the_trial_with_its_reason(agent: Path, tmp_path: Path) -> None:  # noqa: F811
    argv = [agent, "run", "--dir", tmp_path, "--deadline", "120", "--log", "new", "--root", tmp_path / "none"]
    subprocess.run([*argv, "--", "/bin/true"], timeout=120, check=True)
    wait_for(tmp_path / "done")
    lines = status(tmp_path)
    assert lines[-2:] == ["exit 1", "end"] and "No such file" in lines[-3]
