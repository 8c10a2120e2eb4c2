"""experiment/: every mistake is reported with file, line, key, what was expected and what was found, all at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.experiment import Experiment, load
from orchestrator.experiment.reader import parse

DATA = Path(__file__).parents[1] / "data" / "experiments"
PATH = Path("/nonexistent/experiment.yaml")
VALID = """\
name: valid
kernel: {sources: [{tree: linux}], fragments: [{fragment}]}
arms: {base: []}
target: {kind: qemu}
cells: {quiet: {storm: none}}
"""


def problems(text: str | bytes, path: Path = PATH) -> list[str]:
    """Problems without the file's name: ``LINE: KEY: expected …, found …``."""
    with pytest.raises(ConfigError) as caught:
        parse(text if isinstance(text, bytes) else text.encode(), path)
    assert all(problem.startswith(f"{path}:") for problem in caught.value.problems)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


def config(cells: str, *, target="{kind: qemu}", checks="[]", more="") -> str:
    """A config whose other sections are right; cells start at line 8."""
    return (
        "name: x\n"
        "kernel: {sources: [{tree: linux}], fragments: [/dev/null]}\n"
        "arms: {base: [], v1: [/dev/null]}\n"
        f"target: {target}\n"
        f"checks: {checks}\n"
        f"{more}\n"
        "cells:\n"
        f"{cells}\n"
    )


def test_everything_wrong_at_once_is_reported_as_the_golden_file_says() -> None:
    path = DATA / "everything-wrong.yaml"
    with pytest.raises(ConfigError) as caught:
        load(path)
    found = [problem.replace(f"{path}:", "everything-wrong.yaml:") for problem in caught.value.problems]
    assert "\n".join(found).replace(str(DATA), "DATA") + "\n" == (DATA / "everything-wrong.expected").read_text()
    assert caught.value.exit_code == 1


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=r":1: the file: expected a readable file, found:"):
            load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: the file: expected a mapping, found nothing"),
        ("- a\n- b\n", "1: the file: expected a mapping, found a list"),
        ("a: [1, 2\nb: 3\n", "2: the file: expected YAML, found: expected ',' or ']', but got ':'"),
        ("a: b\n--- \nc: d\n", "2: the file: expected YAML, found: but found another document"),
        ("name: !!python/object/apply:os.system [id]\n", "1: name: expected text, found a list"),
        (b"name: \xff\n", "1: the file: expected YAML, found: invalid start byte"),
        ("? [a]\n: b\n", "1: the file: expected keys that are text, found a list or mapping as a key"),
        ("name: 2021-13-45\n", "1: name: expected a value that YAML can read, found '2021-13-45'"),
    ],
)
def test_what_is_no_config_at_all(text: str | bytes, expected: str) -> None:
    assert expected in problems(text)


def test_deep_nesting_and_alias_bombs_are_refused_quickly() -> None:
    assert "expected YAML" in problems("a: " + "[" * 5000 + "]" * 5000)[0]
    layers = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    assert "too many or too deep values" in problems("a0: &a0 [x, x]\n" + layers)[0]
    merges = "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))
    assert "too many or too deep values" in problems("a0: &a0 {x: y}\n" + merges)[0]
    assert "too many or too deep values" in problems("a: &a [*a]\n")[0]


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="at most 1048576 bytes"):
        load(path)


