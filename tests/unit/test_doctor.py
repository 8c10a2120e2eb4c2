"""doctor.py and kvmdev.py: what the machine can do, and what is said where it cannot."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from orchestrator import doctor, kvmdev, proc
from orchestrator.doctor import AccelChoice, pick_accel
from orchestrator.errors import CommandError, TargetError
from orchestrator.kvmdev import KvmDevice

WORKS = KvmDevice("", svm=True, vmx=False, flat_guest_error="")
FLAT_ONLY = KvmDevice("", svm=False, vmx=False, flat_guest_error="")
ABSENT = KvmDevice("/dev/kvm does not exist", False, False, "")
HUNG = KvmDevice("", svm=False, vmx=False, flat_guest_error="no end after 10 s, killed")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A pretended machine: its KVM device and the accelerators that QEMU fails with."""

    def pretend(device: KvmDevice, failing: dict[str, str] | None = None, nested: str = "") -> None:
        monkeypatch.setattr(kvmdev, "probe", lambda: device)
        monkeypatch.setattr(kvmdev, "nested_parameter", lambda: nested)
        monkeypatch.setattr(doctor, "qemu_failure", lambda accel: (failing or {}).get(accel, ""))

    return pretend


# --- picking an accelerator -------------------------------------------------------------------------------------------


def test_auto_takes_kvm_where_it_really_works(machine) -> None:
    machine(WORKS)
    assert pick_accel("auto") == AccelChoice("kvm", "this machine's KVM offers nesting and QEMU runs with it")
    assert pick_accel("auto", cpus=4).accel == "kvm"


@pytest.mark.parametrize(
    ("device", "failing", "reason"),
    [
        (
            FLAT_ONLY,
            {},
            "opens, makes VMs and runs a flat guest, but the CPUID that it supports has neither svm nor vmx",
        ),
        (ABSENT, {}, "/dev/kvm does not exist"),
        (
            WORKS,
            {"kvm": "kvm_buf_set_msrs: Assertion failed"},
            "/dev/kvm offers svm, but QEMU does not run with it: kvm_buf",
        ),
        (HUNG, {}, "/dev/kvm opens and makes VMs, but the CPUID"),
    ],
)
def test_auto_falls_to_icount_or_tcg_and_says_why(machine, device, failing, reason) -> None:
    machine(device, failing)
    one, two = pick_accel("auto"), pick_accel("auto", cpus=2)
    assert one.accel == "icount" and one.why.startswith("icount (bit-exact), since ") and reason in one.why
    assert two.accel == "tcg" and reason in two.why
    assert "\n" not in one.why
    with pytest.raises(TargetError, match="accel: kvm cannot work here: ") as caught:
        pick_accel("kvm")
    assert reason in caught.value.what and caught.value.hint


def test_an_explicit_choice_is_never_replaced(machine) -> None:
    machine(WORKS)
    assert pick_accel("tcg") == AccelChoice("tcg", "tcg, as the experiment says")
    assert pick_accel("icount").accel == "icount"
    with pytest.raises(TargetError, match="icount takes one CPU, not 2"):
        pick_accel("icount", cpus=2)
    machine(FLAT_ONLY, {"icount": "no", "tcg": "no"})
    for wanted in ("icount", "tcg", "auto"):
        with pytest.raises(TargetError, match="QEMU does not run with accel"):
            pick_accel(wanted)


# --- findings ---------------------------------------------------------------------------------------------------------


def test_the_obstacle_to_hardware_kvm_is_one_line_with_its_cure(machine) -> None:
    machine(FLAT_ONLY, nested="kvm_intel nested=N")
    found = doctor._kvm(FLAT_ONLY)
    assert (
        found.status == "warn" and "neither svm nor vmx (kvm_intel nested=N)" in found.says and "\n" not in found.says
    )
    assert found.fix == "modprobe -r kvm_intel && modprobe kvm_intel nested=1"
    machine(FLAT_ONLY, nested="kvm_amd nested=1")
    assert doctor._kvm(FLAT_ONLY).fix == ""
    denied = KvmDevice("/dev/kvm cannot be used: Permission denied", False, False, "")
    assert doctor._kvm(denied).fix.startswith("adduser $USER kvm")
    assert doctor._kvm(WORKS) == doctor.Finding("hardware KVM", "ok", "/dev/kvm offers svm and QEMU runs with it")


def test_local_is_judged_by_the_flat_guest(machine) -> None:
    machine(FLAT_ONLY)
    assert doctor._local(FLAT_ONLY).status == "ok"
    found = doctor._local(HUNG)
    assert found.status == "warn" and "no end after 10 s" in found.says


def test_missing_tools_come_with_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"flex", "bc", "xz"}
    monkeypatch.setattr(doctor.shutil, "which", lambda program: None if program in gone else f"/usr/bin/{program}")
    found = doctor._tools("kernel build", doctor.BUILD_TOOLS)
    assert (found.status, found.says, found.fix) == (
        "fail", "missing: flex, bc, xz", "apt-get install bc flex xz-utils",
    )  # fmt: skip


