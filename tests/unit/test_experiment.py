"""experiment/: YAML to frozen types, matrices, defaults, sources."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.errors import ConfigError
from orchestrator.experiment import (
    DebianSource,
    Experiment,
    GitSource,
    Guest,
    Storm,
    TarballSource,
    TreeSource,
    load,
    yamltext,
)
from orchestrator.experiment.fields import describe
from orchestrator.store import load_json, to_json

REPOSITORY = Path(__file__).parents[2]
KERNEL = (
    "kernel: {sources: [{debian: {package: linux-source-5.10, suite: bullseye-security}}], fragments: [host.config]}"
)


@pytest.fixture
def write(tmp_path: Path):
    """Write a config (and the files that it names) and return its path."""
    (tmp_path / "host.config").write_text("CONFIG_KVM=y\n")
    (tmp_path / "v1.patch").write_text("a patch\n")

    def writer(cells: str, *, arms="{base: [], v1: [v1.patch]}", target="{kind: qemu}", kernel=KERNEL, more="") -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(f"name: trial-run\n{kernel}\narms: {arms}\ntarget: {target}\n{more}\ncells: {cells}\n")
        return path

    return writer


@pytest.mark.parametrize("name", ["quickstart", "parallel"])
def test_shipped_configs_load(name: str) -> None:
    experiment = load(REPOSITORY / "configs" / f"{name}.yaml")
    assert experiment.name == name
    assert experiment.base.name == "base" and experiment.base.patches == ()
    assert [arm.name for arm in experiment.arms] == ["base", "v1"]
    placements = {cell.storm.placement for cell in experiment.cells if cell.storm}
    assert {"outside", "overlap", "other-process"} <= placements
    assert any(cell.storm is None for cell in experiment.cells)
    assert set(experiment.checks) == {"kernel_log", "needed_retries", "controls"}


def test_every_key_of_quickstart_has_a_comment() -> None:
    """A key is explained on its line, or right above, where it first stands."""
    path = REPOSITORY / "configs/quickstart.yaml"
    text = path.read_text().splitlines()
    first: dict[str, int] = {}
    for location, line in sorted(yamltext.parse(path.read_bytes(), path).lines.items(), key=lambda item: item[1]):
        if location and isinstance(location[-1], str):
            first.setdefault(location[-1], line)
    bare = {key for key, line in first.items() if "#" not in text[line - 1] and "#" not in text[line - 2]}
    # What groups others, or is a name that the user chose.
    assert bare <= {"kernel", "base", "v1", "suite", "guest", "storm", "target", "schedule", "checks", "report"}


def test_paths_are_absolute_and_relative_to_the_config(write, tmp_path: Path) -> None:
    experiment = load(write("{quiet: {storm: none}}"))
    assert experiment.arms[1].patches == (tmp_path / "v1.patch",)
    assert experiment.kernel.fragments == (tmp_path / "host.config",)
    assert experiment.path == tmp_path / "experiment.yaml"


def test_all_source_kinds(write, tmp_path: Path) -> None:
    digest = "0" * 64
    kernel = f"""\
