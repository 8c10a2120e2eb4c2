"""The kernel's own KVM selftests: static programs from the very tree that an arm's kernel is built from.

    selftests/KEY/{selftests.json, build.log, bin/NAME}    published by one rename
    build/selftests-KEY/src                                the tree, patched for one arm at a time; see workdir.py

They are built out of tree: the tests' own Makefile would install the kernel's headers into the tree, and a kernel's
build with ``O=`` then refuses it. What an arm's patches change in the tests or in the exported headers counts: a test
that a patch breaks is that patch's doing.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator import proc
from orchestrator.cache import lock, publish, remove
from orchestrator.errors import BuildError, CommandError
from orchestrator.experiment import Arm
from orchestrator.kernel import make, patch
from orchestrator.kernel.source import KernelTree
from orchestrator.kernel.workdir import Workdir
from orchestrator.store import file_sha256, load_json, to_json, write_atomic

# Count up when a change of this module changes the bytes of a program.
RECIPE = 1
TESTS = Path("tools/testing/selftests/kvm")
BUILD_DEADLINE_S = 1800.0
LOCK_WAIT_S = 3600.0
KEY_CHARS = 24
ELF_MAGIC = b"\x7fELF"
RECORD = "selftests.json"
# The tests' sources; what lies in lib/ and include/ is shared, and other architectures have folders of their own.
SOURCE_PATTERNS = ("*.c", "x86*/*.c")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Program:
    """One test: ``name`` as the tree has it (``x86_64/state_test``); without ``sha256``, ``error`` says why."""

    name: str
    sha256: str
    error: str


@dataclass(frozen=True)
class BuiltSelftests:
    """One arm's tests. ``folder`` holds ``bin/NAME`` of each program; None with ``failed``: then not one compiled.

    ``programs`` has every test of the tree, those that did not compile too. ``build_seconds`` is what the build took
    when it ran; ``cached``: not now. ``error`` holds the first errors of a failed build.
    """

    arm: str
    build: Literal["ok", "failed"]
    folder: Path | None
    programs: tuple[Program, ...]
    build_seconds: float
    cached: bool
    log: Path
    error: str

    def program(self, name: str) -> Path | None:
        """The program of a test, or None if it did not compile."""
        built = any(item.name == name and item.sha256 for item in self.programs)
        return self.folder / "bin" / name if built and self.folder is not None else None

    def error_of(self, name: str) -> str:
        """Why a test did not compile."""
        return next((item.error for item in self.programs if item.name == name), "") or self.error or "not built"


@dataclass(frozen=True)
class _Record:
    """selftests.json."""

    programs: tuple[Program, ...]
    build_seconds: float


def build_selftests(tree: KernelTree, arms: Sequence[Arm], cache: Path, say: Say) -> tuple[BuiltSelftests, ...]:
    """Build every arm's tests, or take them from the cache.

    Tests that do not compile are a result, as an arm is whose tests do not compile at all. Raises :class:`UserError`
    if a program is missing on this machine, :class:`PatchError` for a patch that does not apply,
    :class:`BuildError` if the machine fails.
    """
    toolchain = make.toolchain()
    proc.require("rsync", "rsync")
    return tuple(_build(tree, arm, toolchain, cache, say) for arm in arms)


def _build(tree: KernelTree, arm: Arm, toolchain: tuple[str, ...], cache: Path, say: Say) -> BuiltSelftests:
    series = patch.read_series(arm.patches)
    parts = (str(RECIPE), tree.content_id, *toolchain, *(one.sha256 for one in series))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:KEY_CHARS]
    kept = cache / "selftests" / key
    if (found := _kept(arm.name, kept, cached=True)) is not None:
        return found
    folder = cache / "build" / f"selftests-{tree.content_id[:KEY_CHARS]}"
    with lock(folder / ".lock", wait_s=LOCK_WAIT_S, say=say) as fd:
        if (found := _kept(arm.name, kept, cached=True)) is not None:
            return found
        say(f"selftests {arm.name}: compiling")
        work = Workdir(folder, tree.path)
        log = folder / "logs" / f"{key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"# selftests of arm {arm.name}\n", encoding="utf-8")
        started = time.monotonic()
        with work.patched(series):
            error = _make(work, fd, log)
            known = test_names(work.source)
        return _keep(arm.name, work, known, kept, log, error, time.monotonic() - started)


def test_names(tree: Path) -> tuple[str, ...]:
    """The tests of a tree for x86, as its Makefile names them."""
    folder = tree / TESTS
    found = (path for pattern in SOURCE_PATTERNS for path in folder.glob(pattern))
    return tuple(sorted(str(path.relative_to(folder).with_suffix("")) for path in found))


def _make(work: Workdir, lock_fd: int, log: Path) -> str:
    """Export the headers and compile what compiles. Returns the first errors, empty if there were none."""
    for name in ("headers", "out"):
        remove(work.path / name)
    (work.path / "out").mkdir()
    headers, programs = _commands(work)
    try:
        proc.run(headers, log=log, deadline_s=BUILD_DEADLINE_S, pass_fds=(lock_fd,), hint=proc.quote(headers))
        proc.run(programs, log=log, deadline_s=BUILD_DEADLINE_S, pass_fds=(lock_fd,), hint=proc.quote(programs))
    except CommandError as error:
        text = log.read_text(encoding="utf-8", errors="replace")
        lines = make.first_errors(text, work.source)
        if not lines or make.MACHINE.search(text):
            raise BuildError(error.what, log=log, hint=error.hint) from error
        return "\n".join(lines)
    return ""


def _commands(work: Workdir) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How the headers are exported and the tests compiled."""
    clean = ("env", "-i", f"PATH={os.environ.get('PATH', os.defpath)}", "LC_ALL=C")
    usr = f"INSTALL_HDR_PATH={work.path}/headers/usr"
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    headers = (
        *clean, "make", "-C", str(work.source), f"O={work.path}/headers", jobs, usr, "headers_install",
    )  # fmt: skip
    # LDFLAGS in the environment, since the Makefile adds to it; the headers' place on the command line, since it would
    # set its own. --keep-going: a test that does not compile takes no other one with it.
    programs = (
        *clean, "LDFLAGS=-static", "make", "-C", str(work.source / TESTS), "--keep-going",
        "KSFT_KHDR_INSTALL_DONE=1", usr, f"OUTPUT={work.path}/out", "all",
    )  # fmt: skip
    return headers, programs


