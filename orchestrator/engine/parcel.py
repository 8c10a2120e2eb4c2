"""A finished trial on its way from a worker to the client: its result and every file of its folder, by content.

Small trials travel whole; of a larger one the client fetches the files in pieces, so that neither side ever holds a
recording in memory.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator import proc
from orchestrator.engine.depot import FOLDER, safe_path
from orchestrator.engine.kit import VMLINUX
from orchestrator.errors import ShippingError, StoreError
from orchestrator.plan import Trial
from orchestrator.results import TrialResult
from orchestrator.store import RECORDING, RESULT, Store, file_sha256, parse_json, to_json
from orchestrator.target.target import COMMAND, COMMAND_NOTE

WHOLE_BYTES = 4 << 20  # A trial with less than this travels in one message; 65,536 faults are 1 MiB.
PIECE_BYTES = 4 << 20

Fetch = Callable[[str, int, int], bytes]
"""Bytes of a file of the trial by its name, from an offset, at most so many."""


@dataclass(frozen=True)
class Packed:
    """One file. Without ``data`` it waits on the worker."""

    name: str
    size_bytes: int
    sha256: str
    data: bytes | memoryview | None


@dataclass(frozen=True)
class Parcel:
    """One trial. ``result`` is a :class:`TrialResult` as the store writes it, read strictly by the client."""

    result: bytes
    files: tuple[Packed, ...]

    def with_data(self, data: Callable[[bytes | memoryview], bytes | memoryview]) -> Parcel:
        """The same with other data in each file that has some."""
        files = tuple(item if item.data is None else replace(item, data=data(item.data)) for item in self.files)
        return replace(self, files=files)


def pack(result: TrialResult, folder: Path) -> Parcel:
    """The trial that was run in ``folder``. Raises :class:`ShippingError` for anything there but plain files."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise ShippingError(f"{path} is no plain file: it cannot be sent to the client")
    total = sum(path.stat().st_size for path in paths)
    known = {RECORDING: result.recording_sha256}  # Empty if there is none that counts.
    return Parcel(to_json(result), tuple(_pack(path, folder, total <= WHOLE_BYTES, known) for path in paths))


def _pack(path: Path, folder: Path, whole: bool, known: Mapping[str, str]) -> Packed:
    name = path.relative_to(folder).as_posix()
    safe_path(folder, name)  # What the client would refuse is better refused here, where the file can be looked at.
    sha256 = known.get(name) or file_sha256(path)
    return Packed(name, path.stat().st_size, sha256, path.read_bytes() if whole else None)


def unpack(parcel: Parcel, trial: Trial, fetch: Fetch, kernels: Mapping[str, Path], store: Store) -> TrialResult:
    """Put a trial's files into its running folder in ``store``; the caller finishes it.

    If its result names a recording, the one that was written is that.

    ``kernels`` are this machine's, by the folder in which a worker has each
    (:attr:`orchestrator.engine.kit.Packing.kernels`): the command that is kept with the trial is made to name them.
    Raises :class:`ShippingError` if anything is not what was asked for, or not what was sent.
    """
    try:
        result = parse_json(parcel.result, TrialResult, f"a worker's result of trial {trial.id}")
    except StoreError as error:
        raise ShippingError(error.what) from error
    asked = (trial.id, trial.arm, trial.cell.name, trial.boot, trial.block, trial.seed)
    if (result.id, result.arm, result.cell, result.boot, result.block, result.seed) != asked:
        raise ShippingError(f"a worker sent another trial than {trial.id}, which it was asked for")
    folder = store.begin_trial(trial.id)
    for file in parcel.files:
        if file.name == RESULT:  # The store's own.
            raise ShippingError(f"a worker sent a file {RESULT} with trial {trial.id}")
        _write(file, safe_path(folder, file.name), fetch)
    if result.recording_sha256 and result.recording_sha256 not in [
        file.sha256 for file in parcel.files if file.name == RECORDING
    ]:
        raise ShippingError(f"a worker sent another recording of trial {trial.id} than its result names")
    _name_own_kernel(folder / COMMAND, kernels)
    return result


def _write(file: Packed, path: Path, fetch: Fetch) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as stream:
        for piece in _pieces(file, fetch):
            stream.write(piece)
            digest.update(piece)
            size += len(piece)
    if size != file.size_bytes or digest.hexdigest() != file.sha256:
        raise ShippingError(f"{path} is not what the worker sent: its SHA-256 differs")


def _pieces(file: Packed, fetch: Fetch) -> Iterator[bytes | memoryview]:
    if file.data is not None:
        yield file.data
        return
    offset = 0
    while offset < file.size_bytes:
        piece = fetch(file.name, offset, PIECE_BYTES)
        if not piece:
            raise ShippingError(f"a worker's {file.name} ends early")
        yield piece
        offset += len(piece)


def _name_own_kernel(command: Path, kernels: Mapping[str, Path]) -> None:
    """Put the client's kernel into the line that repeats a trial by hand, where the worker's copy is named."""
    if not command.exists():
        return
    text = command.read_text("utf-8", "replace")
    try:
        words = shlex.split(text.removeprefix(COMMAND_NOTE))
    except ValueError:  # Not written by proc.quote().
        return
    named = [str(_own(word, kernels)) for word in words]
    if named != words:
        command.write_text(f"{COMMAND_NOTE}{proc.quote(named)}\n")


def _own(word: str, kernels: Mapping[str, Path]) -> str | Path:
    """This machine's kernel for a worker's copy of it, which lies in a tree that is named by its content."""
    folder, _, name = word.rpartition("/")
    place, _, tree = folder.rpartition("/")
    return kernels.get(tree, word) if name == VMLINUX and place.endswith(f"/{FOLDER}/trees") else word
