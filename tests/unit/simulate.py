"""Writes valid recordings with planted effects, byte for byte as ``guests/include/recording.h`` lays them out."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator import recording as rec
from orchestrator.analysis.analyse import analyse
from orchestrator.analysis.model import Analysis
from orchestrator.experiment import (
    Arm,
    Cell,
    Check,
    Experiment,
    Guest,
    KernelSpec,
    Placement,
    ReportSpec,
    Schedule,
    Storm,
    TargetSpec,
)
from orchestrator.results import Outcome, TrialResult

TSC_HZ = 2_000_000_000
PAGE = 4096
MEM_HVA = 0x7F00_0000_0000
GAP_CYCLES = 400


def recording_bytes(
    *,
    arm: str = "base",
    cell: str = "quiet",
    seed: int = 1,
    latencies: Sequence[NDArray[np.uint64]] | None = None,
    pages: int = 16384,
    windows: Sequence[tuple[int, int, int, int]] = (),
    counters: Mapping[str, int] | None = None,
    tsc_offset: int = -12345,
    version: int = rec.VERSION,
    start_tsc: int = 1_000_000,
) -> bytes:
    """A recording of one array of latencies (cycles) a vCPU; ``windows`` are (start, end, hva, bytes), host TSC.

    ``counters`` None means that they could not be read.
    """
    latencies = [np.full(8, 10_000, np.uint64)] if latencies is None else latencies
    body, total, end = b"", 0, start_tsc
    for vcpu, cycles in enumerate(latencies):
        faults = np.zeros(len(cycles), rec.FAULT)
        begin = start_tsc + np.concatenate(([0], np.cumsum(cycles + GAP_CYCLES)[:-1])) if len(cycles) else []
        faults["start_tsc"] = np.asarray(begin, np.int64).astype(np.int64) + tsc_offset
        page = np.arange(len(cycles), dtype=np.uint64) % np.uint64(pages)
        faults["latency_page"] = cycles | (page << np.uint64(rec.LATENCY_BITS))
        section = np.zeros(1, rec.VCPU)
        section["vcpu"], section["tsc_offset"], section["nr_faults"] = vcpu, tsc_offset, len(cycles)
        body += section.tobytes() + faults.tobytes()
        total += len(cycles)
        end = max(end, start_tsc + int((cycles + GAP_CYCLES).sum()))
    storm = np.zeros(len(windows), rec.WINDOW)
    for name, column in zip(("start_tsc", "end_tsc", "hva", "bytes"), zip(*windows, strict=True), strict=False):
        storm[name] = column
    storm["op"] = 1
    stats = np.zeros(len(counters or {}), rec.COUNTER)
    for row, (name, delta) in zip(stats, (counters or {}).items(), strict=True):
        row["name"], row["before"], row["after"] = name.encode(), 1000, 1000 + delta
    header = np.zeros(1, rec.HEADER)
    values = {
        "magic": rec.MAGIC, "version": version, "header_bytes": rec.HEADER_BYTES, "arch": 62,
        "flags": rec.FLAG_TDP | rec.FLAG_WRITE | (rec.FLAG_COUNTERS if counters is not None else 0),
        "tsc_hz": TSC_HZ, "seed": seed, "mem_bytes": pages * PAGE, "mem_hva": MEM_HVA, "page_bytes": PAGE,
        "rounds": 1, "nr_vcpus": len(latencies), "nr_counters": len(stats), "nr_windows": len(storm),
        "start_tsc": start_tsc, "end_tsc": end, "arm": arm.encode(), "cell": cell.encode(),
    }  # fmt: skip
    for name, value in values.items():
        header[name] = value
    trailer = np.zeros(1, rec.TRAILER)
    trailer["magic"], trailer["nr_faults"] = rec.TRAILER_MAGIC, total
    trailer["nr_windows"], trailer["nr_counters"] = len(storm), len(stats)
    data = header.tobytes() + body + storm.tobytes() + stats.tobytes() + trailer.tobytes()[:-4]
    return data + zlib.crc32(data).to_bytes(4, "little")


def whole(recording: rec.Recording) -> rec.Faults:
    """All faults of a recording of one vCPU in one piece."""
    (faults,) = recording.chunks(recording.nr_faults)
    return faults


@dataclass(frozen=True)
class Effect:
    """What is planted in one arm of one cell.

    ``scale`` multiplies every latency, ``tail_scale`` the slowest 0.5 %, ``retries`` is per fault (None: no
    counters), ``stall_cycles`` the length of each storm stall, ``outcome`` how its trials end, ``counters`` are
    more counters of the recording.
    """

    scale: float = 1.0
    tail_scale: float = 1.0
    retries: float | None = 0.0
    stall_cycles: int = 0
    outcome: Outcome = Outcome.OK
    reason: str = ""
    trace: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Plant:
    """A whole run to simulate: effects by (cell, arm), the others are those of :class:`Effect`'s defaults."""

    cells: tuple[Cell, ...]
    arms: tuple[str, ...] = ("base", "v1")
    boots: int = 1
    faults: int = 4000
    noise: float = 0.0  # sigma of the log of each boot's own factor
    effects: Mapping[tuple[str, str], Effect] = field(default_factory=dict)
    accel: str = "icount"
    checks: tuple[Check, ...] = ("kernel_log", "needed_retries", "controls")
    same_seed: bool = False
    seed: int = 1


