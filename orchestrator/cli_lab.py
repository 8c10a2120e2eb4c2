"""``orch lab``: the machines of ``target: ssh``, for the person who looks after them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from orchestrator import lab
from orchestrator.errors import EXIT_OK, EXIT_STAGE, UserError, printable
from orchestrator.lab import connection, journal, status
from orchestrator.lab.status import Answer, Known
from orchestrator.lab.types import LabHost


@click.group("lab")
def lab_group() -> None:
    """The machines of `target: ssh`: how they are, and back from quarantine."""


@lab_group.command("status")
@click.argument("lab_file", metavar="[LAB]", required=False, type=click.Path(path_type=Path))
def status_command(lab_file: Path | None) -> int:
    """List the machines that runs have met and their states; or ask every machine of the file LAB, changing nothing."""
    if lab_file is not None:
        answers = [(host, status.ask(host, connection.connect)) for host in lab.load(lab_file).hosts]
        for host, answer in answers:
            click.echo("\n".join(_asked(host, answer)))
        well = all(isinstance(answer, Answer) and not answer.problems for _, answer in answers)
        return EXIT_OK if well else EXIT_STAGE
    for item in status.known():
        click.echo("\n".join(_known(item)))
    return EXIT_OK


@lab_group.command("release")
@click.argument("name", metavar="HOST")
def release_command(name: str) -> int:
    """Use HOST again, which was quarantined. The kernel that it runs then is taken for its known-good one."""
    entries = status.release(name)
    if not entries:
        raise UserError(f"no machine called {name!r} is in quarantine", hint="orch lab status")
    for entry in entries:
        click.echo(f"{entry.host} is released; it {printable(entry.reason)}")
    return EXIT_OK


def _known(item: Known) -> Iterator[str]:
    if item.journal is not None:
        found = item.journal
        yield f"{item.id}: {found.state} since {found.since}, known-good kernel {printable(str(found.known_good))}"
        if not found.settled:
            yield f"  left by {printable(found.owner)}; the next run brings it home"
    if item.quarantine is not None:
        yield f"{item.id}: QUARANTINED since {item.quarantine.since}: it {printable(item.quarantine.reason)}"
        yield f"  next: look after it, then: orch lab release {item.id}"


def _asked(host: LabHost, answer: Answer | str) -> Iterator[str]:
    found = journal.quarantined(host)
    if found is not None:
        yield f"{host.name}: QUARANTINED since {found.since}: it {printable(found.reason)}"
    if isinstance(answer, str):
        yield f"{host.name}: {printable(answer)}"
        return
    paging = {True: "TDP", False: "shadow paging", None: "no KVM"}[answer.tdp]
    yield f"{host.name}: runs {printable(str(answer.kernel))}, {paging}, load {printable(answer.load_average)}"
    if answer.holder is not None:
        yield f"  leased to {answer.holder}"
    for problem in answer.problems:
        yield f"  problem: {printable(problem)}"
