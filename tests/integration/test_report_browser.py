"""report.html as a reader meets it: in Debian's Chromium, at a desk and on a phone, light, dark and on paper.

The pages are of real runs; no script runs in them (their own policy forbids any), the questions below are asked from
outside. Screenshots and the printed page are kept in pytest's temporary folder.
"""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from matplotlib.image import imread
from orchcli import Run
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from orchestrator.nights import catalogue
from orchestrator.nights.beside import side_by_side
from orchestrator.nights.besidepage import write

pytestmark = [pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network, pytest.mark.browser]

WIDTHS = {"desk": 1280, "phone": 390}
THEMES = ("light", "dark")
# Of a screenshot; drawing more of a page takes seconds.
LENGTH = 4000
SMALLEST_PX, SMALLEST_PRINTED_PX = 11, 9
# Our own page, without script: it needs no sandbox, and root gets none. Containers have a small /dev/shm.
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")

# What sticks out of the page, but for what lies in a box that scrolls by itself.
WIDE = """
const all = [...document.querySelectorAll('body *:not(svg *, .scroll *, .shared)')];
return all.filter(e => e.getBoundingClientRect().right > innerWidth + 0.5)
  .map(e => e.tagName + ': ' + e.textContent.trim().slice(0, 40))
"""
# Text that stands out too little from what is behind it (WCAG 2.2, 1.4.3), or is too small.
POOR = """
const rgb = c => c.match(/[\\d.]+/g).map(Number);
const lum = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
const found = new Set(); let seen = 0;
for (const e of document.querySelectorAll('body *:not(svg, svg *)')) {
  if (![...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
  seen++;
  const style = getComputedStyle(e), a = lum(rgb(style.color).slice(0, 3)), b = lum(behind(e));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5 || parseFloat(style.fontSize) < arguments[0])
    found.add(`${e.tagName}.${e.className} ${ratio.toFixed(2)} ${style.fontSize}`);
}
return [seen, [...found]]
"""


