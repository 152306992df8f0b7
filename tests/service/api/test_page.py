"""The page in Chromium, with a real server and the dummy model."""

import base64
import io
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from chromium import CHROMIUM, FLAGS
from dummy import DummyDetector
from PIL import Image
from running import Running, run_server
from sample_images import encoded, sample_image

from moleflow.model.verdict.results import CheckpointInfo

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")

PATIENCE_MS = 30_000  # generous, for busy machines
sync_api.expect.set_options(timeout=PATIENCE_MS)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium"),
]

GOOD, DEFECT = encoded(sample_image(180, 120)), encoded(sample_image(180, 120, spot=True))
PHONE = {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


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


@pytest.fixture
def page(browser: Any, service: Running) -> Iterator[Any]:
    with opened(browser, service) as page:
        expect(page, "#products table").to_be_visible()
        yield page


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
        expect(page, ".opblock").to_have_count(7)
        page.locator(".opblock-post .opblock-summary-control").first.click()
        page.get_by_role("button", name="Try it out").click()
        page.set_input_files("input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": GOOD})
        page.get_by_role("button", name="Execute").click()
        expect(page, ".live-responses-table").to_contain_text("dummy.safetensors")
        context.close()
        assert problems == []
        assert any(url.startswith(f"{running.url}{prefix}/predict?") for url in addresses)
        assert {url for url in addresses if not url.startswith((f"{running.url}{prefix}/", "data:"))} == set()


@pytest.mark.parametrize(("data", "verdict"), [(GOOD, "Good"), (DEFECT, "Defect")])
def test_a_chosen_image_shows_product_verdict_and_score(page: Any, service: Running, data: bytes, verdict: str) -> None:
    score = service.predict(data, map="none").json()["score"]
    choose(page, data)
    expect(page, "#verdict").to_have_text(verdict)
    expect(page, "#verdict-product").to_have_text("green")
    shown = float(page.locator("#score").inner_text().replace(",", "").replace("−", "-"))
    assert shown == pytest.approx(score, abs=0.06)


def test_a_dropped_image_is_inspected(page: Any) -> None:
    page.dispatch_event("#stage", "drop", {"dataTransfer": transfer(page, DEFECT, "dropped.png")})
    expect(page, "#verdict").to_have_text("Defect")
    expect(page, "#findings").to_contain_text("dropped.png")


def test_an_image_dropped_beside_the_stage_does_not_leave_the_page(page: Any) -> None:
    page.dispatch_event("header", "drop", {"dataTransfer": transfer(page, GOOD)})
    expect(page, "#verdict").to_have_text("Good")


def test_an_image_pasted_from_the_clipboard_is_inspected(browser: Any, service: Running) -> None:
    with opened(browser, service, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.evaluate(
            """async (data) => {
                const blob = new Blob([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], { type: "image/png" });
                await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
            }""",
            base64.b64encode(DEFECT).decode(),
        )
        page.keyboard.press("Control+V")
        expect(page, "#verdict").to_have_text("Defect")


def test_pasting_text_shows_what_to_do(page: Any) -> None:
    page.evaluate(
        """() => {
            const clipboardData = new DataTransfer();
            clipboardData.setData("text/plain", "https://example.org/part.png");
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }"""
    )
    expect(page, "#problem-detail").to_contain_text("copy the image itself")
    sync_api.expect(page.get_by_role("button", name="Try again")).to_have_count(0)


def test_the_image_can_be_chosen_with_the_keyboard(page: Any) -> None:
    button = page.get_by_role("button", name="Choose image")
    for _ in range(20):
        page.keyboard.press("Tab")
        if button.evaluate("(node) => node === document.activeElement"):
            break
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "part.png", "mimeType": "image/png", "buffer": GOOD})
    expect(page, "#verdict").to_have_text("Good")


def test_the_verdict_is_announced(page: Any) -> None:
    choose(page, DEFECT)
    expect(page, "[aria-live]").to_contain_text("Defect found. Product green, score")