kernel:
  fragments: [host.config]
  sources:
    - tree: ../linux
    - tarball: {{path: linux.tar.xz, sha256: "{digest}"}}
    - tarball: {{url: "https://example.org/linux.tar.xz", sha256: "{digest}"}}
    - git: {{repository: "https://example.org/linux.git", ref: v5.10}}
    - git: {{repository: ./linux.git, ref: HEAD~3}}
    - debian: {{package: linux-source-5.10, suite: bullseye-security}}"""
    assert load(write("{quiet: {storm: none}}", kernel=kernel)).kernel.sources == (
        TreeSource(tmp_path.parent / "linux"),
        TarballSource(digest, path=tmp_path / "linux.tar.xz"),
        TarballSource(digest, url="https://example.org/linux.tar.xz"),
        GitSource("https://example.org/linux.git", "v5.10"),
        GitSource(str(tmp_path / "linux.git"), "HEAD~3"),
        DebianSource("linux-source-5.10", "bullseye-security"),
    )


@pytest.mark.parametrize(
    "source",
    [
        "{git: {repository: 'ext::sh -c id', ref: v1}}",
        "{git: {repository: '--upload-pack=id', ref: v1}}",
        "{git: {repository: 'https://example.org/x.git', ref: '--output=/etc/passwd'}}",
        "{debian: {package: '-oDir=/', suite: bullseye}}",
        "{debian: {package: linux-source-5.10, suite: '../x y'}}",
        "{tarball: {url: 'file:///etc/passwd', sha256: '" + "0" * 64 + "'}}",
        "{tarball: {sha256: '" + "0" * 64 + "'}}",
        "{tarball: {path: a, url: 'https://example.org/a', sha256: '" + "0" * 64 + "'}}",
        "{tarball: {path: a, sha256: abc}}",
        "{tree: a, debian: {package: linux-source-5.10, suite: bullseye}}",
        "{}",
    ],
)
def test_bad_sources_are_refused(write, source: str) -> None:
    path = write("{quiet: {storm: none}}", kernel=f"kernel: {{fragments: [host.config], sources: [{source}]}}")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert all(f"{path}:2: kernel.sources" in problem for problem in caught.value.problems)


def test_defaults_reach_every_cell_and_the_cell_wins(write) -> None:
    more = "defaults: {guest: {rounds: 7, mem_mib: 8}, storm: {op: munmap, placement: outside, size_kib: 64}}"
    quiet, loud = load(
        write("{quiet: {guest: {rounds: 2}, storm: none}, loud: {storm: {threads: 3}}}", more=more)
    ).cells
    assert quiet.guest == Guest(rounds=2, mem_mib=8) and quiet.storm is None
    assert loud.guest.rounds == 7
    assert loud.storm == Storm("munmap", "outside", 64, threads=3)


def test_lists_expand_to_a_matrix_in_written_order(write) -> None:
    cells = """
  outside:
    guest: {tdp: [on, off]}
    storm: {op: [munmap, mprotect], placement: outside, size_kib: 64}"""
    found = load(write(cells)).cells
    assert [cell.name for cell in found] == [
        "outside,tdp=on,op=munmap",
        "outside,tdp=on,op=mprotect",
        "outside,tdp=off,op=munmap",
        "outside,tdp=off,op=mprotect",
    ]
    assert [(cell.guest.tdp, cell.storm.op) for cell in found if cell.storm] == [
        (True, "munmap"), (True, "mprotect"), (False, "munmap"), (False, "mprotect"),
    ]  # fmt: skip


def test_merge_keys_work_as_in_safe_load(write) -> None:
    cells = """
  a: {guest: &g {rounds: 3, mem_mib: 2}, storm: none}
  b: {guest: {<<: *g, rounds: 5}, storm: none}"""
    assert load(write(cells)).cells[1].guest == Guest(rounds=5, mem_mib=2)


def test_local_needs_neither_kernel_nor_patches(tmp_path: Path) -> None:
    path = tmp_path / "local.yaml"
    path.write_text("name: x\narms: {running: []}\ntarget: {kind: local}\ncells: {quiet: {storm: none}}\n")
    experiment = load(path)
    assert experiment.target.kind == "local" and experiment.kernel.sources == ()


def test_the_types_check_themselves() -> None:
    with pytest.raises(ValidationError):
        Guest(rounds="4")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Guest(vcpus=True)
    with pytest.raises(ValidationError):
        Storm("munmap", "outside", 6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Guest().rounds = 3  # type: ignore[misc]


def test_faults_are_counted_per_stride_and_page_size() -> None:
    assert Guest(mem_mib=64, rounds=4).nr_faults == 65536
    assert Guest(mem_mib=64, rounds=4, page="2m").nr_faults == 65536  # of the host, 4 KiB each
    assert Guest(mem_mib=64, rounds=4, stride_pages=8).nr_faults == 8192
    assert Guest(mem_mib=1, rounds=1, stride_pages=255).nr_faults == 1  # the rest is no whole stride


def test_json_round_trip(write, tmp_path: Path) -> None:
    experiment = load(write("{quiet: {storm: none}, a: {storm: {op: munmap, placement: outside, size_kib: 4}}}"))
    path = tmp_path / "experiment.json"
    path.write_bytes(to_json(experiment))
    assert load_json(path, Experiment) == experiment


def test_every_key_is_described() -> None:
    described = {field.key: field for field in describe()}
    for cls, prefix in ((Guest, "cells.NAME.guest"), (Storm, "cells.NAME.storm")):
        for item in dataclasses.fields(cls):
            assert described[f"{prefix}.{item.name}"].doc, item.name
    assert described["target.accel"].values == "auto, kvm, tcg, icount"
    assert described["schedule.boots"].default == "1"
    assert described["cells.NAME.storm.op"].default == ""
