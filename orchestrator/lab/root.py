"""A root of its own on a machine, for a program that brings its libraries along: files by content, linked into place.

    FOLDER/files/SHA256     each file, as every other that is copied there
    FOLDER/roots/ID/PATH    hard links to them; ID covers every path and content, so that trials share a root

``guests/lab_agent/root.c`` makes it the root of one program.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from orchestrator.errors import TargetError
from orchestrator.lab.machine import NAME_CHARS, Machine, NotRun
from orchestrator.store import file_sha256, listing_sha256

ROOTS = "roots"


def lay_out(machine: Machine, files: Mapping[str, Path]) -> str:
    """A folder on the machine that holds ``files`` (paths below it, to files here); its path there.

    A root that is there already is whole: it got its name last. Raises :class:`Cut`, :class:`CannotWrite`,
    :class:`NotRun`, and :class:`TargetError` for a path that leads out of the root.
    """
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise TargetError(f"{name!r} is not a path below the root of a trial")
    digests = {name: file_sha256(path) for name, path in files.items()}
    root = f"{machine.folder}/{ROOTS}/{listing_sha256(digests)[:NAME_CHARS]}"
    last = f"{root}/{max(files)}"
    if machine.link.insist(lambda transport: transport.size(last), machine.answer_s) >= 0:
        return root
    new = f"{root}.new"
    machine.expect(("rm", "-rf", "--", new), root=True)
    folders = sorted({str(PurePosixPath(new, name).parent) for name in files})
    machine.expect(("mkdir", "-p", "--", *folders))
    for name, path in sorted(files.items()):
        # -f: it may have been done before a cut.
        machine.expect(("ln", "-f", "--", machine.put(path, digests[name]), f"{new}/{name}"))
    moved = machine.link.run(("mv", "-T", "--", new, root))
    # As before: it may have been done, and cannot be done twice.
    if moved.returncode != 0 and machine.link.insist(lambda transport: transport.size(last), machine.answer_s) < 0:
        raise NotRun(f"{machine.host.name}: mv -T {new} {root}: {moved.said}")
    return root
