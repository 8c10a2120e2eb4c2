"""The pipeline, top to bottom: an experiment in, a run's folder with its verdict out.

Each step leaves its result in the run's folder before the next begins, so a run that is killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator import cache, doctor, engine, experiment, image, linuxguest, plan, proc, selftests, trials
from orchestrator.analysis import analyse, samples, stopping, tracedsamples
from orchestrator.analysis.built import Kernel
from orchestrator.analysis.model import Comparison
from orchestrator.bench import Bench, RunningKernel, make_emulator
from orchestrator.doctor import Accel
from orchestrator.engine import LocalRunner, Runner, facts, kit
from orchestrator.errors import StoreError, UserError
from orchestrator.experiment import Experiment
from orchestrator.image import Guests
from orchestrator.kernel import arms, build, keep, source
from orchestrator.kernel.build import BuiltKernel
from orchestrator.kernel.selftests import BuiltSelftests
from orchestrator.kernel.source import KernelTree
from orchestrator.lab import here, selection
from orchestrator.lab.types import LabHost
from orchestrator.linuxguest import LinuxKit
from orchestrator.manifest import Manifest, make_manifest, provenance
from orchestrator.plan import Plan
from orchestrator.progress import Reporter
from orchestrator.report import write
from orchestrator.results import Outcome
from orchestrator.store import MANIFEST, Store
from orchestrator.target import labtarget, local, qemu
from orchestrator.target.pool import NoMachineLeft
from orchestrator.target.target import Target
from orchestrator.vmm import Packed

if TYPE_CHECKING:  # Dask takes half a second to import: only who uses it waits for it.
    from orchestrator.engine.cluster import Cluster

EXPERIMENT = "experiment.json"  # with every path resolved, so that a report needs no file but the run's own
PLAN = "plan.json"


@dataclass(frozen=True)
class Setting:
    """An experiment with everything about this machine decided: nothing of it changes any more.

    ``test_accel`` is that of the selftests' machine, None without selftests. ``hosts`` are the lab's machines.
    """

    experiment: Experiment
    plan: Plan
    accel: Accel | Literal["local", "ssh"]
    accel_why: str
    test_accel: Accel | None = None
    hosts: tuple[LabHost, ...] = ()


@dataclass(frozen=True)
class Finished:
    """What a run came to. ``written`` are the report's files."""

    run: Path
    comparison: Comparison
    written: tuple[Path, ...]

    @property
    def failed_stage(self) -> bool:
        """Whether a kernel did not build or a trial did not end well; a stale mapping is a check that failed."""
        ended_badly = any(item.outcome != Outcome.STALE for item in self.comparison.failures)
        return ended_badly or any(arm.build == "failed" for arm in self.comparison.arms)

    @property
    def gate_closed(self) -> bool:
        """Whether a cell regressed, by a metric that decides its verdict, or a check failed."""
        found = self.comparison
        regressed = any(item.verdict == "regressed" and item.decides for item in found.comparisons)
        return regressed or any(check.status == "failed" for check in found.checks)


def run(
    config: Path,
    results: Path,
    jobs: int | None,
    command: Sequence[str],
    reporter: Reporter,
    *,
    update: bool = False,
    cluster: Cluster | None = None,
) -> Finished:
    """Run the experiment in ``config``, or go on with a run of it that was interrupted; on a cluster, or here.

    ``update``: a new run takes the newest that the kernel's sources have, not what the cache has of them.
    Raises :class:`UserError` before anything is built if it cannot work, :class:`StageError` if a stage fails.
    """
    setting = settle(experiment.load(config), reporter, cluster)
    return carry_out(prepare(setting, jobs, command, reporter, cluster), results, reporter, update, cluster)


@dataclass(frozen=True)
class Prepared:
    """A setting with the guest programs and the manifest of its run.

    ``began`` is of the monotonic clock. ``jobs``: None for as many as there is room for. ``packed`` is the VMM of Linux
    guests, None without such.
    """

    began: float
    setting: Setting
    jobs: int | None
    guests: Guests
    packed: Packed | None
    manifest: Manifest


