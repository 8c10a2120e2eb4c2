"""Kbuild, run so that the same inputs give the same bytes; its progress and its errors.

Nothing of our environment but ``PATH`` reaches the build: ``MAKEFLAGS`` of an outer make, ``KCFLAGS``, ``LOCALVERSION``
or ``ARCH`` would change the kernel without changing its key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import proc
from orchestrator.errors import BuildError, CommandError, ConfigError, printable
from orchestrator.kernel import kconfig

BUILD_DEADLINE_S = 4 * 3600.0
CONFIG_DEADLINE_S = 600.0
# The date of the first patch's mail. VERSION is the "#1" of `uname -v`, else a counter in the object directory.
FIXED = (
    "KBUILD_BUILD_TIMESTAMP=Mon Jan 25 12:00:00 UTC 2021",
    "KBUILD_BUILD_USER=orch",
    "KBUILD_BUILD_HOST=orch",
    "KBUILD_BUILD_VERSION=1",
    # Set and empty: no "+" for a tree that lies in a git repository.
    "LOCALVERSION=",
    # Of use with CONFIG_KASAN only. The PVH entry runs before KASAN's shadow memory exists, as does the memcmp() of
    # lib/string.c that it calls; 5.10 instruments both, and such a kernel dies in its first C function.
    "KASAN_SANITIZE_enlighten.o=n",
    "KASAN_SANITIZE_string.o=n",
)
PROGRAMS = {"make": "make", "gcc": "gcc", "ld": "binutils", "flex": "flex", "bison": "bison", "bc": "bc"}
STEP = re.compile(r"  [A-Z][A-Z0-9_/-]*(?: \[\w\])?\s+\S")
# gcc, the assembler, the linker, modpost and objtool, Kconfig, make itself.
ERROR = re.compile(
    r": (?:fatal )?error: |: Error: |undefined reference to |^ERROR: |: error: objtool: "
    r"|Kconfig\S*:\d+: (?:syntax error|unknown)|\*\*\* No rule to make target"
)
# The machine's fault and not the patch's: these never classify an arm.
MACHINE = re.compile(
    r"No space left on device|Killed signal terminated program|[Cc]annot allocate memory|virtual memory"
)
SNIPPET = re.compile(r"\s+(?:\d+ )?\|")
MAX_ERRORS = 3


@dataclass(frozen=True)
class Kbuild:
    """One object directory of one tree. ``lock_fd`` is handed to every child, see :func:`orchestrator.cache.lock`."""

    source: Path
    objects: Path
    jobs: int
    lock_fd: int

    def argv(self, *words: str) -> tuple[str, ...]:
        """The command for make targets and variables; it can be pasted into a shell."""
        environment = ["env", "-i", f"PATH={os.environ.get('PATH', os.defpath)}", "LC_ALL=C"]
        place = ["make", "-C", str(self.source), f"O={self.objects}", f"-j{self.jobs}"]
        return (*environment, *place, *FIXED, *words)


@dataclass(frozen=True)
class CompileError:
    """The patch's (or tree's) own fault: ``lines`` are the first errors, paths relative to the tree."""

    lines: tuple[str, ...]


def configure(kbuild: Kbuild, requests: Sequence[kconfig.Request], log: Path) -> None:
    """Write .config: tinyconfig with ``requests`` inside, then ``olddefconfig``, then every request checked.

    Raises :class:`ConfigError` that names fragment, line and dependency of each request that vanished.
    """
    chosen = kbuild.objects / ".orch.config"
    chosen.write_text(kconfig.all_config(kbuild.source, requests), encoding="utf-8")
    for words in (("allnoconfig", f"KCONFIG_ALLCONFIG={chosen}"), ("olddefconfig",)):
        argv = kbuild.argv(*words)
        proc.run(argv, log=log, deadline_s=CONFIG_DEADLINE_S, pass_fds=(kbuild.lock_fd,), hint=proc.quote(argv))
    text = (kbuild.objects / ".config").read_text(encoding="utf-8")
    if problems := kconfig.check(requests, text, kbuild.source):
        raise ConfigError(problems)


def compile_vmlinux(kbuild: Kbuild, log: Path, on_step: Callable[[int, str], None]) -> int | CompileError:
    """Build ``vmlinux``; the number of steps that ran, or the compiler's errors.

    ``on_step`` gets the steps so far and the current one, from another thread.
    Raises :class:`BuildError` if the machine was at fault (memory, disk, deadline).
    """
    argv = kbuild.argv("vmlinux")
    steps = 0

    def watch(line: str) -> None:
        nonlocal steps
        if STEP.match(line):
            steps += 1
            on_step(steps, printable(line.strip()))

    try:
        proc.run(argv, log=log, deadline_s=BUILD_DEADLINE_S, on_line=watch, pass_fds=(kbuild.lock_fd,))
    except CommandError as error:
        text = log.read_text(encoding="utf-8", errors="replace")
        lines = first_errors(text, kbuild.source)
        if lines and not MACHINE.search(text):
            return CompileError(lines)
        raise BuildError(error.what, log=log, hint=proc.quote(argv)) from error
    return steps


def compile_image(kbuild: Kbuild, log: Path) -> Path:
    """Build the compressed image of the ``vmlinux`` that is there, which boot loaders take; its path.

    Raises :class:`BuildError`.
    """
    argv = kbuild.argv("bzImage")
    try:
        proc.run(argv, log=log, deadline_s=BUILD_DEADLINE_S, pass_fds=(kbuild.lock_fd,))
    except CommandError as error:
        raise BuildError(error.what, log=log, hint=proc.quote(argv)) from error
    return kbuild.objects / "arch/x86/boot/bzImage"


def first_errors(text: str, source: Path) -> tuple[str, ...]:
    """The first errors in a build log, each with the source line that the compiler shows below it."""
    lines = text.splitlines()
    found: list[str] = []
    errors = 0
    for number, line in enumerate(lines):
        if not ERROR.search(line):
            continue
        errors += 1
        if errors > MAX_ERRORS:
            break
        found.append(line)
        for extra in lines[number + 1 : number + 3]:
            if not SNIPPET.match(extra):
                break
            found.append(extra)
    return tuple(printable(line).replace(f"{source}/", "") for line in found)


def toolchain() -> tuple[str, ...]:
    """First lines of what compiler, linker and assembler say of themselves. :class:`UserError` if one is missing."""
    for program, package in PROGRAMS.items():
        proc.require(program, package)
    answers = (proc.run([program, "--version"], env={"LC_ALL": "C"}).stdout for program in ("gcc", "ld", "as"))
    return tuple(answer.splitlines()[0] for answer in answers)