def test_the_map_is_coloured_on_the_defect_and_transparent_elsewhere(page: Any) -> None:
    choose(page, DEFECT)
    expect(page, "#verdict").to_be_visible()
    assert overlay_alpha(page, 0.375, 0.375) == 255
    assert overlay_alpha(page, 0.9, 0.9) == 0


def test_the_map_of_a_good_image_is_transparent(page: Any) -> None:
    choose(page, GOOD)
    expect(page, "#verdict").to_be_visible()
    assert {overlay_alpha(page, x / 10, y / 10) for x in range(10) for y in range(10)} == {0}


def test_a_defect_is_boxed_and_listed(page: Any) -> None:
    choose(page, DEFECT)
    expect(page, "#regions .region").to_have_count(1)
    expect(page, "#region-list li").to_have_count(1)
    image_box, box = page.locator("#preview").bounding_box(), page.locator("#regions .region").bounding_box()
    assert box["x"] - image_box["x"] == pytest.approx(image_box["width"] / 4, abs=image_box["width"] / 8)
    assert box["width"] == pytest.approx(image_box["width"] / 4, abs=image_box["width"] / 8)
    page.get_by_label("Regions").uncheck()
    expect(page, "#regions").to_be_hidden()
    page.get_by_label("Regions").check()
    expect(page, "#regions").to_be_visible()


def test_a_good_image_has_no_boxes(page: Any) -> None:
    choose(page, DEFECT)
    expect(page, "#regions .region").to_have_count(1)
    choose(page, GOOD)
    expect(page, "#verdict").to_have_text("Good")
    expect(page, "#regions .region").to_have_count(0)


def test_an_unknown_product_is_shown_with_the_nearest_and_can_be_scored_anyway(page: Any) -> None:
    choose(page, encoded(np.zeros((120, 180, 3), np.uint8)))
    expect(page, "#verdict").to_have_text("Unknown product")
    expect(page, "#candidates li").to_have_count(3)
    expect(page, "[aria-live]").to_contain_text("Unknown product. The nearest learned product is red.")
    expect(page, "#overlay").to_be_hidden()
    page.get_by_label("Product", exact=True).select_option("blue")
    expect(page, "#verdict").to_have_text("Good")


def test_the_score_is_shown_with_the_fraction_of_good_images_that_reach_it(page: Any) -> None:
    choose(page, DEFECT)
    expect(page, "#findings").to_contain_text("which 1 % of good images exceed")
    expect(page, "#p-value").to_contain_text("under 0.01 %")


