"""How images come to the page, in Chromium, with a real server and the dummy model."""

import base64
from pathlib import Path
from typing import Any

from pages import BROWSER_TESTS, DEFECT, GOOD, PHONE, choose, expect, opened, sync_api, transfer
from running import Running, run_server

pytestmark = BROWSER_TESTS


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
    button = page.get_by_role("button", name="Choose images")
    for _ in range(20):
        page.keyboard.press("Tab")
        if button.evaluate("(node) => node === document.activeElement"):
            break
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "part.png", "mimeType": "image/png", "buffer": GOOD})
    expect(page, "#verdict").to_have_text("Good")


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


def test_an_unreachable_service_is_reported(page: Any) -> None:
    page.context.set_offline(True)
    choose(page, GOOD)
    expect(page, "#problem-title").to_have_text("The service cannot be reached")
    expect(page, "#service").to_have_text("No connection")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page, "#verdict").to_have_text("Good")


def test_a_phone_is_offered_its_camera(browser: Any, service: Running) -> None:
    with opened(browser, service, **PHONE) as page:
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Take photo").tap()
        assert chooser.value.element.get_attribute("capture") == "environment"


def choose_many(page: Any, count: int, spots: tuple[int, ...] = ()) -> None:
    """Choose images 0.png, 1.png and so on; those in ``spots`` have a defect."""
    files = [(f"{number}.png", DEFECT if number in spots else GOOD) for number in range(count)]
    page.set_input_files("#file", [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in files])


def test_every_chosen_image_is_inspected_and_the_first_is_shown(page: Any) -> None:
    choose_many(page, 4, spots=(1, 3))
    expect(page, "#strip-summary").to_have_text("4 images: 2 good, 2 defective")
    expect(page, "#verdict").to_have_text("Good")
    kinds = page.locator(".thumbnail").evaluate_all("(all) => all.map((each) => each.dataset.kind)")
    assert kinds == ["good", "defect", "good", "defect"]


def test_a_thumbnail_shows_its_image_and_result(page: Any) -> None:
    choose_many(page, 3, spots=(2,))
    expect(page, "#strip-summary").to_have_text("3 images: 2 good, 1 defective")
    page.get_by_role("button", name="2.png: defective").click()
    expect(page, "#verdict").to_have_text("Defect")
    expect(page, "#findings").to_contain_text("2.png")
    assert page.locator("#preview").get_attribute("alt") == "The image 2.png"


def test_arrow_keys_step_through_the_images_and_stop_at_the_ends(page: Any) -> None:
    choose_many(page, 2, spots=(1,))
    expect(page, "#strip-summary").to_have_text("2 images: 1 good, 1 defective")
    for key, verdict in (
        ("ArrowRight", "Defect"),
        ("ArrowRight", "Defect"),
        ("ArrowLeft", "Good"),
        ("ArrowLeft", "Good"),
    ):
        page.keyboard.press(key)
        expect(page, "#verdict").to_have_text(verdict)


def test_one_bad_file_among_many_fails_alone(page: Any) -> None:
    files = [
        {"name": name, "mimeType": "image/png", "buffer": data} for name, data in (("a.png", b"x"), ("b.png", GOOD))
    ]
    page.set_input_files("#file", files)
    expect(page, "#strip-summary").to_have_text("2 images: 1 good, 1 not inspected")
    expect(page, "#problem-title").to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page, "#verdict").to_have_text("Good")


def test_images_beyond_the_pages_room_are_left_out_and_counted(browser: Any) -> None:
    with run_server() as running, opened(browser, running) as page:
        running.detector.gate.clear()
        choose_many(page, 53)
        expect(page, "#problem-detail").to_contain_text("3 of 53 files found no room")
        expect(page, ".thumbnail").to_have_count(50)
        running.detector.gate.set()


def test_images_that_wait_are_inspected_once_the_service_is_back(page: Any) -> None:
    page.context.set_offline(True)
    choose_many(page, 5)
    expect(page, "#problem-title").to_have_text("The service cannot be reached")
    page.context.set_offline(False)
    expect(page, "#strip-summary").to_contain_text("3 good")
    expect(page, "#strip-summary").not_to_contain_text("waiting")


def test_cleared_images_are_gone_and_the_page_takes_others(page: Any) -> None:
    choose_many(page, 2)
    page.get_by_role("button", name="Clear").click()
    expect(page, "#invitation").to_be_visible()
    expect(page, "#findings").to_be_hidden()
    choose(page, DEFECT)
    expect(page, "#verdict").to_have_text("Defect")
    expect(page, "#strip").to_be_hidden()


def test_after_choosing_with_the_keyboard_the_focus_is_on_opening_more(page: Any) -> None:
    page.get_by_role("button", name="Choose images").focus()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "part.png", "mimeType": "image/png", "buffer": GOOD})
    expect(page, "#verdict").to_have_text("Good")
    sync_api.expect(page.get_by_role("button", name="Open more images")).to_be_focused()


def test_a_sample_is_inspected_at_a_click(browser: Any, tmp_path: Path) -> None:
    (tmp_path / 'red "one".png').write_bytes(DEFECT)
    with run_server(samples=tmp_path) as running, opened(browser, running) as page:
        page.get_by_role("button", name='red "one"').click()
        expect(page, "#verdict").to_have_text("Defect")
        expect(page, "#findings").to_contain_text('red "one".png')


def test_without_samples_none_are_offered(page: Any) -> None:
    expect(page, "#samples").to_be_hidden()
