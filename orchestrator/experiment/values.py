"""Single values and records of the YAML surface: checked one by one, every problem noted with its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from orchestrator.experiment.guests import Guest
from orchestrator.experiment.types import Check
from orchestrator.experiment.yamltext import Document, Location, Shown

T = TypeVar("T")

GIT_RANGE_PREFIX = "git:"  # kernel/series.py reads the range; here only its folder must exist


class _Hints(dict[type[Any], Mapping[str, Any]]):
    """The type hints of each dataclass, looked up when it is first asked for."""

    def __missing__(self, cls: type[Any]) -> Mapping[str, Any]:
        self[cls] = get_type_hints(cls, include_extras=True)
        return self[cls]


class _Adapters(dict[type[Any], Mapping[str, TypeAdapter[Any]]]):
    """One validator for each field of a dataclass that YAML can hold as it is."""

    def __missing__(self, cls: type[Any]) -> Mapping[str, TypeAdapter[Any]]:
        self[cls] = {name: TypeAdapter(hint) for name, hint in HINTS[cls].items()}
        return self[cls]


HINTS = _Hints()
ADAPTERS = _Adapters()
CHECK = TypeAdapter[Check](Check)


def required(document: Document, cls: type[Any], given: Mapping[str, object], at: Location) -> None:
    for item in fields(cls):
        has_default = item.default is not MISSING and item.default is not PydanticUndefined
        if item.name not in given and not has_default:
            document.problem(at, f"the key {item.name!r}", None)


def record(document: Document, cls: type[T], raw: object, at: Location) -> T | None:
    """A dataclass from a mapping with exactly its keys; ``None`` after noting what is wrong."""
    section = mapping(document, raw, at, ADAPTERS[cls])
    if section is None:
        return None
    before = len(document.problems)
    required(document, cls, section, at)
    known = {key: value for key, value in section.items() if key in ADAPTERS[cls]}
    values = {key: field(document, cls, key, value, (*at, key)) for key, value in known.items()}
    if len(document.problems) > before or len(known) < len(section):
        return None
    try:
        return cls(**values)
    except ValidationError as error:
        for detail in error.errors():
            document.problem(at, expected(detail), section)
        return None


def make(cls: type[Any], raw: Mapping[str, object]) -> Any | None:
    """An instance of values that were checked before, or ``None`` if one of them was wrong."""
    try:
        return cls(**raw) if raw or cls is Guest else None
    except ValidationError:
        return None


def field(document: Document, cls: type[Any], key: str, raw: object, at: Location) -> Any | None:
    return validated(document, ADAPTERS[cls][key], raw, at, cls.__pydantic_fields__[key].description)


def validated(
    document: Document, adapter: TypeAdapter[T], raw: object, at: Location, description: str | None = None
) -> T | None:
    """``raw`` checked; a mismatched pattern is explained by the field's description, not by the pattern."""
    try:
        return adapter.validate_python(raw, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        words = description if first["type"] == "string_pattern_mismatch" else None
        document.problem(at, words or expected(first), raw)
        return None


def mapping(
    document: Document, raw: object, at: Location, keys: Mapping[str, object] | tuple[str, ...] | None
) -> dict[str, object] | None:
    """``raw`` as a mapping; unknown keys are noted. ``keys`` of ``None`` allows any (names that the user chooses)."""
    if not isinstance(raw, dict):
        document.problem(at, "a mapping", raw)
        return None
    for key in raw:
        if keys is not None and key not in keys:
            document.unknown_key(at, key, keys)
    return raw


def a_list(document: Document, raw: object, at: Location) -> list[object]:
    if isinstance(raw, list):
        return raw
    document.problem(at, "a list ([] for none)", raw)
    return []


def patch_paths(document: Document, raw: object, at: Location) -> tuple[Path, ...]:
    """Files, folders, or ``git:REPOSITORY#BASE..TIP``, whose repository must be a folder; all made absolute."""
    found: list[Path] = []
    for index, item in enumerate(a_list(document, raw, at)):
        if not (isinstance(item, str) and item.startswith(GIT_RANGE_PREFIX)):
            found += _existing(document, item, (*at, index))
            continue
        repository, _, span = item.removeprefix(GIT_RANGE_PREFIX).partition("#")
        found += [Path(f"{GIT_RANGE_PREFIX}{path}#{span}") for path in _existing(document, repository, (*at, index))]
    return tuple(found)


def paths(document: Document, raw: object, at: Location) -> tuple[Path, ...]:
    """A list of files or folders that must exist, made absolute."""
    return tuple(
        path for index, item in enumerate(a_list(document, raw, at)) for path in _existing(document, item, (*at, index))
    )


def _existing(document: Document, raw: object, at: Location) -> tuple[Path, ...]:
    """The absolute path, or nothing and a problem noted."""
    path = a_path(document, raw, at)
    if path is not None and not path.exists():
        document.problem(at, "an existing file or folder", Shown(f"nothing at {path}"))
        return ()
    return () if path is None else (path,)


def a_path(document: Document, raw: object, at: Location) -> Path | None:
    """An absolute path; relative ones start at the config file's folder, ``~`` is the home folder."""
    if not isinstance(raw, str) or not raw or not raw.isprintable():
        document.problem(at, "a path", raw)
        return None
    return Path(os.path.realpath(document.file.parent / Path(raw).expanduser()))


EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text of the form {pattern}",
    "literal_error": "{expected}",
    "value_error": "{error}",
}


def expected(detail: ErrorDetails) -> str:
    """Pydantic's error in the words of our messages."""
    template = EXPECTED.get(detail["type"])
    if template is None:
        return detail["msg"].removeprefix("Input should be ")
    return template.format(**{key: value for key, value in detail.get("ctx", {}).items()})
