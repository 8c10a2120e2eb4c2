"""What an experiment is: frozen, validated, independent of its YAML form.

Every type checks itself when it is made (pydantic, strict: no text that happens to look like a number), so an
``Experiment`` that exists has all its values in range. What needs more than one field is in ``crosscheck.py``.
``Field(description=…)`` is the one documentation of each key; ``fields.py`` prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from orchestrator.experiment.guests import AnyGuest, LinuxGuest, LinuxGuestSpec
from orchestrator.experiment.selftests import CELL_NAME, SelftestCell, SelftestSpec
from orchestrator.experiment.strict import STRICT
from orchestrator.experiment.traces import TRACED_PREFIX, TraceSpec

Op = Literal["madvise_dontneed", "madvise_free", "madvise_pageout", "munmap", "mprotect", "mremap"]
Placement = Literal["outside", "disjoint", "adjacent", "overlap", "other-process"]
Check = Literal[
    "kernel_log", "needed_retries", "controls", "attribution", "storm_in_vmm", "stale_mapping", "kvm_selftests"
]
# guests/stale_check/cases.c: where the guest faults, seen from the range that is being invalidated.
StaleCase = Literal[
    "inside", "inside-first", "end-edge", "start-edge", "far", "two", "completed", "short-inside", "short-end",
    "short-start", "straddle", "two-second",
]  # fmt: skip
StaleOp = Literal["madvise", "munmap", "mremap", "mprotect"]
STALE_CASES: tuple[StaleCase, ...] = get_args(StaleCase)

MAX_SEED = 2**63 - 1
MAX_BOOTS = 100_000
MAX_PAGES = 2**24  # REC_PAGE_BITS of guests/include/recording.h: a fault's page index has 24 bits.

# Names become folders, JUnit names and fields of the recording (char arm[32], char cell[96], NUL included). They start
# with a letter or digit and hold no slash, so neither "..", nor an option, nor a hidden file can be made of them.
NAME = r"^[a-z0-9][a-z0-9._-]*$"
NAME_WORDS = "a name of a-z, 0-9, '.', '_' and '-' that starts with a letter or digit"
Slug = Annotated[str, Field(pattern=NAME, max_length=64, description=f"{NAME_WORDS}; it names the results folder")]
ArmName = Annotated[str, Field(pattern=NAME, max_length=31, description=NAME_WORDS)]
CellName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._,=-]*$", max_length=95, description=NAME_WORDS)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=STRICT)
class DebianSource:
    """A ``linux-source-X`` package of a Debian suite, fetched from the mirror that this machine's apt uses."""

    package: Annotated[
        str, Field(pattern=r"^linux-source-[0-9][0-9a-z.+-]*$", description="source package, e.g. linux-source-5.10")
    ]
    suite: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9./-]*$", max_length=64, description="suite, e.g. bullseye-security")
    ]


@dataclass(frozen=True, config=STRICT)
class TreeSource:
    """A kernel tree on this machine; it is only read."""

    path: Annotated[Path, Field(description="folder of the tree, relative to the config file")]


@dataclass(frozen=True, config=STRICT)
class TarballSource:
    """A tarball by path or URL (exactly one of them); nothing of it is used before its SHA-256 agrees."""

    sha256: Annotated[Sha256, Field(description="SHA-256 of the tarball, 64 hex digits")]
    path: Annotated[Path | None, Field(description="file, relative to the config file")] = None
    url: Annotated[str | None, Field(pattern=r"^https?://[^\s]+$", description="http(s) address")] = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.url is None):
            raise ValueError("exactly one of path and url")


@dataclass(frozen=True, config=STRICT)
class GitSource:
    """A ref of a git repository."""

    # No leading "-" (git would read an option), no "::" (git's remote helpers run commands).
    repository: Annotated[
        str,
        Field(pattern=r"^(?:(?:https?|git|ssh|file)://)?[^\s:-][^\s]*$", description="an address or path, no '::'"),
    ]
    ref: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./^~@+-]*$", description="a tag, branch or commit")]

    def __post_init__(self) -> None:
        if "::" in self.repository:
            raise ValueError("a repository without '::'")


