"""Who ran the trials of a run, where it was not this machine: ``workers.json`` in its folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.manifest import Host
from orchestrator.store import Store, load_json

WORKERS = "workers.json"
MAX_NAMES = 8


@dataclass(frozen=True)
class WorkerFacts:
    """A worker that was ready to run trials: its name, its tool, its QEMU and its machine."""

    name: str
    tool: str
    qemu: str
    host: Host


def load(run: Path) -> tuple[WorkerFacts, ...]:
    """The workers of a run, by name; none if its trials ran here."""
    path = run / WORKERS
    return load_json(path, tuple[WorkerFacts, ...]) if path.exists() else ()


def record(store: Store, found: Iterable[WorkerFacts]) -> None:
    """Add workers to those of earlier starts of the run."""
    known = {item.name: item for item in load(store.run)}
    new = {item.name: item for item in found}
    if new.keys() - known.keys() or any(known[name] != item for name, item in new.items()):
        both = known | new
        store.save(WORKERS, tuple(both[name] for name in sorted(both)))


def rows(found: Iterable[WorkerFacts]) -> tuple[tuple[str, str], ...]:
    """(label, value) for each kind of machine among the workers, for a reader who wants to repeat the run."""
    alike: dict[str, list[str]] = {}
    for item in found:
        host = item.host
        machine = f"{host.cpu}, {host.cores} CPUs, {host.mem_mib} MiB, Linux {host.kernel.split()[0]}"
        alike.setdefault(machine, []).append(item.name)
    return tuple(
        ("workers", f"{', '.join(names[:MAX_NAMES])}{' …' if len(names) > MAX_NAMES else ''}: {machine}")
        for machine, names in alike.items()
    )
