"""From a pristine tree to one bootable kernel an arm, each built once.

    kernels/KEY/{kernel.json, vmlinux, vmlinux.config, System.map, build.log}     published by one rename
    kernels/KEY/bzImage                                                            added when a boot loader needs it
    build/KEY/                                                                     see workdir.py

A kernel's key is everything that its bytes depend on: tree, requested options, patches, compiler, and this recipe.
The base is built in full; every other arm rebuilds, in the same object directory, what its patches changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator import proc
from orchestrator.cache import lock, publish
from orchestrator.errors import BuildError, ConfigError, PatchError, printable
from orchestrator.experiment import Arm
from orchestrator.kernel import elf, kconfig, make, patch
from orchestrator.kernel.make import CompileError, Kbuild
from orchestrator.kernel.source import KernelTree
from orchestrator.kernel.workdir import Workdir, touched
from orchestrator.store import file_sha256, load_json, to_json, write_atomic

# Count up when a change of this package changes the bytes of a kernel or the files that are kept of it.
RECIPE = 1
# As long as a cold build may take on a slow machine: a second run of the same experiment waits for the first one's.
LOCK_WAIT_S = 3600.0
KEY_CHARS = 24
IMAGE = "bzImage"


@dataclass(frozen=True)
class Progress:
    """Where the build is. ``expected`` steps are known once this config has been built."""

    arm: str
    done: int
    expected: int | None
    line: str


@dataclass(frozen=True)
class BuiltKernel:
    """One arm's kernel, or why it did not compile.

    ``vmlinux`` is stripped (PVH-bootable ELF; symbols are in ``system_map``). ``build_id`` is what the running kernel
    shows in /sys/kernel/notes. ``build_seconds`` is what the build took when it ran; ``cached``: not now. ``error``
    holds the compiler's first error lines. With ``failed``, the paths but ``log`` are None and the hashes are empty.
    """

    arm: str
    build: Literal["ok", "failed"]
    release: str
    vmlinux: Path | None
    vmlinux_sha256: str
    config: Path | None
    config_sha256: str
    system_map: Path | None
    build_id: str
    build_seconds: float
    cached: bool
    log: Path
    error: str


@dataclass(frozen=True)
class _Record:
    """kernel.json: what cannot be seen from the other files."""

    release: str
    vmlinux_sha256: str
    config_sha256: str
    build_id: str
    build_seconds: float
    patches: tuple[str, ...]
    toolchain: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """One arm, ready to build."""

    arm: str
    series: tuple[patch.Patch, ...]
    key: str
    kept: Path
    toolchain: tuple[str, ...]


def build_arms(
    tree: KernelTree,
    fragments: Sequence[Path],
    arms: Sequence[Arm],
    cache: Path,
    progress: Callable[[Progress], None],
    *,
    extra: Sequence[Path] = (),
    image: bool = False,
    jobs: int | None = None,
) -> tuple[BuiltKernel, ...]:
    """Build every arm's kernel, or take it from the cache; ``arms[0]`` is the base.

    ``extra`` are more fragments, behind the others: what the machines of a lab need. The kernels are those of all
    fragments together, to the byte, and share objects with those of ``fragments`` alone where the options do not count.
    With ``image`` the folder of each kernel holds its :data:`IMAGE`, too; a kernel that is kept without gets it then.

    All patches are held against the tree before anything is built. A patched arm that does not compile is a
    :class:`BuiltKernel` with ``build == "failed"``; the others are built all the same.

    Raises :class:`PatchError` for a patch that does not apply, :class:`ConfigError` for a requested option that
    vanished, :class:`BuildError` if the base does not compile or the machine fails, :class:`StoreError` if another
    process keeps the cache locked.
    """
    own, requests = kconfig.read(fragments), kconfig.read([*fragments, *extra])
    toolchain = make.toolchain()
    plans = tuple(_plan(tree, requests, toolchain, arm, cache) for arm in arms)
    kept = [_kept(plan, cached=True, image=image) for plan in plans]
    if all(kept):
        return tuple(kernel for kernel in kept if kernel is not None)
    for plan in plans:
        _check_applies(plan, tree)
    folder = cache / "build" / _key(tree, own, toolchain, plans[0].series)
    with lock(
        folder / ".lock", wait_s=LOCK_WAIT_S, say=lambda text: progress(Progress(arms[0].name, 0, None, text))
    ) as fd:
        digest = kconfig.digest(requests)
        variant = "" if digest == kconfig.digest(own) else digest[:KEY_CHARS]
        work = Workdir(folder, tree.path, variant)
        kbuild = Kbuild(work.source, work.objects, jobs or len(os.sched_getaffinity(0)), fd)
        steps = _Steps(cache / "build" / f"steps-{kconfig.digest(requests)[:KEY_CHARS]}", progress)
        builder = _Builder(work, kbuild, requests, steps, image)
        return tuple(builder.build(plan, is_base=plan is plans[0]) for plan in plans)


@dataclass(frozen=True)
class _Steps:
    """Tells the progress, and learns how many steps a base and an arm of this config take."""

    path: Path
    progress: Callable[[Progress], None]

    def watcher(self, plan: _Plan, role: str) -> Callable[[int, str], None]:
        """A callback for one build."""
        file = self._file(role)
        expected = int(file.read_text(encoding="ascii")) if file.is_file() else None
        return lambda done, line: self.progress(Progress(plan.arm, done, expected, line))

    def learn(self, role: str, steps: int) -> None:
        """Remember what a finished build took."""
        write_atomic(self._file(role), str(steps).encode())

    def _file(self, role: str) -> Path:
        return self.path.with_name(f"{self.path.name}-{role}")


@dataclass(frozen=True)
class _Builder:
    """Builds arms in one work folder; the lock is held."""

    work: Workdir
    kbuild: Kbuild
    requests: tuple[kconfig.Request, ...]
    steps: _Steps
    image: bool

    def build(self, plan: _Plan, *, is_base: bool) -> BuiltKernel:
        """One arm: kept already (perhaps by the process that we waited for), or built now."""
        if is_base and not self.work.has_base:
            return self._base(plan)
        return _kept(plan, cached=True, image=self.image) or self._arm(plan)

    def _base(self, plan: _Plan) -> BuiltKernel:
        """Build in full what every arm starts from, even if its kernel is kept: the arms need the objects."""
        log = self._new_log(plan)
        started = time.monotonic()
        with self.work.patched(plan.series) as paths:
            self.work.start_base()
            make.configure(self.kbuild, self.requests, log)
            result = make.compile_vmlinux(self.kbuild, log, self.steps.watcher(plan, "base"))
            if isinstance(result, CompileError):
                what = "the base kernel does not compile:\n" + "\n".join(f"  {line}" for line in result.lines)
                raise BuildError(what, log=log, hint=proc.quote(self.kbuild.argv("vmlinux")))
            seconds = time.monotonic() - started
            self.work.keep_base(paths)
            kernel = _kept(plan, cached=False) or self._keep(plan, log, seconds)
            self._keep_image(plan, log)
        self.steps.learn("base", result)
        return kernel

    def _arm(self, plan: _Plan) -> BuiltKernel:
        log = self._new_log(plan)
        started = time.monotonic()
        with self.work.patched(plan.series) as paths:
            self.work.start_arm()
            try:
                # Else .config is the base's, byte for byte, and asking Kconfig again would only cost seconds.
                if any(Path(name).name.startswith("Kconfig") or name in kconfig.TINY for name in paths):
                    make.configure(self.kbuild, self.requests, log)
                result = make.compile_vmlinux(self.kbuild, log, self.steps.watcher(plan, "arm"))
            except ConfigError as error:
                result = CompileError(error.problems)
            seconds = time.monotonic() - started
            if isinstance(result, CompileError):
                text = "\n".join(result.lines)
                return BuiltKernel(plan.arm, "failed", "", None, "", None, "", None, "", seconds, False, log, text)
            kernel = _kept(plan, cached=False) or self._keep(plan, log, seconds)
            self._keep_image(plan, log)
        self.steps.learn("arm", result)
        return kernel

    def _keep_image(self, plan: _Plan, log: Path) -> None:
        """Put the compressed image beside the kernel of which it was just made, if it is wanted."""
        if not self.image:
            return
        made = make.compile_image(self.kbuild, log)
        new = plan.kept / f".{IMAGE}.new"
        with lock(plan.kept.parent / ".lock", wait_s=LOCK_WAIT_S, say=lambda text: None):
            shutil.copyfile(made, new)
            new.replace(plan.kept / IMAGE)

    def _keep(self, plan: _Plan, log: Path, seconds: float) -> BuiltKernel:
        """Publish what is in the object directory as this plan's kernel."""
        objects = self.work.objects
        # Two experiments with other bases build in other folders, and may come to the same kernel at the same time.
        shared = lock(plan.kept.parent / ".lock", wait_s=LOCK_WAIT_S, say=lambda text: None)
        with shared, publish(plan.kept) as folder:
            vmlinux = folder / "vmlinux"
            proc.run([proc.require("strip", "binutils"), "--strip-all", "-o", vmlinux, objects / "vmlinux"])
            shutil.copy2(objects / ".config", folder / "vmlinux.config")
            shutil.copy2(objects / "System.map", folder / "System.map")
            shutil.copy2(log, folder / "build.log")
            record = _Record(
                release=(objects / "include/config/kernel.release").read_text(encoding="utf-8").strip(),
                vmlinux_sha256=file_sha256(vmlinux),
                config_sha256=file_sha256(folder / "vmlinux.config"),
                build_id=elf.build_id(vmlinux),
                build_seconds=round(seconds, 3),
                patches=tuple(one.sha256 for one in plan.series),
                toolchain=plan.toolchain,
            )
            write_atomic(folder / "kernel.json", to_json(record))
        kernel = _kept(plan, cached=False)
        if kernel is None:
            raise BuildError(f"{plan.kept} vanished while it was written", log=log)
        return kernel

    def _new_log(self, plan: _Plan) -> Path:
        """An empty log that begins with what is built and the command, for whoever finds it."""
        log = self.work.path / "logs" / f"{plan.key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        names = [f"# patch {printable(one.name)} sha256 {one.sha256}" for one in plan.series] or ["# no patches"]
        lines = [f"# arm {plan.arm}", *names, f"# {proc.quote(self.kbuild.argv('vmlinux'))}"]
        log.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return log


