"""The colours of the page and the plots, computed: contrast as WCAG 2.2 defines it, and what the colour-blind see."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.report import palette

CSS = (Path(palette.__file__).parent / "report.css").read_text() + palette.css()
TEXT = ("--ink", "--soft", "--good", "--bad", "--even", "--open", "--link")
GROUNDS = ("--paper", "--card")
ARMS = tuple(f"--arm-{number}" for number in range(1, 7))
# G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, "A physiologically-based model for simulation of color vision
# deficiency", IEEE TVCG 15(6), 2009, severity 1.0; on linear RGB.
EYES = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "red-blind": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green-blind": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "blue-blind": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# Differences in CIE L*a*b* (1976). Okabe and Ito's first six are as near as 16 (green and sky blue, blue-blind).
APART = 18.0


def themes() -> dict[str, dict[str, str]]:
    """The custom properties of the light and of the dark page."""
    dark_rule = r"@media screen and \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}\s*\}"
    dark = " ".join(re.findall(dark_rule, CSS, re.DOTALL))
    light = " ".join(re.findall(r":root \{(.*?)\}", re.sub(dark_rule, "", CSS, flags=re.DOTALL), re.DOTALL))
    found = {
        name: dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6})", text)) for name, text in (("l", light), ("d", dark))
    }
    return {"light": found["l"], "dark": found["l"] | found["d"]}


def linear(colour: str) -> NDArray[np.float64]:
    """sRGB as light."""
    value = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of relative luminances, 1 to 21."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(light: NDArray[np.float64]) -> NDArray[np.float64]:
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = to_xyz @ np.clip(light, 0, 1) / [0.95047, 1.0, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_measure_of_contrast_is_the_standards() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read_on_every_ground(theme: str) -> None:
    colours = themes()[theme]
    poor = {
        (text, ground): round(contrast(colours[text], colours[ground]), 2)
        for text in TEXT
        for ground in GROUNDS
        if contrast(colours[text], colours[ground]) < 4.5
    }
    assert poor == {}


def test_every_colour_of_text_in_the_style_sheet_is_one_of_these() -> None:
    rules = re.findall(r"(?<![-a-z])color: ([^;}]+)", CSS)
    assert {rule.strip() for rule in rules} - {"inherit"} <= {f"var({name})" for name in TEXT}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_arms_stand_out_from_the_ground(theme: str) -> None:
    colours = themes()[theme]
    assert all(contrast(colours[arm], colours[ground]) >= 3 for arm in ARMS for ground in GROUNDS)
    shown = palette.LIGHT if theme == "light" else palette.DARK
    assert tuple(colours[arm] for arm in ARMS) == shown


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_no_two_arms_look_alike(eye: str, colours: tuple[str, ...]) -> None:
    seen = {colour: lab(np.array(EYES[eye]) @ linear(colour)) for colour in colours}
    alike = [
        (one, other, round(float(np.linalg.norm(seen[one] - seen[other])), 1))
        for one, other in itertools.combinations(colours, 2)
        if np.linalg.norm(seen[one] - seen[other]) < APART
    ]
    assert alike == []
