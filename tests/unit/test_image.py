"""image.py: guests/ to static programs to an initramfs of the same bytes each time."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator import image
from orchestrator.errors import BuildError, UserError
from orchestrator.image import Guests

PROGRAMS = ("init", "tsc_khz", *image.PROGRAMS)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_guests(folder: Path) -> Guests:
    """Programs that are not run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        (folder / name).write_text(f"program {name}")
    return Guests(folder / "init", folder / "fault_vmm", folder / "tsc_khz", "id")


def unpack(archive: Path, to: Path) -> dict[str, Path]:
    """The files of an initramfs by name."""
    to.mkdir()
    subprocess.run(["cpio", "-idm", "--quiet"], cwd=to, stdin=archive.open("rb"), check=True)
    return {str(path.relative_to(to)): path for path in to.rglob("*")}


# --- the initramfs ----------------------------------------------------------------------------------------------------


def test_the_same_trial_gives_the_same_bytes_anywhere_at_any_time(tmp_path: Path) -> None:
    words = ["@deadline=60", "/bin/fault_vmm", "--arm", "v1"]
    archives = []
    for name in ("a", "somewhere/quite/else"):
        guests = fake_guests(tmp_path / name / "guests")
        os.utime(guests.init, (1, 1))
        (tmp_path / name).mkdir(exist_ok=True)
        image.write_initramfs(guests, words, tmp_path / name / "initramfs.cpio")
        archives.append((tmp_path / name / "initramfs.cpio").read_bytes())
        guests.init.chmod(0o600)
    assert archives[0] == archives[1]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["guests", "initramfs.cpio"]


def test_it_holds_the_program_and_the_words(tmp_path: Path) -> None:
    guests = fake_guests(tmp_path / "g")
    image.write_initramfs(guests, ["/bin/fault_vmm", "--cell", "ä b"], tmp_path / "x.cpio")
    files = unpack(tmp_path / "x.cpio", tmp_path / "out")
    assert {"init", "bin", "bin/fault_vmm", "dev", "proc", "sys", "trial", "trial/argv"} <= set(files)
    assert files["init"].read_text() == "program init" and files["init"].stat().st_mode & 0o777 == 0o755
    assert files["bin/fault_vmm"].read_text() == "program fault_vmm"
    assert files["trial/argv"].read_bytes() == "/bin/fault_vmm\0--cell\0ä b\0".encode().ljust(
        image.TRIAL_FILE_BYTES, b"\0"
    )


def test_two_arms_boot_archives_of_one_size(tmp_path: Path) -> None:
    """The length of a name must not move a byte of the kernel's memory, or arms would differ by their names."""
    guests = fake_guests(tmp_path / "g")
    sizes, differing = set(), []
    for arm in ("a", "a-much-longer-name-of-an-arm"):
        image.write_initramfs(guests, ["/bin/fault_vmm", "--arm", arm], tmp_path / "x.cpio")
        sizes.add((tmp_path / "x.cpio").stat().st_size)
        differing.append((tmp_path / "x.cpio").read_bytes())
    assert len(sizes) == 1
    places = [at for at, (one, other) in enumerate(zip(*differing, strict=True)) if one != other]
    assert places and places[-1] - places[0] < image.TRIAL_FILE_BYTES


def test_words_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    guests = fake_guests(tmp_path / "g")
    image.write_initramfs(guests, ["x" * (image.TRIAL_FILE_BYTES - 1)], tmp_path / "x.cpio")
    with pytest.raises(UserError, match=f"take {image.TRIAL_FILE_BYTES + 1} bytes, there is room for"):
        image.write_initramfs(guests, ["x" * image.TRIAL_FILE_BYTES], tmp_path / "y.cpio")


def test_what_a_killed_attempt_left_is_not_packed(tmp_path: Path) -> None:
    guests = fake_guests(tmp_path / "g")
    (tmp_path / ".x.cpio.root/bin").mkdir(parents=True)
    (tmp_path / ".x.cpio.root/bin/leftover").write_text("x")
    image.write_initramfs(guests, ["a"], tmp_path / "x.cpio")
    assert "bin/leftover" not in unpack(tmp_path / "x.cpio", tmp_path / "out")


def test_a_shell_needs_a_static_busybox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    busybox = tmp_path / "bin" / "busybox"
    shutil.copy("/bin/true", busybox)  # linked against a shared libc
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="not a static program") as caught:
        image.write_shell_initramfs(fake_guests(tmp_path / "g"), tmp_path / "x.cpio")
    assert caught.value.hint == "apt-get install busybox-static"
    busybox.write_text("static enough")
    image.write_shell_initramfs(fake_guests(tmp_path / "g"), tmp_path / "x.cpio")
    files = unpack(tmp_path / "x.cpio", tmp_path / "out")
    assert files["init"].read_text().startswith("#!/bin/busybox sh\n") and files["bin/busybox"].exists()


# --- the programs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    """The real programs, compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return image.build_guests(print)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_programs_are_static_and_whole(built: Guests, program: str) -> None:
    path = built.program(program)
    segments = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True).stdout
    assert " LOAD " in segments and "INTERP" not in segments and os.access(path, os.X_OK)


def test_the_programs_do_not_know_where_they_were_compiled(tmp_path: Path) -> None:
    """Or another checkout would boot with another layout of its memory, and count other instructions."""
    made = []
    for place in ("here", "somewhere/quite/else"):
        sources, build = tmp_path / place / "guests", tmp_path / place / "objects"
        shutil.copytree(image.SOURCES, sources, ignore=shutil.ignore_patterns("build"))
        wanted = [f"{build}/bin/{name}" for name in ("init", "fault_vmm", image.LIBSTORM)]
        subprocess.run(["make", "-s", "-C", sources, f"BUILD={build}", *wanted], check=True)
        made.append([Path(path).read_bytes() for path in wanted])
    assert made[0] == made[1]


def test_a_program_refuses_what_it_does_not_know(built: Guests) -> None:
    for words in (["--storm", "tornado"], ["--rounds", "0"], ["--rounds", "1x"], ["--fly"]):
        done = subprocess.run([built.fault_vmm, *words], capture_output=True, text=True, check=False)
        assert done.returncode != 0 and done.stderr, words


def test_they_are_built_once_for_one_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = copy_sources(tmp_path, monkeypatch)
    calls: list[Path] = []
    compile_once = image._compile
    monkeypatch.setattr(image, "_compile", lambda folder: (calls.append(folder), compile_once(folder)))
    first = image.build_guests(print)
    assert image.build_guests(print) == first and len(calls) == 1
    (sources / "build").mkdir(exist_ok=True)
    (sources / "build" / "x.c").write_text("what make leaves is no source")
    assert image.build_guests(print) == first
    header = sources / "include" / "common.h"
    header.write_text(header.read_text() + "/* changed */\n")
    changed = image.build_guests(print)
    assert changed.content_id != first.content_id and len(calls) == 2 and first.init.exists()


def test_a_compile_error_names_its_log_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    sources = copy_sources(tmp_path, monkeypatch)
    (sources / "init" / "init.c").write_text("int main(void) { return undeclared; }\n")
    with pytest.raises(BuildError, match="did not compile") as caught:
        image.build_guests(print)
    assert "undeclared" in caught.value.render() and (caught.value.hint or "").startswith("/")
    assert not [path for path in (cache / "guests").iterdir() if path.is_dir()]


def copy_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sources = tmp_path / "guests"
    shutil.copytree(image.SOURCES, sources, ignore=shutil.ignore_patterns("build"))
    monkeypatch.setattr(image, "SOURCES", sources)
    return sources