def test_missing_qemu_is_a_failure_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "qemu_version", lambda: "")
    assert doctor._qemu().fix == "apt-get install qemu-system-x86"


@pytest.mark.parametrize(("gib", "status"), [(2.9, "fail"), (3.1, "warn"), (6.1, "ok")])
def test_disk_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gib: float, status: str) -> None:
    usage = type("Usage", (), {"free": int(gib * 2**30)})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage if path == tmp_path else None)
    found = doctor._disk(tmp_path / "not" / "yet")
    assert found.status == status and f"{gib:.1f} GiB free" in found.says


def test_the_mirror_is_read_from_apts_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "http://mirror/debian/ bookworm\nhttp://mirror/debian-security/ bookworm-security\nhttp://other/x/ y\n"
    monkeypatch.setattr(doctor.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(proc, "run", lambda *_, **__: proc.Completed((), 0, listing, 0.0))
    assert doctor._mirror().says == "apt has one, with bookworm, bookworm-security"
    monkeypatch.setattr(proc, "run", lambda *_, **__: proc.Completed((), 0, "http://other/x/ y\n", 0.0))
    assert doctor._mirror().status == "warn"


# --- QEMU's argument list and the ROM ---------------------------------------------------------------------------------


def test_the_probe_of_qemu_is_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []

    def run(argv: list[str], **options: object) -> proc.Completed:
        seen.append(tuple(argv))
        assert options["accept"] == (33,)
        assert Path(argv[argv.index("-bios") + 1]).read_bytes() == doctor.ROM
        return proc.Completed((), 33, "", 0.0)

    monkeypatch.setattr(proc, "run", run)
    monkeypatch.setattr(proc, "require", lambda program, package: program)
    assert [doctor.qemu_failure(accel) for accel in ("kvm", "tcg", "icount")] == ["", "", ""]
    accelerators = [" ".join(argv[1 : argv.index("-machine")]) for argv in seen]
    assert accelerators == ["-accel kvm -cpu host", "-accel tcg", "-accel tcg -icount shift=0,sleep=off"]
    tail = "-nodefaults -no-user-config -display none -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4"
    assert all(" ".join(argv).endswith(tail) for argv in seen)


def test_a_qemu_that_dies_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> proc.Completed:
        raise CommandError("died of SIGABRT: qemu\n  | Assertion `ret == n' failed")

    monkeypatch.setattr(proc, "run", run)
    monkeypatch.setattr(proc, "require", lambda program, package: program)
    assert doctor.qemu_failure("kvm") == "died of SIGABRT: qemu | Assertion `ret == n' failed"


def test_the_rom_ends_at_the_top_of_64_kib() -> None:
    assert len(doctor.ROM) == 65536
    assert doctor.ROM[0xFFF0:0xFFF7] == bytes.fromhex("b010e6f4f4ebfd")


# --- the device -------------------------------------------------------------------------------------------------------


def cpuid(*entries: tuple[int, int]) -> bytes:
    """A struct kvm_cpuid2 of ``(function, ecx)``."""
    packed = b"".join(struct.pack("<10I", function, 0, 0, 0, 0, ecx, 0, 0, 0, 0) for function, ecx in entries)
    return struct.pack("<II", len(entries), 0) + packed


@pytest.mark.parametrize(
    ("entries", "bits"),
    [
        ([], (False, False)),
        ([(1, 0), (0x80000001, 0)], (False, False)),
        ([(1, 1 << 5)], (False, True)),
        ([(0x80000001, 1 << 2)], (True, False)),
        ([(0x80000001, 1 << 5), (1, 1 << 2)], (False, False)),
    ],
)
def test_nesting_bits(entries: list[tuple[int, int]], bits: tuple[bool, bool]) -> None:
    assert kvmdev.nesting_bits(cpuid(*entries)) == bits


def test_a_device_that_is_absent_or_something_else(tmp_path: Path) -> None:
    assert kvmdev.probe(tmp_path / "kvm").error == f"{tmp_path}/kvm does not exist"
    (tmp_path / "kvm").write_text("")
    assert kvmdev.probe(tmp_path / "kvm").error.endswith("cannot be used: Inappropriate ioctl for device")


@pytest.mark.qemu
def test_this_machine_is_examined_for_real() -> None:
    """Whatever this machine is: every finding has a status, one line, and no failure comes without words."""
    found = doctor.examine()
    assert len({finding.name for finding in found}) == len(found) >= 12
    for finding in found:
        assert finding.status in ("ok", "warn", "fail") and finding.says and "\n" not in finding.says


@pytest.mark.skipif(not kvmdev.DEVICE.exists(), reason="no /dev/kvm")
def test_the_flat_guest_agrees_with_the_probe() -> None:
    device = kvmdev.probe()
    if device.runs_flat_guest:
        kvmdev.run_flat_guest()
    else:
        assert device.error or device.flat_guest_error
