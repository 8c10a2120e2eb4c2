"""The toy kernel tree of tests/data/toytree, patches for it, and a build of it in some cache."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.experiment import Arm, TreeSource
from orchestrator.kernel.build import BuiltKernel, Progress, build_arms
from orchestrator.kernel.source import KernelTree, fetch

TOY = Path(__file__).parent.parent / "data" / "toytree"
FRAGMENT = 'CONFIG_NET=y\nCONFIG_KVM=y\nCONFIG_LOCALVERSION=""\n'


class Toy:
    """A cache and a copy of the toy tree below ``folder``; each method is one thing that a user does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.origin = folder / "tree"
        self.fragment = folder / "toy.config"
        self.fragment.write_text(FRAGMENT)
        if not self.origin.exists():
            shutil.copytree(TOY, self.origin)

    def tree(self) -> KernelTree:
        return fetch([TreeSource(self.origin)], self.cache, lambda line: None)

    def patch(self, name: str, edits: dict[str, Callable[[str], str] | str]) -> Path:
        """A patch file that edits files (by a function) or creates them (from a text)."""
        text = ""
        for file, edit in edits.items():
            path = self.origin / file
            old = path.read_text() if path.exists() else ""
            new = edit if isinstance(edit, str) else edit(old)
            before, after = (f"a/{file}" if old else "/dev/null"), f"b/{file}"
            text += "".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), before, after))
        result = self.folder / f"{name}.patch"
        result.write_text(text)
        return result

    def build(
        self,
        arms: dict[str, Sequence[Path]],
        progress: Callable[[Progress], None] = lambda step: None,
        extra: Sequence[Path] = (),
        image: bool = False,
    ) -> dict[str, BuiltKernel]:
        specs = [Arm(name, tuple(patches)) for name, patches in arms.items()]
        kernels = build_arms(
            self.tree(), [self.fragment], specs, self.cache, progress, extra=extra, image=image, jobs=2
        )
        return {kernel.arm: kernel for kernel in kernels}

    def work(self) -> Path:
        """The one work folder of this cache."""
        (folder,) = (path for path in (self.cache / "build").iterdir() if path.is_dir())
        return folder


def compiled(kernel: BuiltKernel) -> list[str]:
    """The objects that a build compiled, from its log."""
    return sorted(line.split()[1] for line in kernel.log.read_text().splitlines() if line.startswith("  CC "))


def snapshot(tree: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file of a tree: mtime, mode, content."""
    return {
        str(path.relative_to(tree)): (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes())
        for path in sorted(tree.rglob("*"))
        if path.is_file()
    }
