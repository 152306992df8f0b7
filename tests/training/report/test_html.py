"""The report is self-contained, shows every metric, and renders in a real browser."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, FLAGS

from moleflow.training.evaluation.evaluate import Measured
from moleflow.training.evaluation.forgetting import continual_figures
from moleflow.training.evaluation.records import Evaluation
from moleflow.training.report.examples import case_groups
from moleflow.training.report.html import report_page
from moleflow.training.report.tables import percent

Evaluated = tuple[Evaluation, list[Measured]]


class Elements(HTMLParser):
    """All elements with attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(evaluated: Evaluated) -> str:
    evaluation, measured = evaluated
    first = evaluation.model_copy(update={"products": ("bolt",), "categories": evaluation.categories[:1]})
    continual = continual_figures([first, evaluation])
    return report_page(evaluation.model_copy(update={"continual": continual}), measured)


def test_the_page_has_no_scripts_or_external_resources(page: str) -> None:
    for tag, attributes in Elements(page).found:
        assert tag not in {"script", "iframe", "object", "form"}
        for name in ("src", "href", "srcset", "style"):
            address = attributes.get(name) or ""
            assert "//" not in address.partition("base64,")[0], (tag, address[:80])
    assert not re.search(r"url\(|@import", page)


def test_every_metric_is_shown(page: str, evaluated: Evaluated) -> None:
    text = Elements(page).text
    for each in evaluated[0].categories:
        assert each.category in text
        assert percent(each.routed.image_auroc) in text
        assert percent(each.named.pixel_ap) in text
    assert "With the true product named" in text
    assert "Forgetting over 2 states" in text


def test_every_product_has_its_charts_as_well_formed_svg(page: str) -> None:
    drawings = [ET.fromstring(each) for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(drawings) == 3 + 3 + 2  # gear has no masks, so no PRO curve
    for product in ("bolt", "nut", "gear"):
        assert f'id="{product}"' in page


def test_wrong_verdicts_and_wrong_routing_are_marked(page: str, evaluated: Evaluated) -> None:
    text = Elements(page).text
    shown = [case for each in evaluated[1] for group in case_groups(each.outcomes) for case in group.cases]
    wrong = [case for case in shown if not case.is_right]
    assert wrong
    assert len(re.findall("false alarm(?!s)|missed", text)) == len(wrong)
    assert "routed to nut" in text


def test_names_are_escaped(evaluated: Evaluated) -> None:
    evaluation, measured = evaluated
    assert "<b>x" not in report_page(evaluation.model_copy(update={"checkpoint": "<b>x"}), measured)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium")
@pytest.mark.parametrize("width", [1440, 375])
def test_a_browser_shows_every_image_within_the_screen_width(page: str, tmp_path: Path, width: int) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened: Any = browser.new_page(viewport={"width": width, "height": 900})
        opened.set_default_timeout(60_000)
        asked, problems = [], []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("console", lambda message: problems.append(message.text))
        opened.goto(path.as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert opened.evaluate("document.images.length") > 20
        browser.close()
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert problems == []
