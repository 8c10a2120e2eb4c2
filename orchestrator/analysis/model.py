"""What the analysis comes to: frozen dataclasses that are saved as JSON and from which every report is made.

Nothing here computes. Latencies are nanoseconds of the host's clock (virtual time under icount); a value that could
not be measured is ``None``, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.analysis.causes import TracedBoot
from orchestrator.analysis.correctness import CheckStatus, SelftestRow, StaleCount
from orchestrator.analysis.plotted import Curves
from orchestrator.analysis.symptoms import Symptom, Symptoms
from orchestrator.errors import StoreError

FaultMetric = Literal["mean", "p50", "p90", "p99", "p99_9", "max", "retries_per_fault"]
Metric = FaultMetric | Symptom
Verdict = Literal["improved", "regressed", "equivalent", "inconclusive"]
CellVerdict = Literal["improved", "regressed", "mixed", "equivalent", "inconclusive"]
CiKind = Literal["interval", "range"]
Status = Literal["complete", "partial", "failed"]
StopReason = Literal["decided", "hopeless", "at most", "nothing to compare", "not reached"]

LATENCY_METRICS: Final[tuple[Metric, ...]] = ("mean", "p50", "p90", "p99", "p99_9", "max")
METRICS: Final[tuple[Metric, ...]] = (*LATENCY_METRICS, "retries_per_fault")
COMPARISON_FILE, CURVES_FILE = "comparison.json", "curves.json"
TRIAL_FILES: Final = ("result.json", "console.log", "recording.bin", "trace.bin.gz")


@dataclass(frozen=True)
class Latency:
    """Quantiles of one boot's faults, ns. Quantiles are nearest-rank: each is a latency that did occur."""

    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


@dataclass(frozen=True)
class Attribution:
    """The faults of one cell and arm, sorted by what the storm did meanwhile; see ``analysis/attribution.py``.

    ``unrelated``: an invalidation was in progress, none of them over the faulting page. ``needed``: one was over it.
    Times are sums of latencies, ns. ``window_share`` is the part of the measured time that a window covers: what
    chance alone would put inside one. ``several`` faults overlap more than one window.
    """

    faults: int
    unrelated: int
    needed: int
    total_ns: float
    unrelated_ns: float
    needed_ns: float
    slowest: int
    slowest_unrelated: int
    slowest_needed: int
    windows: int
    window_share: float
    several: int = 0


@dataclass(frozen=True)
class BootSummary:
    """One boot that ended well: the unit of replication. ``exits`` and ``retries`` are None without KVM counters,
    ``symptoms`` without a Linux guest."""

    trial: str
    boot: int
    block: int
    seed: int
    faults: int
    latency: Latency
    exits: int | None
    retries: int | None
    attribution: Attribution
    symptoms: Symptoms | None = None


@dataclass(frozen=True)
class TrialLine:
    """One trial of the run, however it ended: what leads from a figure to its boot.

    ``files`` are those of its folder ``trials/ID/`` that a reader wants to open, of :data:`TRIAL_FILES`; ``rerun`` is
    the command that repeats just this trial.
    """

    trial: str
    arm: str
    cell: str
    boot: int
    seed: int
    outcome: str
    rerun: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class FailedTrial:
    """A trial whose outcome is not ``ok``. ``console`` is relative to the run's folder, ``console_tail`` its end."""

    trial: str
    arm: str
    cell: str
    outcome: str
    reason: str
    trace: tuple[str, ...]
    rerun: str
    console: str
    console_tail: tuple[str, ...]


@dataclass(frozen=True)
class ArmSummary:
    """One arm's kernel. ``build`` is ``not built`` when the run has not come to it; ``error`` has compiler lines."""

    name: str
    patches: tuple[str, ...]
    build: Literal["ok", "failed", "not built"]
    release: str
    vmlinux_sha256: str
    build_seconds: float
    cached: bool
    error: str


