"""The patches of the project are what their notes say: well formed, complete, and as far apart as described.

Four of the files that they change are in ``tree-5.10.262.tar.xz``; the two of ``arch/powerpc`` are not, and are only
read. ``tests/unit/test_patches_logic.py`` runs the rule for a retry that each of them puts in.
"""

import difflib
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.kernel.patch import Patch, apply, check, read_series, revert

ROOT = Path(__file__).parents[2]
PATCHES = ROOT / "patches"
FILES = (
    "arch/x86/kvm/mmu/mmu.c",
    "arch/x86/kvm/mmu/paging_tmpl.h",
    "include/linux/kvm_host.h",
    "virt/kvm/kvm_main.c",
)
POWERPC = ("arch/powerpc/kvm/book3s_64_mmu_hv.c", "arch/powerpc/kvm/book3s_64_mmu_radix.c")
VERSIONS = ("v1-review", "union", "union-noprefetch")
MUTANTS = tuple(sorted(path.stem for path in (PATCHES / "mutants").glob("*.patch")))
OURS = (*(f"hva-retry/{name}" for name in VERSIONS), *(f"mutants/{name}" for name in MUTANTS))
GUARD = "mmu_notifier_in_progress(vcpu->kvm)"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linux")
    with tarfile.open(ROOT / "tests" / "data" / "mail" / "tree-5.10.262.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def read(name: str) -> Patch:
    (patch,) = read_series([PATCHES / f"{name}.patch"])
    return patch


def here(patch: Patch) -> Patch:
    """The part of a patch whose files the archive has."""
    diffs = tuple(diff for diff in patch.diffs if diff.path in FILES)
    return replace(patch, files=tuple(diff.path for diff in diffs), diffs=diffs)


def patched(tree: Path, name: str) -> dict[str, list[str]]:
    """Lines of the four files with a patch applied; the tree is as before afterwards."""
    applied = apply([here(read(name))], tree)
    try:
        return {file: (tree / file).read_text().splitlines() for file in FILES}
    finally:
        revert(applied)


def changed(old: dict[str, list[str]], new: dict[str, list[str]]) -> list[str]:
    """Removed and added lines, with their marker, that are not blank."""
    lines = [line for file in FILES for line in difflib.unified_diff(old[file], new[file], n=0, lineterm="")]
    return [line for line in lines if not line.startswith(("---", "+++", "@@")) and line[1:].strip()]


@pytest.mark.parametrize("name", OURS)
def test_it_applies_without_offset_and_says_what_it_is(tree: Path, name: str) -> None:
    patch = read(name)
    assert patch.files == (*POWERPC, *FILES)
    found = check([here(patch)], tree)
    assert (found.kind, found.offsets) == ("applies", ())
    text = (PATCHES / f"{name}.patch").read_text()
    head, _, rest = text.partition("\n---\n")
    assert re.match(r"From 0{40} Mon Sep 17 00:00:00 2001\nFrom: \S.*\n? <[^<>\s]+@[^<>\s]+>\nDate: ", head)
    assert patch.subject.startswith("[PATCH] KVM: x86/mmu: ")
    assert head.splitlines()[-1].startswith("Signed-off-by: ")
    message = head[head.index("\n\n") :].splitlines()
    assert all(len(line) <= 75 for line in message[:-1])
    assert " 6 files changed, " in rest[: rest.index("\ndiff --git")]


@pytest.mark.parametrize("name", OURS)
def test_the_diffstat_counts_its_lines(name: str) -> None:
    text = (PATCHES / f"{name}.patch").read_text()
    counts = re.search(r"^ 6 files changed, (\d+) insertions\(\+\), (\d+) deletions\(-\)$", text, re.M)
    assert counts
    diff = text[text.index("diff --git") :]
    added = len(re.findall(r"^\+(?!\+\+ )", diff, re.M))
    removed = len(re.findall(r"^-(?!-- )", diff, re.M))
    assert (int(counts[1]), int(counts[2])) == (added, removed)


@pytest.mark.parametrize("name", [f"hva-retry/{name}" for name in VERSIONS])
def test_a_version_names_whose_work_it_builds_on(name: str) -> None:
    text = (PATCHES / f"{name}.patch").read_text()
    assert "\nBased-on: David Stevens <stevensd@xxxxxxxxxxxx>, v1 of 25 January 2021\n" in text
    assert "\n (patches/hva-retry/review-mail.txt)\n" in text


@pytest.mark.parametrize("name", [f"mutants/{name}" for name in MUTANTS])
def test_a_mutant_warns_whoever_finds_it_alone(name: str) -> None:
    head = (PATCHES / f"{name}.patch").read_text().partition("\n---\n")[0]
    assert "wrong on purpose" in head and "never to be merged" in head.replace("\n", " ")
    assert read(name).subject.startswith("[PATCH] KVM: x86/mmu: mutant: ")


@pytest.mark.parametrize("folder", ["hva-retry", "mutants", "planted"])
def test_every_patch_has_its_note_and_every_note_its_patch(folder: str) -> None:
    note = (PATCHES / folder / "README.md").read_text()
    there = {path.name for path in (PATCHES / folder).glob("*.patch")}
    assert {
        name for name in there if f"`{name}`" not in note and f"`{name.removesuffix('.patch')}`" not in note
    } == set()
    assert set(re.findall(r"`([\w-]+\.patch)`", note)) <= there


def test_powerpc_gets_a_null_and_nothing_else() -> None:
    for name in OURS:
        for diff in read(name).diffs[:2]:
            (hunk,) = diff.hunks
            (old,) = set(hunk.old) - set(hunk.new)
            (new,) = set(hunk.new) - set(hunk.old)
            assert new == old.replace(");", ", NULL);")


def test_v1_review_is_v1_with_the_remarks(tree: Path) -> None:
    v1, review = patched(tree, "hva-retry/v1"), patched(tree, "hva-retry/v1-review")
    assert v1["arch/x86/kvm/mmu/mmu.c"] == review["arch/x86/kvm/mmu/mmu.c"]
    assert v1["arch/x86/kvm/mmu/paging_tmpl.h"] == review["arch/x86/kvm/mmu/paging_tmpl.h"]
    header, main = "\n".join(review["include/linux/kvm_host.h"]), "\n".join(review["virt/kvm/kvm_main.c"])
    assert (
        "\tif (unlikely(kvm->mmu_notifier_count) &&\n"
        "\t    (!kvm->mmu_notifier_range_end ||\n"
        "\t     (kvm->mmu_notifier_range_start <= hva &&\n"
        "\t      hva < kvm->mmu_notifier_range_end)))\n"
        "\t\treturn 1;\n"
    ) in header
    assert "\tlockdep_assert_held(&kvm->mmu_lock);\n" in header
    assert "mmu_notifier_count > 1" in header
    assert "Unlike mmu_notifier_retry, this" not in header
    assert "mmu_notifier_range_end = 0;" in main and "mmu_notifier_range_end = ULONG_MAX;" not in main
    assert "write_fault);\n\n\tif (hva)\n\t\t*hva = addr;\n" in main
    head = (PATCHES / "hva-retry" / "v1-review.patch").read_text().partition("\n---\n")[0]
    assert "mmu_notifer" not in head and "secondary effect" not in head and "invalidate_range_start" not in head


def test_union_and_union_noprefetch_differ_by_the_guards(tree: Path) -> None:
    lines = changed(patched(tree, "hva-retry/union"), patched(tree, "hva-retry/union-noprefetch"))
    assert all(line.startswith("+") for line in lines)
    assert sum(GUARD in line for line in lines) == 3
    places = patched(tree, "hva-retry/union-noprefetch")
    assert [sum(GUARD in line for line in places[file]) for file in FILES] == [1, 2, 0, 0]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_a_small_step_from_the_right_one(tree: Path, name: str) -> None:
    lines = changed(patched(tree, "hva-retry/union-noprefetch"), patched(tree, f"mutants/{name}"))
    assert 1 <= len(lines) <= 10


@pytest.mark.parametrize(
    ("name", "direct", "shadow"),
    [
        ("prefetch-direct", 0, 2),
        ("direct-only", 1, 0),
        ("prefetch-shadow-4k", 1, 2),
        ("prefetch-shadow-2m", 1, 2),
        ("invlpg-unguarded", 1, 1),
    ],
)
def test_a_mutant_of_the_guards_has_the_others(tree: Path, name: str, direct: int, shadow: int) -> None:
    there = patched(tree, f"mutants/{name}")
    assert [sum(GUARD in line for line in there[file]) for file in FILES] == [direct, shadow, 0, 0]


def test_no_two_patches_are_the_same() -> None:
    hashes = [read(name).sha256 for name in (*OURS, "hva-retry/v1")]
    assert len(set(hashes)) == len(hashes)


def test_the_mutants_that_a_reader_expects_are_there() -> None:
    asked = {"never-retry", "ignore-count", "ignore-seq", "edge-start", "edge-end", "overwrite", "reset-early"}
    asked |= {"prefetch-direct", "direct-only"}
    assert asked <= set(MUTANTS)