Source = DebianSource | TreeSource | TarballSource | GitSource


@dataclass(frozen=True, config=STRICT)
class KernelSpec:
    """Where the kernel's sources come from (tried in order) and the config fragments put on top of tinyconfig.

    Paths are absolute. Both are empty for ``target: local``, which builds nothing.
    """

    sources: Annotated[tuple[Source, ...], Field(description="tried in order: debian, tree, tarball or git")]
    fragments: Annotated[tuple[Path, ...], Field(description="kernel config fragments, relative to the config file")]


@dataclass(frozen=True, config=STRICT)
class Arm:
    """One kernel under test: the tree with these patches (absolute paths: files, folders, mboxes) on top."""

    name: ArmName
    patches: tuple[Path, ...]


@dataclass(frozen=True, config=STRICT)
class TargetSpec:
    """What boots the kernel under test. ``local`` boots nothing: it takes the kernel that runs already.

    ``lab`` is an absolute path, given exactly with ``ssh``; no ``hosts`` means all of its machines.
    """

    kind: Annotated[
        Literal["qemu", "ssh", "local"],
        Field(description="qemu; ssh: the machines of a lab file; local: the kernel that is running"),
    ]
    accel: Annotated[
        Literal["auto", "kvm", "tcg", "icount"],
        Field(description="icount: bit-exact; tcg: concurrent; kvm: real time; auto: the best that works here"),
    ] = "auto"
    machine: Annotated[
        Literal["microvm", "q35"], Field(description="microvm boots in a fifth of q35's time; q35 has PCI")
    ] = "microvm"
    cpus: Annotated[int, Field(ge=1, le=64, description="CPUs of the host under test; icount takes one")] = 1
    mem_mib: Annotated[int, Field(ge=128, le=1024 * 1024, description="memory of the host under test, MiB")] = 1024
    deadline_s: Annotated[float, Field(gt=0, le=86400, description="wall time after which a trial is a hang, s")] = (
        600.0
    )
    guest_deadline_s: Annotated[
        float, Field(gt=0, le=86400, description="time inside the target after which a trial is a hang, s")
    ] = 120.0
    panic_on_warn: Annotated[
        bool, Field(description="end a trial at the kernel's first warning: for kernels that watch themselves")
    ] = False
    lab: Annotated[Path | None, Field(description="ssh: the lab file, relative to the config file")] = None
    hosts: Annotated[
        tuple[ArmName, ...], Field(description="ssh: names of machines in the lab file; [] for all of them")
    ] = ()


@dataclass(frozen=True, config=STRICT)
class Storm:
    """The invalidations that hit the VMM's process (or, as a control, another process) while the guest faults."""

    op: Annotated[Op, Field(description="the system call that invalidates")]
    placement: Annotated[
        Placement, Field(description="where its range lies, seen from the memslot and the faulting pages")
    ]
    size_kib: Annotated[int, Field(ge=4, le=64 * 1024 * 1024, multiple_of=4, description="bytes a call, KiB")]
    threads: Annotated[int, Field(ge=1, le=64, description="storm threads, each with its own range")] = 1
    period_us: Annotated[int, Field(ge=0, le=10_000_000, description="time between two calls, µs; 0: back to back")] = 0
    cpu: Annotated[
        Literal["same", "other", "any"], Field(description="same: the vCPU's CPU; other: one without a vCPU")
    ] = "any"
    preempted: Annotated[
        bool,
        Field(
            description="true: the invalidator competes for its CPU and loses it in the middle of a call; "
            "false with cpu: same: it has real-time priority, so that every call runs to its end"
        ),
    ] = False
    hogs: Annotated[int, Field(ge=0, le=64, description="busy threads that compete for the CPU of vCPU 0")] = 0


@dataclass(frozen=True, config=STRICT)
class Cell:
    """One point of the experiment: a guest and the storm it meets (``None``: a quiet host)."""

    name: CellName
    guest: AnyGuest
    storm: Storm | None


