"""A C header of guests/include against the dtypes of its reader: constants, offsets, sizes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def constants(header: Path, prefix: str) -> dict[str, int]:
    """The numbers that ``header`` defines under names that begin with ``prefix``."""
    pattern = rf"^#define\s+({prefix}\w+)\s+(0x[0-9a-fA-F]+|\d+)(?:ull)?\b"
    return {name: int(value, 0) for name, value in re.findall(pattern, header.read_text(), re.MULTILINE)}


def layout_said(header: Path, structs: Mapping[str, np.dtype[np.void]], folder: Path) -> list[str]:
    """What the compiler says of every struct and field, in the form of :func:`layout_expected`."""
    lines = [f'#include "{header}"', "#include <stddef.h>", "#include <stdio.h>", "int main(void) {"]
    for struct, dtype in structs.items():
        lines.append(f'printf("{struct} %zu\\n", sizeof(struct {struct}));')
        for name in dtype.names or ():
            size = f"sizeof(((struct {struct} *)0)->{name})"
            lines.append(f'printf("{struct}.{name} %zu %zu\\n", offsetof(struct {struct}, {name}), {size});')
    (folder / "layout.c").write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", folder / "layout", folder / "layout.c"], check=True)
    return subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout.splitlines()


def layout_expected(structs: Mapping[str, np.dtype[np.void]]) -> list[str]:
    """``struct SIZE`` and ``struct.field OFFSET SIZE`` of every dtype."""
    expected = []
    for struct, dtype in structs.items():
        expected.append(f"{struct} {dtype.itemsize}")
        for name, (kind, offset, *_) in (dtype.fields or {}).items():
            expected.append(f"{struct}.{name} {offset} {kind.itemsize}")
    return expected