def test_the_opacity_slider_fades_the_map(page: Any) -> None:
    choose(page, DEFECT)
    expect(page, "#overlay").to_be_visible()
    slider = page.get_by_label("Map opacity")

    def shows_bare_image_becomes(wanted: bool) -> bool:
        # Changes are drawn some frames later.
        for _ in range(100):
            shot = screenshot(page, "#image")
            if (shot.getpixel((shot.width * 3 // 8, shot.height * 3 // 8)) == (255, 255, 255)) is wanted:
                return True
            page.wait_for_timeout(50)
        return False

    slider.press("Home")
    expect(page, "#opacity-value").to_have_text("0 %")
    assert shows_bare_image_becomes(True)
    slider.press("End")
    expect(page, "#opacity-value").to_have_text("100 %")
    assert shows_bare_image_becomes(False)


def test_a_rotated_photograph_is_shown_upright_under_its_map(page: Any) -> None:
    sideways = Image.Exif()
    sideways[0x0112] = 6  # orientation: turn by a quarter
    choose(page, encoded(sample_image(180, 120, spot=True), "JPEG", exif=sideways))
    expect(page, "#findings").to_contain_text("120 × 180 pixels")
    box, map_box = page.locator("#preview").bounding_box(), page.locator("#overlay").bounding_box()
    assert box == map_box
    assert box["width"] / box["height"] == pytest.approx(120 / 180, rel=0.01)


def test_a_chosen_product_is_sent_and_skips_routing(page: Any) -> None:
    choose(page, GOOD)
    expect(page, "#verdict-product").to_have_text("green")
    with page.expect_request("**/predict?*") as sent:
        page.get_by_label("Product", exact=True).select_option("blue")
    assert parse_qs(urlsplit(sent.value.url).query)["task"] == ["blue"]
    expect(page, "#verdict-product").to_have_text("blue")
    expect(page, "#findings").to_contain_text("automatic routing would have taken green")


def test_changing_the_false_alarm_rate_rescores_the_same_image(page: Any) -> None:
    # It scores 99.0; the threshold is 100.0 for 1 % and 98.2 for 5 %.
    choose(page, encoded((0.6 * sample_image(180, 120, spot=True)).astype(np.uint8)))
    expect(page, "#verdict").to_have_text("Good")
    with page.expect_request("**/predict?*") as sent:
        page.get_by_label("False positives").select_option("5 %")
    assert parse_qs(urlsplit(sent.value.url).query)["false_alarm_rate"] == ["0.05"]
    expect(page, "#verdict").to_have_text("Defect")
    expect(page, "#findings").to_contain_text("which 5 % of good images exceed")
    expect(page, "#curl").to_contain_text("false_alarm_rate=0.05")


def test_the_result_stays_visible_while_it_is_rescored(browser: Any) -> None:
    with run_server() as running, opened(browser, running) as page:
        choose(page, DEFECT)
        expect(page, "#verdict").to_have_text("Defect")
        running.detector.gate.clear()
        page.get_by_label("False positives").select_option("0.1 %")
        expect(page, "#findings").to_have_attribute("aria-busy", "true")
        expect(page, "#verdict").to_have_text("Defect")
        running.detector.gate.set()
        expect(page, "#findings").to_have_attribute("aria-busy", "false")
        expect(page, "#findings").to_contain_text("which 0.1 % of good images exceed")


def test_the_default_rate_is_among_the_choices_and_is_not_sent(browser: Any) -> None:
    detector = DummyDetector()
    detector.tasks = tuple(task.model_copy(update={"false_alarm_rate": 0.003}) for task in detector.tasks)
    with run_server(detector) as running, opened(browser, running) as page:
        expect(page, "#rate option").to_have_text(["0.1 %", "0.3 % (default)", "0.5 %", "1 %", "2 %", "5 %"])
        expect(page, "#rate").to_have_value("")
        with page.expect_request("**/predict?*") as sent:
            choose(page, GOOD)
        assert "false_alarm_rate" not in parse_qs(urlsplit(sent.value.url).query)


def test_a_problem_document_is_shown(page: Any, service: Running) -> None:
    text = b"This is no image."
    problem = service.predict(text).json()
    choose(page, text)
    expect(page, "#problem-title").to_have_text(problem["title"])
    expect(page, "#problem-detail").to_have_text(problem["detail"])
    expect(page, "#invitation").to_be_visible()


def test_the_next_image_replaces_a_problem(page: Any) -> None:
    choose(page, b"This is no image.")
    expect(page, "#problem-title").to_be_visible()
    choose(page, GOOD)
    expect(page, "#verdict").to_have_text("Good")
    expect(page, "#problem-title").to_have_count(0)


def test_a_full_queue_is_reported_and_retried(browser: Any) -> None:
    with run_server(queue_size=1) as running, opened(browser, running) as page, opened(browser, running) as other:
        running.detector.gate.clear()
        choose(other, GOOD)
        assert running.detector.entered.wait(20)
        choose(page, DEFECT)
        expect(page, "#problem-title").to_have_text("Too many requests")
        running.detector.gate.set()
        expect(page, "#verdict").to_have_text("Defect")


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


def test_an_unreachable_service_is_reported(page: Any) -> None:
    page.context.set_offline(True)
    choose(page, GOOD)
    expect(page, "#problem-title").to_have_text("The service cannot be reached")
    expect(page, "#service").to_have_text("No connection")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page, "#verdict").to_have_text("Good")


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


def test_a_phone_is_offered_its_camera(browser: Any, service: Running) -> None:
    with opened(browser, service, **PHONE) as page:
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Take photo").tap()
        assert chooser.value.element.get_attribute("capture") == "environment"


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
