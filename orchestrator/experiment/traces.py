"""What ``trace:`` asks for: which cells are booted once more with the host kernel's tracing on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from orchestrator.experiment.strict import STRICT

TRACED_PREFIX = "traced,"
# With this one line survive all that guests/tracer needs: KPROBE_EVENTS depends on FTRACE and KPROBES and selects
# TRACING, which selects EVENT_TRACING and the ring buffer (kernel/trace/Kconfig, 5.10).
NEEDED_LINE = "CONFIG_KPROBE_EVENTS=y"
_NEEDED = re.compile(rf"^{NEEDED_LINE}\s*$", re.MULTILINE)


@dataclass(frozen=True, config=STRICT)
class TraceSpec:
    """``cells`` are names after expansion, in the experiment's order."""

    cells: Annotated[
        tuple[str, ...],
        Field(description="cells to boot once more, traced; a name as in cells means all it expands to. Default: all"),
    ] = ()
    buffer_mib: Annotated[
        int, Field(ge=1, le=16 * 1024, description="memory for the events of each CPU, MiB; about 18,000 events each")
    ] = 64


def can_trace(fragments: tuple[Path, ...]) -> bool:
    """Whether a kernel of these config fragments has what tracing needs."""
    return any(path.is_file() and _NEEDED.search(path.read_text("utf-8", "replace")) for path in fragments)
