"""errors.py: exit codes, and what a person sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import errors


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.UserError, 1), (errors.MailError, 1), (errors.PatchError, 1), (errors.RecordingError, 2),
        (errors.StageError, 2), (errors.SourceError, 2), (errors.BuildError, 2), (errors.TargetError, 2),
        (errors.StoreError, 2), (errors.CommandError, 2),
    ],
)  # fmt: skip
def test_exit_codes(cls: type[errors.OrchError], code: int) -> None:
    assert cls("what").exit_code == code
    assert issubclass(cls, errors.OrchError)


def test_a_rendered_error_has_what_log_tail_and_next(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)) + "\x1b[31mred\n")
    text = errors.BuildError("it failed", log=log, hint="make it work").render().splitlines()
    assert text[0] == "error: it failed" and text[1] == f"  log: {log}" and text[-1] == "  next: make it work"
    assert text[2:-1] == [f"  | line {number}" for number in range(86, 100)] + ["  | \N{REPLACEMENT CHARACTER}[31mred"]


def test_a_rendered_error_without_log_or_hint_is_one_line(tmp_path: Path) -> None:
    assert errors.UserError("no").render() == "error: no"
    assert errors.UserError("no", log=tmp_path / "none").render() == f"error: no\n  log: {tmp_path}/none"


def test_config_errors_are_counted_and_listed() -> None:
    one = errors.ConfigError(("f:1: a: expected b, found c",))
    assert one.what == "1 error in the configuration\n  f:1: a: expected b, found c"
    two = errors.ConfigError(("x", "y"), hint="orch plan")
    assert two.what.startswith("2 errors") and two.problems == ("x", "y") and two.hint == "orch plan"


def test_tail_reads_only_the_end_of_a_big_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff" * 200_000 + b"\nlast\n")
    assert errors.tail(log, 1) == ("last",)
    assert len(errors.tail(log, 2)[0]) < errors.TAIL_READ_BYTES
    assert errors.tail(tmp_path / "none") == ()


def test_printable_keeps_tabs_and_letters_only() -> None:
    assert errors.printable("a\tä→\x1b\x00\x7f\u202e") == "a\tä→" + "\N{REPLACEMENT CHARACTER}" * 4
