"""The ``orch`` command: arguments in, exit codes out, and the only traceback policy.

Exit codes: 0 finished; 1 the user's mistake; 2 a stage failed; 3 ``--gate`` and a regression or a failed check.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click

from orchestrator import (
    __version__,
    again,
    cache,
    cli_engine,
    cli_lab,
    cli_nights,
    doctor,
    experiment,
    image,
    plan,
    proc,
    run,
)
from orchestrator.analysis import stopping
from orchestrator.analysis.model import COMPARISON_FILE, Comparison, from_json
from orchestrator.errors import (
    EXIT_GATE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_STAGE,
    EXIT_USER,
    OrchError,
    UserError,
    printable,
)
from orchestrator.experiment import STALE_CASES, Cell, PlannedCell, SelftestCell, StaleCase, StaleOp, TracedCell, fields
from orchestrator.kernel import mail, patch
from orchestrator.progress import Reporter
from orchestrator.report.table import write_table
from orchestrator.results import Outcome
from orchestrator.store import write_atomic
from orchestrator.target import qemu
from orchestrator.trial import make_job

SIGNS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}

config_argument = click.argument("config", type=click.Path(path_type=Path))
tree_option = click.option(
    "--tree", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="A kernel tree."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="orch")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """From a KVM patch in a mail to a verdict: is it correct, is it faster, and why.

    Exit codes: 0 finished; 1 your mistake (config, patch, path); 2 a stage failed (build, boot, trial);
    3 with --gate, something regressed or a check failed.
    """


@cli.command("run")
@click.argument("configs", metavar="CONFIG...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--results", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder of all runs."
)
@click.option("--jobs", type=click.IntRange(1), help="Trials at a time. Default: all CPUs under icount, else 1.")
@click.option("--gate", is_flag=True, help="Exit with 3 if something regressed or a check failed.")
@cli_engine.engine_options
def run_command(
    configs: Sequence[Path], results: Path, jobs: int | None, gate: bool, engine: str | None, patience: float | None
) -> int:
    """Run the experiment in CONFIG: build the kernels, run the trials, write the report.

    A run that was interrupted goes on where it was when the same command is given again.

    Several CONFIGs run one after the other, each as a run of its own, all of them read and checked before the first
    one builds anything. Then a page in RESULTS/beside/ shows them side by side, and the exit code is the worst of
    theirs (2, 1, 3, 0). Given again, the command leaves out those that have ended, until all have.
    """
    reporter = Reporter()
    command = ["orch", *sys.argv[1:]]
    if len(configs) > 1:
        return cli_nights.run_several(
            configs, results, jobs, command, reporter, lambda: cli_engine.open_cluster(engine, patience, reporter), gate
        )
    with cli_engine.open_cluster(engine, patience, reporter) as cluster:
        finished = run.run(configs[0], results, jobs, command, reporter, cluster=cluster)
    click.echo((finished.run / "report.txt").read_text("utf-8"))
    click.echo(f"report: {finished.run / 'report.html'}")
    if finished.failed_stage:
        return EXIT_STAGE
    return EXIT_GATE if gate and finished.gate_closed else EXIT_OK


@cli.command("plan")
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--keys", is_flag=True, help="List every key of a config with its values, default and meaning.")
def plan_command(config: Path | None, keys: bool) -> int:
    """Check CONFIG and list its trials in order, or (--keys) what a config may say. Builds and boots nothing."""
    if keys:
        _print_keys()
        return EXIT_OK
    if config is None:
        raise UserError("CONFIG is missing", hint="orch plan configs/quickstart.yaml, or orch plan --keys")
    chosen = experiment.load(config)
    stopping.check(chosen)
    made = plan.make_plan(chosen)
    for trial in made.trials:
        click.echo(f"{trial.id}  {trial.cell.name:40} {trial.arm:16} boot {trial.boot}  {_size(trial.cell)}")
    click.echo(f"{len(made.trials)} trials in {len(made.blocks)} blocks; seeds {', '.join(map(str, made.seeds[:8]))}")
    if chosen.schedule.until == "decided":
        looks = ", ".join(map(str, chosen.schedule.look_boots))
        click.echo(f"at most: a cell ends after {looks} boots of each arm, as soon as it is decided")
    return EXIT_OK


@cli.command("doctor")
def doctor_command() -> int:
    """Say what this machine can do, and the line to type where it cannot."""
    findings = doctor.examine()
    for finding in findings:
        fix = f"\n        fix: {finding.fix}" if finding.fix else ""
        click.echo(f"[{SIGNS[finding.status]}] {finding.name}: {finding.says}{fix}")
    return EXIT_STAGE if any(finding.status == "fail" for finding in findings) else EXIT_OK


@cli.group("patch")
def patch_group() -> None:
    """Take a patch out of a mail, or try it against a tree."""


@patch_group.command("recover")
@click.argument("mail_file", metavar="MAIL", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tree_option
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Where the patch goes.")
def recover_command(mail_file: Path, tree: Path, out: Path) -> int:
    """Restore the patch that MAIL quotes, white space and all, from the text of a kernel tree.

    Anything ambiguous, incomplete or not found is an error that names file, hunk and mail line.
    """
    recovered = mail.recover(mail_file, tree)
    write_atomic(out, recovered.text)
    click.echo(f"{out}: {recovered.hunks} hunks in {len(recovered.files)} files")
    click.echo(f"  {printable(recovered.subject)}, {printable(recovered.author)}, {recovered.date or 'no date'}")
    for note in recovered.notes:
        click.echo(f"  {printable(note)}")
    return EXIT_OK


@patch_group.command("check")
@click.argument("patches", metavar="PATCH...", nargs=-1, required=True)
@tree_option
def check_command(patches: Sequence[str], tree: Path) -> int:
    """Say whether PATCH (a diff, mail, mailbox, folder or git:REPO#A..B; several are one series) applies."""
    state = patch.check(patch.read_series(patches), tree)
    click.echo(state.render())
    return EXIT_USER if state.kind == "conflicts" else EXIT_OK


@cli.command("build")
@config_argument
def build_command(config: Path) -> int:
    """Build the kernels of CONFIG's arms, or say where they are if they were built before."""
    chosen = experiment.load(config)
    folder = cache.cache_dir() / "recovered" / chosen.name
    kernels = run.build_kernels(chosen, folder, Reporter())
    for kernel in kernels:
        click.echo(f"{kernel.arm}: {kernel.vmlinux or 'not built'}")
    return EXIT_STAGE if any(kernel.build == "failed" for kernel in kernels) else EXIT_OK


@cli.command("boot")
@config_argument
@click.option("--arm", "arm_name", required=True, help="Which arm's kernel.")
def boot_command(config: Path, arm_name: str) -> int:
    """Boot an arm's kernel as CONFIG's target does, with a shell on this terminal. Leave with `exit`, or Ctrl-A X."""
    chosen = experiment.load(config)
    if arm_name not in [arm.name for arm in chosen.arms]:
        names = ", ".join(arm.name for arm in chosen.arms)
        raise UserError(f"{config} has no arm {arm_name!r}: it has {names}", hint=f"orch boot {config} --arm {names}")
    if chosen.target.kind != "qemu":
        raise UserError(f"target: {chosen.target.kind} boots nothing here", hint="use a config with target.kind: qemu")
    reporter = Reporter()
    setting = run.settle(chosen, reporter)
    kernels = run.build_kernels(chosen, cache.cache_dir() / "recovered" / chosen.name, reporter)
    kernel = next(item for item in kernels if item.arm == arm_name)
    target = run.make_qemu(setting, image.build_guests(reporter.say))
    job = make_job(setting.plan.trials[0], chosen.target, kernel.vmlinux)
    return qemu.boot_shell(target, job)


@cli.command("trial")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("trial_id", metavar="ID")
@click.option("--case", type=click.Choice(STALE_CASES), help="Of a stale-mapping check: only a round of this case …")
@click.option("--op", type=click.Choice(get_args(StaleOp)), help="… by this operation …")
@click.option("--round", "number", type=click.IntRange(0), help="… with this number.")
def trial_command(
    run_folder: Path, trial_id: str, case: StaleCase | None, op: StaleOp | None, number: int | None
) -> int:
    """Run trial ID of RUN once more, in RUN/reruns/, and compare the recordings; or just one round of it."""
    if case is None and op is None and number is None:
        result, folder, same = again.repeat_trial(run_folder.absolute(), trial_id, Reporter())
        compared = "recording: {} the first one, byte for byte"
    elif case is None or op is None or number is None:
        raise UserError("--case, --op and --round name one round together", hint="give all three, or none")
    else:
        result, folder, same = again.replay_round(run_folder.absolute(), trial_id, case, op, number, Reporter())
        compared = "round: {} the first one, in how the access ended and in stale pages and their content"
    click.echo(f"trial {trial_id} ({result.cell}, {result.arm}): {result.outcome} {printable(result.reason)}")
    for line in result.trace:
        click.echo(f"  | {line}")
    if same is not None:
        click.echo(compared.format("identical to" if same else "DIFFERS from"))
    click.echo(f"kept in {folder}")
    if result.outcome is Outcome.STALE:
        return EXIT_GATE
    return EXIT_OK if result.outcome is Outcome.OK else EXIT_STAGE


@cli.command("report")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report_command(run_folder: Path) -> int:
    """Make RUN's report again from its recordings (also of a run that has not finished)."""
    finished = run.redraw(run_folder.absolute())
    for path in finished.written:
        click.echo(str(path))
    return EXIT_OK


@cli.command("table")
@click.argument("run_folder", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="Markdown file; the picture goes beside it, as .svg. In a file that exists, only the part between the marks"
    " that this command writes is replaced.",
)  # fmt: skip
def table_command(run_folder: Path, output: Path) -> int:
    """Write RUN's arms by cells, and which check fails which arm, as Markdown tables and one picture."""
    for path in write_table(from_json(Comparison, run_folder / COMPARISON_FILE), output):
        click.echo(str(path))
    return EXIT_OK


for command in (*cli_nights.COMMANDS, cli_engine.worker_command, cli_lab.lab_group):
    cli.add_command(command)


def _debug() -> bool:
    return "--debug" in sys.argv[1:]


def _show(error: OrchError) -> None:
    if _debug():
        traceback.print_exc()
    click.echo(error.render(), err=True)


def _size(cell: PlannedCell) -> str:
    if isinstance(cell, Cell):
        return f"{cell.guest.nr_faults} faults"
    if isinstance(cell, TracedCell):
        return f"{cell.cell.guest.nr_faults} faults, traced"
    if isinstance(cell, SelftestCell):
        return f"{len(cell.selftests.tests)} tests"
    return f"{cell.stale.rounds * sum(len(cell.stale.rounds_of(op)) for op in cell.stale.ops)} rounds"


def _print_keys() -> None:
    for field in fields.describe():
        default = f" (default {field.default})" if field.default else ""
        click.echo(f"{field.key}: {field.values}{default}\n    {field.doc}")


def main() -> None:
    """Entry point of ``orch``. No error shows a traceback, unless ``--debug``; the exit code is the same with it."""
    try:
        code = cli.main(standalone_mode=False)
    except OrchError as error:
        _show(error)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = EXIT_USER
    except (KeyboardInterrupt, click.Abort):  # click makes the second of the first
        # Trials run in other threads; every file on disk is whole at any moment, and children die with us.
        click.echo(f"interrupted; to go on: {proc.quote(['orch', *sys.argv[1:]])}", err=True)
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)
    except Exception as error:
        hint = f"{proc.quote(['orch', '--debug', *sys.argv[1:]])}   (says where)" if not _debug() else None
        _show(OrchError(f"unexpected {type(error).__name__}: {printable(str(error))}", hint=hint))
        code = EXIT_STAGE
    sys.exit(code or EXIT_OK)


if __name__ == "__main__":
    main()
