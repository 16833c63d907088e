"""The report in a real browser: no error, at every width and theme, from a file and unconnected.

Needs `pip install playwright` and Debian's `chromium`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxylessnas.runs.reporting import write_report

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: no browser to look with"
)
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def opened(browser: Any, file: Path, width: int, theme: str = "light") -> tuple[Any, list[str]]:
    """The page, and what went wrong: errors, messages, and every request that left the file."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: wrong.append(r.url) if r.url.startswith("http") else None)
    page.goto(file.as_uri())
    return page, wrong


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_renders_at_every_width(browser: Any, run: Path, width: int, theme: str) -> None:
    page, wrong = opened(browser, write_report([run]), width, theme)
    assert wrong == []
    # Wide things scroll by themselves; the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for section in page.query_selector_all("section"):
        assert section.bounding_box()["height"] > 60
    colours = page.evaluate(
        "[document.body, document.querySelector('section')].map(e => getComputedStyle(e).color)"
    )
    light = [sum(map(int, c[4:-1].split(","))) > 380 for c in colours]
    assert light == [theme == "dark"] * 2
    page.close()


def test_a_click_shows_the_candidates(browser: Any, run: Path) -> None:
    page, wrong = opened(browser, write_report([run]), 1200)
    blocks = page.query_selector_all("[data-choice]")
    assert len(blocks) == 3
    names = set()
    for block in blocks:
        block.click()
        panel = page.query_selector(".panel")
        names.add(panel.query_selector("h3").inner_text().partition(":")[0])
        assert len(panel.query_selector_all("tbody tr")) == 3
        assert len(panel.query_selector_all("polyline")) == 3
    assert names == {block.get_attribute("data-choice") for block in blocks}
    page.keyboard.press("Tab")
    assert wrong == []
    page.close()


def test_several_runs_and_print(
    browser: Any, run: Path, finished_run: Path, tmp_path: Path
) -> None:
    file = write_report([run, finished_run], tmp_path / "both.html")
    page, wrong = opened(browser, file, 1200)
    assert not page.is_visible("#r1-result")
    pages = page.pdf(path=tmp_path / "both.pdf")  # a printed page is unfolded
    assert len(pages) > 10_000
    assert page.is_visible("#r1-result") and wrong == []
    page.close()
