"""What is read from ELF files: the build id of a vmlinux, and which libraries a program needs (gABI, chapter 5)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import BuildError

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
DT_NULL, DT_NEEDED, DT_STRTAB, DT_RPATH, DT_RUNPATH = 0, 1, 5, 15, 29
EM_X86_64 = 62
NT_GNU_BUILD_ID = 3


@dataclass(frozen=True)
class Segment:
    """A program header (gABI's Elf64_Phdr), as far as it is of use here: bytes of the file, and where they lie."""

    kind: int
    offset: int
    address: int
    length: int


def segments(data: bytes) -> tuple[Segment, ...] | None:
    """The program headers of a little-endian ELF64 file, for any machine; None for other data.

    Raises :class:`struct.error` for a table that leads out of the file.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = (struct.unpack_from("<IIQQQQ", data, table + number * size) for number in range(count))
    return tuple(Segment(kind, offset, address, length) for kind, _, offset, address, _, length in headers)


def build_id(vmlinux: Path) -> str:
    """The GNU build id, the linker's hash of the content, hex; :class:`BuildError` if there is none.

    A running kernel shows it in ``/sys/kernel/notes``. Reads the PT_NOTE segments of a little-endian ELF64 file, which
    survive stripping.
    """
    data = vmlinux.read_bytes()
    headers = segments(data)
    if headers is None:
        raise BuildError(f"{vmlinux} is no little-endian ELF64 file")
    for header in headers:
        if header.kind == PT_NOTE and (found := find_build_id(data[header.offset : header.offset + header.length])):
            return found
    raise BuildError(f"{vmlinux} has no build id")


def find_build_id(notes: bytes) -> str:
    """The build id in a sequence of ELF notes (a PT_NOTE segment, /sys/kernel/notes); empty if there is none."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        start = at + 12 + (name_size + 3) // 4 * 4
        if kind == NT_GNU_BUILD_ID and name == b"GNU\0":
            return notes[start : start + size].hex()
        at = start + (size + 3) // 4 * 4
    return ""


@dataclass(frozen=True)
class Dynamic:
    """What the dynamic linker reads of a program or library: the libraries it needs by name, the folders that it wants
    searched for them (``$ORIGIN`` filled in), and of a program its interpreter (None for a library)."""

    needed: tuple[str, ...]
    search: tuple[str, ...]
    interpreter: str | None


def dynamic(path: Path) -> Dynamic | None:
    """The dynamic section of an x86-64 ELF file, without running it; None for any other file, a static program too.

    Raises :class:`BuildError` for one whose tables point outside it.
    """
    data = path.read_bytes()
    try:
        headers = segments(data)
        if headers is None or data[18:20] != EM_X86_64.to_bytes(2, "little"):
            return None
        return _dynamic(data, headers, str(path.resolve().parent))
    except (struct.error, ValueError) as error:
        raise BuildError(f"{path} is a damaged ELF file: {error}") from error


def _dynamic(data: bytes, headers: Sequence[Segment], origin: str) -> Dynamic | None:
    section = next((header for header in headers if header.kind == PT_DYNAMIC), None)
    if section is None:
        return None
    end = section.offset + section.length
    entries = [struct.unpack_from("<qQ", data, at) for at in range(section.offset, end, 16)]
    tags = entries[: next((nr for nr, (tag, _) in enumerate(entries) if tag == DT_NULL), len(entries))]
    address = next(value for tag, value in tags if tag == DT_STRTAB)
    strings = next(
        header.offset + address - header.address for header in headers
        if header.kind == PT_LOAD and header.address <= address < header.address + header.length
    )  # fmt: skip

    def text(at: int) -> str:
        return data[at : data.index(b"\0", at)].decode("utf-8", "replace")

    paths = [text(strings + value) for tag, value in tags if tag in (DT_RPATH, DT_RUNPATH)]
    folders = [folder for path in paths for folder in path.split(":") if folder]
    interpreter = next((text(header.offset) for header in headers if header.kind == PT_INTERP), None)
    return Dynamic(
        needed=tuple(text(strings + value) for tag, value in tags if tag == DT_NEEDED),
        search=tuple(folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for folder in folders),
        interpreter=interpreter,
    )