@dataclass(frozen=True)
class CellInfo:
    """What a cell is, for people. ``control`` says what it must show, or is empty."""

    name: str
    storm: str
    placement: str
    tdp: bool
    vcpus: int
    page: str
    control: Literal["", "quiet", "other-process", "overlap"]


@dataclass(frozen=True)
class CellSummary:
    """One arm in one cell, over its boots.

    ``boots`` counts those that ended well; latencies are geometric means over them of each boot's value, retries
    arithmetic means. ``outcome`` is ``ok`` if every boot was, else the first other outcome, ``build failed`` or
    ``not run``. ``faults`` is the sum over boots.
    """

    cell: str
    arm: str
    boots: int
    outcome: str
    faults: int
    latency: Latency | None
    exits_per_fault: float | None
    retries_per_fault: float | None
    attribution: Attribution | None
    per_boot: tuple[BootSummary, ...]
    symptoms: Symptoms | None = None


@dataclass(frozen=True)
class MetricComparison:
    """One metric of one arm against the base in one cell; lower is better in all of them.

    ``ratio`` is value / base_value (None where the base is 0 and the value is not). ``ci`` is the 95 % interval of
    the ratio, or the range of the seeds' own ratios where each is exact and they are too few for an interval
    (:attr:`ci_kind`); an upper end of None beside a lower one is infinite. ``p_value`` is the paired permutation
    test's, ``p_adjusted`` after Holm's correction over the whole run. ``smallest_effect`` is the smallest change that
    this run could have called, as a fraction of the base (absolute per fault for retries over a base of 0); None where
    no change, however large, could have been called. ``decides`` is False for a metric that is shown but does not
    count towards the cell's verdict.

    ``boots_needed``, of an ``inconclusive`` one: about how many boots of each arm would decide it, noise and change as
    they are (None: not known, or more than anybody would run). ``noise`` is the ``ci`` of the base against itself in
    this cell, (None, None) without A/A boots.
    """

    cell: str
    base: str
    arm: str
    metric: Metric
    base_value: float | None
    value: float | None
    ratio: float | None
    ci: tuple[float | None, float | None]
    p_value: float | None
    p_adjusted: float | None
    pairs: int
    smallest_effect: float | None
    verdict: Verdict
    reason: str
    decides: bool
    boots_needed: int | None = None
    noise: tuple[float | None, float | None] = (None, None)

    @property
    def ci_kind(self) -> CiKind | None:
        """What ``ci`` is: a 95 % ``interval``, the ``range`` of a few exact seeds, or None if there is none."""
        if self.ci[0] is None:
            return None
        return "range" if self.p_value is None else "interval"


@dataclass(frozen=True)
class BootGroup:
    """Boots whose values of one metric lie together: their geometric mean (of retries: arithmetic), their trials."""

    value: float
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Bimodal:
    """A metric whose boots fall in two groups, by the dip test (``p_adjusted`` over all that were looked at)."""

    cell: str
    arm: str
    metric: Metric
    low: BootGroup
    high: BootGroup
    p_adjusted: float


@dataclass(frozen=True)
class CellStop:
    """Where a cell of a run ``until: decided`` ended.

    ``boots`` of each arm are used, up to look number ``look`` (from 1; 0: none was reached). ``decided``: every metric
    had a verdict. ``hopeless``: the others, ``undecided`` as "ARM METRIC", would not get one within ``at_most`` boots.
    ``at most``: no boots were left. ``nothing to compare``: no arm had a pair of good boots. ``not reached``: the run
    ended before a look that it still needed.
    """

    cell: str
    boots: int
    look: int
    why: StopReason
    undecided: tuple[str, ...]


@dataclass(frozen=True)
class CellComparison:
    """The verdict of one arm in one cell and the sentence that gives its figures."""

    cell: str
    arm: str
    verdict: CellVerdict
    summary: str


@dataclass(frozen=True)
class CheckResult:
    """One check on one cell (empty: the whole run) and arm. ``not covered`` is no success: nothing was tested."""

    name: str
    arm: str
    cell: str
    status: CheckStatus
    why: str


