"""The kernel's own KVM selftests in a run: built for every arm, and put into the machine that runs them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from orchestrator import cache
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment, Selftest, SelftestCell, SelftestSpec
from orchestrator.image import GuestFile
from orchestrator.kernel import arms, selftests
from orchestrator.kernel.selftests import BuiltSelftests
from orchestrator.kernel.source import KernelTree
from orchestrator.progress import Reporter
from orchestrator.store import Store
from orchestrator.target.target import Job

LIST = "selftests.list"  # in the trial's folder, and below /trial in the machine


def check(chosen: Experiment, tree: KernelTree | None) -> None:
    """Raise :class:`UserError` for a test that the tree does not have, before minutes go into kernels."""
    if chosen.selftests is not None and tree is not None:
        check_names(chosen.selftests, selftests.test_names(tree.path), tree.identity)


def build(chosen: Experiment, tree: KernelTree | None, patches: Path, reporter: Reporter) -> tuple[BuiltSelftests, ...]:
    """Every arm's tests; none if the experiment does not ask for them. Patches of mails are kept under ``patches``."""
    if chosen.selftests is None or tree is None:
        return ()
    ready = [arms.make_ready(arm, tree.path, patches / arm.name).arm for arm in chosen.arms]
    built = selftests.build_selftests(tree, ready, cache.cache_dir(), reporter.say)
    for item in built:
        reporter.say(describe(item))
    return built


def describe(item: BuiltSelftests) -> str:
    """One arm's tests in a line."""
    if item.build == "failed":
        return f"selftests {item.arm}: DO NOT COMPILE: {item.error}\n  log: {item.log}"
    good = sum(bool(program.sha256) for program in item.programs)
    how = "built before, in" if item.cached else "built in"
    return f"selftests {item.arm}: {good} of {len(item.programs)} programs, {how} {item.build_seconds:.0f} s"


def check_names(spec: SelftestSpec, known: Sequence[str], tree: str) -> None:
    """Raise :class:`UserError` for a test that the tree does not have: it would otherwise be missing without a word."""
    unknown = [test.test for test in spec.tests if test.test not in known]
    if not unknown:
        return
    near = difflib.get_close_matches(unknown[0], known, 1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
        f"{tree} has no KVM selftest {', '.join(unknown)}{meant}", hint=f"list of these: {', '.join(sorted(known))}"
    )


def load(store: Store, chosen: Experiment) -> tuple[BuiltSelftests, ...]:
    """What :func:`save` wrote, of the arms that have been built so far."""
    paths = [(arm.name, _file(arm.name)) for arm in chosen.arms]
    return tuple(store.load(name, BuiltSelftests) for _, name in paths if (store.run / name).exists())


def save(store: Store, built: Sequence[BuiltSelftests]) -> None:
    """Keep them in the run's folder, beside the kernels."""
    for item in built:
        store.save(_file(item.arm), item)


def _file(arm: str) -> str:
    return f"kernels/{arm}.selftests.json"


def runnable(spec: SelftestSpec, tests: BuiltSelftests) -> tuple[Selftest, ...]:
    """The tests that one arm can run: those that compiled, on a machine with enough CPUs."""
    return tuple(test for test in spec.tests if spec.enough_cpus(test) and tests.program(test.test) is not None)


def make_job(cell: SelftestCell, vmlinux: Path | None) -> Job:
    """What the target is asked to run; :func:`guest_files` go with it."""
    spec = cell.selftests
    return Job(
        vmlinux=vmlinux,
        words=("--list", f"/trial/{LIST}"),
        tdp=True,
        swap=False,
        cpus=spec.cpus,
        mem_mib=spec.mem_mib,
        deadline_s=spec.deadline_s,
        guest_deadline_s=spec.guest_deadline_s,
        program="ktest_runner",
    )


def guest_files(spec: SelftestSpec, tests: BuiltSelftests, folder: Path) -> tuple[GuestFile, ...]:
    """The list of tests, written to ``folder``, and the programs that it names."""
    chosen = runnable(spec, tests)
    (folder / LIST).write_text("".join(f"{test.timeout_s:g} {test.label}\n" for test in chosen), encoding="ascii")
    programs = {test.test: tests.program(test.test) for test in chosen}
    files = [GuestFile(f"selftests/{name}", path) for name, path in programs.items() if path is not None]
    return (GuestFile(f"trial/{LIST}", folder / LIST), *files)
