"""A drawn SVG cut into its panels, so that a page can set them side by side on a desk and one below another on a phone.

matplotlib writes each panel as a group ``axes_N``, two blanks deep. Glyphs are defined where they are first used and
referred to from everywhere, which works across the SVGs of one page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.report.canvas import COLOURS, DASHES, FAINT, INK, MARKERS, SHADE, Box
from orchestrator.report.plots import Plot

_DEFS = re.compile(r"<defs>.*?</defs>", re.DOTALL)
# Each marker as a path around 0, 0 in a box of about 9.
_MARKS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "s": "M-4 -4h8v8h-8z", "^": "M0 -4.5l4.5 8.5h-9z",
    "D": "M0 -5l5 5l-5 5l-5 -5z", "v": "M0 4.5l4.5 -8.5h-9z", "P": "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
}  # fmt: skip
_SLANT = "M-6 12l12 -12M0 12l12 -12M6 12l12 -12M12 12l12 -12M18 12l12 -12M24 12l12 -12"
_BACK = "M-6 0l12 12M0 0l12 12M6 0l12 12M12 0l12 12M18 0l12 12M24 0l12 12"
_HATCHES = {
    "////": _SLANT, "\\\\\\\\": _BACK, "xxxx": _SLANT + _BACK, "||||": "M3 0v12M9 0v12M15 0v12M21 0v12M27 0v12",
}  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """The parts of one plot as SVG elements: what panels refer to and is not to be seen, and the panels in order."""

    shared: str
    panels: tuple[str, ...]


def cut(plot: Plot, labels: tuple[str, ...]) -> Cut:
    """Read ``plot.svg`` and cut it. Identifiers get the plot's name, colours become the page's own.

    ``labels``: what each panel shows, for those who hear the page; already escaped for an attribute.
    """
    text = re.sub(r"<!--.*?-->", "", plot.svg.read_text(encoding="utf-8"), flags=re.DOTALL)
    prefix = f"{plot.name}-"
    text = _recolour(re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}", text))
    grouping = re.compile(rf'^  <g id="{re.escape(prefix)}([a-z]+_\d+)">\n.*?^  </g>\n', re.DOTALL | re.MULTILINE)
    groups = {found[1]: _shrink(found[0]) for found in grouping.finditer(text)}
    rest = _shrink(grouping.sub("", text))
    # Definitions outside every group (clip paths, hatches), and the glyphs of what the page does not show.
    hidden = [group for name, group in groups.items() if not name.startswith("axes_")]
    shared = "".join((*_DEFS.findall(rest), *_DEFS.findall("".join(hidden))))
    panels = [groups[name] for name in sorted(groups, key=_order) if name.startswith("axes_")]
    return Cut(
        f'<svg class="shared" width="0" height="0" aria-hidden="true">{shared}</svg>',
        tuple(
            _element(place.box, label, panel) for place, label, panel in zip(plot.panels, labels, panels, strict=True)
        ),
    )


def sample(index: int) -> str:
    """How the lines of the arm of this index are drawn, for a key."""
    dash = DASHES[index % 6]
    pattern = "" if dash == "solid" else f' stroke-dasharray="{" ".join(f"{2 * length:g}" for length in dash[1])}"'
    colour = f"var(--arm-{index % 6 + 1})"
    return (
        '<svg class="sample" viewBox="0 -6 44 12" width="44" height="12" aria-hidden="true">'
        f'<path d="M0 0h44" fill="none" stroke="{colour}" stroke-width="2"{pattern}/>'
        f'<path transform="translate(22 0)" d="{_MARKS[MARKERS[index % 6]]}" fill="{colour}"/></svg>'
    )


def swatch(colour: str, hatch: str) -> str:
    """How a bar of this colour and hatch is drawn, for a key."""
    lines = f'<path d="{_HATCHES[hatch]}" stroke="var(--paper)" stroke-width="1.2"/>' if hatch else ""
    return (
        '<svg class="sample" viewBox="0 0 30 12" width="30" height="12" aria-hidden="true">'
        f'<path d="M0 0h30v12h-30z" fill="{_recolour(colour)}"/>{lines}</svg>'
    )


def _recolour(text: str) -> str:
    """Colours of the light page become the page's custom properties; panels have no ground of their own."""
    text = text.replace('style="fill: #ffffff"', 'style="fill: none"')
    names = {INK: "currentColor", FAINT: "var(--grid)", SHADE: "var(--shade)", "#ffffff": "var(--paper)"}
    names |= {colour: f"var(--arm-{number})" for number, colour in enumerate(COLOURS, 1)}
    for colour, replacement in names.items():
        text = text.replace(colour, replacement)
    return text


def _shrink(text: str) -> str:
    """The same drawing in half the bytes. A tenth of a point is below what can be seen; glyphs have finer units."""
    text = re.sub(r'(?<= d=")[^"]*', lambda found: _path(found[0]), text)
    text = text.replace("xlink:href", "href").replace("DejaVuSans-", "g")
    return re.sub(r"\n\s*", "\n", text)


def _path(found: str) -> str:
    """A path's data with a tenth of a point, and with level strokes written as such."""
    short = re.sub(r"(\.\d)\d+", r"\1", found).replace(" \n", "")
    return re.sub(r"M (\S+) ([^\sL]+)L (\S+) \2(?=M|$)", r"M\1 \2H\3", short)


def _order(name: str) -> int:
    return int(name.rpartition("_")[2])


def _element(box: Box, label: str, content: str) -> str:
    view = " ".join(f"{value:.2f}" for value in box)
    size = f"max-width: calc({box[2]:.0f}pt * 1.35)"
    return f'<svg viewBox="{view}" style="{size}" role="img" aria-label="{label}">{content}</svg>'
