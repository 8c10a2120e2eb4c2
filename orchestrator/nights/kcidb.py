"""A run in KCIDB's JSON, the kernel community's form of build and test results, valid by their own schema (kcidb-io).

| here | in KCIDB |
| --- | --- |
| an arm: tree and patches | a checkout |
| its kernel | a build: PASS, FAIL if it did not compile, MISS if the run did not come to it |
| an arm in a cell | a test kvm_fault.CELL: its worst metric or outcome |
| a metric of it | a test kvm_fault.CELL.METRIC with the value as its number |
| a check | a test kvm_check.NAME: PASS, FAIL, SKIP if it was not covered |
| a KVM selftest | a test kselftest.kvm.TEST |

A verdict improved or equivalent is PASS, regressed is FAIL, inconclusive is DONE, and so is a value of the base, of
which no verdict is asked. A kernel that panics, oopses, hangs or shows a stale mapping FAILs; a trial that was lost, or
whose guest program failed, is an ERROR of the test; what did not run is SKIPped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
from kcidb_io.schema import V5_3

from orchestrator.analysis.correctness import SelftestRow, SelftestState
from orchestrator.analysis.model import (
    LATENCY_METRICS,
    ArmSummary,
    CellSummary,
    CheckResult,
    Metric,
    MetricComparison,
    Verdict,
)
from orchestrator.errors import StageError, UserError, printable
from orchestrator.kernel.build import BuiltKernel
from orchestrator.manifest import ArmFiles
from orchestrator.nights.catalogue import Run
from orchestrator.store import file_sha256

SCHEMA = V5_3
ORIGIN = re.compile(r"[a-z0-9_]+")
EXCERPT_CHARS = 16384  # of the schema

OF_VERDICT: Mapping[Verdict, str] = {
    "improved": "PASS", "equivalent": "PASS", "regressed": "FAIL", "inconclusive": "DONE",
}  # fmt: skip
OF_OUTCOME: Mapping[str, str] = {
    "panic": "FAIL", "oops": "FAIL", "hang": "FAIL", "stale": "FAIL", "lost": "ERROR", "failed": "ERROR",
    "build failed": "SKIP", "not run": "SKIP",
}  # fmt: skip
OF_CHECK: Mapping[str, str] = {"held": "PASS", "failed": "FAIL", "not covered": "SKIP"}
OF_SELFTEST: Mapping[SelftestState, str] = {
    "pass": "PASS", "fail": "FAIL", "timeout": "FAIL", "lost": "FAIL", "skip": "SKIP", "not built": "SKIP",
    "not run": "SKIP",
}  # fmt: skip
# The schema's order of importance: of several, the first is the summary.
IMPORTANCE = ("FAIL", "ERROR", "MISS", "PASS", "DONE", "SKIP")

# A node of the document: its fields differ from kind to kind and are the schema's business.
Node = dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """A run with what names its objects; ``url`` is where its folder can be fetched, or empty."""

    run: Run
    origin: str
    url: str
    key: str

    def id(self, *parts: str) -> str:
        return f"{self.origin}:{':'.join((self.key, *parts))}"

    def link(self, name: str) -> str:
        """The address of a file of the run."""
        return f"{self.url}/{quote(self.run.name)}/{quote(name)}"


def export(run: Run, origin: str, url: str = "") -> str:
    """The run as a KCIDB document.

    ``origin`` names the submitting system, as agreed with KernelCI; ``url`` is the address under which the results
    folder can be read, for links to logs. Raises :class:`UserError` if either has the wrong form, and
    :class:`StageError`, naming the field, if what comes out is not valid.
    """
    if not ORIGIN.fullmatch(origin):
        raise UserError(
            f"{printable(origin)!r} is no origin: a-z, 0-9 and _", hint="orch export --kcidb RUN --origin NAME"
        )
    if url and not re.fullmatch(r"https?://[^\s/][^\s]*", url):
        raise UserError(f"{printable(url)!r} is not an http or https address", hint="--url https://host/results")
    manifest = run.manifest
    # Run folders of two machines can have one name.
    unique = hashlib.sha256(f"{manifest.host.node} {manifest.started}".encode()).hexdigest()[:8]
    source = _Run(run, origin, url.rstrip("/"), f"{run.name}-{unique}")
    document: Node = {
        "version": {"major": SCHEMA.major, "minor": SCHEMA.minor},
        "checkouts": [_checkout(source, arm) for arm in run.comparison.arms],
        "builds": [_build(source, arm) for arm in run.comparison.arms],
        "tests": _numbered([*_cells(source), *_checks(source), *_selftests(source)]),
    }
    validate(document)
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def validate(document: Node) -> None:
    """Hold a document against KCIDB's own schema, formats included. Raises :class:`StageError`."""
    try:
        SCHEMA.validate_exactly(document)
    except jsonschema.ValidationError as error:
        raise StageError(f"not valid by KCIDB's schema {SCHEMA}: {error.json_path}: {error.message}") from error


