"""`target: {kind: ssh}` in an experiment: what may stand there, and which machines of the lab fit it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.errors import ConfigError, UserError
from orchestrator.experiment import Experiment, load
from orchestrator.experiment.reader import parse
from orchestrator.lab import selection
from orchestrator.manifest import make_manifest

CONFIGS = Path(__file__).parents[2] / "configs"
LAB = (
    "fragments: [/dev/null]\ndefaults: {user: root, agent: true, known_hosts: lab.yaml}\nhosts:\n"
    "  one: {address: h1, cpus: [2, 3]}\n  two: {address: h2, initrd: initrd}\n  none: {address: h3, boot: none}\n"
)


KERNEL = "kernel: {sources: [{tree: linux}], fragments: [lab.yaml]}"
NO_KERNEL = "description: the running kernel"


def read(folder: Path, target: str, kernel: str = KERNEL, arms: str = "{base: []}", more: str = "") -> Experiment:
    """An experiment of two cells; the target is on line 4."""
    (folder / "lab.yaml").write_text(LAB)
    if not (folder / "initrd").exists():
        (folder / "initrd").write_text("an initramfs")
    text = (
        f"name: x\n{kernel}\narms: {arms}\ntarget: {target}\n{more}\ncells:\n  quiet: {{storm: none}}\n"
        "  other: {storm: {op: munmap, placement: outside, size_kib: 64, cpu: other}}\n"
    )
    return parse(text.encode(), folder / "x.yaml")


def problems(folder: Path, target: str, **parts: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, target, **parts)
    return [problem.removeprefix(f"{folder / 'x.yaml'}:") for problem in caught.value.problems]


def test_nothing_but_the_targets_lines_differs_from_the_default_experiment() -> None:
    here, lab = (yaml.safe_load((CONFIGS / name).read_text()) for name in ("quickstart.yaml", "ssh.yaml"))
    assert here.pop("target")["kind"] == "qemu" and lab.pop("target")["kind"] == "ssh"
    assert here == lab
    loaded = load(CONFIGS / "ssh.yaml")
    assert loaded.target.lab == CONFIGS / "lab.example.yaml" and loaded.builds_kernels


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("{kind: ssh}", "4: target: expected the key 'lab' with kind: ssh, found nothing"),
        ("{kind: ssh, lab: nowhere.yaml}", "4: target.lab: expected an existing file, found nothing at"),
        ("{kind: ssh, lab: [x]}", "4: target.lab: expected a path, found a list"),
        ("{kind: ssh, lab: lab.yaml, hosts: one}", "4: target.hosts: expected a list ([] for none), found 'one'"),
        ("{kind: ssh, lab: lab.yaml, hosts: [One]}", "4: target.hosts[0]: expected a name of a-z"),
        ("{kind: ssh, lab: lab.yaml, hosts: [one, one]}", "4: target.hosts[1]: expected each host once, found 'one'"),
        ("{kind: ssh, lab: lab.yaml, accel: tcg}", "4: target.accel: expected no such key with kind: ssh"),
        ("{kind: ssh, lab: lab.yaml, cpus: 2}", "4: target.cpus: expected no such key with kind: ssh"),
        ("{kind: qemu, lab: lab.yaml}", "4: target.lab: expected no such key with kind: qemu"),
        ("{kind: local, hosts: [one]}", "4: target.hosts: expected no such key with kind: local"),
    ],
)  # fmt: skip
def test_mistakes_of_the_target(target: str, problem: str, tmp_path: Path) -> None:
    assert any(found.startswith(problem) for found in problems(tmp_path, target)), problems(tmp_path, target)


def test_without_a_kernel_there_is_one_arm_and_no_selftests(tmp_path: Path) -> None:
    target = "{kind: ssh, lab: lab.yaml}"
    found = problems(
        tmp_path, target, kernel=NO_KERNEL, arms="{base: [], v1: [lab.yaml]}", more="checks: [kvm_selftests]"
    )
    assert any("arms: expected one arm without patches without a kernel to build" in line for line in found)
    assert any("checks: expected kernels to build for kvm_selftests" in line for line in found)
    found = problems(tmp_path, target, more="trace: {cells: [quiet]}")
    assert any("trace: expected target.kind: qemu, whose kernel is ours to trace, found ssh" in line for line in found)


def test_machines_are_chosen_by_name_and_must_fit_the_experiment(tmp_path: Path) -> None:
    def machines(hosts: str, **parts: str) -> list[str]:
        chosen = read(tmp_path, f"{{kind: ssh, lab: lab.yaml, hosts: [{hosts}]}}", **parts)
        return [host.name for host in selection.machines(chosen)]

    assert machines("two, one") == ["two", "one"]
    assert machines("none", kernel=NO_KERNEL) == ["none"]
    with pytest.raises(UserError, match=r"has no host tow \(did you mean two\?\)") as caught:
        machines("tow")
    assert caught.value.hint == "one of: one, two, none"
    with pytest.raises(UserError, match=r"none boots no kernel \(boot: none\), and the experiment builds one"):
        machines("")
    with pytest.raises(UserError, match=r"two boots a kernel \(boot: kexec\), and the experiment builds none"):
        machines("two", kernel=NO_KERNEL)
    with pytest.raises(UserError, match="cell other needs 3 CPUs, and one has 2 for it"):
        machines("one", more="defaults: {guest: {vcpus: 2}}")


def test_the_labs_fragments_and_machines_decide_whether_a_run_goes_on(tmp_path: Path) -> None:
    def fingerprint(hosts: str = "two") -> str:
        chosen = read(tmp_path, f"{{kind: ssh, lab: lab.yaml, hosts: [{hosts}]}}")
        (tmp_path / "x.yaml").write_text("x")
        names = [host.identity for host in selection.machines(chosen)]
        fragments = selection.fragments(chosen)
        assert fragments == (Path("/dev/null"),)
        made = make_manifest(chosen, ["orch"], "ssh", "", [1], machines=names, lab_fragments=fragments)
        assert made.machines == tuple(names) and [item.path for item in made.fragments][-1] == "/dev/null"
        return made.fingerprint

    first = fingerprint()
    assert first == fingerprint() != fingerprint("one, two")
    (tmp_path / "initrd").write_text("another")
    assert first != fingerprint(), "another initramfs under the same name"


def test_without_a_lab_there_are_no_machines_and_no_fragments(tmp_path: Path) -> None:
    chosen = read(tmp_path, "{kind: qemu, cpus: 2, accel: tcg}")
    assert selection.machines(chosen) == () and selection.fragments(chosen) == ()