@dataclass(frozen=True)
class Said:
    """A piece of a sentence, and what its figures are of: a ``cell``, a ``section`` of the report, or neither."""

    text: str
    cell: str = ""
    section: str = ""


@dataclass(frozen=True)
class PlotTitles:
    """The finding that each plot shows, in one line."""

    tail: str
    percentiles: str
    timeline: str
    retries: str


@dataclass(frozen=True)
class Comparison:
    """Everything that a report says, finished; ``cells`` and ``arms`` in the experiment's order, base first.

    ``aa`` compares the base with itself (``arm`` is the base), with one entry for each cell and metric, if the schedule
    asked for it. ``looks`` are the boots of each arm at which a run ``until: decided`` may stop, ``stops`` where each
    cell did; both are empty for a run of fixed size. ``planned`` counts the trials that were needed. ``traced`` are the
    boots with the host kernel's tracing on, ``traced_notes`` what they cost and what is missing of them.
    ``symptoms`` compare what Linux guests see besides the fault; they decide nothing. ``headline_pieces`` are the
    ``headlines`` with what each of their figures is of.
    """

    schema: int
    run: str
    name: str
    description: str
    status: Status
    accel: str
    margin: float
    planned: int
    done: int
    arms: tuple[ArmSummary, ...]
    cells: tuple[CellInfo, ...]
    summaries: tuple[CellSummary, ...]
    comparisons: tuple[MetricComparison, ...]
    verdicts: tuple[CellComparison, ...]
    checks: tuple[CheckResult, ...]
    failures: tuple[FailedTrial, ...]
    headlines: tuple[str, ...]
    titles: PlotTitles
    why: tuple[str, ...]
    sure: tuple[str, ...]
    stale: tuple[StaleCount, ...] = ()
    stale_notes: tuple[str, ...] = ()
    selftests: tuple[SelftestRow, ...] = ()
    selftest_notes: tuple[str, ...] = ()
    aa: tuple[MetricComparison, ...] = ()
    bimodal: tuple[Bimodal, ...] = ()
    looks: tuple[int, ...] = ()
    stops: tuple[CellStop, ...] = ()
    trials: tuple[TrialLine, ...] = ()
    traced: tuple[TracedBoot, ...] = ()
    traced_notes: tuple[str, ...] = ()
    symptoms: tuple[MetricComparison, ...] = ()
    headline_pieces: tuple[tuple[Said, ...], ...] = ()

    @property
    def base(self) -> str:
        return self.arms[0].name

    def summary(self, cell: str, arm: str) -> CellSummary:
        """The summary of one arm in one cell; there is one for each, run or not."""
        return next(item for item in self.summaries if (item.cell, item.arm) == (cell, arm))

    def metrics(self, cell: str, arm: str) -> Mapping[Metric, MetricComparison]:
        """An arm's comparisons in one cell, by metric."""
        return {item.metric: item for item in self.comparisons if (item.cell, item.arm) == (cell, arm)}


@dataclass(frozen=True)
class Analysis:
    """What :func:`orchestrator.analysis.analyse.analyse` returns."""

    comparison: Comparison
    curves: Curves


Saved = TypeVar("Saved", Comparison, Curves)


# Building one takes longer than using it, and a history reads a comparison of every night.
_adapters: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def to_json(value: Comparison | Curves) -> bytes:
    """The JSON form of a comparison or of curves; :func:`from_json` gives back an equal value."""
    return _adapter(type(value)).dump_json(value, indent=1) + b"\n"


def from_json(kind: type[Saved], path: Path) -> Saved:
    """Read what :func:`to_json` made; raises :class:`StoreError` if the file is missing or of another schema."""
    try:
        loaded: Saved = _adapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise StoreError(f"cannot read {path}: {error}", hint="orch run CONFIG (makes it again)") from error
    return loaded