def prepare(
    setting: Setting, jobs: int | None, command: Sequence[str], reporter: Reporter, cluster: Cluster | None = None
) -> Prepared:
    """What a run is, before its first kernel is built. Raises :class:`UserError`."""
    began = time.monotonic()
    if cluster is None:
        jobs = engine.choose_jobs(setting.experiment, setting.accel, jobs, len(setting.hosts))
    guests = image.build_guests(reporter.say)
    packed = linuxguest.pack(setting.experiment, reporter.say)
    manifest = make_manifest(
        setting.experiment,
        command,
        setting.accel,
        setting.accel_why,
        setting.plan.seeds,
        guests_id=guests.content_id,
        machines=[host.identity for host in setting.hosts],
        lab_fragments=selection.fragments(setting.experiment),
        qemu=None if cluster is None else cluster.qemu_version(),
        linux_guest=linuxguest.identify(setting.experiment, packed),
        host_settings=here.settings() if cluster is None and setting.experiment.target.kind != "ssh" else None,
    )
    return Prepared(began, setting, jobs, guests, packed, manifest)


def carry_out(
    ready: Prepared, results: Path, reporter: Reporter, update: bool = False, cluster: Cluster | None = None
) -> Finished:
    """Build, run the trials, report; see :func:`run`."""
    setting, guests, jobs = ready.setting, ready.guests, ready.jobs
    with Store.open_or_create(results.absolute(), setting.experiment, ready.manifest) as store:
        done = store.finished_trials()
        room = f"{jobs or 'as many as there is room for'} at a time"
        reporter.say(_opening(store, setting, len(done), room))
        store.save(EXPERIMENT, setting.experiment)
        store.save(PLAN, setting.plan)
        tree = take_tree(setting.experiment, store, reporter, begun=bool(done), update=update)
        selftests.check(setting.experiment, tree)
        kernels = build_kernels(setting.experiment, store.run / "patches", reporter, tree)
        for kernel in kernels:
            _refuse_another_kernel(store, kernel, bool(done))
            store.save(f"kernels/{kernel.arm}.json", kernel)
            keep.keep_config(store, kernel)
        linux = prepare_linux(setting.experiment, store, guests, kernels, ready.packed, reporter, tree)
        tests = selftests.build(setting.experiment, tree, store.run / "patches", reporter)
        selftests.save(store, tests)
        runner = make_runner(setting, guests, kernels, tests, linux, reporter, store, cluster)
        before_trials = time.monotonic()
        conductor = trials.Conductor(setting.experiment, setting.plan, setting.accel, jobs, store, runner, reporter)
        try:
            conductor.run(done)
        except NoMachineLeft as error:
            raise trials.stopped(report(store).run, conductor, error) from error
        finally:
            runner.close()
        trials_seconds = time.monotonic() - before_trials
        reporter.say("writing the report")
        finished = report(store)
        store.finish(finished.comparison.status)
        reporter.say(time_split(time.monotonic() - ready.began, kernels, trials_seconds))
        return finished


def _refuse_another_kernel(store: Store, kernel: BuiltKernel, has_trials: bool) -> None:
    """A run that goes on must not mix two kernels in one arm: a tree or a git ref may have moved meanwhile."""
    saved = store.run / f"kernels/{kernel.arm}.json"
    if not has_trials or not saved.exists():
        return
    before = store.load(f"kernels/{kernel.arm}.json", BuiltKernel)
    if before.vmlinux_sha256 != kernel.vmlinux_sha256:
        raise StoreError(
            f"arm {kernel.arm} has another kernel than when {store.run.name} began: its source has changed since",
            hint=f"mv {proc.quote([store.run])} {proc.quote([str(store.run) + '.old'])}, and run again",
        )


def time_split(total: float, kernels: Sequence[BuiltKernel], trials: float) -> str:
    """Where the wall time of a run went: what cannot be avoided (the first kernel, the trials), and the rest."""
    first, *later = [0.0 if kernel.cached else kernel.build_seconds for kernel in kernels] or [0.0]
    rest = total - first - sum(later) - trials
    needed = first + trials
    return (
        f"time: {total:.0f} s = first kernel {first:.0f} + later kernels {sum(later):.0f} + trials {trials:.0f}"
        f" + all else {rest:.0f}; {total / needed:.2f} times what the first kernel and the trials took"
    )