def _plan(
    tree: KernelTree, requests: tuple[kconfig.Request, ...], toolchain: tuple[str, ...], arm: Arm, cache: Path
) -> _Plan:
    series = patch.read_series(arm.patches)
    key = _key(tree, requests, toolchain, series)
    return _Plan(arm.name, series, key, cache / "kernels" / key, toolchain)


def _key(
    tree: KernelTree,
    requests: tuple[kconfig.Request, ...],
    toolchain: tuple[str, ...],
    series: tuple[patch.Patch, ...],
) -> str:
    parts = (str(RECIPE), tree.content_id, kconfig.digest(requests), *toolchain, *(one.sha256 for one in series))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:KEY_CHARS]


def _check_applies(plan: _Plan, tree: KernelTree) -> None:
    touched(plan.series)
    state = patch.check(plan.series, tree.path)
    if plan.series and state.kind != "applies":
        raise PatchError(
            f"arm {plan.arm} on {tree.identity}: {state.render()}", hint=f"orch patch check PATCH --tree {tree.path}"
        )


def _kept(plan: _Plan, *, cached: bool, image: bool = False) -> BuiltKernel | None:
    """This plan's kernel from the cache, with its image if asked; None if it is not there, or is damaged."""
    folder = plan.kept
    if not (folder / "kernel.json").is_file() or (image and not (folder / IMAGE).is_file()):
        return None
    record = load_json(folder / "kernel.json", _Record)
    vmlinux, config = folder / "vmlinux", folder / "vmlinux.config"
    if file_sha256(vmlinux) != record.vmlinux_sha256 or file_sha256(config) != record.config_sha256:
        return None
    return BuiltKernel(
        arm=plan.arm,
        build="ok",
        release=record.release,
        vmlinux=vmlinux,
        vmlinux_sha256=record.vmlinux_sha256,
        config=config,
        config_sha256=record.config_sha256,
        system_map=folder / "System.map",
        build_id=record.build_id,
        build_seconds=record.build_seconds,
        cached=cached,
        log=folder / "build.log",
        error="",
    )


def describe(kernels: Sequence[BuiltKernel]) -> tuple[str, ...]:
    """A line for each kernel: what its build cost, and for the later arms what share of the first's that is."""
    first = kernels[0].build_seconds
    lines = []
    for kernel in kernels:
        if kernel.build == "failed":
            lines.append(f"kernel {kernel.arm}: DOES NOT COMPILE: {kernel.error}\n  log: {kernel.log}")
            continue
        share = f", {kernel.build_seconds / first:.0%} of {kernels[0].arm}'s" if kernel is not kernels[0] else ""
        how = "built before, in" if kernel.cached else "built in"
        lines.append(
            f"kernel {kernel.arm}: {kernel.release}, {how} {kernel.build_seconds:.0f} s{share};"
            f" vmlinux {kernel.vmlinux_sha256[:16]}"
        )
    return tuple(lines)