@dataclass(frozen=True, config=STRICT)
class Schedule:
    """How often and in which order the trials are booted."""

    boots: Annotated[
        int,
        Field(ge=1, le=MAX_BOOTS, description="boots of each arm in each cell; until: decided: before the first look"),
    ] = 1
    order: Annotated[
        Literal["abba", "random", "abab"],
        Field(description="order of the arms: abba cancels a steady drift; random throws a coin for each block"),
    ] = "abba"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="seed of page order, storm phase and start delay")] = 1
    aa: Annotated[
        bool,
        Field(description="true: the base boots twice in every block and is compared with itself, the noise floor"),
    ] = False
    until: Annotated[
        Literal["boots", "decided"],
        Field(description="boots: as many as boots says; decided: a cell ends at the look that has all its verdicts"),
    ] = "boots"
    at_most: Annotated[
        int | None, Field(ge=2, le=MAX_BOOTS, description="boots of each arm in each cell at the last look")
    ] = None
    looks: Annotated[
        int, Field(ge=2, le=20, description="how often the results are looked at, evenly from boots to at_most")
    ] = 4

    @property
    def look_boots(self) -> tuple[int, ...]:
        """Boots of each arm after which a cell may end, ascending; all but the ends rounded to whole A B B A."""
        if self.until == "boots" or self.at_most is None:
            return (self.boots,)
        step = (self.at_most - self.boots) / (self.looks - 1)
        between = [self.boots + 2 * round(index * step / 2) for index in range(1, self.looks - 1)]
        return (self.boots, *between, self.at_most)

    @property
    def most(self) -> int:
        """Boots of each arm in each cell, if none ends early."""
        return self.look_boots[-1]

    def is_twin(self, boot: int) -> bool:
        """Whether a boot of the base, by its number, is the second one of its block (``aa``).

        They are numbered from :attr:`most` on, so that the first ones have the numbers of the other arms' boots.
        """
        return self.aa and boot >= self.most


@dataclass(frozen=True, config=STRICT)
class ReportSpec:
    """What the report calls a difference."""

    margin: Annotated[
        float, Field(gt=0, lt=1, description="a change by less than this fraction is called equivalent")
    ] = 0.02


@dataclass(frozen=True, config=STRICT)
class StaleSpec:
    """What ``checks: [stale_mapping]`` tries: every case, by every operation it applies to, in a boot for each kind of
    paging and guest mapping. The two ``inside`` cases always run where others need them: they calibrate."""

    cases: Annotated[
        tuple[StaleCase, ...],
        Field(min_length=1, description=f"where the guest faults: {', '.join(STALE_CASES)}"),
    ] = STALE_CASES
    ops: Annotated[
        tuple[StaleOp, ...],
        Field(min_length=1, description="how the range is invalidated: madvise, munmap (+ mmap), mremap, mprotect"),
    ] = ("madvise",)
    pages: Annotated[
        tuple[Literal["4k", "2m"], ...], Field(min_length=1, description="page sizes of the guest's mappings: 4k, 2m")
    ] = ("4k", "2m")
    tdp: Annotated[
        tuple[bool, ...], Field(min_length=1, description="true: NPT/EPT; false: shadow paging; a boot for each")
    ] = (True, False)
    rounds: Annotated[
        int, Field(ge=2, le=1000, description="rounds of each case: points of the sweep through the invalidation")
    ] = 24
    range_kib: Annotated[
        int, Field(ge=64, le=65536, multiple_of=32, description="size of the invalidated range, KiB (and two pages)")
    ] = 4096

    @property
    def range_pages(self) -> int:
        """Pages of the range: 2 modulo 8, so that both its edges cut a group of PTE_PREFETCH_NUM pages."""
        return self.range_kib // 4 + 2

    def rounds_of(self, op: StaleOp) -> tuple[StaleCase, ...]:
        """The cases that run for an operation, calibrating ones included, in the order of the guest program."""
        wanted = {case for case in self.cases if stale_applies(case, op)}
        if any(not case.startswith("short") and case != "straddle" for case in wanted):
            wanted.add("inside")
        if any(case.startswith("short") for case in wanted):
            wanted.add("short-inside")
        return tuple(case for case in STALE_CASES if case in wanted)


