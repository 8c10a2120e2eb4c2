"""Files by content: what a client has shipped to this machine's cache, checked when it came and when it is used.

    shipped/files/SHA256          published by one rename, never changed
    shipped/trees/ID/NAME         hard links to those, where programs want their files side by side

All workers of one user on one machine share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import cache
from orchestrator.errors import ShippingError, StoreError, printable
from orchestrator.store import file_sha256, listing_sha256

FOLDER = "shipped"
SHA256 = re.compile(r"[0-9a-f]{64}")
SENDER = re.compile(r"[0-9a-f]{32}")
NAME_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
MAX_PARTS = 6


@dataclass(frozen=True)
class Item:
    """A file by its name (a relative path) and its content."""

    name: str
    sha256: str


def tree_id(items: Iterable[Item]) -> str:
    """The name of the folder that holds these files."""
    return listing_sha256({item.name: item.sha256 for item in items})


def safe_path(folder: Path, name: str) -> Path:
    """``folder/name``; :class:`ShippingError` for anything but plain parts: no "..", no hidden or absolute path."""
    parts = name.split("/")
    if len(parts) > MAX_PARTS or not all(NAME_PART.fullmatch(part) for part in parts):
        raise ShippingError(f"{printable(name[:200])!r} is no name of a file inside a folder")
    return folder.joinpath(*parts)


@dataclass
class Depot:
    """The files below ``root``. What was checked once is not read again while its size and time stay the same."""

    root: Path
    _checked: dict[str, tuple[int, int, bool]] = field(default_factory=dict)

    def missing(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Of these SHA-256s those that are not here, or are damaged."""
        return tuple(sha256 for sha256 in dict.fromkeys(wanted) if not self._good(sha256))

    def put(self, sha256: str, sender: str, offset: int, data: bytes, last: bool) -> None:
        """The next piece of a file, from front to back; :class:`ShippingError` if the whole is not it.

        Runs may ship the same file at once, each as a ``sender`` (32 hex digits) of its own. When one has sent it
        whole, what the others send is no longer needed, which is no failure of theirs.
        """
        final = self._path(sha256)
        if not SENDER.fullmatch(sender):
            raise ShippingError(f"{printable(sender[:100])!r} is no sender")
        part = final.with_name(f".{sha256}.{sender}.part")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            if not self._good(sha256):
                _append(part, offset, data)
                if not last:
                    return
                if file_sha256(part) != sha256:
                    part.unlink()
                    raise ShippingError(f"what was shipped as {sha256} has another content")
                part.chmod(0o555)  # Some are programs.
                part.replace(final)
            for other in final.parent.glob(f".{sha256}.*.part"):  # Also of senders that died in the middle.
                other.unlink(missing_ok=True)
        except OSError as error:
            if not self._good(sha256):  # Else another process has just published it, and removed our part.
                raise StoreError(f"cannot keep a shipped file: {error}") from error

    def file(self, sha256: str) -> Path:
        """The file with this content; :class:`StoreError` if it is not here or is damaged."""
        if not self._good(sha256):
            raise StoreError(f"{self._path(sha256)} is missing or damaged")
        return self._path(sha256)

    def tree(self, items: Sequence[Item]) -> Path:
        """A folder that holds these files under their names; :class:`StoreError` if one is not here."""
        folder = self.root / "trees" / tree_id(items)
        sources = [(safe_path(folder, item.name), self.file(item.sha256)) for item in items]
        if all(path.exists() and path.samefile(source) for path, source in sources):
            return folder
        with (
            cache.lock(folder.with_suffix(".lock"), wait_s=60, say=lambda text: None),
            cache.publish(folder) as temporary,
        ):
            for item in items:
                path = safe_path(temporary, item.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.hardlink_to(self.file(item.sha256))
        return folder

    def _good(self, sha256: str) -> bool:
        path = self._path(sha256)
        try:
            state = path.stat()
        except OSError:
            return False
        size, time_ns, good = self._checked.get(sha256, (-1, 0, False))
        if (size, time_ns) != (state.st_size, state.st_mtime_ns):
            good = file_sha256(path) == sha256
            self._checked[sha256] = (state.st_size, state.st_mtime_ns, good)
        return good

    def _path(self, sha256: str) -> Path:
        if not SHA256.fullmatch(sha256):
            raise ShippingError(f"{printable(sha256[:100])!r} is no SHA-256")
        return self.root / "files" / sha256


def _append(part: Path, offset: int, data: bytes) -> None:
    with part.open("r+b" if offset else "wb") as stream:
        stream.seek(offset)
        stream.write(data)
        stream.truncate()
