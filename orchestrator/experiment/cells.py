"""The cells of an experiment: guests and storms with their defaults, lists expanded to one cell for each item."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from orchestrator.experiment.guests import Guest, LinuxGuest
from orchestrator.experiment.types import Cell, Storm
from orchestrator.experiment.values import ADAPTERS, field, make, mapping, required, validated
from orchestrator.experiment.yamltext import Document, Location, Shown

MAX_CELLS = 1000
Kind = Literal["flat", "linux"]
KIND = TypeAdapter[Kind](Kind)
GUESTS: Mapping[str, type[Any]] = {"flat": Guest, "linux": LinuxGuest}


@dataclass(frozen=True)
class PlacedCell:
    """A cell and where the YAML says it: ``at`` the cell, ``keys`` each of its fields (perhaps in ``defaults``)."""

    cell: Cell
    at: Location
    keys: Mapping[str, Location]

    def key(self, name: str) -> Location:
        """Where a field is written; its cell, if it has its default value."""
        return self.keys.get(name, self.at)


def read_cells(document: Document, top: dict[str, object]) -> tuple[PlacedCell, ...]:
    defaults = mapping(document, top.get("defaults", {}), ("defaults",), ("guest", "storm")) or {}
    guest = _guest_block(document, defaults.get("guest", {}), ("defaults", "guest"), None)
    storm = _block(document, (Storm,), defaults.get("storm", {}), ("defaults", "storm"))
    section = mapping(document, top.get("cells", {}), ("cells",), None)
    placed: list[PlacedCell] = []
    names: set[str] = set()
    for name, raw in (section or {}).items():
        for cell in _expand(document, name, raw, guest, storm):
            if cell.cell.name in names:
                document.problem(("cells", name), "cells with different names", Shown(f"two {cell.cell.name!r}"))
            names.add(cell.cell.name)
            placed.append(cell)
        if len(placed) > MAX_CELLS:
            document.problem(("cells",), f"at most {MAX_CELLS} cells", Shown("more"))
            break
    return tuple(placed)


@dataclass(frozen=True)
class _Value:
    """A raw field and where it was written (in the cell, or in ``defaults``)."""

    raw: object
    at: Location


def _expand(
    document: Document, name: str, raw: object, guest: dict[str, _Value], storm: dict[str, _Value]
) -> Iterator[PlacedCell]:
    """All cells of one entry: the product of its lists, in the order in which the lists are written."""
    at: Location = ("cells", name)
    section = mapping(document, raw, at, ("guest", "storm"))
    if section is None:
        return
    if "storm" not in section:
        document.problem(at, "the key 'storm' (none, or a mapping)", None)
        return
    own_guest = {**guest, **_guest_block(document, section.get("guest", {}), (*at, "guest"), _kind_of(guest))}
    cls = GUESTS[_kind_of(own_guest) or "flat"]
    _refuse_of_other_kind(document, guest, cls)
    quiet = section["storm"] in (None, "none")
    own_storm = {} if quiet else {**storm, **_block(document, (Storm,), section["storm"], (*at, "storm"))}
    before = len(document.problems)
    required(document, cls, own_guest, (*at, "guest"))
    if not quiet:
        required(document, Storm, own_storm, (*at, "storm"))
    if field(document, Cell, "name", name, at) is None or len(document.problems) > before:
        return
    for suffix, values in _matrix(document, {**own_guest, **own_storm}, at):
        cell_name = field(document, Cell, "name", name + suffix, at)
        parts = [
            make(made, {key: values[key].raw for key in own}) for made, own in ((cls, own_guest), (Storm, own_storm))
        ]
        if cell_name is None or parts[0] is None or (parts[1] is None and not quiet):
            continue  # The values were found wrong, and reported, when their block was read.
        cell = Cell(cell_name, parts[0], None if quiet else parts[1])
        yield PlacedCell(cell, at, {key: value.at for key, value in values.items()})


def _matrix(document: Document, block: dict[str, _Value], at: Location) -> Iterator[tuple[str, dict[str, _Value]]]:
    """``(suffix, values)`` for each combination; guest and storm share no key, so one product serves both."""
    axes = {key: value.raw for key, value in block.items() if isinstance(value.raw, list)}
    if math.prod(len(axis) for axis in axes.values()) > MAX_CELLS:
        document.problem(at, f"at most {MAX_CELLS} cells", Shown("lists that expand to more"))
        return
    for chosen in itertools.product(*axes.values()):
        suffix = "".join(f",{key}={_suffix(value)}" for key, value in zip(axes, chosen, strict=True))
        yield suffix, {**block, **{key: _Value(value, block[key].at) for key, value in zip(axes, chosen, strict=True)}}


def _suffix(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _guest_block(document: Document, raw: object, at: Location, inherited: Kind | None) -> dict[str, _Value]:
    """A ``guest:`` block by the keys of its kind, or of both kinds where ``defaults`` leave the kind to the cells."""
    kind = inherited
    if isinstance(raw, dict) and "kind" in raw:
        kind = validated(document, KIND, raw["kind"], (*at, "kind"))
    classes = (GUESTS[kind],) if kind is not None else (Guest,) if at[0] == "cells" else tuple(GUESTS.values())
    found = _block(document, classes, raw, at)
    if kind is None:
        found.pop("kind", None)
    return found


def _kind_of(guest: Mapping[str, _Value]) -> Kind | None:
    raw = guest["kind"].raw if "kind" in guest else None
    return next((kind for kind in get_args(Kind) if kind == raw), None)


def _refuse_of_other_kind(document: Document, inherited: Mapping[str, _Value], cls: type[Any]) -> None:
    """A default that this cell's kind of guest does not have."""
    for key, value in inherited.items():
        if key not in ADAPTERS[cls]:
            _no_such_key(document, cls, value.at)


def _no_such_key(document: Document, cls: type[Any], at: Location) -> None:
    kind = next(kind for kind, known in GUESTS.items() if known is cls)
    document.problem(at, f"no such key with kind: {kind}", Shown("one, which would do nothing"))


def _block(document: Document, classes: tuple[type[Any], ...], raw: object, at: Location) -> dict[str, _Value]:
    """A ``guest:`` or ``storm:`` block whose every value, or every item of a list of them, is checked on its own.

    ``classes`` are those that may have its keys; a key of several has the same values in each.
    """
    guests = classes[0] in GUESTS.values()
    known = {key: cls for cls in reversed(tuple(GUESTS.values()) if guests else classes) for key in ADAPTERS[cls]}
    section = mapping(document, raw, at, known) or {}
    block = {}
    for key, value in section.items():
        cls = next((cls for cls in classes if key in ADAPTERS[cls]), None)
        if cls is None and key in known:
            _no_such_key(document, classes[0], (*at, key))
        if cls is None:
            continue
        block[key] = _Value(value, (*at, key))
        if guests and key == "kind":
            continue  # Its values are the classes themselves.
        if isinstance(value, list) and not value:
            document.problem((*at, key), "at least one value", Shown("an empty list"))
        for index, item in enumerate(value if isinstance(value, list) else []):
            field(document, cls, key, item, (*at, key, index))
        if not isinstance(value, list):
            field(document, cls, key, value, (*at, key))
    return block