def _checkout(source: _Run, arm: ArmSummary) -> Node:
    run = source.run
    node: Node = {
        "id": source.id(arm.name),
        "origin": source.origin,
        "comment": _text(f"{run.tree_text}, arm {arm.name}: {', '.join(arm.patches) or 'no patch'}"),
        "start_time": run.manifest.started,
        "valid": arm.build != "not built",
    }
    if run.tree is not None and re.fullmatch(r"[0-9a-f]{40}", run.tree.commit):
        node["git_commit_hash"] = run.tree.commit
    files = next((item for item in run.manifest.arms if item.arm == arm.name), ArmFiles(arm.name, ()))
    patchset = _patchset_hash(run.folder, files)
    if patchset is not None:
        node["patchset_hash"] = patchset
    content = {} if run.tree is None else {"tree": run.tree.identity, "tree_content_id": run.tree.content_id}
    return node | {"misc": {**content, "patches": [asdict(item) for item in files.patches]}}


def _patchset_hash(folder: Path, files: ArmFiles) -> str | None:
    """SHA-256 over the lines of the patches' SHA-256, as the schema asks for; None where the patches are not known.

    Of a quoted mail the patch is what was recovered from it. A folder or a git range is known by its content only.
    """
    digests = []
    for item in files.patches:
        path = Path(item.path)
        recovered = folder / "patches" / files.arm / f"{path.stem}.patch"
        if recovered.is_file():
            digests.append(file_sha256(recovered))
        elif path.is_file() and file_sha256(path) == item.sha256:
            digests.append(item.sha256)
        else:
            return None
    text = "".join(f"{digest}\n" for digest in digests)
    return hashlib.sha256(text.encode()).hexdigest() if digests else ""


def _build(source: _Run, arm: ArmSummary) -> Node:
    run = source.run
    node: Node = {
        "id": source.id(arm.name),
        "checkout_id": source.id(arm.name),
        "origin": source.origin,
        "architecture": "x86_64",
        "config_name": ", ".join(Path(item.path).name for item in run.manifest.fragments),
        "duration": arm.build_seconds,
        "status": {"ok": "PASS", "failed": "FAIL", "not built": "MISS"}[arm.build],
        "misc": {"release": arm.release, "vmlinux_sha256": arm.vmlinux_sha256, "from_cache": arm.cached},
    }
    kernel: BuiltKernel | None = next((item for item in run.kernels if item.arm == arm.name), None)
    if kernel is not None:
        node["misc"]["config_sha256"] = kernel.config_sha256
    if arm.error:
        node["log_excerpt"] = _text(arm.error)
    return node


def _cells(source: _Run) -> Iterator[Node]:
    """For each arm in each cell a test, and below it one for each metric that has a value."""
    names = _paths([cell.name for cell in source.run.comparison.cells])
    for summary in source.run.comparison.summaries:
        path = f"kvm_fault.{names[summary.cell]}"
        metrics = list(_metrics(source, summary, path))
        yield _cell(source, summary, path, [str(item["status"]) for item in metrics])
        yield from metrics


def _cell(source: _Run, summary: CellSummary, path: str, found: list[str]) -> Node:
    status = OF_OUTCOME.get(summary.outcome) or min(found, key=IMPORTANCE.index)
    node = _test(source, summary.arm, path, status, summary.cell)
    figures = {"boots": summary.boots, "faults": summary.faults, "outcome": summary.outcome}
    latency = {} if summary.latency is None else {f"{key}_ns": value for key, value in asdict(summary.latency).items()}
    rates = {"exits_per_fault": summary.exits_per_fault, "retries_per_fault": summary.retries_per_fault}
    node["misc"] |= _known({**figures, **latency, **rates})
    failure = next(
        (item for item in source.run.comparison.failures if (item.cell, item.arm) == (summary.cell, summary.arm)), None
    )
    if failure is not None:
        node["comment"] = _text(f"{failure.outcome}: {failure.reason}")
        node["log_excerpt"] = _text("\n".join(failure.trace or failure.console_tail))
        if source.url:
            node["log_url"] = source.link(failure.console)
    return node


