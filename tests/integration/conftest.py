"""What the slow tests share, kept in the user's cache: minutes the first time, seconds afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from labhosts import FRAGMENT, LabVm, lab_hosts
from labroot import lab_image
from orchcli import Run, run
from realkernel import ARMS, FRAGMENTS, PLANTED, ROOT

from orchestrator.cache import cache_dir
from orchestrator.experiment import Arm, DebianSource
from orchestrator.kernel.build import BuiltKernel, build_arms
from orchestrator.kernel.source import KernelTree, fetch


@pytest.fixture(scope="session")
def kernel_tree() -> KernelTree:
    """Debian's Linux 5.10, the tree that the first patch is for."""
    return fetch([DebianSource("linux-source-5.10", "bullseye-security")], cache_dir(), print)


@pytest.fixture(scope="session")
def kernels(kernel_tree: KernelTree) -> dict[str, BuiltKernel]:
    """The kernels of ``realkernel.ARMS`` by arm."""
    arms = [Arm(name, patches) for name, patches in ARMS.items()]
    built = build_arms(kernel_tree, FRAGMENTS, arms, cache_dir(), lambda step: None)
    return {kernel.arm: kernel for kernel in built}


@pytest.fixture(scope="session")
def lab_kernels(kernel_tree: KernelTree, kernels: dict[str, BuiltKernel]) -> dict[str, BuiltKernel]:
    """Kernels for lab hosts, after ``kernels``, with which they share most objects."""
    arms = [Arm(name, ARMS[name]) for name in ("base", "v1")]
    arms.append(Arm("panic", (ROOT / "patches/planted/panic.patch",)))
    built = build_arms(kernel_tree, FRAGMENTS, arms, cache_dir(), lambda step: None, extra=[FRAGMENT])
    return {kernel.arm: kernel for kernel in built}


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LabVm, ...]]:
    """Two lab hosts, switched on until the last test has ended."""
    image = lab_image(cache_dir(), print)
    with lab_hosts(image, tmp_path_factory.mktemp("lab"), ("lab1", "lab2")) as hosts:
        for host in hosts:
            host.await_first_boot()
        yield hosts


@pytest.fixture
def at_home(lab: tuple[LabVm, ...], lab_kernels: dict[str, BuiltKernel]) -> Iterator[None]:
    """Whatever a test does to the hosts, they run their known-good kernel when the next one begins."""
    yield
    for host in lab:
        host.proxy.down(False)
        host.restore()


@pytest.fixture(scope="session")
def planted(kernels: dict[str, BuiltKernel], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of every planted patch; many tests look at it."""
    return run(PLANTED, tmp_path_factory.mktemp("planted"), "--jobs", "2")


@pytest.fixture(scope="session")
def quickstart(kernels: dict[str, BuiltKernel], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The default experiment, whole."""
    return run(ROOT / "configs/quickstart.yaml", tmp_path_factory.mktemp("quickstart"))