def cell(name: str, placement: Placement | None = None, *, tdp: bool = True, preempted: bool = False) -> Cell:
    storm = None
    if placement is not None:
        storm = Storm(op="madvise_dontneed", placement=placement, size_kib=16384, preempted=preempted)
    return Cell(name=name, guest=Guest(rounds=4, tdp=tdp), storm=storm)


@dataclass(frozen=True)
class BuiltLike:
    """The shape of ``kernel.build.BuiltKernel`` that the analysis reads."""

    arm: str
    build: str = "ok"
    release: str = "5.10.262"
    vmlinux_sha256: str = "ab" * 32
    build_seconds: float = 17.5
    cached: bool = False
    error: str = ""


def experiment(plant: Plant) -> Experiment:
    arms = tuple(Arm(name, () if index == 0 else (Path(f"/p/{name}.patch"),)) for index, name in enumerate(plant.arms))
    return Experiment(
        name="simulated",
        description="Planted effects.",
        path=Path("/p/simulated.yaml"),
        kernel=KernelSpec(sources=(), fragments=()),
        arms=arms,
        target=TargetSpec(kind="qemu", accel="auto"),
        cells=plant.cells,
        schedule=Schedule(boots=plant.boots),
        checks=plant.checks,
        report=ReportSpec(),
    )


def simulate(plant: Plant, folder: Path) -> tuple[TrialResult, ...]:
    """Write ``folder/ID/recording.bin`` for every trial of the plant and return the results."""
    results = []
    for index, (place, boot, arm) in enumerate(
        (place, boot, arm) for place in plant.cells for boot in range(plant.boots) for arm in plant.arms
    ):
        planted = plant.effects.get((place.name, arm), Effect())
        trial = f"{index:03d}"
        seed = 1 if plant.same_seed else boot + 1
        if planted.outcome is Outcome.OK:
            data = _trial(plant, place, arm, planted, seed, boot)
            (folder / trial).mkdir(parents=True)
            (folder / trial / "recording.bin").write_bytes(data)
        results.append(
            TrialResult(
                id=trial, arm=arm, cell=place.name, boot=boot, block=boot, seed=seed, outcome=planted.outcome,
                reason=planted.reason, trace=planted.trace, warnings=planted.warnings, boot_seconds=1.0,
                wall_seconds=4.0, recording_sha256="", rerun=f"orch run c.yaml --trial {trial}",
            )
        )  # fmt: skip
    return tuple(results)


