"""``--engine`` and ``--patience``, and ``orch worker``: trials on other machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from orchestrator.errors import EXIT_OK, UserError
from orchestrator.progress import Reporter

if TYPE_CHECKING:
    from orchestrator.engine.cluster import Cluster

# Dask takes half a second to import: only what uses it does, and only then.

PATIENCE_S = 120.0
F = TypeVar("F", bound=Callable[..., object])

patience_option = click.option(
    "--patience", type=click.FloatRange(0), help=f"Seconds to wait for Dask's scheduler and workers. [{PATIENCE_S:g}]"
)


def engine_options(command: F) -> F:
    """Adds ``--engine`` and ``--patience`` to a command, as its parameters ``engine`` and ``patience``."""
    engine = click.option(
        "--engine", metavar="dask://HOST:PORT", help="Run the trials on a Dask cluster. Default: this process."
    )
    return engine(patience_option(command))


def open_cluster(
    engine: str | None, patience: float | None, reporter: Reporter
) -> contextlib.AbstractContextManager[Cluster | None]:
    """The cluster at ``--engine``; None for this process. Raises :class:`UserError` for options that cannot work."""
    if engine is None:
        if patience is not None:
            raise UserError("--patience is for --engine dask://HOST:PORT", hint="leave out --patience")
        return contextlib.nullcontext()
    from orchestrator.engine.cluster import Cluster

    return Cluster(engine, PATIENCE_S if patience is None else patience, reporter.say)


@click.command("worker")
@click.argument("engine", metavar="dask://HOST:PORT")
@click.option("--offer", "offers", metavar="ACCEL=N", multiple=True, help="N boots at once under kvm, tcg or icount.")
@click.option(
    "--lab", "lab_file", type=click.Path(dir_okay=False, path_type=Path), help="Offer the machines of this lab file."
)
@click.option("--host", "hosts", metavar="NAME", multiple=True, help="Only this machine of it. Several are allowed.")
@click.option("--name", help="What it is called in messages. Default: host name and process id.")
@patience_option
def worker_command(
    engine: str,
    offers: Sequence[str],
    lab_file: Path | None,
    hosts: Sequence[str],
    name: str | None,
    patience: float | None,
) -> int:
    """Offer this machine to the runs that are started with --engine dask://HOST:PORT.

    Without --offer and --lab it offers what works here: icount on every CPU, and one boot at a time of what takes real
    time. Whoever reaches the scheduler's port can run any code on this machine: see docs/dask.md.
    """
    from orchestrator.engine import worker

    machines = worker.find_hosts(lab_file, hosts)
    wanted = [worker.parse_offer(offer) for offer in offers]
    boots = worker.find_offers(wanted) if wanted or not machines else ()
    worker.work(
        engine, worker.Offers(boots, machines), name, PATIENCE_S if patience is None else patience, Reporter().say
    )
    return EXIT_OK
