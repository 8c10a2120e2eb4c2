"""The colours of the arms, on light paper and on dark.

Chosen so that each stands out from its paper (contrast of at least 3 : 1, WCAG 2.2, 1.4.11) and from each of the
others for a normal, a red-blind, a green-blind and a blue-blind eye; a unit test computes both. The first two are
Okabe and Ito's blue and vermilion. Dash patterns, markers and hatches tell the same without any colour.
"""

from __future__ import annotations

from typing import Final

LIGHT: Final = ("#0072b2", "#d55e00", "#049f52", "#b46d92", "#22164f", "#702e16")
DARK: Final = ("#3f8ed6", "#eb7f33", "#23cc92", "#fdaee3", "#8560f6", "#fbec94")


def css() -> str:
    """The palette as custom properties ``--arm-1`` to ``--arm-6``: light, dark where the reader's system is, and light
    again on paper."""
    light = _properties(LIGHT)
    dark = f"@media screen and (prefers-color-scheme: dark) {{ {_properties(DARK)} }}"
    return f"{light}\n{dark}\n"


def _properties(colours: tuple[str, ...]) -> str:
    return ":root { " + " ".join(f"--arm-{number}: {colour};" for number, colour in enumerate(colours, 1)) + " }"
