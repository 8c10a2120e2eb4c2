"""A drawn SVG cut into its panels, so that a page can set them side by side on a desk and one below another on a phone.

matplotlib writes each panel as a group ``axes_N`` and the key as ``legend_1``, two blanks deep. Glyphs are defined
where they are first used and referred to from everywhere, which works across the SVGs of one page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.report.canvas import COLOURS, FAINT, INK, SHADE
from orchestrator.report.plots import Plot

_GROUP = re.compile(r'^  <g id="([a-z]+_\d+)">\n.*?^  </g>\n', re.DOTALL | re.MULTILINE)
_DEFS = re.compile(r"<defs>.*?</defs>", re.DOTALL)


@dataclass(frozen=True)
class Cut:
    """The parts of one plot as SVG elements: the key, and the panels in their order."""

    key: str
    panels: tuple[str, ...]


def cut(plot: Plot) -> Cut:
    """Read ``plot.svg`` and cut it. Identifiers get the plot's name, colours become the page's own."""
    text = re.sub(r"<!--.*?-->", "", plot.svg.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{plot.name}-", text)
    text = text.replace('style="fill: #ffffff"', 'style="fill: none"')
    # The palette's blue is too dark on a dark page.
    for colour, replacement in (
        (COLOURS[0].lower(), "var(--arm-blue)"),
        (INK, "currentColor"),
        (FAINT, "var(--grid)"),
        (SHADE, "var(--shade)"),
    ):
        text = text.replace(colour, replacement)
    # A hundredth of a point is far below a pixel; the rest is a third of the file.
    text = re.sub(r'(?<= d=")[^"]*', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    groups = {found[1].removeprefix(f"{plot.name}-"): found[0] for found in _named(text, plot.name)}
    rest = text
    for group in groups.values():
        rest = rest.replace(group, "")
    # Definitions outside every group (clip paths, hatches), and the glyphs of what the page does not show.
    shared = _DEFS.findall(rest) + _DEFS.findall("".join(groups.get(name, "") for name in ("text_1", "patch_1")))
    panels = [groups[name] for name in sorted(groups, key=_order) if name.startswith("axes_")]
    return Cut(
        _element(plot.key, "".join(shared) + groups.get("legend_1", "")),
        tuple(_element(box, panel) for box, panel in zip(plot.boxes, panels, strict=True)),
    )


def _named(text: str, name: str) -> list[re.Match[str]]:
    return list(re.finditer(_GROUP.pattern.replace("([a-z]+", f"({re.escape(name)}-[a-z]+"), text, _GROUP.flags))


def _order(name: str) -> int:
    return int(name.rpartition("_")[2])


def _element(box: tuple[float, float, float, float], content: str) -> str:
    view = " ".join(f"{value:.2f}" for value in box)
    width = f"{box[2]:.0f}pt"
    return f'<svg viewBox="{view}" style="max-width: calc({width} * 1.35)" aria-hidden="true">{content}</svg>'