def settle(chosen: Experiment, reporter: Reporter, cluster: Cluster | None = None) -> Setting:
    """Decide the accelerator by asking this machine, or the cluster's workers, and lay out the trials.

    Raises :class:`UserError` if the target cannot work here, or the schedule cannot lead to any verdict.
    """
    stopping.check(chosen)
    accel: Accel | Literal["local", "ssh"]
    hosts = selection.machines(chosen)
    pick_accel = doctor.pick_accel if cluster is None else cluster.pick_accel
    if cluster is not None and chosen.target.kind == "local":
        raise UserError(
            "target: local is the kernel of this machine, and workers have each their own",
            hint="leave out --engine, or use a config with target.kind: qemu or ssh",
        )
    if chosen.target.kind == "local":
        local.check_local()
        accel, why = "local", "the kernel that is running, through its own /dev/kvm"
    elif chosen.target.kind == "ssh":
        accel, why = "ssh", ", ".join(f"{host.name} ({host.boot})" for host in hosts)
    else:
        choice = pick_accel(chosen.target.accel, chosen.target.cpus)
        accel, why = choice.accel, choice.why
    reporter.say(f"target: {chosen.target.kind}, {why}")
    spec = chosen.selftests
    test_accel = None if spec is None else pick_accel(spec.accel, spec.cpus).accel
    return Setting(chosen, plan.make_plan(chosen), accel, why, test_accel, hosts)


def take_tree(chosen: Experiment, store: Store, reporter: Reporter, *, begun: bool, update: bool) -> KernelTree | None:
    """The run's kernel tree, see :func:`keep.take_tree`; None where the running kernel is benched."""
    if not chosen.builds_kernels:
        return None
    return keep.take_tree(store, chosen.kernel.sources, cache.cache_dir(), reporter.say, begun=begun, update=update)


def build_kernels(
    chosen: Experiment, patches: Path, reporter: Reporter, tree: KernelTree | None = None
) -> tuple[BuiltKernel, ...]:
    """Read every arm's patches against ``tree`` (None: fetch it), build; nothing where the running kernel is benched.

    Patches recovered from mails are kept under ``patches``, a folder an arm.
    """
    if not chosen.builds_kernels:
        return ()
    if tree is None:
        tree = source.fetch(chosen.kernel.sources, cache.cache_dir(), reporter.say)
        reporter.say(f"kernel tree: {tree.identity}")
    ready = tuple(arms.make_ready(arm, tree.path, patches / arm.name) for arm in chosen.arms)
    for item in ready:
        for note in item.notes:
            reporter.say(f"arm {item.arm.name}: {note}")
    with reporter.stage("kernels", None) as stage:
        kernels = build.build_arms(
            tree,
            chosen.kernel.fragments,
            [item.arm for item in ready],
            cache.cache_dir(),
            lambda step: stage.update(step.done, step.expected, f"{step.arm}: {step.line}"),
            extra=selection.fragments(chosen),
            image=selection.needs_image(chosen),
        )
    for line in build.describe(kernels):
        reporter.say(line)
    return kernels


def prepare_linux(
    chosen: Experiment,
    store: Store,
    guests: Guests,
    kernels: Sequence[BuiltKernel],
    packed: Packed | None,
    reporter: Reporter,
    tree: KernelTree | None,
) -> LinuxKit | None:
    """What trials with Linux guests need, kept in the run; None without such. Their own kernel is built, if they have
    one: see :func:`linuxguest.build_kernel`."""
    if tree is None or packed is None:
        return None
    base = arms.make_ready(chosen.base, tree.path, store.run / "patches" / chosen.base.name).arm
    linuxguest.save(store, packed, linuxguest.build_kernel(chosen, tree, base, reporter.say))
    return linuxguest.load(store, chosen, guests, kernels)


def make_target(setting: Setting, guests: Guests) -> Target:
    """The experiment's target on this machine."""
    if setting.accel == "local":
        return local.LocalTarget(guests)
    return make_qemu(setting, guests)


