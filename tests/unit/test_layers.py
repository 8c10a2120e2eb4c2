"""One way down: CONTRIBUTING.md's table of the house, row by row, against what each module imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "orchestrator").rglob("*.py")
}


def rows() -> dict[str, int]:
    """Each room's row, counted from the top."""
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## The house")[2].partition("## Rules")[0]
    found = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name: row for row, cell in enumerate(found) for name in re.findall(r"`(\w+)(?:/|\.py)`", cell)}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return found


def test_every_room_is_in_the_table_and_every_row_is_a_room() -> None:
    assert set(rows()) == {room(name) for name in MODULES if room(name)}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room(name)))
def test_a_room_imports_only_rooms_below_it(module: str) -> None:
    order, own = rows(), room(module)
    above = {name for name in imported(MODULES[module]) if room(name) and order[room(name)] < order[own]}
    assert not above, f"{module} stands below {', '.join(sorted(above))}"


def test_no_room_imports_in_a_circle() -> None:
    """Rows may hold several rooms, which may import one another, but only one way."""
    needs: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        needs.setdefault(room(name), set()).update(room(other) for other in imported(path))
    left = {name: others - {name, ""} for name, others in needs.items() if name}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"import one another: {', '.join(sorted(left))}"
