"""Applying and reverting: exact, all or nothing, and never outside the tree."""

import os
import shutil
from pathlib import Path

import pytest

from orchestrator.errors import PatchError
from orchestrator.kernel import patch as patch_module
from orchestrator.kernel.patch import Patch, apply, check, read_series, revert

DATA = Path(__file__).parents[1] / "data" / "mail"
TOY = "drivers/toy/toy.c"
Snapshot = dict[str, tuple[bytes, int, int]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    shutil.copytree(DATA / "tree", path)
    for number, file in enumerate(sorted(path.rglob("*.*"))):
        os.utime(file, ns=(10**18 + number, 10**18 + number))
    return path


def snapshot(tree: Path) -> Snapshot:
    """Contents, modes and times of everything in the tree."""
    files = [path for path in sorted(tree.rglob("*")) if path.is_file()]
    return {str(f.relative_to(tree)): (f.read_bytes(), f.stat().st_mode, f.stat().st_mtime_ns) for f in files}


def patch_of(tmp_path: Path, text: str) -> tuple[Patch, ...]:
    file = tmp_path / "change.patch"
    file.write_text(text)
    return read_series([file])


def test_apply_and_revert_leave_the_tree_as_it_was(tree: Path) -> None:
    before = snapshot(tree)
    series = read_series([DATA / "series.mbox"])
    applied = apply(series, tree)
    assert [file.path for file in applied.files] == [TOY]
    assert "case 2: /* the first that is left */" in (tree / TOY).read_text()
    assert check(series, tree).kind == "already applied"
    revert(applied)
    assert snapshot(tree) == before


def test_a_tree_that_shares_the_file_by_a_hard_link_keeps_it(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.c"
    other.hardlink_to(tree / TOY)
    old = other.read_bytes()
    apply(read_series([DATA / "toy.patch"]), tree)
    assert other.read_bytes() == old != (tree / TOY).read_bytes()


def test_a_conflict_shows_both_texts_and_changes_nothing(tree: Path) -> None:
    text = (tree / TOY).read_text()
    (tree / TOY).write_text(text.replace("\tcase 0:\n", "\tcase 7:\n"))
    before = snapshot(tree)
    series = read_series([DATA / "series.mbox"])
    found = check(series, tree)
    (conflict,) = found.conflicts
    assert (conflict.file, conflict.hunk, conflict.reason) == (TOY, 1, "does not fit")
    assert "\tcase 0:" in conflict.expected and "\tcase 7:" in conflict.found
    assert (tree / TOY).read_text().split("\n")[conflict.found_line - 1] == conflict.found[0]
    shown = found.render()
    assert "series.mbox:1/3: drivers/toy/toy.c: hunk 1 @@" in shown
    assert "    | \tcase 0:" in shown and "    | \tcase 7:" in shown
    with pytest.raises(PatchError, match="conflicts"):
        apply(series, tree)
    assert snapshot(tree) == before


def test_all_or_nothing_over_a_series(tree: Path) -> None:
    """The first two fit, the last does not: nothing is written."""
    first, second, third = read_series([DATA / "series.mbox"])
    before = snapshot(tree)
    with pytest.raises(PatchError, match=r"series\.mbox:3/3"):
        apply([first, third, second], tree)
    assert snapshot(tree) == before


def test_a_write_that_fails_half_way_is_undone(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "--- /dev/null\n+++ b/drivers/new/a.c\n@@ -0,0 +1 @@\n+a\n"
    series = (*patch_of(tmp_path, text), *read_series([DATA / "toy.patch"]))
    before = snapshot(tree)
    real = patch_module._write

    def fail_on_toy(path: Path, content: object) -> None:
        if path.name == "toy.c":
            raise OSError(28, "No space left on device")
        real(path, content)  # type: ignore[arg-type]

    monkeypatch.setattr(patch_module, "_write", fail_on_toy)
    with pytest.raises(PatchError, match="No space left on device; nothing was changed"):
        apply(series, tree)
    assert snapshot(tree) == before
    assert not (tree / "drivers" / "new").exists()


def test_offset_is_told_and_fuzz_is_refused(tree: Path) -> None:
    toy = tree / TOY
    text = toy.read_text()
    toy.write_text("/* one */\n/* two */\n" + text)
    found = check(read_series([DATA / "folder" / "0001-part.patch"]), tree)
    assert (found.kind, len(found.offsets)) == ("applies", 1)
    assert found.offsets[0].endswith("+2 from its header")
    toy.write_text(text.replace("\tswitch (toy->level) {\n", "\tswitch (toy->level)  {\n"))
    assert check(read_series([DATA / "folder" / "0001-part.patch"]), tree).kind == "conflicts"


def test_a_hunk_that_fits_twice_is_a_conflict(tree: Path, tmp_path: Path) -> None:
    text = f"--- a/{TOY}\n+++ b/{TOY}\n@@ -30,3 +30,4 @@\n \tr = toy_lock(toy);\n \tif (r)\n+\t\tf();\n \t\treturn r;\n"
    (conflict,) = check(patch_of(tmp_path, text), tree).conflicts
    assert conflict.reason == "fits in several places: tree lines 21, 47"
    exact = check(patch_of(tmp_path, text.replace("-30,3 +30,4", "-47,3 +47,4")), tree)
    assert (exact.kind, exact.offsets) == ("applies", ())


def test_create_delete_rename_and_mode(tree: Path, tmp_path: Path) -> None:
    before = snapshot(tree)
    makefile = "diff --git a/drivers/toy/Makefile b/drivers/toy/Makefile\ndeleted file mode 100644\n"
    makefile += "--- a/drivers/toy/Makefile\n+++ /dev/null\n@@ -1 +0,0 @@\n-obj-y += toy.o\n"
    new = "diff --git a/scripts/run.sh b/scripts/run.sh\nnew file mode 100755\n--- /dev/null\n+++ b/scripts/run.sh\n"
    new += "@@ -0,0 +1 @@\n+echo\n\\ No newline at end of file\n"
    moved = f"diff --git a/{TOY} b/drivers/game/toy.c\nsimilarity index 100%\nrename from {TOY}\n"
    moved += "rename to drivers/game/toy.c\n"
    series = patch_of(tmp_path, makefile + new + moved)
    applied = apply(series, tree)
    assert not (tree / TOY).exists() and not (tree / "drivers/toy/Makefile").exists()
    assert (tree / "drivers/game/toy.c").read_bytes() == before[TOY][0]
    assert (tree / "scripts/run.sh").read_text() == "echo"
    assert (tree / "scripts/run.sh").stat().st_mode & 0o777 == 0o755
    assert check(series, tree).kind == "already applied"
    revert(applied)
    assert snapshot(tree) == before
    assert not (tree / "scripts").exists() and not (tree / "drivers/game").exists()


def test_a_file_that_is_there_or_not(tree: Path, tmp_path: Path) -> None:
    new = f"--- /dev/null\n+++ b/{TOY}\n@@ -0,0 +1 @@\n+a\n"
    assert check(patch_of(tmp_path, new), tree).conflicts[0].reason.startswith("the patch creates it")
    none = "--- a/none.c\n+++ b/none.c\n@@ -1 +1 @@\n-a\n+b\n"
    assert check(patch_of(tmp_path, none), tree).conflicts[0].reason == "the tree has no such file"
    gone = "--- a/drivers/toy/Makefile\n+++ /dev/null\n@@ -1 +0,0 @@\n-obj-y += toy.o\n"
    (tree / "drivers/toy/Makefile").write_text("obj-y += toy.o\nmore\n")
    assert check(patch_of(tmp_path, gone), tree).kind == "conflicts"


def test_gnu_diff_dates_of_files_that_are_not_there(tree: Path, tmp_path: Path) -> None:
    text = "--- linux.orig/new.c\t1970-01-01 01:00:00 +0100\n+++ linux/new.c\t2021-01-25 12:00:00 +0100\n"
    text += "@@ -0,0 +1 @@\n+a\n"
    apply(patch_of(tmp_path, text), tree)
    assert (tree / "new.c").read_text() == "a\n"


def test_any_bytes_survive(tree: Path) -> None:
    odd = b"latin \xe9, nul \0, separators \x0c\x85\xe2\x80\xa8, cr \r, "
    (tree / "odd.c").write_bytes(odd + b"\n1\n2\n3\n")
    patch = tree.parent / "odd.patch"
    patch.write_bytes(b"--- a/odd.c\n+++ b/odd.c\n@@ -1,4 +1,4 @@\n " + odd + b"\n 1\n-2\n+" + odd + b"\n 3\n")
    apply(read_series([patch]), tree)
    assert (tree / "odd.c").read_bytes() == odd + b"\n1\n" + odd + b"\n3\n"


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_symbolic_link_is_never_followed(tree: Path, tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    shutil.move(tree / "drivers" / "toy", outside)
    if where == "folder":
        (tree / "drivers" / "toy").symlink_to(outside)
    else:
        (tree / "drivers" / "toy").mkdir()
        (tree / TOY).symlink_to(outside / "toy.c")
    before = snapshot(outside)
    with pytest.raises(PatchError, match="symbolic link"):
        apply(read_series([DATA / "toy.patch"]), tree)
    assert snapshot(outside) == before


def test_revert_refuses_a_file_that_was_changed_meanwhile(tree: Path) -> None:
    applied = apply(read_series([DATA / "toy.patch"]), tree)
    (tree / TOY).write_text("mine\n")
    with pytest.raises(PatchError, match="was changed since the patch was applied"):
        revert(applied)
    assert (tree / TOY).read_text() == "mine\n"


def test_revert_keeps_what_was_put_into_a_new_folder(tree: Path, tmp_path: Path) -> None:
    applied = apply(patch_of(tmp_path, "--- /dev/null\n+++ b/new/a.c\n@@ -0,0 +1 @@\n+a\n"), tree)
    (tree / "new" / "mine").write_text("x")
    revert(applied)
    assert sorted(path.name for path in (tree / "new").iterdir()) == ["mine"]
