"""Commands about many runs: ``orch nightly``, ``history``, ``compare``, ``beside`` and ``export``; several configs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from orchestrator import cli_engine
from orchestrator.analysis.model import METRICS, Metric
from orchestrator.errors import EXIT_GATE, EXIT_OK, EXIT_STAGE, OrchError, UserError
from orchestrator.nights import besidepage, catalogue, chronicle, compare, history, nightly, page, several
from orchestrator.nights.beside import side_by_side
from orchestrator.progress import Reporter

results_option = click.option(
    "--results", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder of all runs."
)


@click.command("nightly")
@click.argument("configs", metavar="CONFIG...", nargs=-1, type=click.Path(path_type=Path))
@results_option
@click.option("--jobs", type=click.IntRange(1), help="Trials at a time. Default: all CPUs under icount, else 1.")
@click.option("--gate", is_flag=True, help="Exit with 3 if something is worse, an arm regressed or a check failed.")
@click.option(
    "--accept",
    metavar="RUN",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Count RUN as good from now on although something in it is worse. Without CONFIG, do only this.",
)
@click.option("--page", "only_page", is_flag=True, help="Without CONFIG: write the page of all nights again.")
@cli_engine.engine_options
def nightly_command(
    configs: Sequence[Path],
    results: Path,
    jobs: int | None,
    gate: bool,
    accept: Sequence[Path],
    only_page: bool,
    engine: str | None,
    patience: float | None,
) -> int:
    """Run every CONFIG with the newest kernel tree that its source has, and compare each with the nights before.

    For a timer or a CI job. One experiment that fails does not stop the others; one whose last run was interrupted
    goes on with that, and with the tree it began with. All nights are told in RESULTS/nights/index.html.

    Good is a complete run in which no check failed. Where time is counted in instructions a run is held against the
    last good one in which nothing was worse, and against an anchor: the last that was accepted, or the first. Elsewhere
    nights differ by themselves: it is held against all good nights of this machine, once there are six.

    Exit codes: 2 a stage failed in one of them; else 1 one of them is your mistake; else, with --gate, 3 something is
    worse than before, an arm regressed against its base, or a check failed; else 0.
    """
    for folder in accept:
        click.echo(f"accepted: {catalogue.accept(folder).name}")
    if not configs and not accept and not only_page:
        raise UserError("CONFIG is missing", hint="orch nightly configs/quickstart.yaml --gate")
    if not configs:
        if only_page:
            _show(page.write(results.absolute()))
        return EXIT_OK
    reporter = Reporter()
    publisher = Publisher(results.absolute(), reporter)
    night = nightly.run_night(
        configs,
        results.absolute(),
        jobs,
        ["orch", *sys.argv[1:]],
        reporter,
        lambda: cli_engine.open_cluster(engine, patience, reporter),
        publisher.publish,
    )
    written = publisher.publish()
    if written is None:  # What the night came to is in its record, and was said.
        return nightly.exit_code(night, gate) or EXIT_STAGE
    _show(written)
    return nightly.exit_code(night, gate)


def _show(written: tuple[Path, Path]) -> None:
    html, text = written
    click.echo(text.read_text("utf-8"))
    click.echo(f"page: {html}")


@dataclass(frozen=True)
class Publisher:
    """Writes the page of all nights; a page that cannot be written is said, and stops no night."""

    results: Path
    reporter: Reporter

    def publish(self) -> tuple[Path, Path] | None:
        """HTML and text; None if it failed."""
        try:
            return page.write(self.results)
        except OrchError as error:
            self.reporter.say(error.render())
        except Exception as error:
            log = nightly.nights_folder(self.results) / "page.log"
            again = ["orch", "--debug", "nightly", "--page", "--results", str(self.results)]
            self.reporter.say(nightly.unexpected(error, log, again).render())
        return None


@click.command("history")
@click.argument("name")
@results_option
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(METRICS),
    help="Only this metric; can be given several times. Default: all.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Where the files go. Default: RESULTS/nights/NAME."
)
def history_command(name: str, results: Path, metrics: Sequence[Metric], out: Path | None) -> int:
    """Show every metric of the experiment NAME over its runs, and since when its level is what it is.

    All runs below RESULTS that are like the newest one; it says which are left out, and why. Writes history.txt,
    history.csv (every value) and for each metric a plot, history-METRIC.svg and .png.
    """
    found = history.collect(results, name, metrics or METRICS)
    written = chronicle.write(found, out or nightly.nights_folder(results) / name)
    click.echo(written.text.read_text("utf-8"))
    for path in written.paths:
        click.echo(str(path))
    return EXIT_OK


@click.command("compare")
@click.argument("before", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("after", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--gate", is_flag=True, help="Exit with 3 if something is worse in the second run.")
def compare_command(before: Path, after: Path, gate: bool) -> int:
    """Compare two runs of one experiment: base with base, arm with arm, by the statistics of the report.

    Kernel tree and patches may differ: they are what is compared. Refused, with the field and both values, are runs
    that differ in anything else that changes a latency: target, accelerator, machine, QEMU and its arguments (CPU
    model), guest programs, kernel configuration, a cell's definition; unless time is counted in instructions, also
    the host's CPU.
    """
    found = compare.versus(catalogue.open_run(before.absolute()), catalogue.open_run(after.absolute()))
    click.echo(compare.render(found), nl=False)
    return EXIT_GATE if gate and found.worse else EXIT_OK


@click.command("beside")
@click.argument(
    "folders", metavar="RUN RUN...", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for beside.html and beside.txt; the page links to the runs by relative paths.",
)
def beside_command(folders: Sequence[Path], output: Path) -> int:
    """Show RUNs side by side, as `orch run CONFIG CONFIG` does: each cell and metric in a column for each run.

    Nothing is refused: in what the runs differ is said, first what is more than their target.
    """
    if len(folders) < 2:
        raise UserError("side by side takes two runs or more", hint="orch beside RUN RUN --output FOLDER")
    runs = [catalogue.open_run(folder.absolute()) for folder in folders]
    written, text = besidepage.write(side_by_side(runs), output.absolute())
    click.echo(text.read_text("utf-8"))
    click.echo(f"page: {written}")
    return EXIT_OK


def run_several(
    configs: Sequence[Path],
    results: Path,
    jobs: int | None,
    command: Sequence[str],
    reporter: Reporter,
    open_cluster: several.OpenCluster,
    gate: bool,
) -> int:
    """``orch run`` of several configs."""
    found = several.run_all(configs, results.absolute(), jobs, command, reporter, open_cluster)
    if found.page is not None:
        written, text = found.page
        click.echo(text.read_text("utf-8"))
        for part in found.parts:
            if part.run is not None:
                click.echo(f"report: {part.run.folder / 'report.html'}")
        click.echo(f"page: {written}")
    return found.exit_code(gate)


@click.command("export")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--kcidb", "form", flag_value="kcidb", required=True, help="KCIDB's JSON: checkouts, builds, tests.")
@click.option("--origin", default="orch", show_default=True, help="Your system's name, as agreed with KernelCI.")
@click.option("--url", default="", help="Where others can read the results folder, for links to consoles.")
def export_command(run_folder: Path, form: str, origin: str, url: str) -> int:
    """Print RUN in a form for other systems, checked against that form's own schema."""
    from orchestrator.nights import kcidb  # The schema takes a while to load, and no other command needs it.

    click.echo(kcidb.export(catalogue.open_run(run_folder.absolute()), origin, url), nl=False)
    return EXIT_OK


COMMANDS = (nightly_command, history_command, compare_command, beside_command, export_command)