def _trial(plant: Plant, place: Cell, arm: str, planted: Effect, seed: int, boot: int) -> bytes:
    # Under icount both arms of a block see the same world; otherwise each boot has noise of its own.
    own = [plant.seed, seed, plant.cells.index(place)]
    if plant.accel != "icount":
        own += [boot, plant.arms.index(arm)]
    rng = np.random.default_rng(own)
    # A page fault: a sharp mode, a slower one (a page table is allocated), a heavy Pareto tail.
    cycles = rng.normal(10_800, 60, plant.faults)
    cycles[::64] += 17_000
    tail = rng.random(plant.faults) < 0.002
    cycles[tail] += 20_000 * (1 + rng.pareto(2.5, int(tail.sum())))
    order = np.argsort(cycles)
    cycles[order[-max(1, plant.faults // 200) :]] *= planted.tail_scale
    cycles *= planted.scale * np.exp(rng.normal(0, plant.noise))
    windows: list[tuple[int, int, int, int]] = []
    whole = np.maximum(cycles, 1).astype(np.uint64)
    if place.storm is not None:
        whole, windows = _storm(place.storm, whole, planted.stall_cycles)
    counters = None
    if planted.retries is not None:
        retries = round(planted.retries * plant.faults)
        counters = {
            "pf_fixed": plant.faults + 3, "pf_guest": 0, "exits": plant.faults + 3 + retries + 40, "io_exits": 10,
            "mmio_exits": 0, "irq_exits": 30, "halt_exits": 0, "request_irq": 7, "insn_emulation": 0,
            **planted.counters,
        }  # fmt: skip
    return recording_bytes(
        arm=arm, cell=place.name, seed=seed, latencies=[whole], windows=windows, counters=counters, pages=1024
    )


def _storm(
    storm: Storm, cycles: NDArray[np.uint64], stall: int
) -> tuple[NDArray[np.uint64], list[tuple[int, int, int, int]]]:
    """Twelve windows over the run, each around one fault that stalls for most of it."""
    cycles = cycles.copy()
    victims = np.linspace(len(cycles) // 20, len(cycles) - len(cycles) // 20, 12).astype(int)
    cycles[victims] += np.uint64(stall)
    begin = 1_000_000 + np.concatenate(([0], np.cumsum(cycles + np.uint64(GAP_CYCLES))[:-1])).astype(np.int64)
    hva = MEM_HVA if storm.placement == "overlap" else MEM_HVA + (1 << 32)
    length = max(stall, 400_000)
    return cycles, [(int(begin[at]) - 2000, int(begin[at]) + length, hva, storm.size_kib * 1024) for at in victims]


def run(
    plant: Plant, folder: Path, *, kernels: Sequence[BuiltLike] | None = None, planned: int | None = None
) -> Analysis:
    """Simulate and analyse."""
    results = simulate(plant, folder)
    built = [BuiltLike(arm) for arm in plant.arms] if kernels is None else kernels
    return analyse(
        experiment(plant),
        results,
        built,  # type: ignore[arg-type]
        folder,
        run="simulated-1",
        accel=plant.accel,
        planned=len(results) if planned is None else planned,
    )


SEVEN_CELLS = (
    cell("quiet"),
    cell("outside-madvise", "outside", preempted=True),
    cell("outside-munmap", "outside", preempted=True),
    cell("overlap", "overlap"),
    cell("other-process", "other-process"),
    cell("quiet-shadow", tdp=False),
    cell("outside-madvise-shadow", "outside", tdp=False, preempted=True),
)


def showcase() -> Plant:
    """Seven cells with the effects that the first patch is expected to have."""
    spin = Effect(retries=0.28, stall_cycles=24_000_000)
    calm = Effect(scale=1.004, retries=0.0003, stall_cycles=16_000_000)
    small = Effect(scale=1.004)
    return Plant(
        cells=SEVEN_CELLS,
        faults=16384,
        effects={
            ("quiet", "v1"): small,
            ("outside-madvise", "base"): spin,
            ("outside-madvise", "v1"): calm,
            ("outside-munmap", "base"): Effect(retries=0.09, stall_cycles=32_000_000),
            ("outside-munmap", "v1"): Effect(scale=1.004, retries=0.0008, stall_cycles=24_000_000),
            ("overlap", "base"): Effect(retries=3.1, stall_cycles=20_000_000),
            ("overlap", "v1"): Effect(scale=1.004, retries=3.05, stall_cycles=20_000_000),
            ("other-process", "v1"): small,
            ("quiet-shadow", "base"): Effect(scale=1.6),
            ("quiet-shadow", "v1"): Effect(scale=1.61),
            ("outside-madvise-shadow", "base"): Effect(scale=1.6, retries=0.19, stall_cycles=24_000_000),
            ("outside-madvise-shadow", "v1"): Effect(scale=1.72, retries=0.0005, stall_cycles=16_000_000),
        },
    )
