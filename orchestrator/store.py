"""results/: the layout of a run, atomic writes, the lock, and what resuming finds.

    results/NAME-DATE-TIME/
        .lock               held (flock) by the process that runs it; its text names the holder
        manifest.json       written first: what ran
        plan.json  kernels/ARM.json  …
        trials/.ID.tmp/     a trial that is running
        trials/ID/          one that has finished: moved here by one rename, result.json and recording included
        superseded/ID-N/    one that was repeated elsewhere, since its block lost its machine
        status.json         written last: the run has ended

A process that is killed at any moment leaves each of these whole or absent. Nothing here is repaired on the way:
what has no valid ``result.json``, or a recording with another SHA-256, counts as never run and is run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator import proc
from orchestrator.errors import StoreError, printable
from orchestrator.experiment import Experiment
from orchestrator.manifest import Manifest
from orchestrator.results import TrialResult

T = TypeVar("T")
Status = Literal["complete", "partial", "failed"]

MANIFEST = "manifest.json"
STATUS = "status.json"
RESULT = "result.json"
RECORDING = "recording.bin"
LOCK = ".lock"
NEW_PREFIX = ".new-"
TRIAL_ID = re.compile(r"[0-9]{3,9}")
HASH_BLOCK = 1 << 20

_unique = itertools.count()
_adapters: dict[Any, TypeAdapter[Any]] = {}  # Building one takes longer than using it.


@dataclass(frozen=True)
class RunStatus:
    """How a run ended, and when (UTC, ISO 8601)."""

    status: Status
    ended: str


class Store:
    """One run's folder. A context manager: leaving it gives the lock back."""

    def __init__(self, run: Path, lock: IO[str] | None) -> None:
        self.run = run
        self._lock = lock

    @classmethod
    def open_or_create(cls, results: Path, experiment: Experiment, manifest: Manifest) -> Store:
        """Continue the newest unfinished run with the same fingerprint, or start a new one and write its manifest.

        Raises :class:`StoreError` if that run is being run by another process, or the folder cannot be used.
        """
        try:
            results.mkdir(parents=True, exist_ok=True)
            # Only one process at a time chooses, so two starts of one command cannot both begin a run.
            with contextlib.closing(take_lock(results / LOCK, blocking=True)):
                for stillborn in results.glob(f"{NEW_PREFIX}*"):  # Of a process killed in _create, under this lock.
                    shutil.rmtree(stillborn, ignore_errors=True)
                found = _unfinished(results, experiment.name, manifest.fingerprint)
                return cls.open(found) if found is not None else _create(results, experiment.name, manifest)
        except OSError as error:
            raise StoreError(f"cannot use the results folder {results}: {error}") from error

    @classmethod
    def open(cls, run: Path) -> Store:
        """Open an existing run to write in it; :class:`StoreError` if it is locked or is no run."""
        if not (run / MANIFEST).is_file():
            raise StoreError(f"{run} is not a run: it has no {MANIFEST}")
        store = cls(run, take_lock(run / LOCK))
        store._remove_leftovers()
        return store

    @classmethod
    def read(cls, run: Path) -> Store:
        """Open an existing run to read it, locked or not."""
        if not (run / MANIFEST).is_file():
            raise StoreError(f"{run} is not a run: it has no {MANIFEST}")
        return cls(run, None)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def manifest(self) -> Manifest:
        return self.load(MANIFEST, Manifest)

    @property
    def status(self) -> RunStatus | None:
        """How the run ended; ``None`` while it has not."""
        return self.load(STATUS, RunStatus) if (self.run / STATUS).exists() else None

    def path(self, name: str) -> Path:
        """A path in the run's folder, its parent made; :class:`StoreError` if ``name`` leads out of it."""
        path = self.run / name
        root = os.path.realpath(self.run)
        if os.path.commonpath([root, os.path.realpath(path)]) != root or path == self.run:
            raise StoreError(f"{printable(name)!r} leads out of the run's folder {self.run}")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, name: str, value: object) -> Path:
        """Write a dataclass (or a tuple of them) as JSON, atomically."""
        path = self.path(name)
        write_atomic(path, to_json(value))
        return path

    def load(self, name: str, cls: type[T]) -> T:
        """Read what :meth:`save` wrote; :class:`StoreError` if it is missing or does not fit ``cls``."""
        return load_json(self.run / name, cls)

    def finish(self, status: Status) -> None:
        """Mark the run as ended: running the same command again starts a new one."""
        self.save(STATUS, RunStatus(status, datetime.now(UTC).isoformat(timespec="seconds")))

    # --- trials -------------------------------------------------------------------------------------------------------

    def trial_dir(self, trial_id: str) -> Path:
        """The folder of a finished trial (it may not exist yet)."""
        if not TRIAL_ID.fullmatch(trial_id):
            raise StoreError(f"{printable(trial_id)!r} is no trial id")
        return self.path(f"trials/{trial_id}")

    def begin_trial(self, trial_id: str) -> Path:
        """An empty folder for a trial that starts now; what an interrupted attempt left there is gone."""
        running = self._running(trial_id)
        _remove(running)
        running.mkdir()
        return running

    def finish_trial(self, result: TrialResult, written_sha256: str | None = None) -> Path:
        """:meth:`seal` a trial and put it in place, all or nothing."""
        self.seal(result, written_sha256)
        self.publish([result.id])
        return self.trial_dir(result.id)

    def seal(self, result: TrialResult, written_sha256: str | None = None) -> None:
        """Put ``result`` into the trial's running folder, and all of that on disk.

        ``written_sha256`` is of the recording as this process has just written it; without it the file is read again.
        Raises :class:`StoreError` if the recording there is not the one that ``result`` names.
        """
        running = self._running(result.id)
        if result.recording_sha256:
            there = file_sha256(running / RECORDING) if written_sha256 is None else written_sha256
            if there != result.recording_sha256:
                raise StoreError(
                    f"the recording of trial {result.id} changed after it was checked: {running / RECORDING}"
                )
        try:
            (running / RESULT).write_bytes(to_json(result))  # Nobody sees it before the folder has its name.
        except OSError as error:
            raise StoreError(f"cannot write {running / RESULT}: {error.strerror}") from error
        for path in running.iterdir():
            if path.is_file() and not path.is_symlink():
                _sync(path)
        _sync(running)

    def publish(self, trial_ids: Sequence[str]) -> None:
        """Move sealed trials in place, each all or nothing, and as close to one another as can be."""
        for trial_id in trial_ids:
            _remove(self.trial_dir(trial_id))
            self._running(trial_id).rename(self.trial_dir(trial_id))
        _sync(self.run / "trials")

    def _running(self, trial_id: str) -> Path:
        return self.trial_dir(trial_id).with_name(f".{trial_id}.tmp")

    def set_aside(self, trial_id: str) -> None:
        """Keep a finished trial that is about to be replaced, in ``superseded/``; nothing if there is none."""
        final = self.trial_dir(trial_id)
        if final.exists():
            numbered = (self.path(f"superseded/{trial_id}-{count}") for count in itertools.count(1))
            final.rename(next(path for path in numbered if not path.exists()))

    def finished_trials(self) -> tuple[TrialResult, ...]:
        """Results of all whole trials, by id. Damaged or half-written ones are left out, to be run again."""
        found = (self._finished(path) for path in sorted((self.run / "trials").glob("[0-9]*")))
        return tuple(result for result in found if result is not None)

    def _remove_leftovers(self) -> None:
        """What a killed process left half done. We hold the lock, so nobody is at work on any of it."""
        for path in itertools.chain(self.run.glob(".*.tmp"), self.run.glob("*/.*.tmp"), self.run.glob("*/.doomed-*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _finished(self, folder: Path) -> TrialResult | None:
        try:
            result = load_json(folder / RESULT, TrialResult)
        except StoreError:
            return None
        if result.id != folder.name:
            return None
        if result.recording_sha256 and file_sha256(folder / RECORDING) != result.recording_sha256:
            return None
        return result


# --- JSON and files ---------------------------------------------------------------------------------------------------


def to_json(value: object) -> bytes:
    """A dataclass, or a tuple of them, as indented JSON with a final newline. Keys are field names."""
    return _adapter(type(value)).dump_json(value, indent=1) + b"\n"


def load_json(path: Path, cls: type[T]) -> T:
    """Read :func:`to_json`'s output strictly; :class:`StoreError` names the file and the first thing that is wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    return parse_json(data, cls, str(path))


def parse_json(data: bytes, cls: type[T], name: str) -> T:
    """:func:`load_json` of what is no file yet; ``name`` says what it is."""
    try:
        parsed: T = _adapter(cls).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StoreError(f"{name} is damaged: {where}: {first['msg']}") from error
    return parsed


def make_folder(path: Path) -> Path:
    """A folder and those above it, as far as they are missing; :class:`StoreError` if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {path}: {error.strerror}") from error
    return path


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: after a crash it holds the old bytes or the new ones, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_unique)}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    _sync(path.parent)


