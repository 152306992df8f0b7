"""Fixtures of the tests in a browser."""

from collections.abc import Iterator
from typing import Any

import pytest
from chromium import CHROMIUM, FLAGS
from running import Running, run_server


@pytest.fixture(scope="package")
def service() -> Iterator[Running]:
    """A running service with default limits and the dummy model, shared by the tests of the page."""
    with run_server() as running:
        yield running


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium, shared by the tests of the page and by no other: while Playwright runs, ``asyncio.run`` fails."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, service: Running) -> Iterator[Any]:
    """The page of the shared service, in a fresh browser profile, with its products listed."""
    from pages import expect, opened

    with opened(browser, service) as page:
        expect(page, "#products table").to_be_visible()
        yield page
