"""engine/depot.py, kit.py and parcel.py: what travels between client and workers is checked at both ends."""

from __future__ import annotations

import asyncio
import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from distributed.comm.utils import from_frames, to_frames
from distributed.protocol import to_serialize
from test_engine import experiment, result

from orchestrator import bench
from orchestrator.engine import depot as depot_module
from orchestrator.engine import kit, parcel
from orchestrator.engine.depot import Depot, Item, safe_path
from orchestrator.engine.kit import pack, unpack
from orchestrator.engine.need import host_id
from orchestrator.engine.parcel import Packed, Parcel
from orchestrator.engine.remote import Done
from orchestrator.errors import ShippingError
from orchestrator.experiment import TargetSpec
from orchestrator.image import Guests
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.selftests import BuiltSelftests, Program
from orchestrator.lab import LabHost
from orchestrator.plan import Trial, make_plan
from orchestrator.results import TrialResult
from orchestrator.store import Store, to_json
from orchestrator.target.pool import LabPool
from orchestrator.target.ssh import SshTarget
from orchestrator.target.target import COMMAND, COMMAND_NOTE

HOSTILE = (
    "", ".", "..", "/etc/passwd", "../x", "a/../x", "a/../../x", "a//b", ".hidden", "a/.git/x", "-x", "a\0b", "a\nb",
    "~/x", "a b", "$(x)", "x;y", "ü", "a/", "/".join("abcdefgh"),
)  # fmt: skip


SENDER, OTHER = "5e" * 16, "07" * 16


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path / "depot")


def give(depot: Depot, data: bytes, piece: int = 3) -> str:
    """Put it there in pieces."""
    for offset in range(0, len(data), piece):
        depot.put(sha256(data), SENDER, offset, data[offset : offset + piece], offset + piece >= len(data))
    return sha256(data)


# --- files by content -------------------------------------------------------------------------------------------------


def test_a_file_comes_in_pieces_and_is_found_by_its_content(depot: Depot) -> None:
    wanted = sha256(b"0123456789")
    assert depot.missing([wanted, wanted]) == (wanted,)
    give(depot, b"0123456789")
    assert depot.missing([wanted]) == () and depot.file(wanted).read_bytes() == b"0123456789"
    assert not list(depot.root.rglob("*.part"))


def test_another_content_than_was_said_is_refused_and_gone(depot: Depot) -> None:
    with pytest.raises(ShippingError, match="has another content"):
        depot.put(sha256(b"good"), SENDER, 0, b"evil", True)
    assert depot.missing([sha256(b"good")]) and not [path for path in depot.root.rglob("*") if path.is_file()]


def test_what_was_damaged_later_is_missing(depot: Depot) -> None:
    wanted = give(depot, b"0123456789")
    path = depot.file(wanted)
    path.chmod(0o600)
    path.write_bytes(b"012345678X")
    assert depot.missing([wanted]) == (wanted,)
    give(depot, b"0123456789")
    assert depot.file(wanted).read_bytes() == b"0123456789"


def test_a_sender_that_died_in_the_middle_leaves_no_file_and_the_next_one_starts_over(depot: Depot) -> None:
    wanted = sha256(b"0123456789")
    depot.put(wanted, SENDER, 0, b"01234567", False)
    assert depot.missing([wanted]) == (wanted,)
    give(depot, b"0123456789", 5)
    assert depot.missing([wanted]) == ()


@pytest.mark.parametrize("name", ["../x", "ab" * 31, "AB" * 32, "", "ab" * 32 + "/x"])
def test_only_a_hash_names_a_file(depot: Depot, name: str) -> None:
    with pytest.raises(ShippingError, match="is no SHA-256"):
        depot.put(name, SENDER, 0, b"x", True)


@pytest.mark.parametrize("sender", ["", "../x", "AB" * 16, "ab" * 17, "ab" * 16 + "\n"])
def test_only_a_senders_number_names_a_part(depot: Depot, sender: str) -> None:
    with pytest.raises(ShippingError, match="is no sender"):
        depot.put(sha256(b"x"), sender, 0, b"x", True)
    assert not depot.root.exists()


