"""proc.py: logs, deadlines, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator import proc
from orchestrator.errors import CommandError, UserError

PYTHON = sys.executable


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_output_is_captured_and_timed() -> None:
    done = proc.run([PYTHON, "-c", "import sys; print('out'); sys.stdout.flush(); print('err', file=sys.stderr)"])
    assert (done.returncode, done.stdout) == (0, "out\nerr\n") and 0 < done.seconds < 60


def test_no_shell_ever_sees_a_word() -> None:
    word = "$(id); `id` | 'x' \"y\" \n*"
    assert proc.run([PYTHON, "-c", "import sys; print(sys.argv[1:])", word]).stdout == f"{[word]}\n"


def test_stdin_environment_and_folder_reach_the_child(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.stdin.read(), os.environ['EXTRA'], 'PATH' in os.environ, os.getcwd())"
    done = proc.run([PYTHON, "-c", code], stdin=b"in", env={"EXTRA": "e"}, cwd=tmp_path)
    assert done.stdout == f"in e True {tmp_path}\n"
    assert proc.run([PYTHON, "-c", "import sys; print(repr(sys.stdin.read()))"]).stdout == "''\n"


def test_a_log_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "new" / "x.log"
    for word in ("one", "two"):
        assert proc.run([PYTHON, "-c", f"print('{word}')"], log=log).stdout == ""
    assert log.read_text() == "one\ntwo\n"


@pytest.mark.parametrize("logged", [True, False])
def test_every_line_is_seen_as_it_comes(tmp_path: Path, logged: bool) -> None:
    log = tmp_path / "log" if logged else None
    lines: list[str] = []
    done = proc.run([PYTHON, "-c", "print('a\\nb')"], log=log, on_line=lines.append)
    assert lines == ["a", "b"]
    assert (log.read_text() if log else done.stdout) == "a\nb\n"


def test_a_failure_names_code_command_and_last_lines() -> None:
    with pytest.raises(CommandError, match=r"exited with 3: .*\n  \| almost \N{REPLACEMENT CHARACTER}$") as caught:
        proc.run([PYTHON, "-c", "import sys; print('almost \\x1b'); sys.exit(3)"], hint="try again")
    assert caught.value.hint == "try again"
    assert proc.run([PYTHON, "-c", "import sys; sys.exit(3)"], accept=(0, 3)).returncode == 3


def test_a_failure_with_a_log_points_to_it(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as caught:
        proc.run([PYTHON, "-c", "print(6 * 7); raise SystemExit(1)"], log=tmp_path / "log")
    assert caught.value.log == tmp_path / "log" and "42" not in caught.value.what
    assert "  | 42" in caught.value.render()


def test_a_signal_is_named() -> None:
    with pytest.raises(CommandError, match="died of SIGSEGV"):
        proc.run([PYTHON, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"])


def test_a_deadline_ends_the_whole_group() -> None:
    code = "sleep 600 & echo $!; sleep 600"
    lines: list[str] = []
    started = time.monotonic()
    with pytest.raises(CommandError, match="no end after 3 s, killed"):
        proc.run(["sh", "-c", code], deadline_s=3, on_line=lines.append)
    assert time.monotonic() - started < 300
    assert gone_within(int(lines[0]), 60)


def test_a_child_that_ignores_term_is_killed() -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    with proc.start([PYTHON, "-c", code]) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        assert child.poll() is None
        assert child.stop(grace_s=0.2) == -9


def test_leaving_the_context_leaves_nothing_behind() -> None:
    with proc.start(["sleep", "60"]) as child:
        assert child.wait(0.05) is None and alive(child.pid)
    assert not alive(child.pid)


def test_a_child_dies_with_us() -> None:
    """PR_SET_PDEATHSIG: kill -9 of the tool must not leave QEMUs or compilers running."""
    code = (
        "import time\nfrom orchestrator import proc\n"
        "child = proc.start(['sleep', '60'])\n"
        "while b'sleep' not in open(f'/proc/{child.pid}/cmdline', 'rb').read().split(b'\\0')[0]: time.sleep(0.01)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone_within(pid, 30)


def test_a_child_whose_parent_is_gone_before_it_could_ask_for_its_signal_does_nothing(tmp_path: Path) -> None:
    """The child's setpriv, slow here, comes to its prctl() when the tool that was killed is no longer its parent."""
    ran, ended, slow = tmp_path / "ran", tmp_path / "ended", tmp_path / "bin" / "setpriv"
    slow.parent.mkdir()
    slow.write_text(
        "#!/bin/sh\nparent=$TOOL\n"
        'while test "$parent" = "$TOOL"; do sleep 0.02; read -r _ _ _ parent _ </proc/$$/stat; done\n'
        f'{proc.require("setpriv", "util-linux")} "$@"\necho $? >{ended}\n'
    )
    slow.chmod(0o755)
    code = (
        "import os, signal\nfrom orchestrator import proc\n"
        f"os.environ.update(TOOL=str(os.getpid()), PATH={str(slow.parent)!r} + ':' + os.environ['PATH'])\n"
        f"proc.start(['touch', {str(ran)!r}])\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([PYTHON, "-c", code], check=False).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while not (ended.exists() and ended.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended.read_text() == "1\n" and not ran.exists()


def test_a_lock_can_be_handed_to_a_child(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+") as stream:
        code = f"import os; os.write({stream.fileno()}, b'seen')"
        proc.run([PYTHON, "-c", code], pass_fds=[stream.fileno()])
    assert (tmp_path / "file").read_text() == "seen"


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(UserError, match="the program no-such-program is not installed") as caught:
        proc.require("no-such-program", "some-package")
    assert caught.value.hint == "apt-get install some-package"
    assert proc.require("sh", "dash").startswith("/")


def test_quote_can_be_pasted() -> None:
    assert proc.quote(["a b", Path("/c"), "$d"]) == "'a b' /c '$d'"
    assert os.sep in proc.quote([Path("/c")])