def stale_applies(case: StaleCase, op: StaleOp) -> bool:
    """Whether a case can be had by an operation (``shares_lock`` and ``no_short`` of guests/stale_check/cases.c).

    A second invalidation runs beside the first only if that holds the mmap lock for reading while it clears the
    tables. A fault that mremap or mprotect straddles ends in a hole, and hardly ever shows that it was retried. Of a
    short mremap, the invalidation is too small a part to be hit.
    """
    if case in ("two", "two-second", "completed", "straddle"):
        return op in ("madvise", "munmap")
    return not (case.startswith("short") and op == "mremap")


@dataclass(frozen=True, config=STRICT)
class StaleCell:
    """One boot of the stale-mapping check: what a :class:`Cell` is for a measuring trial."""

    name: CellName
    page: Literal["4k", "2m"]
    tdp: bool
    stale: StaleSpec


@dataclass(frozen=True, config=STRICT)
class TracedCell:
    """One more boot of a cell, with the host kernel's tracing on. It measures nothing: it says why."""

    name: CellName
    cell: Cell
    buffer_mib: int


PlannedCell = Cell | StaleCell | TracedCell | SelftestCell


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """A whole experiment; ``arms[0]`` is the base. ``path`` is the absolute path of the YAML it was read from."""

    name: Slug
    description: Annotated[str, Field(max_length=4000, description="one paragraph for the report")]
    path: Path
    kernel: KernelSpec
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    target: TargetSpec
    cells: tuple[Cell, ...]  # None: only correctness is checked.
    schedule: Schedule
    checks: Annotated[
        tuple[Check, ...],
        Field(
            description="kernel_log: no new kernel warnings; needed_retries: overlap cells keep their retries; "
            "controls: quiet and other-process cells show none; attribution: traced boots lack nothing and account "
            "for every retry, for those of a storm but 5 % by an invalidation, for 95 % of the spurious ones by a "
            "storm window; storm_in_vmm: traced boots show every call of a storm in "
            "the VMM, and none of one in another process, as an invalidation of the VMM's memory; stale_mapping: "
            "no guest still reads a page that was taken away; kvm_selftests: the kernel's own KVM tests pass as on base"
        ),
    ]
    report: ReportSpec
    stale: StaleSpec | None = None  # Given exactly if stale_mapping is among the checks.
    selftests: SelftestSpec | None = None  # Given exactly if kvm_selftests is among the checks.
    trace: TraceSpec | None = None
    linux_guest: LinuxGuestSpec | None = None  # Given exactly if a cell has a Linux guest.

    @property
    def linux_cells(self) -> tuple[Cell, ...]:
        """The cells with a Linux guest."""
        return tuple(cell for cell in self.cells if isinstance(cell.guest, LinuxGuest))

    @property
    def base(self) -> Arm:
        return self.arms[0]

    @property
    def builds_kernels(self) -> bool:
        """Whether arms are kernels to build; otherwise the running kernel is benched."""
        return self.target.kind == "qemu" or (self.target.kind == "ssh" and bool(self.kernel.sources))

    @property
    def stale_cells(self) -> tuple[StaleCell, ...]:
        """The boots of the stale-mapping check of one arm."""
        spec = self.stale
        if spec is None:
            return ()
        return tuple(
            StaleCell(f"stale-mapping,tdp={'on' if tdp else 'off'},page={page}", page, tdp, spec)
            for tdp in spec.tdp
            for page in spec.pages
        )

    @property
    def traced_cells(self) -> tuple[TracedCell, ...]:
        """The traced boots of one arm."""
        spec = self.trace
        if spec is None:
            return ()
        return tuple(
            TracedCell(f"{TRACED_PREFIX}{cell.name}", cell, spec.buffer_mib)
            for cell in self.cells
            if cell.name in spec.cells
        )

    @property
    def selftest_cell(self) -> SelftestCell | None:
        """The boot in which the kernel's own KVM selftests run."""
        return SelftestCell(CELL_NAME, self.selftests) if self.selftests is not None else None