@pytest.mark.parametrize(
    ("cells", "options", "expected"),
    [
        (
            "  a: {storm: none}\n  a: {storm: none}",
            {},
            "9: cells.a: expected each key once, found it twice",
        ),
        (
            "  a: {storm: none, gest: {}}",
            {},
            "8: cells.a.gest: expected the key 'guest', found the unknown key 'gest'",
        ),
        (
            "  a:\n    guest:\n      page: 4096\n    storm: none",
            {},
            "10: cells.a.guest.page: expected '4k' or '2m', found 4096",
        ),
        (
            "  a: {guest: {rounds: [1, 0]}, storm: none}",
            {},
            "8: cells.a.guest.rounds[1]: expected at least 1, found 0",
        ),
        (
            "  a: {guest: {rounds: [1, 1]}, storm: none}",
            {},
            "8: cells.a: expected cells with different names, found two 'a,rounds=1'",
        ),
        (
            "  a: {guest: {rounds: [" + ", ".join(map(str, range(1, 1100))) + "]}, storm: none}",
            {},
            "8: cells.a: expected at most 1000 cells, found lists that expand to more",
        ),
        (
            "  a: {storm: none}",
            {"target": "{kind: qemu, accel: icount, cpus: 2}"},
            "4: target.cpus: expected 1 with accel: icount, found 2",
        ),
        (
            "  a: {storm: {op: munmap, placement: outside, size_kib: 64, cpu: other}}",
            {},
            "8: cells.a.storm.cpu: expected target.cpus of at least 2 with cpu: other and vcpus: 1,"
            " found target.cpus: 1",
        ),
        (
            "  a: {storm: {op: munmap, placement: outside, size_kib: 64, preempted: true}}",
            {},
            "8: cells.a.storm.preempted: expected cpu: same, or hogs, with preempted: true, found cpu: any, no hogs",
        ),
        (
            "  a: {guest: {mem_mib: 1}, storm: {op: munmap, placement: overlap, size_kib: 2048}}",
            {},
            "8: cells.a.storm.size_kib: expected at most the 1024 KiB that fault, with placement: overlap,"
            " found 2048 in each of 1 threads",
        ),
        (
            "  a: {guest: {mem_mib: 3, page: 2m}, storm: none}",
            {},
            "8: cells.a.guest.mem_mib: expected a multiple of 2 with page: 2m, found 3",
        ),
        (
            "  a: {guest: {mem_mib: 16, rounds: 50000}, storm: none}",
            {"target": "{kind: qemu, mem_mib: 8192}"},
            "8: cells.a.guest.rounds: expected at most 2900 MiB of samples (the guest keeps them below 3 GiB),"
            " found 3125 MiB (204800000 faults × 16 bytes)",
        ),
        (
            "  a: {guest: {vcpus: 2}, storm: none}",
            {},
            "8: cells.a.guest.vcpus: expected at most target.cpus, 1, found 2",
        ),
        (
            "  a: {guest: {mem_mib: 2, stride_pages: 512, vcpus: 2}, storm: none}",
            {"target": "{kind: qemu, cpus: 4}"},
            "8: cells.a.guest.vcpus: expected at most one vCPU for each of the 1 faulting pages, found 2",
        ),
        (
            "  a: {guest: {mem_mib: 512, rounds: 2},"
            " storm: {op: munmap, placement: outside, size_kib: 65536, threads: 6}}",
            {},
            "8: cells.a.guest.mem_mib: expected what fits target.mem_mib, 1024, found 1028 MiB in cell a: 512 guest +"
            " 384 storm + 4 samples (262144 faults × 16 bytes) + 128 kernel",
        ),
        (
            "  a: {storm: none}",
            {"checks": "[needed_retries]"},
            "5: checks[0]: expected a cell with placement: overlap to check, found none",
        ),
        (
            "  a: {storm: {op: munmap, placement: outside, size_kib: 64}}",
            {"checks": "[kernel_log, controls]"},
            "5: checks[1]: expected a cell with storm: none or placement: other-process, found none",
        ),
        (
            "  a: {storm: none}",
            {"checks": "[controls, controls]"},
            "5: checks[1]: expected each check once, found 'controls'",
        ),
        (
            "  a: {guest: {rounds: [1, 2, 3, 4, 5, 6]}, storm: none}",
            {"more": "schedule: {boots: 100000}"},
            "6: schedule.boots: expected at most 1000000 trials in all, found 1200000",
        ),
        (
            "  " + "a" * 96 + ": {storm: none}",
            {},
            "8: cells." + "a" * 59 + "…: expected at most 95 characters, found '" + "a" * 59 + "…'",
        ),
        (
            "  ../../etc: {storm: none}",
            {},
            "8: cells.../../etc: expected a name of a-z, 0-9, '.', '_' and '-' that starts with a letter or digit,"
            " found '../../etc'",
        ),
    ],
)
def test_each_mistake_is_the_only_one_found(cells: str, options: dict[str, str], expected: str) -> None:
    assert problems(config(cells, **options)) == [expected]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("at_most: 24", "at_most: expected until: decided with this key, found until: boots"),
        ("looks: 3", "looks: expected until: decided with this key, found until: boots"),
        ("boots: 12, until: decided", "until: expected the key 'at_most' with until: decided, found nothing"),
        ("boots: 4, until: decided, at_most: 12",
         "boots: expected an even number of at least 6 with until: decided, found 4"),
        ("boots: 7, until: decided, at_most: 12",
         "boots: expected an even number of at least 6 with until: decided, found 7"),
        ("boots: 12, until: decided, at_most: 12", "at_most: expected an even number above boots, 12, found 12"),
        ("boots: 12, until: decided, at_most: 15", "at_most: expected an even number above boots, 12, found 15"),
        ("boots: 12, until: decided, at_most: 16",
         "looks: expected at least two boots from one look to the next, found 4 looks from 12 to 16 boots"),
        ("until: done", "until: expected 'boots' or 'decided', found 'done'"),
        ("boots: 6, until: decided, at_most: 600000", "at_most: expected at most 100000, found 600000"),
        ("aa: 2", "aa: expected true or false, found 2"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_kept(schedule: str, expected: str) -> None:
    assert problems(config("  a: {storm: none}", more=f"schedule: {{{schedule}}}")) == [f"6: schedule.{expected}"]


def test_a_schedule_with_nothing_to_look_at() -> None:
    alone = VALID.replace("{fragment}", "/dev/null") + "schedule: {boots: 6, until: decided, at_most: 12}\n"
    expected = "schedule.until: expected two arms and a cell with until: decided, found nothing to decide"
    assert problems(alone) == [f"6: {expected}"]
    without = config("  {}", checks="[stale_mapping]", more="schedule: {aa: true}")
    assert problems(without) == [
        "6: schedule.aa: expected cells with aa: true, which compares the base in each, found none"
    ]


def test_an_error_in_defaults_is_reported_once_and_there() -> None:
    text = config(
        "  a: {storm: {op: munmap}}\n  b: {storm: {op: mremap}}",
        more="defaults: {storm: {placement: outside, size_kib: 5}}",
    )
    assert problems(text) == ["6: defaults.storm.size_kib: expected a multiple of 4, found 5"]


def test_local_refuses_what_it_would_not_use() -> None:
    text = config("  a: {storm: none}", target="{kind: local, cpus: 2}")
    assert problems(text) == [
        "2: kernel: expected no kernel with target.kind: local, found one, which would not be built",
        "3: arms: expected one arm without patches with target.kind: local, found more",
        "4: target.cpus: expected no such key with kind: local, found one, which would do nothing",
    ]


def test_more_problems_than_a_screen_holds_are_counted() -> None:
    found = problems(config("\n".join(f"  a{n}: 3" for n in range(80))))
    assert len(found) == 51
    assert found[-1] == " … and 30 more"


def test_control_characters_do_not_reach_the_terminal() -> None:
    found = problems('name: "\\e[31mred"\n"\\e[2J": 3\n')
    assert "\x1b" not in "".join(found)


# --- fuzzing: nothing but ConfigError, whatever the bytes -----------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.dates(), st.binary(max_size=6),
    st.sampled_from(["none", "qemu", "local", "icount", "munmap", "overlap", "4k", "2m", "~", "/dev/null", "\0"]),
)  # fmt: skip
WORDS = """name kernel sources fragments arms target kind defaults cells guest storm schedule checks report tree git
    tarball debian path url sha256 rounds vcpus mem_mib page op placement size_kib cpu preempted boots seed margin"""