@pytest.mark.parametrize("order", ["aabbccdd", "abacbdcd", "abcacdbd", "abcdabcd"])
def test_two_runs_that_ship_one_file_at_once_do_not_hinder_each_other(depot: Depot, order: str) -> None:
    """``order`` has each piece twice, in the order in which they come; each sender sends its own from a to d."""
    data = bytes(range(250)) * 4
    pieces = {name: (at * 300, data[at * 300 : (at + 1) * 300], name == "d") for at, name in enumerate("abcd")}
    for place, name in enumerate(order):
        sender = "12"[order[:place].count(name)] * 32
        offset, piece, last = pieces[name]
        depot.put(sha256(data), sender, offset, piece, last)
    assert depot.file(sha256(data)).read_bytes() == data
    assert [path.name for path in (depot.root / "files").iterdir()] == [sha256(data)], "no part is left behind"


def test_a_part_that_another_process_has_made_needless_is_no_failure(
    depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the file and the write: workers of one machine share their cache."""

    def late(part: Path, offset: int, data: bytes) -> None:
        monkeypatch.undo()
        give(Depot(depot.root), b"0123456789", 5)
        append(part, offset, data)

    append = depot_module._append
    depot.put(sha256(b"0123456789"), OTHER, 0, b"01234", False)
    monkeypatch.setattr(depot_module, "_append", late)
    depot.put(sha256(b"0123456789"), OTHER, 5, b"56789", True)
    assert depot.file(sha256(b"0123456789")).read_bytes() == b"0123456789"
    assert not list(depot.root.rglob("*.part"))


def test_a_tree_has_files_side_by_side_under_their_names(depot: Depot) -> None:
    items = [Item("init", give(depot, b"init")), Item("bin/x86_64/smm_test", give(depot, b"test"))]
    folder = depot.tree(items)
    assert (folder / "init").read_bytes() == b"init" and (folder / "bin/x86_64/smm_test").read_bytes() == b"test"
    assert depot.tree(items) == folder and (folder / "init").stat().st_mode & 0o111
    (folder / "init").unlink()
    assert (depot.tree(items) / "init").read_bytes() == b"init", "it is made again"
    assert depot.tree([items[0]]) != folder


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_elsewhere_is_refused(depot: Depot, name: str, tmp_path: Path) -> None:
    with pytest.raises(ShippingError, match="is no name of a file"):
        safe_path(tmp_path, name)
    with pytest.raises(ShippingError):
        depot.tree([Item(name, give(depot, b"x"))])


# --- what trials need -------------------------------------------------------------------------------------------------


def built(folder: Path) -> tuple[Guests, list[BuiltKernel], list[BuiltSelftests]]:
    """Two kernels, one of which did not compile, their selftests, and the guest programs."""
    (folder / "guests").mkdir(parents=True)
    for name in ("init", "fault_vmm", "tsc_khz", "ktest_runner"):
        (folder / "guests" / name).write_text(name)
    guests = Guests(*(folder / "guests" / name for name in ("init", "fault_vmm", "tsc_khz")), "guests of a test")
    (folder / "vmlinux").write_bytes(b"kernel")
    (folder / "tests/bin/x86_64").mkdir(parents=True)
    (folder / "tests/bin/x86_64/smm_test").write_bytes(b"smm")
    place = folder / "x"
    good = BuiltKernel(
        "base", "ok", "5.10", folder / "vmlinux", sha256(b"kernel"), place, "", place, "", 1.0, True, place, ""
    )
    bad = BuiltKernel("v1", "failed", "", None, "", None, "", None, "", 1.0, False, place, "error")
    programs = (Program("x86_64/smm_test", sha256(b"smm"), ""), Program("x86_64/evmcs_test", "", "did not compile"))
    tests = BuiltSelftests("base", "ok", folder / "tests", programs, 1.0, True, place, "")
    return guests, [good, bad], [tests, replace(tests, arm="v1", build="failed", folder=None, programs=())]


def test_a_kit_means_the_same_on_another_machine(depot: Depot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit._machine.cache_clear()
    monkeypatch.setattr(bench.qemu, "measure_tsc_khz", lambda guests: 1_000_000)
    guests, kernels, tests = built(tmp_path / "client")
    packing = pack(TargetSpec("qemu"), ("icount", "tcg"), guests, kernels, tests)
    text = pickle.dumps(packing.kit)
    assert str(tmp_path).encode() not in text, "a path of the client's"
    assert set(packing.files) == set(packing.kit.hashes) and len(packing.kit.hashes) == 4 + 1 + 1
    for path in packing.files.values():
        give(depot, path.read_bytes())
    there = unpack(pickle.loads(text), depot, None, print)
    target, test_target = there.target, there.test_target
    assert isinstance(target, bench.qemu.QemuTarget) and isinstance(test_target, bench.qemu.QemuTarget)
    assert (target.accel, target.tsc_khz, test_target.accel, test_target.tsc_khz) == ("icount", 0, "tcg", 1_000_000)
    assert target.guests.program("ktest_runner").read_text() == "ktest_runner"
    assert target.guests.content_id == "guests of a test"
    vmlinux, program = there.kernels[0].vmlinux, there.tests[0].program("x86_64/smm_test")
    assert vmlinux is not None and program is not None
    assert (vmlinux.read_bytes(), program.read_bytes()) == (b"kernel", b"smm")
    assert all(path.is_relative_to(depot.root) for path in (vmlinux, program, target.guests.init))
    assert there.kernels[1].build == "failed" and there.tests[1].build == "failed"


def test_a_labs_machine_gets_the_image_beside_the_kernel(depot: Depot, tmp_path: Path) -> None:
    guests, kernels, _ = built(tmp_path / "client")
    (tmp_path / "client/bzImage").write_bytes(b"compressed")
    spec = TargetSpec("ssh", lab=tmp_path / "client/lab.yaml", hosts=("a",))
    packing = pack(spec, ("ssh", None), guests, kernels, ())
    assert str(tmp_path).encode() not in pickle.dumps(packing.kit), "a path of the client's"
    for path in packing.files.values():
        give(depot, path.read_bytes())
    host = LabHost(name="a", address="10.0.0.1", user="root", known_hosts=Path("/k"), agent=True)
    there = unpack(packing.kit, depot, host, print)
    vmlinux = there.kernels[0].vmlinux
    assert vmlinux is not None and vmlinux.with_name("bzImage").read_bytes() == b"compressed"
    assert isinstance(there.target, LabPool) and set(there.target.members) == {"a"}
    assert packing.kernels == {vmlinux.parent.name: tmp_path / "client/vmlinux"}


def test_a_labs_machine_boots_the_clients_initramfs(depot: Depot, tmp_path: Path) -> None:
    guests, kernels, _ = built(tmp_path / "client")
    for folder in ("client", "worker"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "my.cpio").write_bytes(b"an initramfs")
    plain = LabHost(name="a", address="10.0.0.1", user="root", known_hosts=Path("/k"), agent=True)
    here, there = (replace(plain, initrd=tmp_path / folder / "my.cpio") for folder in ("client", "worker"))
    assert host_id(here) == host_id(there) != host_id(plain)
    packing = pack(TargetSpec("ssh"), ("ssh", None), guests, kernels, (), hosts=(here, replace(plain, name="b")))
    assert sha256(b"an initramfs") in packing.kit.hashes
    assert str(tmp_path).encode() not in pickle.dumps(packing.kit), "a path of the client's"
    for path in packing.files.values():
        give(depot, path.read_bytes())
    (tmp_path / "worker/my.cpio").write_bytes(b"changed since it was looked at")
    assert host_id(here) != host_id(there)
    for host, content in ((there, b"an initramfs"), (replace(plain, name="b"), None)):
        pool = unpack(packing.kit, depot, host, print).target
        assert isinstance(pool, LabPool)
        (target,) = pool.members.values()
        assert isinstance(target, SshTarget)
        initrd = target.machine.host.initrd
        assert (initrd and initrd.read_bytes()) == content


def test_a_kit_without_its_files_is_refused(depot: Depot, tmp_path: Path) -> None:
    guests, kernels, tests = built(tmp_path / "client")
    packing = pack(TargetSpec("qemu"), ("icount", None), guests, kernels, tests)
    for sha in packing.kit.hashes:
        if sha != kernels[0].vmlinux_sha256:
            give(depot, packing.files[sha].read_bytes())
    with pytest.raises(Exception, match="is missing or damaged"):
        unpack(packing.kit, depot, None, print)


# --- a trial's way back -----------------------------------------------------------------------------------------------


@pytest.fixture
def trial() -> Trial:
    return make_plan(experiment()).trials[3]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "run").mkdir()
    return Store(tmp_path / "run", None)


def no_fetch(name: str, offset: int, size: int) -> bytes:
    raise AssertionError("nothing was left behind")


def run_folder(tmp_path: Path, trial: Trial) -> tuple[TrialResult, Path]:
    """A finished trial on a worker."""
    folder = tmp_path / "worker"
    folder.mkdir()
    (folder / "recording.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "console.log").write_text("Linux\n")
    return replace(result(trial), recording_sha256=sha256(bytes(range(256)) * 40)), folder


@pytest.mark.parametrize("whole", [True, False])
def test_a_trial_arrives_as_it_was(
    tmp_path: Path, trial: Trial, store: Store, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcel, "PIECE_BYTES", 1000)
    if not whole:
        monkeypatch.setattr(parcel, "WHOLE_BYTES", 0)
    sent, folder = run_folder(tmp_path, trial)
    packed = parcel.pack(sent, folder)
    assert all((file.data is not None) == whole for file in packed.files)
    pieces = []

    def fetch(name: str, offset: int, size: int) -> bytes:
        pieces.append(size)
        return (folder / name).read_bytes()[offset : offset + size]

    received = parcel.unpack(packed, trial, no_fetch if whole else fetch, {}, store)
    final = store.finish_trial(received)
    assert received == sent and (not pieces or set(pieces) == {1000}) and len(pieces) == (0 if whole else 12)
    assert {path.name: path.read_bytes() for path in final.iterdir() if path.name != "result.json"} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_files_travel_beside_the_answer_that_names_them(tmp_path: Path, trial: Trial, store: Store) -> None:
    sent, folder = run_folder(tmp_path, trial)
    (folder / "empty.log").write_bytes(b"")
    left = parcel.pack(replace(sent, recording_sha256=""), folder)
    left = replace(left, files=tuple(replace(item, data=None) for item in left.files))
    done = Done("tcp://w", "key", (parcel.pack(sent, folder), left, parcel.pack(sent, folder)), "lost")
    frames = [bytearray(frame) for frame in asyncio.run(to_frames(to_serialize(done)))]
    assert [len(frame) for frame in frames].count(10240) == 2 and sum(map(len, frames)) < 2 * 10240 + 6000
    back = asyncio.run(from_frames(frames))
    assert back == done
    received = parcel.unpack(back.parcels[0], trial, no_fetch, {}, store)
    final = store.finish_trial(received, written_sha256=received.recording_sha256)
    assert (final / "recording.bin").read_bytes() == (folder / "recording.bin").read_bytes()
    assert (final / "empty.log").read_bytes() == b""


def test_a_recording_that_its_result_does_not_name_is_refused(tmp_path: Path, trial: Trial, store: Store) -> None:
    sent, folder = run_folder(tmp_path, trial)
    packed = parcel.pack(sent, folder)
    other = to_json(replace(sent, recording_sha256="ab" * 32))
    none = tuple(item for item in packed.files if item.name != "recording.bin")
    for wrong in (replace(packed, result=other), replace(packed, files=none)):
        with pytest.raises(ShippingError, match="another recording of trial 003"):
            parcel.unpack(wrong, trial, no_fetch, {}, store)
    assert not store.trial_dir("003").exists()


@pytest.mark.parametrize("name", [*HOSTILE, "result.json"])
def test_a_file_name_from_a_worker_leads_nowhere_else(tmp_path: Path, trial: Trial, store: Store, name: str) -> None:
    evil = Parcel(to_json(result(trial)), (Packed(name, 1, sha256(b"x"), b"x"),))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ShippingError):
        parcel.unpack(evil, trial, no_fetch, {}, store)
    new = set(tmp_path.rglob("*")) - set(before)
    assert all(path == store.run / "trials" or ".003.tmp" in path.name for path in new)


def test_a_file_that_is_not_what_was_sent_is_refused(tmp_path: Path, trial: Trial, store: Store) -> None:
    packed = parcel.pack(*run_folder(tmp_path, trial))
    for wrong in (
        replace(packed.files[0], data=b"another"),
        replace(packed.files[0], sha256="ab" * 32),
        replace(packed.files[0], size_bytes=3),
    ):
        with pytest.raises(ShippingError, match="is not what the worker sent"):
            parcel.unpack(replace(packed, files=(wrong,)), trial, no_fetch, {}, store)
    with pytest.raises(ShippingError, match="ends early"):
        cut = replace(packed.files[0], data=None)
        parcel.unpack(replace(packed, files=(cut,)), trial, lambda name, offset, size: b"", {}, store)


@pytest.mark.parametrize(
    "change",
    [{"id": "004"}, {"id": "../../x"}, {"arm": "other"}, {"cell": "other"}, {"boot": 9}, {"block": 9}, {"seed": 9}],
)
def test_another_trial_than_was_asked_for_is_refused(trial: Trial, store: Store, change: dict[str, object]) -> None:
    wrong = replace(result(trial), **change)  # type: ignore[arg-type]
    with pytest.raises(ShippingError, match="another trial than 003"):
        parcel.unpack(Parcel(to_json(wrong), ()), trial, no_fetch, {}, store)
    assert not list(store.run.glob("trials/*"))


def test_a_result_that_is_none_is_refused(trial: Trial, store: Store) -> None:
    good = to_json(result(trial))
    for bad in (b"", b"{}", b"[1]", b"\x80\x04K\x01.", good[:-20], good.replace(b'"ok"', b'"fine"')):
        with pytest.raises(ShippingError, match="a worker's result of trial 003 is damaged"):
            parcel.unpack(Parcel(bad, ()), trial, no_fetch, {}, store)


def test_links_and_devices_are_not_sent(tmp_path: Path, trial: Trial) -> None:
    sent, folder = run_folder(tmp_path, trial)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(ShippingError, match="link is no plain file"):
        parcel.pack(sent, folder)


def test_the_command_that_repeats_a_trial_names_the_clients_kernel(tmp_path: Path, trial: Trial, store: Store) -> None:
    sent, folder = run_folder(tmp_path, trial)
    known, unknown = f"trees/{'ab' * 32}/vmlinux", f"trees/{'cd' * 32}/vmlinux"
    for text, expected in (
        (f"qemu -kernel /w/shipped/{known} -append 'a b'\n", "qemu -kernel '/client/my kernel' -append 'a b'\n"),
        (f"qemu -kernel '/a b/shipped/{known}' -m 1\n", "qemu -kernel '/client/my kernel' -m 1\n"),
        (f"qemu -kernel  /w/shipped/{unknown} -m 1\n", f"qemu -kernel  /w/shipped/{unknown} -m 1\n"),
        (f"qemu -initrd /w/shipped/{known}x\n", f"qemu -initrd /w/shipped/{known}x\n"),
        (f"qemu '/w/shipped/{known}\n", f"qemu '/w/shipped/{known}\n"),
    ):
        (folder / COMMAND).write_text(COMMAND_NOTE + text)
        packed = parcel.pack(sent, folder)
        parcel.unpack(packed, trial, no_fetch, {"ab" * 32: Path("/client/my kernel")}, store)
        assert (store.run / "trials/.003.tmp" / COMMAND).read_text() == COMMAND_NOTE + expected
