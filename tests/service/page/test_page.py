"""The page in Chromium, with a real server and the dummy model."""

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from dummy import DummyDetector
from pages import BROWSER_TESTS, DEFECT, GOOD, PHONE, choose, expect, opened
from running import Running, run_server

from moleflow.model.verdict.results import CheckpointInfo

pytestmark = BROWSER_TESTS


def test_the_products_are_listed_again_when_an_answer_comes_from_another_checkpoint(browser: Any) -> None:
    with run_server() as running, opened(browser, running) as page:
        expect(page, "#product option").to_have_count(4)
        running.detector.tasks = running.detector.tasks[:2]
        running.detector.checkpoint = CheckpointInfo("dummy.safetensors", "12" * 32)
        choose(page, GOOD)
        expect(page, "#product option").to_have_count(3)


def test_the_page_logs_no_error_and_contacts_no_other_server(browser: Any, service: Running) -> None:
    problems, addresses = [], []
    context = browser.new_context()
    page = context.new_page()
    page.on("console", lambda message: problems.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(f"{service.url}/")
    choose(page, DEFECT)
    expect(page, "#verdict").to_have_text("Defect")
    context.close()
    assert problems == []
    assert {url for url in addresses if not url.startswith((f"{service.url}/", f"blob:{service.url}/"))} == set()


def test_the_page_works_under_a_path_prefix(browser: Any) -> None:
    with run_server(root_path="/factory/inspection") as running, opened(browser, running) as page:
        page.goto(f"{running.url}/factory/inspection/")
        choose(page, DEFECT)
        expect(page, "#verdict").to_have_text("Defect")
        expect(page, "#curl").to_contain_text(f"{running.url}/factory/inspection/predict?")


def test_the_documentation_renders_and_sends_requests_without_other_servers(browser: Any) -> None:
    problems, addresses, prefix = [], [], "/factory/inspection"
    with run_server(root_path=prefix) as running:
        context = browser.new_context()
        page = context.new_page()
        page.on(
            "console", lambda message: problems.append(message.text) if message.type in {"error", "warning"} else None
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(f"{running.url}{prefix}/docs")
        expect(page, ".opblock").to_have_count(24)
        page.locator(".opblock-post .opblock-summary-control").first.click()
        page.get_by_role("button", name="Try it out").click()
        page.set_input_files("input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": GOOD})
        page.get_by_role("button", name="Execute").click()
        expect(page, ".live-responses-table").to_contain_text("dummy.safetensors")
        context.close()
        assert problems == []
        assert any(url.startswith(f"{running.url}{prefix}/predict?") for url in addresses)
        assert {url for url in addresses if not url.startswith((f"{running.url}{prefix}/", "data:"))} == set()


def test_the_page_waits_for_a_loading_model(browser: Any) -> None:
    class SlowToWarmUp(DummyDetector):
        def warm_up(self, batch_size: int = 1) -> None:
            assert self.gate.wait(30)

    detector = SlowToWarmUp()
    detector.gate.clear()
    with run_server(detector, wait=False) as running, opened(browser, running) as page:
        expect(page, "#service").to_have_text("Getting ready…")
        detector.gate.set()
        expect(page, "#service").to_have_text("Ready")
        expect(page, "#products tbody tr").to_have_count(3)


def test_the_learned_products_are_listed_with_images_date_and_threshold(page: Any) -> None:
    rows = page.locator("#products tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [
        [name, "learned", "1", "Jan", "2026", "20", "100.0"] for name in ("red", "green", "blue")
    ]


def test_a_service_without_products_shows_how_to_train_one(browser: Any) -> None:
    with run_server(DummyDetector(names=())) as running, opened(browser, running) as page:
        expect(page, "#products").to_contain_text("moleflow train DATA --task NAME --checkpoint dummy.safetensors")


def test_html_in_a_product_name_is_shown_as_text(browser: Any) -> None:
    name = '<img src="x" onerror="document.title = 1"><b>bolt'
    with run_server(DummyDetector(names=(name,))) as running, opened(browser, running) as page:
        choose(page, GOOD)
        expect(page, "#verdict-product").to_have_text(name)
        expect(page, "#products tbody th").to_contain_text(name)
        expect(page, "#products img, #findings img, #findings b").to_have_count(0)
        assert page.title() == "MoLE-Flow"


def test_a_phone_needs_no_horizontal_scrolling(browser: Any) -> None:
    names = ("red", "a_product_whose_name_is_longer_than_any_phone_is_wide_" * 3)
    with run_server(DummyDetector(names=names)) as running, opened(browser, running, **PHONE) as page:
        expect(page, "#products table").to_be_visible()
        widths = [page.evaluate("document.documentElement.scrollWidth")]
        for data, shown in ((DEFECT, "#verdict"), (b"This is no image.", "#problem-title")):
            choose(page, data, "a_file_whose_name_is_longer_than_any_phone_is_wide_" * 2)
            expect(page, shown).to_be_visible()
            widths.append(page.evaluate("document.documentElement.scrollWidth"))
        assert widths == [375, 375, 375]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_copied_curl_command_works(browser: Any, service: Running, tmp_path: Path) -> None:
    name = 'it\'s; "a" part.png'
    (tmp_path / name).write_bytes(DEFECT)
    with opened(browser, service, permissions=["clipboard-read", "clipboard-write"]) as page:
        choose(page, DEFECT, name)
        expect(page, "#verdict").to_be_visible()
        page.get_by_label("Product", exact=True).select_option("blue")
        page.get_by_role("button", name="Copy").click()
        expect(page, "#copy").to_have_text("Copied")
        line = page.evaluate("navigator.clipboard.readText()")
    answer = subprocess.run(shlex.split(line), cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert '"task":{"name":"blue"' in answer


def test_the_page_of_a_guarded_service_asks_for_a_key_and_uses_it(browser: Any, tmp_path: Path) -> None:
    key = "l" * 20
    (tmp_path / "keys").write_text(f"line-1 predict {key}\n")
    with run_server(api_keys=tmp_path / "keys") as running, opened(browser, running) as page:
        expect(page, "#service").to_have_text("API key needed")
        page.get_by_label("This service needs an API key.").fill(key)
        page.get_by_role("button", name="Use").click()
        expect(page, "#products tbody tr").to_have_count(3)
        choose(page, GOOD)
        expect(page, "#verdict").to_have_text("Good")
