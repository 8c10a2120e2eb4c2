"""experiment/: cells with a Linux guest, the section that they share, and what they take of memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_experiment_errors import config, problems

from orchestrator.experiment import Cell, Experiment, Guest, LinuxGuest, LinuxGuestSpec, Storm, load
from orchestrator.experiment.fields import describe
from orchestrator.experiment.memory import needed_mib, ram_mib, reserve_bytes
from orchestrator.experiment.reader import parse
from orchestrator.manifest import make_manifest
from orchestrator.store import load_json, to_json

REPOSITORY = Path(__file__).parents[2]
LINUX = "  a: {guest: {kind: linux, mem_mib: 16%s}, storm: %s}"
STORM = "{op: madvise_dontneed, placement: %s, size_kib: 64}"


def read(cells: str, more: str = "") -> Experiment:
    return parse(config(cells, more=more).encode(), Path("/nonexistent/experiment.yaml"))


def test_the_shipped_config_loads_and_round_trips(tmp_path: Path) -> None:
    chosen = load(REPOSITORY / "configs/linux-guest.yaml")
    assert chosen.linux_cells == chosen.cells and chosen.linux_guest == LinuxGuestSpec()
    assert {cell.guest.faults for cell in chosen.linux_cells if isinstance(cell.guest, LinuxGuest)} == {"host", "guest"}
    (tmp_path / "e.json").write_bytes(to_json(chosen))
    assert load_json(tmp_path / "e.json", Experiment) == chosen


def test_a_saved_flat_guest_without_a_kind_is_still_read(tmp_path: Path) -> None:
    """As runs from before there were two kinds have it."""
    chosen = read("  a: {guest: {page: 2m}, storm: none}")
    text = to_json(chosen).decode()
    assert text.count('"kind": "flat"') == 1
    lines = [line for line in text.splitlines() if '"kind": "flat"' not in line and '"linux_guest"' not in line]
    (tmp_path / "e.json").write_text("\n".join(lines).replace('"trace": null,', '"trace": null'))
    assert load_json(tmp_path / "e.json", Experiment) == chosen


def test_both_kinds_stand_beside_each_other() -> None:
    cells = "  flat: {guest: {page: 2m}, storm: none}\n  real: {guest: {kind: linux, memory: [thp, file]}, storm: none}"
    flat, *real = read(cells, "defaults: {guest: {mem_mib: 8}}").cells
    assert flat.guest == Guest(mem_mib=8, page="2m")
    assert [cell.name for cell in real] == ["real,memory=thp", "real,memory=file"]
    assert [cell.guest for cell in real] == [LinuxGuest(mem_mib=8, memory="thp"), LinuxGuest(mem_mib=8, memory="file")]


def test_defaults_of_one_kind_may_have_its_keys() -> None:
    (cell,) = read("  a: {storm: none}", "defaults: {guest: {kind: linux, faults: both, ram_mib: 256}}").cells
    assert cell.guest == LinuxGuest(faults="both", ram_mib=256)


@pytest.mark.parametrize(
    ("cells", "more", "expected"),
    [
        (LINUX % (", page: 4k", "none"), "", "8: cells.a.guest.page: expected no such key with kind: linux, found one,"
         " which would do nothing"),
        ("  a: {guest: {faults: host}, storm: none}", "", "8: cells.a.guest.faults: expected no such key with kind:"
         " flat, found one, which would do nothing"),
        (LINUX % ("", "none"), "defaults: {guest: {backing: present}}", "6: defaults.guest.backing: expected no such"
         " key with kind: linux, found one, which would do nothing"),
        ("  a: {guest: {kind: [flat, linux]}, storm: none}", "", "8: cells.a.guest.kind: expected 'flat' or 'linux',"
         " found a list"),
        (LINUX % (", fauls: host", "none"), "", "8: cells.a.guest.fauls: expected the key 'faults', found the unknown"
         " key 'fauls'"),
        (LINUX % (", faults: guest", STORM % "overlap"), "", "8: cells.a.storm.placement: expected faults: host with"
         " this placement, found faults: guest"),
        (LINUX % (", faults: both", STORM % "adjacent"), "", "8: cells.a.storm.placement: expected faults: host with"
         " this placement, found faults: both"),
        (LINUX % (", faults: guest, access: read", "none"), "", "8: cells.a.guest.access: expected write, or memory:"
         " file, with faults: guest, found read"),
        (LINUX % (", faults: both, access: read, memory: file", "none"), "", "8: cells.a: expected stride_pages of at"
         " least 16 with access: read and faults: both (a fault of the guest's maps 64 KiB of a file), found 1"),
        (LINUX % (", faults: guest, memory: thp, stride_pages: 16", "none"), "", "8: cells.a.guest.stride_pages:"
         " expected stride_pages in units of 512 with memory: thp and faults: guest (a fault of the guest's maps 2"
         " MiB), found 16"),
        (LINUX % ("", "{op: munmap, placement: overlap, size_kib: 64}"), "", "8: cells.a.storm.op: expected an op that"
         " leaves no hole in the VMM's memory, with placement: overlap, found munmap"),
        (LINUX % ("", "{op: mremap, placement: disjoint, size_kib: 64}"), "", "8: cells.a.storm.op: expected an op that"
         " leaves no hole in the VMM's memory, with placement: disjoint, found mremap"),
        (LINUX % (", jitter_wakeups: 0, jitter_period_us: 500", "none"), "", "8: cells.a.guest.jitter_period_us:"
         " expected jitter_wakeups above 0 with this key, found a period of nothing"),
        ("  a: {guest: {kind: linux, mem_mib: 64, ram_mib: 64}, storm: none}", "", "8: cells.a.guest.ram_mib: expected"
         " more than the 76 MiB that the benchmark reserves, found 64"),
        ("  a: {guest: {kind: linux, mem_mib: 15, memory: thp}, storm: none}", "", "8: cells.a.guest.mem_mib: expected"
         " a multiple of 2 with memory: thp, found 15"),
        ("  a: {storm: none}", "linux_guest: {kernel: arm}", "6: linux_guest: expected a cell with guest.kind: linux,"
         " which this section is for, found none"),
        (LINUX % ("", "none"), "linux_guest: {vmm: crosvm}", "6: linux_guest: expected the key 'arguments' with vmm:"
         " crosvm, found nothing"),
        (LINUX % ("", "none"), "linux_guest: {kernel: []}", "6: linux_guest.kernel: expected at least one fragment,"
         " found none"),
        (LINUX % ("", "none"), "linux_guest: {kernel: [/nonexistent.config]}", "6: linux_guest.kernel[0]: expected an"
         " existing file or folder, found nothing at /nonexistent.config"),
        (LINUX % ("", "none"), "linux_guest: {vmm: '-x'}", "6: linux_guest.vmm: expected the VMM: a program of this"
         " machine, by name or by path relative to the config file; it is packed with its libraries (and QEMU with its"
         " firmware), found '-x'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_where_it_stands(cells: str, more: str, expected: str) -> None:
    assert expected in problems(config(cells, more=more))


def test_too_little_memory_is_said_with_what_takes_it() -> None:
    (found,) = problems(config(LINUX % ("", "none"), target="{kind: qemu, mem_mib: 384}"))
    assert found == (
        "8: cells.a.guest.mem_mib: expected what fits target.mem_mib, 384, found 385 MiB in cell a: 128 guest + 0 storm"
        " + 0 samples (16384 faults × 16 bytes) + 128 VMM + 128 kernel"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--kernel {kernel}", "arguments with the placeholder {initrd}"),
        (
            "{kernel} {initrd} {mem_mib} {cpus} {cmdline} {disk}",
            "arguments with no placeholders but {kernel}, {initrd}",
        ),
        ("{kernel.__class__} {initrd} {mem_mib} {cpus} {cmdline}", "arguments with no placeholders but {kernel}"),
        ("{kernel!r} {initrd} {mem_mib} {cpus} {cmdline}", "arguments with no placeholders but {kernel}"),
        ("'{kernel} {initrd}", "arguments with their quotes and braces closed (No closing quotation)"),
        ("{kernel {initrd} {mem_mib} {cpus} {cmdline}", "arguments with"),
    ],
)
def test_a_line_of_arguments_is_checked(line: str, expected: str) -> None:
    found = problems(config(LINUX % ("", "none"), more=f'linux_guest: {{vmm: x, arguments: "{line}"}}'))
    assert len(found) == 1 and f"linux_guest: expected {expected}" in found[0]


def test_a_placeholder_stays_one_word_whatever_it_holds() -> None:
    spec = LinuxGuestSpec(vmm="x", arguments="run '{kernel}' -i {initrd} mem={mem_mib} {cpus} -p {cmdline}")
    words = spec.words(kernel="/k; rm", initrd="/i {cpus}", mem_mib=64, cpus=2, cmdline="a 'b' $(c)")
    assert words == ("run", "/k; rm", "-i", "/i {cpus}", "mem=64", "2", "-p", "a 'b' $(c)")


def test_the_running_kernel_is_refused_before_anything_is_built() -> None:
    found = problems(config(LINUX % ("", "none"), target="{kind: local}"))
    assert any("target.kind: expected qemu or ssh for cells with guest.kind: linux" in line for line in found)


def test_a_lab_machine_needs_a_kernel_for_its_guests(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("")
    target = f"{{kind: ssh, lab: {tmp_path}/lab.yaml}}"
    text = config(LINUX % ("", "none"), target=target)
    assert parse(text.encode(), Path("/nonexistent/experiment.yaml")).linux_guest is not None
    without = re.sub(r"^kernel:.*?(?=^\S)", "", text, flags=re.DOTALL | re.MULTILINE)
    assert without != text
    assert any("kernel.sources: expected at least one source, for the kernel" in line for line in problems(without))


@pytest.mark.parametrize(("wrong", "shown"), [("faults: both", "'both'"), ("tdp: false", "false")])
def test_only_what_can_be_matched_by_address_is_traced(wrong: str, shown: str) -> None:
    cells = LINUX % (f", {wrong}", STORM % "outside")
    found = problems(config(cells, target="{kind: qemu, mem_mib: 2048}", more="trace: {}"))
    key = wrong.partition(":")[0]
    assert (
        f"8: cells.a.guest.{key}: expected faults: host and tdp: true, to trace a Linux guest, found {shown}" in found
    )


def test_the_check_of_the_storm_needs_traced_boots() -> None:
    found = problems(config("  a: {storm: none}", checks="[storm_in_vmm]"))
    assert any("checks[0]: expected a section trace" in line for line in found)


def test_memory_follows_from_what_is_reserved() -> None:
    quiet = Cell("a", LinuxGuest(mem_mib=64, rounds=4), None)
    # 1 MiB of samples and 128 KiB of frames, each rounded up to 2 MiB, 64, and 8 between them.
    assert reserve_bytes(quiet) == (2 + 2 + 64 + 8) << 20
    assert ram_mib(quiet) == 192 and ram_mib(Cell("a", LinuxGuest(ram_mib=300), None)) == 300
    for placement, inside in (("outside", 0), ("overlap", 0), ("other-process", 0), ("disjoint", 32), ("adjacent", 32)):
        cell = Cell("a", quiet.guest, Storm("munmap", placement, 16 << 10, threads=2))  # type: ignore[arg-type]
        assert reserve_bytes(cell) - reserve_bytes(quiet) == inside << 20
        outside = 32 if placement in ("outside", "other-process") else 0
        assert needed_mib(cell) - needed_mib(quiet) == ram_mib(cell) - ram_mib(quiet) + outside


def test_every_key_is_described_once() -> None:
    found = [item.key for item in describe()]
    assert len(found) == len(set(found))
    described = {item.key: item for item in describe()}
    assert described["cells.NAME.guest.kind"].values == "flat, linux"
    assert described["linux_guest.kernel"].values == "base, arm, or a list of: a path"
    assert described["cells.NAME.guest.mem_mib"].default == "64"


def test_where_the_vmm_and_fragments_lie_makes_no_other_run(tmp_path: Path) -> None:
    """What they contain does: the packed VMM is in the environment, fragments are hashed."""
    prints = []
    for name, content in (("one", "CONFIG_A=y\n"), ("two", "CONFIG_A=y\n"), ("three", "CONFIG_B=y\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "g.config").write_text(content)
        (tmp_path / name / "host.config").write_text("")
        path = tmp_path / name / "e.yaml"
        path.write_text(
            "name: x\nkernel: {sources: [{tree: /linux}], fragments: [host.config]}\narms: {base: []}\n"
            f"target: {{kind: qemu}}\ncells:\n{LINUX % ('', 'none')}\n"
            "linux_guest: {vmm: ./qemu-system-x, kernel: [g.config]}\n"
        )
        prints.append(make_manifest(load(path), ["orch"], "tcg", "", [1]).fingerprint)
    assert prints[0] == prints[1] != prints[2]
