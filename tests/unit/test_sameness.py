"""nights/sameness.py and compare.py: what must be the same in two runs, and that each refusal names its field."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from nightruns import Past, write

from orchestrator.analysis.model import CheckResult, Comparison
from orchestrator.errors import UserError
from orchestrator.experiment import Arm, Experiment, LinuxGuestSpec
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.keep import config_name
from orchestrator.lab import tuning
from orchestrator.lab.journal import KernelId, Setting
from orchestrator.lab.tuning import Conditions
from orchestrator.linuxguest import PACKED
from orchestrator.manifest import ArmFiles, FileId, HostSetting, LinuxGuestId, Manifest
from orchestrator.nights import catalogue, compare
from orchestrator.nights.catalogue import Run
from orchestrator.nights.sameness import examine, same_seeds
from orchestrator.store import Store, file_sha256
from orchestrator.target.ssh import MACHINE, MachineRecord
from orchestrator.vmm import Packed, PackedFile

replace = dataclasses.replace


def tcg(item: Manifest) -> Manifest:
    return replace(item, accel="tcg")


def host(**changed: object) -> Callable[[Manifest], Manifest]:
    return lambda item: replace(tcg(item), host=replace(item.host, **changed))


def in_experiment(part: str, **changed: object) -> Callable[[Experiment], Experiment]:
    return lambda item: replace(item, **{part: replace(getattr(item, part), **changed)})


def first_cell(**changed: object) -> Callable[[Experiment], Experiment]:
    def change(item: Experiment) -> Experiment:
        cell = item.cells[0]
        return replace(item, cells=(replace(cell, guest=replace(cell.guest, **changed)), *item.cells[1:]))

    return change


def pair(past: Past, *, accel: Callable[[Manifest], Manifest] = lambda item: item, **night: object) -> tuple[Run, Run]:
    """Two runs, the second one changed."""
    first = catalogue.open_run(past.night(1, manifest=accel))
    return first, catalogue.open_run(past.night(2, **({"manifest": accel} | night)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("night", "refused"),
    [
        ({"manifest": lambda item: replace(item, experiment="other")}, "experiment: simulated | other"),
        ({"manifest": lambda item: replace(item, accel="tcg")}, "accelerator: icount | tcg"),
        ({"manifest": lambda item: replace(item, qemu_version="QEMU 9")}, "QEMU: .* | QEMU 9"),
        ({"manifest": lambda item: replace(item, guests_id="x" * 20)}, "guest programs: simulated | xxxxxxxxxxxxxxxx"),
        ({"manifest": lambda item: replace(item, guests_id="")}, "guest programs: simulated | not recorded"),
        ({"manifest": lambda item: replace(item, fragments=(FileId("/x/host.config", "ab" * 32),))},
         r"kernel config fragments: host\.config [0-9a-f]{16} | host\.config abababababababab"),
        ({"experiment": in_experiment("target", machine="q35")}, "target.machine: microvm | q35"),
        ({"experiment": in_experiment("target", cpus=2)}, "target.cpus: 1 | 2"),
        ({"experiment": in_experiment("target", mem_mib=512)}, "target.mem_mib: 1024 | 512"),
        ({"experiment": first_cell(mem_mib=2)}, "cells.cell0.guest.mem_mib: 1 | 2"),
        ({"experiment": first_cell(tdp=False)}, "cells.cell0.guest.tdp: True | False"),
        ({"experiment": lambda item: replace(item, cells=tuple(
            replace(cell, name=f"x{cell.name}") for cell in item.cells))}, "cells: cell0, cell1 | xcell0, xcell1"),
    ],
)  # fmt: skip
def test_what_changes_a_latency_is_refused_with_its_field_and_both_values(
    past: Past, night: dict[str, object], refused: str
) -> None:
    first, second = pair(past, **night)
    (found,) = examine(first, second).refused
    assert re.fullmatch(refused.replace(" | ", r" \| "), found.render()), found.render()
    with pytest.raises(UserError) as caught:
        compare.versus(first, second)
    assert f"cannot be compared, they differ in\n  {found.render()}" in caught.value.what
    assert caught.value.hint and "orch history" in caught.value.hint


LINUX = LinuxGuestSpec()
BINARY = PackedFile("usr/bin/qemu-system-x86_64", 1, "aa" * 32, "qemu-system-x86", "1:7.2")
LIBC = PackedFile("lib/libc.so.6", 1, "bb" * 32, "libc6", "2.36-9")
OWN = PackedFile("opt/plugin.so", 1, "cc" * 32, "", "")


def packed(folder: Path, *files: PackedFile, kept: bool = True) -> Run:
    """A run with a packed VMM, listed in its folder."""
    if kept:
        (folder / PACKED).parent.mkdir()
        write(folder / PACKED, Packed("/usr/bin/qemu-system-x86_64", "", files))
    return catalogue.open_run(folder)


def linux(number: int, past: Past, spec: LinuxGuestSpec | None = LINUX, packed_id: str = "1" * 64) -> Path:
    return past.night(
        number,
        manifest=lambda item: replace(item, linux_guest=LinuxGuestId(PACKED, packed_id, "QEMU")),
        experiment=lambda item: replace(item, linux_guest=spec),
    )


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        ([BINARY, replace(LIBC, version="2.36-10"), OWN], ["the Linux guests' VMM: libc6: 2.36-9 | 2.36-10"]),
        ([BINARY, LIBC], [f"the Linux guests' VMM: /opt/plugin.so: {'cc' * 8} | not given"]),
        ([BINARY, LIBC, replace(OWN, sha256="dd" * 32)],
         [f"the Linux guests' VMM: /opt/plugin.so: {'cc' * 8} | {'dd' * 8}"]),
        # The same packages, and yet other bytes.
        ([BINARY, replace(LIBC, sha256="dd" * 32), OWN], [f"the Linux guests' VMM: {'1' * 16} | {'2' * 16}"]),
    ],
)  # fmt: skip
def test_another_vmm_below_linux_guests_is_refused_by_its_packages(
    past: Past, files: list[PackedFile], refused: list[str]
) -> None:
    first = packed(linux(1, past), BINARY, LIBC, OWN)
    second = packed(linux(2, past, packed_id="2" * 64), *files)
    assert [item.render() for item in examine(first, second).refused] == refused
    assert examine(first, packed(linux(3, past), BINARY, LIBC, OWN)).refused == ()


def test_a_vmm_whose_list_is_gone_is_refused_by_its_hash(past: Past) -> None:
    first, second = packed(linux(1, past), BINARY), packed(linux(2, past, packed_id="2" * 64), kept=False)
    (found,) = examine(first, second).refused
    assert found.render() == f"the Linux guests' VMM: {'1' * 16} | {'2' * 16}"


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"vmm": "/opt/crosvm"}, "linux_guest.vmm: qemu-system-x86_64 | /opt/crosvm"),
        ({"arguments": f"{LINUX.arguments} -S"}, f"linux_guest.arguments: {LINUX.arguments} | {LINUX.arguments} -S"),
        ({"kernel": "arm"}, "linux_guest.kernel: base | arm"),
        ({"kernel": (Path("/x.config"),)}, "linux_guest.kernel: base | its own"),
    ],
)
def test_linux_guests_that_are_run_otherwise_are_refused(past: Past, changed: dict[str, object], refused: str) -> None:
    first = packed(linux(1, past), BINARY)
    second = packed(linux(2, past, replace(LINUX, **changed)), BINARY)  # type: ignore[arg-type]
    assert [item.render() for item in examine(first, second).refused] == [refused]


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"cpu": "Another CPU"}, "host's CPU"), ({"cores": 64}, "host's CPUs"), ({"machine": "x"}, "host's architecture")],
)
def test_the_machine_below_matters_unless_instructions_are_counted(
    past: Past, changed: dict[str, object], field: str
) -> None:
    first, second = pair(past, accel=tcg, manifest=host(**changed))
    assert [item.field for item in examine(first, second).refused] == [field]


def test_under_icount_the_machine_below_does_not_matter(past: Past) -> None:
    first, second = pair(past, manifest=lambda item: replace(item, host=replace(item.host, cpu="Another", cores=64)))
    assert examine(first, second).refused == ()


@pytest.mark.parametrize(("accel", "refused"), [("tcg", []), ("kvm", ["host's kernel"])])
def test_the_kernel_below_matters_under_kvm(past: Past, accel: str, refused: list[str]) -> None:
    first = catalogue.open_run(past.night(1, manifest=lambda item: replace(item, accel=accel)))
    changed = past.night(2, manifest=lambda item: replace(item, accel=accel, host=replace(item.host, kernel="9.9")))
    assert [item.field for item in examine(first, catalogue.open_run(changed)).refused] == refused


def as_set(*changes: tuple[str, str], lost: str = "") -> Callable[[Manifest], Manifest]:
    """A run under tcg on a host with these settings, or with ``changes`` to them; ``lost`` is one that it has not."""
    values = {
        "governor": "performance", f"{tuning.CPU}/smt/control": "off", "microcode": "0x1",
        "mitigation of mds": "Not affected", "mitigation of tsa": "Vulnerable", "swap on /dev/dm-1": "on",
    }  # fmt: skip
    values |= dict(changes)
    values.pop(lost, None)
    settings = tuple(HostSetting(name, value) for name, value in values.items())
    return lambda item: replace(tcg(item), host_settings=settings)


@pytest.mark.parametrize(
    ("changed", "refused", "notes"),
    [
        (as_set(), [], []),
        (as_set(("governor", "powersave")), ["host's governor: performance | powersave"], []),
        (as_set((f"{tuning.CPU}/smt/control", "on")), [f"host's {tuning.CPU}/smt/control: off | on"], []),
        (as_set(("microcode", "0x2")), ["host's microcode: 0x1 | 0x2"], []),
        (as_set(("mitigation of mds", "Vulnerable")), ["host's mitigation of mds: Not affected | Vulnerable"], []),
        (as_set(lost="governor"), ["host's governor: performance | not given"], []),
        (as_set(lost="mitigation of tsa"), [], ["host's mitigation of tsa: Vulnerable | not given"]),
        (as_set(lost="swap on /dev/dm-1"), [], ["host's swap on /dev/dm-1: on | not given"]),
        (
            lambda item: replace(tcg(item), host_settings=None),
            [],
            ["simulated-20260903-010000 does not say how the host was set (governor, turbo, SMT …)"],
        ),
    ],
)
def test_how_the_host_was_set_matters_unless_instructions_are_counted(
    past: Past, changed: Callable[[Manifest], Manifest], refused: list[str], notes: list[str]
) -> None:
    first, second = pair(past, accel=as_set(), manifest=changed)
    found = examine(first, second)
    assert [item.render() for item in found.refused] == refused and list(found.notes) == notes
    exact = [replace(run, manifest=replace(run.manifest, accel="icount")) for run in (first, second)]
    assert examine(*exact).refused == () and examine(*exact).notes == ()


def test_a_manifest_of_before_the_settings_were_recorded_is_read(past: Past) -> None:
    folder = past.night(1)
    document = json.loads((folder / "manifest.json").read_text())
    del document["host_settings"]
    (folder / "manifest.json").write_text(json.dumps(document))
    assert catalogue.open_run(folder).manifest.host_settings is None


# --- the kernel's configuration and QEMU's arguments ------------------------------------------------------------------


def configured(folder: Path, text: str) -> Run:
    """Give every arm of a run this configuration."""
    store = Store(folder, None)
    for path in sorted(folder.glob("kernels/*.json")):
        kernel = store.load(f"kernels/{path.name}", BuiltKernel)
        kept = store.path(config_name(kernel.arm))
        kept.write_text(text)
        store.save(f"kernels/{path.name}", replace(kernel, config_sha256=file_sha256(kept)))
    return catalogue.open_run(folder)


CONFIG = '# Linux/x86 5.10.1\nCONFIG_KVM=y\n# CONFIG_SMP is not set\nCONFIG_CC_VERSION_TEXT="gcc 12"\n'


def test_an_option_with_another_value_is_refused_by_its_name(past: Past) -> None:
    first = configured(past.night(1), CONFIG)
    second = configured(
        past.night(2), CONFIG.replace("# CONFIG_SMP is not set", "CONFIG_SMP=y").replace("gcc 12", "gcc 13")
    )
    assert [item.render() for item in examine(first, second).refused] == [
        'kernel config CONFIG_CC_VERSION_TEXT: "gcc 12" | "gcc 13"', "kernel config CONFIG_SMP: n | y",
    ]  # fmt: skip


def test_options_that_another_version_brings_or_drops_are_noted(past: Past) -> None:
    first = configured(past.night(1), f"{CONFIG}CONFIG_OLD=y\n")
    second = configured(past.night(2), CONFIG.replace("5.10.1", "5.10.2") + "CONFIG_NEW=y\n")
    found = examine(first, second)
    assert found.refused == ()
    assert found.notes == ("kernel options gone: CONFIG_OLD", "kernel options new: CONFIG_NEW")


def test_configurations_that_differ_and_are_gone_are_refused(past: Past) -> None:
    first, second = configured(past.night(1), CONFIG), configured(past.night(2), f"{CONFIG}CONFIG_NEW=y\n")
    for arm in ("base", "v1"):
        (second.folder / config_name(arm)).unlink()
    assert [item.field for item in examine(first, second).refused] == ["kernel config of v1 (the files are gone)"]


def called(folder: Path, command: str) -> Run:
    """Put a command into the trial that the comparison looks at."""
    (folder / "trials").unlink()
    trial = folder / "trials" / catalogue.read(folder).comparison.summary("cell0", "base").per_boot[0].trial
    trial.mkdir(parents=True)
    (trial / "command.txt").write_text(f"# In a copy of this folder\n{command}\n")
    return catalogue.open_run(folder)


QEMU = "/usr/bin/qemu -nodefaults -cpu EPYC-v1,svm=on -kernel /a/vmlinux -append 'quiet tsc_early_khz=2000000 nokaslr'"


def test_qemus_arguments_are_compared_as_it_was_called(past: Past) -> None:
    first = called(past.night(1), QEMU)
    same = called(past.night(2), QEMU.replace("/a/", "/b/").replace("2000000", "2000001"))
    assert examine(first, same).refused == (), "another kernel and a measured frequency are no difference"
    other = called(past.night(3), QEMU.replace("EPYC-v1", "EPYC-v4").replace(" nokaslr", "") + " -no-reboot")
    assert [item.render() for item in examine(first, other).refused] == [
        "QEMU's -cpu: EPYC-v1,svm=on | EPYC-v4,svm=on", "QEMU's -append: quiet nokaslr | quiet ",
        "QEMU's -no-reboot: not given | given",
    ]  # fmt: skip


# --- a lab's machines -------------------------------------------------------------------------------------------------

RACK1 = "rack1 (10.0.0.1 port 22), boot kexec; cpus 2, 3; sets thp"
RACK2 = "rack2 (10.0.0.2 port 22), boot kexec"
SETTINGS = (Setting("thp", tuning.THP, "madvise"),)


def in_lab(past: Past, number: int, *machines: str, on: str = "rack1", **changed: object) -> Run:
    """A run of ``target: ssh`` whose first boot of the base in cell0 was measured on ``on``, as ``changed``."""
    known_good = KernelId("6.1.0", "#1", str(changed.pop("build_id", "aa" * 20)))
    booted = KernelId("5.10.262", "", "bb" * 20) if changed.pop("builds", True) else None
    folder = past.night(
        number,
        manifest=lambda item: replace(
            item, accel="ssh", machines=machines, host=replace(item.host, node=f"desk{number}", cpu=f"CPU {number}")
        ),
        experiment=lambda item: replace(
            item,
            target=replace(item.target, kind="ssh", lab=Path(f"/lab{number}.yaml")),
            kernel=item.kernel if booted is not None else replace(item.kernel, sources=()),
        ),
    )
    (folder / "trials").unlink()
    trial = folder / "trials" / catalogue.read(folder).comparison.summary("cell0", "base").per_boot[0].trial
    trial.mkdir(parents=True)
    conditions = replace(Conditions(SETTINGS, "0-3", "2-3", 0.1, 0.2, 0, "tsc", "ro tsc_early_khz=1"), **changed)
    write(trial / MACHINE, MachineRecord(on, known_good, booted, "boot", conditions))
    return catalogue.open_run(folder)


def test_of_a_lab_its_machines_and_their_settings_count_and_not_the_one_that_gave_the_orders(past: Past) -> None:
    first = in_lab(past, 1, RACK1, RACK2)
    again = examine(first, in_lab(past, 2, RACK2, RACK1, command_line="ro tsc_early_khz=2", load=0.3))
    assert again.refused == () and not [note for note in again.notes if "desk" in note]


@pytest.mark.parametrize(
    ("machines", "changed", "refused"),
    [
        ((RACK1,), {}, ["machines of the lab: rack1, rack2 | rack1"]),
        ((RACK1, RACK2.replace("0.2", "0.3")), {}, ["rack2's address: 10.0.0.2 port 22 | 10.0.0.3 port 22"]),
        ((RACK1.replace("2, 3", "2"), RACK2), {}, ["rack1's cpus: 2, 3 | 2"]),
        ((RACK1.replace("; sets thp", "; append a=b"), RACK2), {}, [
            "rack1's sets: thp | not given", "rack1's append: not given | a=b"]),
        ((RACK1, RACK2.replace("kexec", "grub")), {}, ["rack2's boot: kexec | grub"]),
        ((RACK1, RACK2), {"settings": (Setting("thp", tuning.THP, "always"),)}, [
            "rack1's /sys/kernel/mm/transparent_hugepage/enabled: madvise | always"]),
        ((RACK1, RACK2), {"isolated_cpus": "", "clocksource": "hpet"}, [
            "rack1's isolated CPUs: 2-3 | (empty)", "rack1's clocksource: tsc | hpet"]),
    ],
)  # fmt: skip
def test_another_machine_of_a_lab_is_refused_by_what_it_differs_in(
    past: Past, machines: tuple[str, ...], changed: dict[str, object], refused: list[str]
) -> None:
    found = examine(in_lab(past, 1, RACK1, RACK2), in_lab(past, 2, *machines, **changed)).refused
    assert [item.render() for item in found] == refused


def test_a_cell_that_ran_on_another_machine_of_the_same_lab_is_noted(past: Past) -> None:
    found = examine(in_lab(past, 1, RACK1, RACK2), in_lab(past, 2, RACK1, RACK2, on="rack2"))
    assert found.refused == ()
    assert "measured on other machines of the lab: cell0 (rack1 | rack2)" in found.notes


def test_where_a_lab_machine_runs_the_kernel_that_is_measured_it_is_what_is_compared(past: Past) -> None:
    first = in_lab(past, 1, RACK1, builds=False)
    assert examine(first, in_lab(past, 2, RACK1, builds=False)).compared == ()
    (found,) = examine(first, in_lab(past, 3, RACK1, builds=False, build_id="cc" * 20)).compared
    assert (
        found.render() == "running kernels: rack1: 6.1.0 (build id aaaaaaaaaaaa) | rack1: 6.1.0 (build id cccccccccccc)"
    )


# --- what may differ --------------------------------------------------------------------------------------------------


def test_tree_patches_arms_and_cells_are_what_is_compared(past: Past) -> None:
    def second(item: Manifest) -> Manifest:
        return replace(
            item, arms=(item.arms[0], ArmFiles("v1", (FileId("/p/v2.patch", "cd" * 32),)), ArmFiles("v3", ()))
        )

    def arms(item: Experiment) -> Experiment:
        return replace(item, arms=(*item.arms, Arm("v3", ())), cells=item.cells[:1])

    first = catalogue.open_run(past.night(1, version="5.10.1"))
    found = compare.versus(first, catalogue.open_run(past.night(2, version="5.10.2", manifest=second, experiment=arms)))
    shown = [item.render() for item in found.sameness.compared]
    assert shown[0] == "kernel tree: simulated 5.10.1 | simulated 5.10.2"
    assert re.fullmatch(r"patches of v1: v1\.patch [0-9a-f]{16} \| v2\.patch cdcdcdcdcdcdcdcd", shown[1])
    assert shown[2] == "patches of v3: no such arm | none"
    assert "only simulated-20260902-010000 has cell cell1" in found.sameness.notes
    assert found.only == ("arm v3: only in simulated-20260903-010000",)
    assert [(item.cell, item.arm) for item in found.verdicts] == [("cell0", "base"), ("cell0", "v1")]


def test_other_seeds_are_noted_and_then_a_pair_is_not_exact(past: Past) -> None:
    first, second = pair(past, manifest=lambda item: replace(item, seeds=(7,)))
    assert not same_seeds(first, second) and same_seeds(first, first)
    found = compare.versus(first, second)
    assert not found.exact and {item.verdict for item in found.metrics} == {"inconclusive"}
    assert "the two had different seeds; under icount their figures differ for that alone" in found.sameness.notes


# --- the comparison itself --------------------------------------------------------------------------------------------


def test_base_is_compared_with_base_and_each_arm_with_itself(past: Past) -> None:
    first, second = pair(past, factors={("cell1", "v1", "p99"): 1.05, ("cell0", "base", "p50"): 0.9})
    found = compare.versus(first, second)
    assert found.exact
    changed = {
        (item.cell, item.arm, item.metric): (item.verdict, item.ratio) for item in found.metrics if item.ratio != 1
    }
    assert changed == {
        ("cell1", "v1", "p99"): ("regressed", pytest.approx(1.05)),
        ("cell0", "base", "p50"): ("improved", pytest.approx(0.9)),
    }
    assert found.worse == ("cell1, v1: p99 +5.0 %",) and found.better == ("cell0, base: p50 −10.0 %",)
    text = compare.render(found)
    assert re.search(r"cell1\n  base: equivalent: identical\n  v1: regressed: p99 \+5\.0 %, p50 ±0 %", text)
    assert re.search(r"    p99     5\.0\d\d → 5\.3\d\d µs \(\+5\.0 %\): regressed, exact for this seed\n", text)
    assert "1 improved, 1 regressed, 0 mixed, 2 equivalent, 0 inconclusive; margin ±2 %" in text


def test_one_boot_of_two_nights_decides_nothing_where_time_is_noisy(past: Past) -> None:
    first, second = pair(past, accel=tcg, factors={("cell1", "v1", "p99"): 1.5})
    found = compare.versus(first, second)
    assert {item.verdict for item in found.metrics} == {"inconclusive"} and found.worse == ()
    text = " ".join(compare.render(found).split())
    assert (
        "what changed on the machine between them is part of the difference, and two runs cannot tell how much" in text
    )


def test_a_check_that_held_and_fails_now_is_worse(past: Past) -> None:
    def failing(item: Comparison) -> Comparison:
        return replace(item, checks=(CheckResult("controls", "v1", "cell0", "failed", "3 retries"), *item.checks[1:]))

    first, second = pair(past, comparison=failing)
    found = compare.versus(first, second)
    assert found.worse == ("check controls (cell0, v1) failed: 3 retries",)
    back = compare.versus(second, first)
    assert back.worse == () and back.better == ("check controls (cell0, v1) holds again",)
    assert "check controls (cell0, v1) FAILED: 3 retries" in compare.render(found)