KEYS = st.one_of(st.text(max_size=8), st.sampled_from(WORDS.split()))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=20,
)


def survives(raw: bytes) -> None:
    try:
        experiment = parse(raw, PATH)
    except ConfigError as error:
        assert error.problems
    else:
        assert isinstance(experiment, Experiment)


@given(st.binary(max_size=200))
@example(b"a: 0x\n")
@example(b"a: 0b\n")
@example(b"a: +\n")
@example(b"a: " + b"9" * 5000)
@example(b"a: !!int x\n")
@example(b"a: !!timestamp x\n")
@example(b"a: !!binary \xc3\xa4\n")
@example(b"a: !!float x\n")
@example(b"a: !!bool x\n")
@example(b"a: 1:99999999999999999999\n")
@example(b'"\\ud800": "\\ud800"\n')
@example(b'kernel: {sources: [{tree: "\\ud800"}]}\n')
@example(b"%YAML 9.9\n---\n")
@example(b"a: *nobody\n")
def test_any_bytes(raw: bytes) -> None:
    survives(raw)


@given(st.dictionaries(KEYS, VALUES, max_size=8))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_mapping(data: dict[str, object]) -> None:
    survives(yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "replace"))


GOOD = yaml.safe_load(
    config(
        "  a: {guest: {tdp: [true, false]}, storm: {op: munmap, placement: overlap, size_kib: 64}}",
        checks="[needed_retries]",
        more="schedule: {boots: 2}\ndefaults: {guest: {rounds: 3}, storm: {threads: 1}}",
    )
)


def places(value: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] + [place for key, inner in items for place in places(inner, (*at, key))]


def replaced(value: object, at: tuple[object, ...], new: object) -> object:
    """A copy of ``value`` with one place in it changed."""
    if not at:
        return new
    if isinstance(value, dict):
        return {key: replaced(inner, at[1:], new) if key == at[0] else inner for key, inner in value.items()}
    assert isinstance(value, list)
    return [replaced(inner, at[1:], new) if index == at[0] else inner for index, inner in enumerate(value)]


@given(st.sampled_from(places(GOOD)), VALUES)
@settings(deadline=None, max_examples=300)
def test_a_good_config_with_one_place_changed(place: tuple[object, ...], new: object) -> None:
    survives(yaml.safe_dump(replaced(GOOD, place, new)).encode("utf-8", "replace"))


def test_the_good_config_of_the_fuzzer_is_good() -> None:
    experiment = parse(yaml.safe_dump(GOOD).encode(), PATH)
    assert [cell.name for cell in experiment.cells] == ["a,tdp=on", "a,tdp=off"]
    assert os.fspath(experiment.kernel.fragments[0]) == "/dev/null"
