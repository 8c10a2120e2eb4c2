"""Every key of an experiment file with its values and its meaning, for help texts and the documentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from orchestrator.experiment.selftests import Selftest, SelftestSpec
from orchestrator.experiment.types import (
    DebianSource,
    GitSource,
    Guest,
    KernelSpec,
    ReportSpec,
    Schedule,
    StaleSpec,
    Storm,
    TarballSource,
    TargetSpec,
    TreeSource,
)


@dataclass(frozen=True)
class FieldDoc:
    """One key: dotted, with NAME for a name that the user chooses. ``default`` is empty where the key is required."""

    key: str
    values: str
    default: str
    doc: str


SECTIONS: tuple[tuple[str, Any], ...] = (
    ("kernel", KernelSpec),
    ("kernel.sources[].debian", DebianSource),
    ("kernel.sources[].tree", TreeSource),
    ("kernel.sources[].tarball", TarballSource),
    ("kernel.sources[].git", GitSource),
    ("target", TargetSpec),
    ("cells.NAME.guest", Guest),
    ("cells.NAME.storm", Storm),
    ("schedule", Schedule),
    ("stale", StaleSpec),
    ("selftests", SelftestSpec),
    ("selftests.tests[]", Selftest),
    ("report", ReportSpec),
)


def describe() -> tuple[FieldDoc, ...]:
    """All keys of the sections, in the order of the file."""
    return tuple(field for prefix, cls in SECTIONS for field in _of(prefix, cls))


def _of(prefix: str, cls: Any) -> Iterator[FieldDoc]:
    for item in dataclasses.fields(cls):
        info = cls.__pydantic_fields__[item.name]
        default = "" if info.default is PydanticUndefined else _word(info.default)
        yield FieldDoc(f"{prefix}.{item.name}", _values(info.annotation), default, info.description or "")


def _values(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    return {bool: "true, false", int: "a whole number", float: "a number"}.get(annotation, "")


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_word(item) for item in value) or "[]"
    if isinstance(value, Selftest):
        return value.label
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "none" if value is None else str(value)
