"""What a run keeps of its kernels: the tree that it began with, and the configuration that each arm was built with.

tree.json             which tree; the tree itself stays in the cache, under its content's hash
kernels/ARM.config    the whole configuration, so that two runs can be compared when the cache is gone
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.experiment import Source, TreeSource
from orchestrator.kernel import source
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.source import KernelTree
from orchestrator.store import Store, write_atomic

TREE = "tree.json"


def take_tree(
    store: Store, sources: Sequence[Source], cache: Path, say: Callable[[str], None], *, begun: bool, update: bool
) -> KernelTree:
    """What the sources give, with ``update`` the newest of it; of a run with trials (``begun``) the tree of these.

    A branch or a suite may have moved since: what is measured already belongs to the tree of then. Only a plain folder
    (``tree:``) is looked at again without ``update``, since there it is the user who changed it and may not expect the
    old one; if it differs, the run refuses the other kernel. A tree that the cache has lost is fetched.
    """
    saved = store.run / TREE
    if begun and saved.exists() and (update or not any(isinstance(item, TreeSource) for item in sources)):
        began_with = store.load(TREE, KernelTree)
        found = source.cached(cache, began_with.content_id)
        if found is not None:
            say(f"kernel tree: {found.identity}, with which this run began")
            return found
    tree = source.fetch(sources, cache, say, update=update)
    store.save(TREE, tree)
    say(f"kernel tree: {tree.identity}")
    return tree


def keep_config(store: Store, kernel: BuiltKernel) -> None:
    """Copy the kernel's configuration into the run; nothing for a kernel that did not build."""
    if kernel.config is not None and kernel.config.is_file():
        write_atomic(store.path(config_name(kernel.arm)), kernel.config.read_bytes())


def config_name(arm: str) -> str:
    """Where an arm's configuration is, in the run's folder."""
    return f"kernels/{arm}.config"
