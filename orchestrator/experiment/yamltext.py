"""YAML with the line of every key: ``yaml.safe_load``'s values, made from ``yaml.compose``'s nodes.

Stricter than ``safe_load`` where a person's mistake would vanish silently: a key that stands twice is an error, keys
are text, and a file whose aliases unfold beyond :data:`MAX_NODES` is refused instead of eating the memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from orchestrator.errors import ConfigError, printable

Location = tuple[str | int, ...]

MAX_BYTES = 1024 * 1024
MAX_NODES = 20_000
MAX_DEPTH = 32
MAX_PROBLEMS = 50
SHOWN_CHARS = 60
MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass
class Document:
    """A parsed file: plain values, the line of every location, and the problems found so far."""

    file: Path
    data: object = None
    lines: dict[Location, int] = field(default_factory=dict)
    problems: dict[tuple[int, str], None] = field(default_factory=dict)  # An ordered set.

    def line(self, location: Location) -> int:
        """Line (from 1) of a location, or of the nearest thing around it."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def problem(self, location: Location, expected: str, found: object) -> None:
        """Note an error; the same one from two cells of a matrix counts once."""
        text = f"{dotted(location)}: expected {expected}, found {found if isinstance(found, Shown) else shown(found)}"
        self.problems[self.line(location), text] = None

    def unknown_key(self, location: Location, key: str, valid: Iterable[str]) -> None:
        """Note a key that does not exist, with the nearest one that does."""
        known = tuple(valid)
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        expected = f"the key {nearest[0]!r}" if nearest else f"one of the keys {', '.join(known)}"
        self.problem((*location, key), expected, Shown(f"the unknown key {shown(key)}"))

    def raise_problems(self) -> None:
        """Raise :class:`ConfigError` with every problem, by line, if there is one."""
        if not self.problems:
            return
        finished = [f"{self.file}:{line}: {text}" for line, text in sorted(self.problems)]
        if len(finished) > MAX_PROBLEMS:
            finished[MAX_PROBLEMS:] = [f"{self.file}: … and {len(finished) - MAX_PROBLEMS} more"]
        raise ConfigError(tuple(finished))


class Shown(str):
    """Text that is already fit to stand after "found"."""


def dotted(location: Location) -> str:
    """``("cells", "quiet", "rounds", 1)`` as ``cells.quiet.rounds[1]``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{_cut(printable(part))}" if text else _cut(printable(part))
    return text or "the file"


def shown(value: object) -> Shown:
    """A value as the user would recognise it in the file: short, printable, with its kind where that is the point."""
    match value:
        case None:
            return Shown("nothing")
        case bool():
            return Shown("true" if value else "false")
        case dict():
            return Shown("a mapping")
        case list() | tuple():
            return Shown("a list")
        case str():
            return Shown(repr(_cut(printable(value))))
        case int() if abs(value) > 10**SHOWN_CHARS:
            return Shown("a huge number")
        case _:
            return Shown(_cut(printable(str(value))))


def read(path: Path) -> Document:
    """Parse a file.

    Raises :class:`ConfigError` for one that cannot be read or is no YAML; duplicate and odd keys are noted in the
    document's ``problems`` so that they are reported together with everything else.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError((f"{path}:1: the file: expected a readable file, found: {error.strerror}",)) from error
    if len(raw) > MAX_BYTES:
        raise ConfigError((f"{path}:1: the file: expected at most {MAX_BYTES} bytes, found more",))
    return parse(raw, path)


def parse(raw: bytes, path: Path) -> Document:
    """:func:`read` on bytes; ``path`` names the file in messages."""
    document = Document(path)
    try:
        node = yaml.compose(raw.decode("utf-8"), Loader=yaml.SafeLoader)
        if node is None:
            document.problem((), "a mapping", None)
        else:
            document.data = _Builder(document).value(node, (), 0)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "nested too deeply"
        text = f"{path}:{line}: the file: expected YAML, found: {printable(str(reason))}"
        raise ConfigError((text,)) from error
    return document


class _Builder:
    """Nodes to values, counting what it makes so that aliases cannot multiply without end."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._scalars = yaml.constructor.SafeConstructor()
        self._made = 0

    def value(self, node: yaml.Node, location: Location, depth: int) -> object:
        self._made += 1
        if self._made > MAX_NODES or depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="too many or too deep values (aliases?)", problem_mark=node.start_mark)
        self._document.lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*location, index), depth + 1) for index, child in enumerate(node.value)]
        return self._scalar(node, location)

    def _mapping(self, node: yaml.MappingNode, location: Location, depth: int) -> dict[str, object]:
        result: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE_TAG:
                for source in self._merge_sources(value_node, location):
                    merged = {**self._mapping(source, location, depth + 1), **merged}
                continue
            key = self._key(key_node, location)
            if key is None:
                continue
            self._document.lines[*location, key] = key_node.start_mark.line + 1
            if key in result:
                self._document.problem((*location, key), "each key once", Shown("it twice"))
            result[key] = self.value(value_node, (*location, key), depth + 1)
        return {**merged, **result}

    def _merge_sources(self, node: yaml.Node, location: Location) -> Iterator[yaml.MappingNode]:
        """What ``<<:`` names: one mapping, or a list of them, the first of which wins."""
        self._made += 1
        if self._made > MAX_NODES:
            raise yaml.MarkedYAMLError(problem="too many values (aliases?)", problem_mark=node.start_mark)
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(source, yaml.MappingNode):
                yield source
            else:
                self._document.problem(location, "a mapping after <<", Shown("something else"))

    def _key(self, node: yaml.Node, location: Location) -> str | None:
        """The text of a key. ``on:`` and ``1:`` are taken as they are written, not as a boolean or a number."""
        if isinstance(node, yaml.ScalarNode):
            return str(node.value)
        self._document.lines.setdefault(location, node.start_mark.line + 1)
        self._document.problem(location, "keys that are text", Shown("a list or mapping as a key"))
        return None

    def _scalar(self, node: yaml.Node, location: Location) -> object:
        try:
            return self._scalars.construct_object(node)
        except (ValueError, OverflowError, LookupError, ArithmeticError, TypeError, AttributeError):
            # A date in month 13, "0x" without digits, a number of 5,000 digits, "!!int" before text.
            self._document.problem(location, "a value that YAML can read", str(node.value))
            return None


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
