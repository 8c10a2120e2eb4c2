"""How figures and foreign text are written, for every form of the report."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import printable

NOT_MEASURED = "n/a"


def clean(text: str) -> str:
    """Text from a mail, patch or guest, made harmless: control and direction-changing characters are replaced."""
    return "\n".join(printable(line) for line in text.split("\n"))


def microseconds(value_ns: float | None) -> str:
    """Nanoseconds as µs with at least three significant digits: ``5.374``, ``58.2``, ``12,000``."""
    if value_ns is None:
        return NOT_MEASURED
    value = value_ns / 1000
    digits = 3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0
    return f"{value:,.{digits}f}"


def duration(value_ns: float) -> str:
    """Nanoseconds in the unit that fits, for axes and labels: ``5.37 µs``, ``12 ms``."""
    for limit, unit in ((1e3, "ns"), (1e6, "µs"), (1e9, "ms")):
        if value_ns < limit * 0.9995:
            return f"{value_ns / limit * 1e3:.3g} {unit}"
    return f"{value_ns / 1e9:.3g} s"


def per_fault(value: float | None) -> str:
    """Exits or retries per fault."""
    if value is None:
        return NOT_MEASURED
    return "0" if value == 0 else f"{value:.1e}" if value < 0.00005 else f"{value:.4f}" if value < 1 else f"{value:.3f}"


def grouped(said: Sequence[tuple[str, str]]) -> str:
    """(who, what) with each ``what`` said once: ``v1, v2 improved; v3 equivalent``, or ``all 4 improved``."""
    kinds = dict.fromkeys(what for _, what in said)
    if len(kinds) == 1 and len(said) > 2:
        return f"all {len(said)} {said[0][1]}"
    return "; ".join(f"{', '.join(who for who, what in said if what == kind)} {kind}" for kind in kinds)
