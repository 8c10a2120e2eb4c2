"""vmm.py and kernel/elf.py: a program with all that it opens, found without running it, and kept by content."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator import vmm
from orchestrator.errors import BuildError, UserError
from orchestrator.experiment import LinuxGuestSpec
from orchestrator.kernel import elf

ARGUMENTS = "{kernel} {initrd} {mem_mib} {cpus} {cmdline}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that needs a library of its own, which needs another; and the same program statically linked."""
    folder = tmp_path_factory.mktemp("vmm")
    (folder / "lib").mkdir()
    sources = {"low": "int low(void) { return 7; }", "high": "int low(void); int high(void) { return low(); }",
               "main": "int high(void); int main(void) { return high() - 7; }",
               "alone": "int main(void) { return 0; }"}  # fmt: skip
    for name, text in sources.items():
        (folder / f"{name}.c").write_text(text + "\n")
    low, high = folder / "lib/liborchlow.so", folder / "lib/liborchhigh.so"
    for argv in (
        ["-shared", "-fPIC", "-Wl,-soname,liborchlow.so", "-o", low, folder / "low.c"],
        ["-shared", "-fPIC", "-Wl,-soname,liborchhigh.so", "-o", high, folder / "high.c", low, "-Wl,-rpath,$ORIGIN"],
        ["-o", folder / "myvmm", folder / "main.c", high, "-Wl,-rpath,${ORIGIN}/lib"],
        ["-static", "-o", folder / "static", folder / "alone.c"],
    ):
        subprocess.run(["gcc", *map(str, argv)], check=True)
    return folder


def spec(program: Path, *files: Path) -> LinuxGuestSpec:
    return LinuxGuestSpec(vmm=str(program), arguments=ARGUMENTS, files=files)


def test_the_dynamic_section_is_read(built: Path) -> None:
    found = elf.dynamic(built / "myvmm")
    assert found is not None
    assert set(found.needed) == {"liborchhigh.so", "libc.so.6"}
    assert found.search == (f"{built}/lib",) and found.interpreter == "/lib64/ld-linux-x86-64.so.2"
    library = elf.dynamic(built / "lib/liborchhigh.so")
    assert library is not None and library.interpreter is None and library.search == (f"{built}/lib",)
    assert elf.dynamic(built / "main.c") is None


def test_it_finds_what_ldd_finds(built: Path) -> None:
    listed = subprocess.run(["ldd", built / "myvmm"], check=True, capture_output=True, text=True).stdout
    theirs = {line.split()[0].rpartition("/")[2] for line in listed.splitlines()} - {"linux-vdso.so.1"}
    packed = vmm.pack(spec(built / "myvmm"), print)
    assert {Path(file.path).name for file in packed.files} == theirs | {"myvmm"}


def test_the_packed_program_runs_on_what_was_packed(built: Path) -> None:
    """Where its own folders are not: all its libraries lie where the C library does."""
    packed = vmm.pack(spec(built / "myvmm"), print)
    kept = vmm.folder(packed)
    home = next(Path(file.path).parent for file in packed.files if file.path.endswith("/libc.so.6"))
    assert {"liborchhigh.so", "liborchlow.so"} <= {path.name for path in (kept / home).iterdir()}
    program = kept / packed.program.lstrip("/")
    program.chmod(0o755)
    loader = kept / "lib64/ld-linux-x86-64.so.2"
    loader.chmod(0o755)
    subprocess.run([loader, "--inhibit-cache", "--library-path", kept / home, program], check=True)


def test_the_same_content_is_the_same_pack_and_another_another(built: Path, tmp_path: Path) -> None:
    firmware = tmp_path / "firmware"
    firmware.mkdir()
    (firmware / "a.rom").write_bytes(b"A")
    first = vmm.pack(spec(built / "myvmm", firmware), print)
    assert vmm.pack(spec(built / "myvmm", firmware), print) == first
    (firmware / "a.rom").write_bytes(b"B")
    second = vmm.pack(spec(built / "myvmm", firmware), print)
    assert first.id != second.id
    rom = next(file for file in second.files if file.path.endswith("a.rom"))
    assert rom.path == str(firmware / "a.rom").lstrip("/")
    assert rom.sha256 == hashlib.sha256(b"B").hexdigest() and (vmm.folder(first) / rom.path).read_bytes() == b"A"
    assert first.mib == pytest.approx(sum(file.size_bytes for file in first.files) / 2**20)


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="not a Debian machine")
def test_each_file_names_its_debian_package(built: Path) -> None:
    packed = vmm.pack(spec(built / "myvmm"), print)
    by_name = {Path(file.path).name: file for file in packed.files}
    libc, own = by_name["libc.so.6"], by_name["myvmm"]
    asked = subprocess.run(["dpkg-query", "-W", "-f=${Version}", "libc6"], check=True, capture_output=True, text=True)
    assert (libc.package, libc.version) == ("libc6", asked.stdout)
    assert by_name["ld-linux-x86-64.so.2"].package == "libc6"
    assert (own.package, own.version) == ("", "") and packed.version == f"sha256 {own.sha256[:16]}"


def test_what_cannot_work_is_said_with_what_to_do(built: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"static is no dynamically linked x86-64 program: libstorm\.so"):
        vmm.pack(spec(built / "static"), print)
    with pytest.raises(UserError, match="there is no program /nonexistent/vmm"):
        vmm.pack(spec(Path("/nonexistent/vmm")), print)
    with pytest.raises(UserError, match="nosuchvmm is not installed"):
        vmm.pack(LinuxGuestSpec(vmm="nosuchvmm", arguments=ARGUMENTS), print)
    moved = tmp_path / "myvmm"
    shutil.copy(built / "myvmm", moved)
    with pytest.raises(UserError, match=r"myvmm needs the library liborchhigh\.so, which is not on this machine"):
        vmm.pack(spec(moved), print)
    damaged = bytearray((built / "myvmm").read_bytes())
    damaged[32:40] = (1 << 40).to_bytes(8, "little")
    (tmp_path / "damaged").write_bytes(damaged)
    with pytest.raises(BuildError, match="damaged ELF"):
        vmm.pack(spec(tmp_path / "damaged"), print)
    assert not list((cache / "vmm").glob("*")) if (cache / "vmm").exists() else True


def test_qemu_comes_with_its_firmware(built: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/qemu-system-x86_64"
    shutil.copy(built / "myvmm", program)
    shutil.copytree(built / "lib", tmp_path / "bin/lib")
    with pytest.raises(UserError, match=r"has no firmware qboot\.rom in any of ") as caught:
        vmm.pack(LinuxGuestSpec(vmm=str(program)), print)
    assert caught.value.hint == "apt-get install qemu-system-data"
    (tmp_path / "share/qemu").mkdir(parents=True)
    for name in vmm.QEMU_ROMS:
        (tmp_path / "share/qemu" / name).write_bytes(name.encode())
    packed = vmm.pack(LinuxGuestSpec(vmm=str(program)), print)
    roms = {Path(file.path).name for file in packed.files if "/share/qemu/" in file.path}
    assert roms == set(vmm.QEMU_ROMS)


def test_a_pack_that_the_cache_has_lost_is_an_error_that_says_which(built: Path, cache: Path) -> None:
    packed = vmm.pack(spec(built / "myvmm"), print)
    shutil.rmtree(cache / "vmm")
    with pytest.raises(UserError, match=r"as it was packed .* is no longer in the cache"):
        vmm.folder(packed)
