"""Config fragments: what they ask for, what the kernel's Kconfig made of it, and why an option vanished."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ConfigError

SET = re.compile(r'CONFIG_(?P<symbol>\w+)=(?P<value>[ymn]|"(?:[^"\\]|\\.)*"|-?[0-9]+|0x[0-9a-fA-F]+)')
UNSET = re.compile(r"# CONFIG_(?P<symbol>\w+) is not set")
NOT_SET = "n"
# `make tinyconfig` is allnoconfig with these on top (scripts/kconfig/Makefile); 6.x has tiny-base.config as well.
TINY = ("kernel/configs/tiny-base.config", "kernel/configs/tiny.config", "arch/x86/configs/tiny.config")
WORD = re.compile(r"\b[A-Z0-9][A-Z0-9_]+\b")


@dataclass(frozen=True)
class Request:
    """One line of a fragment. ``value`` as in .config (strings with their quotes); ``n``: must not be set."""

    symbol: str
    value: str
    fragment: Path
    line: int

    @property
    def text(self) -> str:
        """The line as .config has it."""
        return config_line(self.symbol, self.value)


def config_line(symbol: str, value: str) -> str:
    """``CONFIG_X=value``, or the comment that stands for an option that is off."""
    return f"# CONFIG_{symbol} is not set" if value == NOT_SET else f"CONFIG_{symbol}={value}"


def read(fragments: Sequence[Path]) -> tuple[Request, ...]:
    """All requests, a later line for a symbol replacing an earlier one, sorted by symbol.

    Raises :class:`ConfigError` with every line that is neither a comment nor an option, and every ``=m``.
    """
    requests: dict[str, Request] = {}
    problems: list[str] = []
    for fragment in fragments:
        try:
            lines = fragment.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{fragment}: expected a kernel config fragment: {error}")
            continue
        for number, line in enumerate(lines, 1):
            found = UNSET.fullmatch(line.strip()) or SET.fullmatch(line.strip())
            if found is None:
                if line.strip() and not line.lstrip().startswith("#"):
                    problems.append(f"{fragment}:{number}: expected CONFIG_X=value or a comment, found {line!r}")
                continue
            value = found.groupdict().get("value", NOT_SET)
            if value == "m":
                problems.append(
                    f"{fragment}:{number}: CONFIG_{found['symbol']}: expected y, found m: nothing loads modules here"
                )
            requests[found["symbol"]] = Request(found["symbol"], value, fragment, number)
    if problems:
        raise ConfigError(tuple(problems))
    return tuple(requests[symbol] for symbol in sorted(requests))


def digest(requests: Sequence[Request]) -> str:
    """SHA-256 of what is asked for; comments, order and the files' names do not count."""
    return hashlib.sha256("\n".join(request.text for request in requests).encode()).hexdigest()


def all_config(tree: Path, requests: Sequence[Request]) -> str:
    """The text for ``KCONFIG_ALLCONFIG`` of ``make allnoconfig``: the tree's tinyconfig with the requests on top.

    Not ``make tinyconfig`` and a merge: merging gives every symbol that becomes visible its default, and hundreds are
    ``default y`` (input, VT, HID, power management: 151 in 5.10). Here they stay off, so a fragment is the whole story.
    """
    asked = {request.symbol for request in requests}
    lines: list[str] = []
    for name in TINY:
        path = tree / name
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            found = SET.fullmatch(line.strip()) or UNSET.fullmatch(line.strip())
            if found and found["symbol"] not in asked:
                lines.append(line.strip())
    return "\n".join([*lines, *(request.text for request in requests)]) + "\n"


def parse(config: str) -> dict[str, str]:
    """The options that a .config sets."""
    return {found["symbol"]: found["value"] for line in config.splitlines() if (found := SET.fullmatch(line))}


def check(requests: Sequence[Request], config: str, tree: Path) -> tuple[str, ...]:
    """One finished line for each request that ``config`` does not honour, with the unmet dependency if it is found."""
    have = parse(config)
    lost = [request for request in requests if have.get(request.symbol, NOT_SET) != request.value]
    if not lost:
        return ()
    definitions = _definitions(tree, {request.symbol for request in lost})
    problems = []
    for request in lost:
        found = config_line(request.symbol, have.get(request.symbol, NOT_SET))
        reason = _reason(request, definitions.get(request.symbol), have)
        problems.append(f"{request.fragment}:{request.line}: expected {request.text}, found {found}: {reason}")
    return tuple(problems)


def _reason(request: Request, conditions: tuple[str, ...] | None, have: dict[str, str]) -> str:
    if conditions is None:
        return "this tree has no such option"
    if request.value == NOT_SET:
        return "another option selects it"
    for condition in conditions:
        words = WORD.findall(re.sub(r'"[^"]*"', "", condition))
        unmet = [word for word in words if word not in have and not re.search(rf"!\s*{word}\b", condition)]
        hindering = [word for word in words if word in have and re.search(rf"!\s*{word}\b", condition)]
        if unmet or hindering:
            missing = [*(f"{word} is not set" for word in unmet), *(f"{word} is set" for word in hindering)]
            return f"it depends on {condition}; {', '.join(missing)}"
    if conditions:
        return "it depends on " + " and ".join(conditions) + ", or another choice excludes it"
    return "another choice excludes it, or its value is out of range"


def _definitions(tree: Path, symbols: set[str]) -> dict[str, tuple[str, ...]]:
    """The conditions of each symbol: its ``depends on`` lines and those of the blocks around it in its file."""
    found: dict[str, tuple[str, ...]] = {}
    for file in sorted(tree.rglob("Kconfig*")):
        if file.is_file():
            for symbol, conditions in _conditions(file.read_text(encoding="utf-8", errors="replace")):
                if symbol in symbols and (symbol not in found or not found[symbol]):
                    found[symbol] = conditions
    return found


def _conditions(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Symbols of one Kconfig file with their conditions. Blocks of other files that source this one are not seen."""
    blocks: list[list[str]] = []
    symbol = ""
    own: list[str] = []
    for line in [*re.sub(r"\\\n\s*", " ", text).splitlines(), "config "]:
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if word in {"config", "menuconfig", "choice", "menu", "if", "endif", "endmenu", "endchoice", "source"}:
            if symbol:
                yield symbol, tuple([condition for block in blocks for condition in block] + own)
            symbol, own = (rest, []) if word in {"config", "menuconfig"} else ("", [])
        if word in {"if", "menu", "choice"}:
            blocks.append([rest] if word == "if" else [])
        elif word in {"endif", "endmenu", "endchoice"} and blocks:
            blocks.pop()
        elif word == "depends" and rest.startswith("on "):
            (own if symbol else blocks[-1] if blocks else []).append(rest.removeprefix("on ").strip())
