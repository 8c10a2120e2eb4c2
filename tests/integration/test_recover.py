"""The first patch on the whole kernel tree: the same bytes again, and git takes it without fuzz or offset."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.kernel.mail import recover
from orchestrator.kernel.patch import apply, check, read_series, revert

PATCHES = Path(__file__).parents[2] / "patches"
pytestmark = pytest.mark.kernel


def copy_touched(tree: Path, files: tuple[str, ...], to: Path) -> Path:
    for name in files:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(tree / name, to / name)
    return to


def test_recovering_again_gives_the_same_bytes(kernel_tree: Any) -> None:
    recovered = recover(PATCHES / "hva-retry" / "review-mail.txt", kernel_tree.path)
    assert recovered.text == (PATCHES / "hva-retry" / "v1.patch").read_bytes()
    assert recovered.hunks == 15


def test_git_takes_it_without_fuzz_or_offset(kernel_tree: Any, tmp_path: Path) -> None:
    patch = PATCHES / "hva-retry" / "v1.patch"
    (v1,) = read_series([patch])
    by_git = copy_touched(kernel_tree.path, v1.files, tmp_path / "git")
    environment = {"PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(tmp_path), "HOME": "/nonexistent"}
    done = subprocess.run(
        ["git", "apply", "-v", str(patch)], cwd=by_git, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("cleanly") == 4 and "offset" not in done.stderr
    by_us = copy_touched(kernel_tree.path, v1.files, tmp_path / "us")
    applied = apply([v1], by_us)
    assert all((by_git / name).read_bytes() == (by_us / name).read_bytes() for name in v1.files)
    revert(applied)
    assert all((kernel_tree.path / name).read_bytes() == (by_us / name).read_bytes() for name in v1.files)


def test_the_tree_does_not_have_it_yet(kernel_tree: Any) -> None:
    found = check(read_series([PATCHES / "hva-retry" / "v1.patch"]), kernel_tree.path)
    assert (found.kind, found.offsets) == ("applies", ())
