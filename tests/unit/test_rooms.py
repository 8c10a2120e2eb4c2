"""One way down: the rooms of the house import each other in one direction only, and the top is nobody's import."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2] / "orchestrator"


def imports(path: Path) -> set[str]:
    """The rooms of the house that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "orchestrator":
            found |= {alias.name for alias in node.names if not alias.name.startswith("_")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orchestrator."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("orchestrator.")}
    return found


def rooms() -> dict[str, set[str]]:
    """Each room (a module or a package of the house) with the others that it imports."""
    graph: dict[str, set[str]] = {}
    for path in HOUSE.rglob("*.py"):
        room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
        graph.setdefault(room, set()).update(imports(path) - {room})
    return graph


def test_no_two_rooms_import_each_other_on_any_way_round() -> None:
    order = list(graphlib.TopologicalSorter(rooms()).static_order())  # CycleError names the rooms of a cycle.
    assert order.index("errors") < order.index("analysis") < order.index("run") < order.index("cli")


@pytest.mark.parametrize(
    ("room", "importers"),
    [
        ("cli", set()),
        ("cli_nights", {"cli"}),
        ("cli_engine", {"cli", "cli_nights"}),
        ("nights", {"cli_nights"}),
        ("run", {"cli", "nights"}),
    ],
)
def test_the_top_of_the_house_is_imported_only_from_above(room: str, importers: set[str]) -> None:
    assert {name for name, found in rooms().items() if room in found} == importers