def _metrics(source: _Run, summary: CellSummary, path: str) -> Iterator[Node]:
    compared = source.run.comparison.metrics(summary.cell, summary.arm)
    values: dict[Metric, float | None] = {"retries_per_fault": summary.retries_per_fault}
    if summary.latency is not None:
        values |= {name: getattr(summary.latency, name) for name in LATENCY_METRICS}
    for metric, value in values.items():
        if value is None:
            continue
        item: MetricComparison | None = compared.get(metric)
        # The slowest fault of a single boot is one event: a value, no verdict on the kernel.
        status = "DONE" if item is None or not item.decides else OF_VERDICT[item.verdict]
        node = _test(source, summary.arm, f"{path}.{metric}", status, summary.cell, metric)
        node["number"] = {"value": value} if metric == "retries_per_fault" else {
            "value": value / 1e9, "unit": "s", "prefix": "metric",
        }  # fmt: skip
        if item is not None:
            node["comment"] = f"{item.verdict} against {item.base}: {item.reason}"
            node["misc"] |= _known(
                {"base": item.base, "base_value": item.base_value, "value": item.value, "ratio": item.ratio,
                 "ci_low": item.ci[0], "ci_high": item.ci[1], "ci_kind": item.ci_kind, "p_adjusted": item.p_adjusted,
                 "pairs": item.pairs, "verdict": item.verdict}
            )  # fmt: skip
        yield node


def _checks(source: _Run) -> Iterator[Node]:
    """A check of the whole run belongs to the base's build."""
    found = source.run.comparison
    for check in found.checks:
        path = ".".join(["kvm_check", _segment(check.name), *([_segment(check.cell)] if check.cell else [])])
        node = _test(source, check.arm or found.base, path, OF_CHECK[check.status], check.cell or "run", _own(check))
        yield node | {"comment": _text(check.why)}


def _own(check: CheckResult) -> str:
    return f"check-{check.name}{'' if check.arm else '-all'}"


def _selftests(source: _Run) -> Iterator[Node]:
    for row in source.run.comparison.selftests:
        states = [OF_SELFTEST[state] for state in row.states] or ["SKIP"]
        status = min(states, key=IMPORTANCE.index)
        node = _test(source, row.arm, f"kselftest.kvm.{_segment(row.test)}", status, "selftests", row.test)
        yield node | {"duration": row.seconds, "comment": _text(_said(row))}


def _said(row: SelftestRow) -> str:
    return "; ".join(part for part in (f"{row.shown} ({row.finding})", row.reason, *row.warnings) if part)


def _numbered(tests: list[Node]) -> list[Node]:
    """Every id once: a check may have several results on one cell and arm."""
    seen: Counter[str] = Counter()
    for node in tests:
        seen[node["id"]] += 1
        if seen[node["id"]] > 1:
            node["id"] += f":{seen[node['id']]}"
    return tests


def _test(source: _Run, arm: str, path: str, status: str, *parts: str) -> Node:
    manifest = source.run.manifest
    host = manifest.host
    return {
        "id": source.id(arm, *parts),
        "build_id": source.id(arm),
        "origin": source.origin,
        "path": path,
        "status": status,
        "start_time": manifest.started,
        "environment": {
            "comment": f"{manifest.target}, {manifest.accel}: {manifest.accel_why}",
            "misc": {"qemu": manifest.qemu_version, "cpu": host.cpu, "cpus": host.cores, "kernel": host.kernel},
        },
        "misc": {"arm": arm, "name": parts[0]},
    }


def _paths(names: list[str]) -> dict[str, str]:
    """Each cell's name as a segment of a path; two that would become one are told apart by a number."""
    taken: dict[str, str] = {}
    for name in names:
        base = segment = _segment(name)
        number = 2
        while segment in taken.values():
            segment, number = f"{base}-{number}", number + 1
        taken[name] = segment
    return taken


def _segment(name: str) -> str:
    """A name without what a path may not hold; a dot would begin another segment."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _known(values: Mapping[str, object]) -> Node:
    """Nothing in the document may be null."""
    return {key: value for key, value in values.items() if value is not None}


def _text(text: str) -> str:
    """Foreign text of the length that the schema allows, without control characters but line ends."""
    return "\n".join(printable(line) for line in text.split("\n"))[:EXCERPT_CHARS]