@dataclass(frozen=True)
class Browser:
    """A browser, and the folder where it leaves what it saw."""

    driver: Chrome
    kept: Path

    def show(self, page: Path, width: str, theme: str, media: str = "screen") -> None:
        """Load a page as it is on a device of this width for a reader who likes this theme."""
        feature = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": feature})
        metrics = {"width": WIDTHS[width], "height": 844, "deviceScaleFactor": 1, "mobile": width == "phone"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(page.as_uri())

    def picture(self, name: str) -> np.ndarray[Any, Any]:
        """The page's first :data:`LENGTH` pixels, shape (height, width, 3), 0 to 1; kept as NAME.png."""
        width, height = self.ask("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, LENGTH), "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        data = base64.b64decode(shot["data"])
        (self.kept / f"{name}.png").write_bytes(data)
        return np.asarray(imread(io.BytesIO(data)))[:, :, :3]

    def ask(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)  # type: ignore[no-untyped-call]

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    paths = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        # No skip: the report would go out unseen.
        pytest.fail(f"no {' and no '.join(missing)}: run scripts/setup test (Debian: chromium, chromium-driver)")
    options = ChromeOptions()
    options.binary_location = str(paths["chromium"])
    for flag in FLAGS:
        options.add_argument(flag)
    driver = Chrome(options=options, service=ChromeService(str(paths["chromedriver"])))
    driver.set_page_load_timeout(60)
    try:
        yield Browser(driver, tmp_path_factory.mktemp("screenshots"))
    finally:
        driver.quit()


@pytest.fixture(scope="module", params=["quickstart", "planted"])
def page(request: pytest.FixtureRequest) -> Path:
    """The report of the default experiment, and of one with panics, a hang and an arm that does not compile."""
    run: Run = request.getfixturevalue(request.param)
    return run.folder / "report.html"


def open_folds(browser: Browser) -> int:
    """Unfold everything, as a reader can without a script; how many there were."""
    count = browser.ask(
        "const d = document.querySelectorAll('details'); d.forEach(e => e.open = true); return d.length"
    )
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_it_fits_the_width_and_can_be_read(browser: Browser, page: Path, width: str, theme: str) -> None:
    browser.show(page, width, theme)
    check_width(browser, WIDTHS[width])
    seen, poor = browser.ask(POOR, SMALLEST_PX)
    assert seen > 100 and poor == []
    pixels = browser.picture(f"{page.parent.name}-{width}-{theme}")
    assert pixels.shape[1] == WIDTHS[width] and pixels.shape[0] > 1500
    edge, middle = pixels[:, :4].mean(), float(np.median(pixels[::4, ::4]))
    assert (edge > 0.95 and middle > 0.95) if theme == "light" else (edge < 0.12 and middle < 0.12)
    # Not blank: ink, rules, marks and the series' colours.
    shades = (pixels[::2, ::2] * 15).astype(int) @ [256, 16, 1]
    assert len(np.unique(shades)) > 60


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_can_be_read_unfolded_as_well(browser: Browser, page: Path, width: str) -> None:
    browser.show(page, width, "dark")
    assert open_folds(browser) > 0
    check_width(browser, WIDTHS[width])
    assert browser.ask(POOR, SMALLEST_PX)[1] == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("theme", THEMES)
def test_runs_side_by_side_fit_the_width_and_can_be_read(
    browser: Browser, quickstart: Run, planted: Run, tmp_path: Path, width: str, theme: str
) -> None:
    runs = [catalogue.open_run(run.folder) for run in (quickstart, planted, quickstart)]
    runs[2] = replace(runs[2], folder=runs[2].folder.with_name("again"))
    page, _ = write(side_by_side(runs), tmp_path)
    browser.show(page, width, theme)
    check_width(browser, WIDTHS[width])
    seen, poor = browser.ask(POOR, SMALLEST_PX)
    assert seen > 100 and poor == []
    assert browser.picture(f"beside-{width}-{theme}").shape[1] == WIDTHS[width]
    assert browser.ask("return document.querySelectorAll('.chip.improved').length") > 2


def check_width(browser: Browser, width: int) -> None:
    assert browser.ask("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert browser.ask(WIDE) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_plot_is_large_enough_and_drawn(browser: Browser, page: Path, width: str) -> None:
    browser.show(page, width, "dark")
    open_folds(browser)
    drawings = browser.find('svg[role="img"]')
    assert len(drawings) >= 4
    for drawing in drawings:
        size = drawing.rect
        assert size["width"] >= 250 and size["height"] >= 60, drawing.get_attribute("aria-label")
        # Clip paths, glyphs and hatches are defined elsewhere in the page: all of them must be there.
        lost = browser.ask(
            "return [...arguments[0].querySelectorAll('use')]"
            ".filter(use => !document.querySelector(use.getAttribute('href'))).length", drawing,
        )  # fmt: skip
        assert lost == 0


def test_every_link_leads_to_a_file_or_a_place(browser: Browser, page: Path) -> None:
    browser.show(page, "desk", "light")
    links = browser.ask("return [...document.links].map(a => a.href)")
    assert len(links) > 50
    places = set(browser.ask("return [...document.querySelectorAll('[id]')].map(e => e.id)"))
    for link in set(links):
        parts = urlsplit(link)
        assert parts.scheme == "file" and Path(unquote(parts.path)).exists(), link
        assert not parts.fragment or unquote(parts.fragment) in places, link


def test_from_the_verdict_to_the_console_in_three_clicks(browser: Browser, quickstart: Run) -> None:
    browser.show(quickstart.folder / "report.html", "phone", "light")
    matrix = browser.find("table.matrix tbody tr")
    row = next(item for item in matrix if item.text.startswith("outside-munmap"))
    row.find_elements(By.CSS_SELECTOR, "td a")[1].click()
    assert browser.driver.current_url.endswith("#cell-5")
    table = browser.ask("return document.querySelector('#cell-5').parentElement.querySelectorAll('table')")
    figures = next(item for item in table if "Figures of outside-munmap" in label_of(item))
    figures.find_elements(By.CSS_SELECTOR, "tbody tr")[1].find_element(By.CSS_SELECTOR, "td a").click()
    target = browser.driver.find_element(By.CSS_SELECTOR, ":target")
    assert target.is_displayed() and 0 <= browser.ask("return arguments[0].getBoundingClientRect().top", target) < 844
    trial = quickstart.results["outside-munmap", "v1"].id
    assert f"orch trial {quickstart.folder} {trial}" in target.text
    target.find_element(By.LINK_TEXT, "console").click()
    assert browser.driver.current_url == (quickstart.folder / f"trials/{trial}/console.log").as_uri()
    assert browser.driver.find_element(By.TAG_NAME, "body").text.strip()


def label_of(table: WebElement) -> str:
    return table.find_element(By.XPATH, "..").get_attribute("aria-label") or ""


def test_those_who_hear_it_get_tables_names_and_pictures_in_words(browser: Browser, page: Path) -> None:
    """At a phone's width the rows of the first table are laid out as cards; it must still be a table."""
    browser.show(page, "phone", "light")
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    kinds: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            kinds.setdefault(node["role"]["value"], []).append(str(node.get("name", {}).get("value", "")))
    shown = [item for item in browser.find("table") if item.is_displayed()]
    assert len(kinds["table"]) == len(shown)
    assert {"columnheader", "rowheader", "cell", "navigation", "main", "heading"} <= set(kinds)
    assert all(kinds["image"]) and len(kinds["image"]) == len(
        [i for i in browser.find('svg[role="img"]') if i.is_displayed()]
    )
    assert all(name.strip() for name in kinds["link"])


def test_it_prints_on_white_paper_whatever_the_screen_is(browser: Browser, page: Path) -> None:
    browser.show(page, "desk", "dark", media="print")
    assert browser.ask(POOR, SMALLEST_PRINTED_PX)[1] == []
    pixels = browser.picture(f"{page.parent.name}-print")
    assert float(np.median(pixels[::4, ::4])) == 1.0 and (pixels[::4, ::4].min(axis=2) > 0.95).mean() > 0.8
    paper = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    data = base64.b64decode(paper["data"])
    (browser.kept / f"{page.parent.name}.pdf").write_bytes(data)
    assert 2 <= data.count(b"/Type /Page\n") <= 20
