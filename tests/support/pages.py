"""Tests of the page: Chromium, and what they do with it."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from chromium import CHROMIUM
from PIL import Image
from running import Running
from sample_images import encoded, sample_image

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")

PATIENCE_MS = 30_000  # generous, for busy machines
sync_api.expect.set_options(timeout=PATIENCE_MS)

BROWSER_TESTS = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium"),
]

GOOD, DEFECT = encoded(sample_image(180, 120)), encoded(sample_image(180, 120, spot=True))
PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}


@contextmanager
def opened(browser: Any, running: Running, **options: Any) -> Iterator[Any]:
    """The page in a fresh browser profile."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    try:
        page = context.new_page()
        # Playwright intercepts file choosers only some time after a listener is added, so add it first.
        page.on("filechooser", lambda _: None)
        page.goto(f"{running.url}/")
        yield page
    finally:
        context.close()


def expect(page: Any, selector: str) -> Any:
    return sync_api.expect(page.locator(selector))


def choose(page: Any, data: bytes, name: str = "part.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})


def transfer(page: Any, data: bytes, name: str = "part.png") -> Any:
    """A DataTransfer with one image, as from dragging or the clipboard."""
    return page.evaluate_handle(
        """async ([data, name]) => {
            const blob = await (await new Response(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)))).blob();
            const transfer = new DataTransfer();
            transfer.items.add(new File([blob], name, { type: "image/png" }));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name],
    )


def overlay_alpha(page: Any, x: float, y: float) -> int:
    """Opacity of the painted map, 0…255, at a relative position."""
    script = """([x, y]) => {
        const canvas = document.querySelector("#overlay");
        return canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data[3];
    }"""
    return page.evaluate(script, [x, y])


def screenshot(page: Any, selector: str) -> Image.Image:
    return Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")
