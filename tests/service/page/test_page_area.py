"""The editor of a product's inspected area, and what is not inspected in results, in Chromium."""

from pathlib import Path
from typing import Any

import pytest
from pages import BROWSER_TESTS, choose, expect, opened
from running import serve_checkpoint
from sample_images import encoded
from tiny_fixtures import tiny_backbone  # noqa: F401
from tiny_model import product_image, tiny_checkpoint

pytestmark = BROWSER_TESTS

IMAGE = encoded(product_image(1, 50, side=96))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "factory.safetensors").path


def click(page: Any, x: float, y: float) -> None:
    """Click on the drawing at a relative position."""
    box = page.locator(".drawing").bounding_box()
    page.locator(".drawing").click(position={"x": x * box["width"], "y": y * box["height"]})


def test_an_area_is_drawn_on_an_image_saved_shown_on_results_and_cleared(browser: Any, path: Path) -> None:
    whole = path.read_bytes()
    with serve_checkpoint(path) as running, opened(browser, running) as page:
        choose(page, IMAGE)
        expect(page, "#verdict-product").to_have_text("nut")
        expect(page, "#ignored svg").to_have_count(0)
        page.get_by_role("button", name="Inspected area").click()  # of the result, to draw on its image
        expect(page, ".area h3 + p").to_have_text("The whole image is inspected.")
        expect(page, ".area button.primary").to_be_disabled()
        for corner in ((0.01, 0.01), (0.5, 0.01), (0.5, 0.99), (0.01, 0.99), (0.01, 0.01)):  # the last one closes it
            click(page, *corner)
        expect(page, ".outlines li").to_have_text("Ignore: polygon of 4 corners Remove")
        page.get_by_role("button", name="Save area").click()
        expect(page, ".area h3 + p").to_contain_text("50 % of the image is inspected.")
        assert running.client.get("/tasks/nut").json()["area"]["patches"] == ["0011"] * 4
        expect(page, ".drawing-board svg .veil").to_have_count(1)
        page.get_by_role("link", name="Inspect").first.click()
        choose(page, IMAGE)
        expect(page, "#ignored .veil").to_have_attribute("d", "".join(f"M0 {row}h2v1h-2z" for row in range(4)))
        page.get_by_role("link", name="Products").click()
        page.get_by_role("button", name="Clear area").click()
        expect(page, ".area h3 + p").to_have_text("The whole image is inspected.")
        assert path.read_bytes() == whole


def test_an_area_is_drawn_with_the_keyboard_and_a_refusal_is_told(browser: Any, path: Path) -> None:
    with serve_checkpoint(path) as running, opened(browser, running) as page:
        page.get_by_role("link", name="Products").click()
        page.get_by_role("button", name="nut").click()
        page.set_input_files(".area input[type=file]", {"name": "part.png", "mimeType": "image/png", "buffer": IMAGE})
        page.get_by_label("Inspect only").check()
        page.locator(".drawing-board").focus()
        for keys in ("Space", "ArrowRight Space", "ArrowDown Space", "Enter"):
            for key in keys.split():
                page.keyboard.press(key)
        expect(page, ".outlines li").to_have_text("Inspect only: polygon of 3 corners Remove")
        page.get_by_role("button", name="Save area").click()
        expect(page, ".area-problem").to_contain_text("inspects 0 of 4 × 4 patches")
        page.get_by_role("button", name="Remove", exact=True).click()
        expect(page, ".outlines li").to_have_count(0)