def _keep(
    arm: str, work: Workdir, known: Sequence[str], kept: Path, log: Path, error: str, seconds: float
) -> BuiltSelftests:
    out = work.path / "out"
    text = log.read_text(encoding="utf-8", errors="replace") if error else ""
    built = [name for name in known if _is_program(out / name)]
    absent = tuple(Program(name, "", _error_of(text, name, error)) for name in known if name not in built)
    if not built:
        return BuiltSelftests(arm, "failed", None, absent, seconds, False, log, error or "no test was built")
    strip = proc.require("strip", "binutils")
    with publish(kept) as folder:
        programs = []
        for name in built:
            path = folder / "bin" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            proc.run([strip, "--strip-all", "-o", path, out / name])
            programs.append(Program(name, file_sha256(path), ""))
        (folder / "build.log").write_bytes(log.read_bytes())
        write_atomic(folder / RECORD, to_json(_Record((*programs, *absent), round(seconds, 3))))
    found = _kept(arm, kept, cached=False)
    if found is None:
        raise BuildError(f"{kept} vanished while it was written", log=log)
    return found


def _is_program(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(ELF_MAGIC)) == ELF_MAGIC


def _error_of(text: str, name: str, error: str) -> str:
    """The compiler's first error in a test's own source; of one whose source is fine, the build's first."""
    lines = text.splitlines()
    own = next((line for line in lines if re.match(rf"{re.escape(name)}\.c:\d+:.*error:", line)), "")
    return own or error or "its Makefile does not build it"


def _kept(arm: str, folder: Path, *, cached: bool) -> BuiltSelftests | None:
    """An arm's tests from the cache; None if they are not there or are not what was put there."""
    if not (folder / RECORD).is_file():
        return None
    record = load_json(folder / RECORD, _Record)
    if any(item.sha256 and file_sha256(folder / "bin" / item.name) != item.sha256 for item in record.programs):
        return None
    return BuiltSelftests(
        arm=arm,
        build="ok",
        folder=folder,
        programs=record.programs,
        build_seconds=record.build_seconds,
        cached=cached,
        log=folder / "build.log",
        error="",
    )
