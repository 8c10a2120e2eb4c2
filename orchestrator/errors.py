"""The exception tree: whose fault it is, what failed, the log, and what to type next.

Only two kinds matter to the exit code of ``orch``:

* :class:`UserError` (exit 1): something the user gave us cannot work: a config, a patch, a path.
* :class:`StageError` (exit 2): a stage failed on good input: a build, a download, a boot.

A trial that panics or hangs is *not* an exception; it is a classified :class:`~orchestrator.trial.TrialResult`.
"""

from __future__ import annotations

from pathlib import Path

# Of every command: finished; the user's mistake; a stage failed; --gate and something is worse; Ctrl-C.
EXIT_OK, EXIT_USER, EXIT_STAGE, EXIT_GATE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
TAIL_LINES = 15
TAIL_READ_BYTES = 64 * 1024


class OrchError(Exception):
    """Base of every error that ``orch`` prints without a traceback.

    ``what`` says what failed; ``log`` is a file whose last lines explain it; ``hint`` is the next command to type.
    """

    exit_code = EXIT_STAGE

    def __init__(self, what: str, *, log: Path | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.log = log
        self.hint = hint

    def render(self) -> str:
        """Text for a terminal: what failed, the log path with its last lines, and the next command."""
        lines = [f"error: {self.what}"]
        if self.log is not None:
            lines.append(f"  log: {self.log}")
            lines.extend(f"  | {line}" for line in tail(self.log))
        if self.hint:
            lines.append(f"  next: {self.hint}")
        return "\n".join(lines)


class UserError(OrchError):
    """The user's input cannot work; nothing was built or booted."""

    exit_code = EXIT_USER


class ConfigError(UserError):
    """One or more errors in an experiment file, all reported at once.

    ``problems`` are finished lines ``FILE:LINE: KEY: expected …, found …``.
    """

    def __init__(self, problems: tuple[str, ...], *, hint: str | None = None) -> None:
        count = len(problems)
        what = f"{count} error{'s' if count != 1 else ''} in the configuration\n" + "\n".join(
            f"  {problem}" for problem in problems
        )
        super().__init__(what, hint=hint)
        self.problems = problems


class MailError(UserError):
    """A mail that holds no patch, or one that cannot be recovered without guessing."""


class QuotedMailError(MailError):
    """A mail that quotes a patch: it must be recovered against a tree before it can be applied."""


class PatchError(UserError):
    """A patch that conflicts, leaves the tree, or is of a form that is refused."""


class RecordingError(OrchError):
    """A recording that is truncated, damaged, or of an unknown version."""


class StageError(OrchError):
    """A stage failed on good input."""


class SourceError(StageError):
    """No listed kernel source could be fetched."""


class BuildError(StageError):
    """A kernel or a guest program did not compile."""


class TargetError(StageError):
    """A target cannot do what was asked of it on this machine."""


class EngineError(StageError):
    """The cluster that runs the trials cannot be reached, or nobody is left there to run them."""


class ShippingError(EngineError):
    """What came over the network is not what was asked for, or not what was sent."""


class StoreError(StageError):
    """The results or cache folder cannot be used: locked, full, or of another run."""


class CommandError(StageError):
    """A command exited non-zero, was killed by a signal, or passed its deadline."""


def tail(path: Path, lines: int = TAIL_LINES) -> tuple[str, ...]:
    """The last ``lines`` lines of a log, control characters replaced; empty if there is no such file."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - TAIL_READ_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(printable(line) for line in text.splitlines()[-lines:])


def printable(text: str) -> str:
    """``text`` with control characters replaced, so that a guest cannot drive the user's terminal."""
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