def make_qemu(setting: Setting, guests: Guests) -> qemu.QemuTarget:
    """QEMU with the accelerator that was chosen. Raises :class:`UserError` for another target, which has none."""
    if setting.accel == "local" or setting.accel == "ssh":
        raise UserError(f"target: {setting.accel} boots nothing here", hint="use a config with target.kind: qemu")
    return make_emulator(setting.accel, setting.experiment.target.machine, guests)


def make_bench(
    setting: Setting,
    guests: Guests,
    kernels: Sequence[BuiltKernel],
    tests: Sequence[BuiltSelftests],
    linux: LinuxKit | None,
    reporter: Reporter,
) -> Bench:
    """What trials need, with their targets."""
    machine, accel = setting.experiment.target.machine, setting.test_accel
    test_target = make_emulator(accel, machine, guests) if accel else None
    target: Target
    if setting.accel == "ssh":
        target = labtarget.make_pool(setting.hosts, guests, kernels, reporter.say)
    else:
        target = make_target(setting, guests)
    return Bench(setting.experiment.target, kernels, tests, target, test_target, linux)


def make_runner(
    setting: Setting,
    guests: Guests,
    kernels: Sequence[BuiltKernel],
    tests: Sequence[BuiltSelftests],
    linux: LinuxKit | None,
    reporter: Reporter,
    store: Store,
    cluster: Cluster | None,
) -> Runner:
    """What runs the trials: this process, or the workers of a cluster."""
    if cluster is None or setting.accel == "local":  # settle() refuses the two together.
        return LocalRunner(make_bench(setting, guests, kernels, tests, linux, reporter), store)
    kinds = (setting.accel, setting.test_accel)
    packing = kit.pack(setting.experiment.target, kinds, guests, kernels, tests, linux, setting.hosts)
    return cluster.runner(packing, setting.hosts, store)


def report(store: Store) -> Finished:
    """Analyse the trials that are there and write every file of the report; can be repeated at any time."""
    manifest = store.manifest
    chosen = store.load(EXPERIMENT, Experiment)
    planned = store.load(PLAN, Plan)
    built: tuple[Kernel, ...] = tuple(
        store.load(f"kernels/{arm.name}.json", BuiltKernel)
        for arm in chosen.arms
        if (store.run / f"kernels/{arm.name}.json").exists()
    )
    if not chosen.builds_kernels:
        built = tuple(RunningKernel(arm.name, manifest.host.kernel.split()[0]) for arm in chosen.arms)
    results = store.finished_trials()
    analysis = analyse.analyse(
        chosen,
        results,
        built,
        store.run / trials.TRIALS,
        run=store.run.name,
        accel=manifest.accel,
        planned=len(planned.trials),
        tests=selftests.load(store, chosen),
    )
    samples.write_samples(chosen, results, store.run / trials.TRIALS, store.run / "samples.parquet")
    tracedsamples.write_traced(chosen, results, store.run / trials.TRIALS, store.run / "traced.parquet")
    origin = provenance(manifest, facts.rows(facts.load(store.run)))
    written = write.write_all(analysis.comparison, analysis.curves, origin, store.run)
    return Finished(store.run, analysis.comparison, written)


def redraw(run_folder: Path) -> Finished:
    """``orch report``: make the report of a run again, from its recordings."""
    return report(existing(run_folder))


def existing(run_folder: Path) -> Store:
    """A run that the user named. Raises :class:`UserError` if it is none."""
    if not (run_folder / MANIFEST).is_file():
        raise UserError(f"{run_folder} is not a run: it has no {MANIFEST}", hint="name a folder inside results/")
    return Store.read(run_folder)


def _opening(store: Store, setting: Setting, done: int, room: str) -> str:
    at_most = "at most " if setting.experiment.schedule.until == "decided" else ""
    total = f"{at_most}{len(setting.plan.trials)} trials"
    verb = f"going on with {store.run} ({done} of {total} are done)" if done else f"run: {store.run}"
    arms_cells = f"{len(setting.experiment.arms)} arms, {len(setting.experiment.cells)} cells"
    return f"{verb}\n{total}: {arms_cells}, {room}"
