"""The GNU build id of a vmlinux: the linker's hash of its content, which the running kernel shows, too."""

from __future__ import annotations

import struct
from pathlib import Path

from orchestrator.errors import BuildError

PT_NOTE = 4
NT_GNU_BUILD_ID = 3


def build_id(vmlinux: Path) -> str:
    """Hex build id (``/sys/kernel/notes`` of a running kernel has the same); :class:`BuildError` if there is none.

    Reads the PT_NOTE segments of a little-endian ELF64 file (gABI, chapter 5), which survive stripping.
    """
    data = vmlinux.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise BuildError(f"{vmlinux} is no little-endian ELF64 file")
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for number in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, table + number * size)
        if kind == PT_NOTE and (found := find_build_id(data[offset : offset + length])):
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
