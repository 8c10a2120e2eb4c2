"""Our exact application against ``git apply``: git takes what we take, and makes the same bytes of it."""

import difflib
import shutil
import subprocess
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.kernel.mail import recover
from orchestrator.kernel.patch import apply, check, read_series

DATA = Path(__file__).parents[1] / "data" / "mail"
LINES = st.lists(st.sampled_from(["a", "b", "\tif (x)", "}", "", "return 0;"]), min_size=1, max_size=25)


def git_apply(tree: Path, patch: Path) -> bool:
    environment = {"PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(tree.parent), "HOME": "/nonexistent"}
    done = subprocess.run(
        ["git", "apply", "-v", str(patch)], cwd=tree, env=environment, capture_output=True, check=False
    )
    assert b"offset" not in done.stderr
    return done.returncode == 0


@settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(old=LINES, new=LINES, ended=st.booleans())
def test_any_change(tmp_path: Path, old: list[str], new: list[str], ended: bool) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    before, after = "\n".join(old) + "\n", "\n".join(new) + ("\n" if ended else "x")
    if before == after:
        return
    for tree in (mine, theirs):
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        (tree / "f.c").write_text(before)
    text = ""
    for line in difflib.unified_diff(before.splitlines(True), after.splitlines(True), "a/f.c", "b/f.c"):
        text += line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
    patch = tmp_path / "f.patch"
    patch.write_text(text)
    series = read_series([patch])
    assert check(series, mine).offsets == ()
    apply(series, mine)
    assert git_apply(theirs, patch)
    assert (mine / "f.c").read_text() == (theirs / "f.c").read_text() == after


def test_git_takes_a_recovered_patch_at_its_own_line_numbers(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(DATA / "tree", tree)
    patch = tmp_path / "toy.patch"
    patch.write_bytes(recover(DATA / "nested.eml", tree).text)
    assert git_apply(tree, patch)
    other = tmp_path / "other"
    shutil.copytree(DATA / "tree", other)
    apply(read_series([patch]), other)
    assert (tree / "drivers/toy/toy.c").read_bytes() == (other / "drivers/toy/toy.c").read_bytes()