def listing_sha256(digests: Mapping[str, str]) -> str:
    """The name of a folder by what is in it: ``digests`` has the SHA-256 of each of its files, by path below it."""
    return hashlib.sha256("".join(f"{digests[name]} {name}\n" for name in sorted(digests)).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hex; empty if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(HASH_BLOCK):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def _adapter(cls: Any) -> TypeAdapter[Any]:
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def _sync(path: Path) -> None:
    """fsync a file or folder: a rename is only safe once what it names is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Delete a folder so that no half of it is ever taken for a whole: first out of sight, then piece by piece."""
    if not path.exists():
        return
    doomed = path.with_name(f".doomed-{path.name}-{os.getpid()}-{next(_unique)}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


# --- runs and their lock ----------------------------------------------------------------------------------------------


def _create(results: Path, name: str, manifest: Manifest) -> Store:
    """A new run: built under a hidden name with its lock and manifest, then renamed, so it is never seen without."""
    new = results / f"{NEW_PREFIX}{os.getpid()}-{next(_unique)}"
    new.mkdir()
    lock = take_lock(new / LOCK)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    candidates = itertools.chain([f"{name}-{stamp}"], (f"{name}-{stamp}-{count}" for count in itertools.count(2)))
    run = next(path for path in (results / candidate for candidate in candidates) if not path.exists())
    write_atomic(new / MANIFEST, to_json(manifest.of_run(run.name)))
    new.rename(run)
    _sync(results)
    return Store(run, lock)


def _unfinished(results: Path, name: str, fingerprint: str) -> Path | None:
    """The newest run of this experiment with this fingerprint that has not ended."""
    found = []
    for manifest_path in results.glob(f"{name}-*/{MANIFEST}"):
        run = manifest_path.parent
        if (run / STATUS).exists():
            continue
        with contextlib.suppress(StoreError):  # One of another version, or damaged: not ours to continue.
            manifest = load_json(manifest_path, Manifest)
            if manifest.fingerprint == fingerprint:
                found.append((manifest.started, run.name, run))
    return max(found)[2] if found else None


def take_lock(path: Path, *, blocking: bool = False) -> IO[str]:
    """Lock a file and write who holds it. The kernel gives the lock back when the holder dies, however it dies."""
    try:
        stream = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot open the lock {path}: {error.strerror}") from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError as error:
        stream.seek(0)
        holder = printable(stream.read(500).strip()) or "an unknown process"
        stream.close()
        raise StoreError(
            f"{path.parent} is in use by {holder}", hint="wait for it, or stop it and run again"
        ) from error
    stream.truncate(0)
    stream.write(f"pid {os.getpid()}: {proc.own_command()}\n")
    stream.flush()
    return stream
