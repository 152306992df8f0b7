"""What the page shows of a result, in Chromium, with a real server and the dummy model."""

import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from dummy import DummyDetector
from pages import BROWSER_TESTS, DEFECT, GOOD, PHONE, choose, expect, opened, overlay_alpha, screenshot, sync_api
from PIL import Image
from running import Running, run_server
from sample_images import encoded, sample_image

pytestmark = BROWSER_TESTS


@pytest.mark.parametrize(("data", "verdict"), [(GOOD, "Good"), (DEFECT, "Defect")])
def test_a_chosen_image_shows_product_verdict_and_score(page: Any, service: Running, data: bytes, verdict: str) -> None:
    score = service.predict(data, map="none").json()["score"]
    choose(page, data)
    expect(page, "#verdict").to_have_text(verdict)
    expect(page, "#verdict-product").to_have_text("green")
    shown = float(page.locator("#score").inner_text().replace(",", "").replace("−", "-"))
    assert shown == pytest.approx(score, abs=0.06)


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


def test_an_unknown_product_is_scored_as_the_nearest_at_a_click(page: Any) -> None:
    choose(page, encoded(np.zeros((120, 180, 3), np.uint8)))
    page.get_by_role("button", name="Score as red").click()
    expect(page, "#verdict-product").to_have_text("red")
    sync_api.expect(page.get_by_label("Product", exact=True)).to_have_value("red")


def test_on_a_phone_the_verdict_is_on_the_first_screen(browser: Any, service: Running) -> None:
    with opened(browser, service, **PHONE) as page:
        choose(page, DEFECT)
        expect(page, "#verdict-bar").to_contain_text("Defect green")
        box = page.locator("#verdict-bar").bounding_box()
        assert box["y"] + box["height"] < PHONE["viewport"]["height"]


def test_scores_far_above_the_threshold_stand_at_different_places_of_the_bar(page: Any) -> None:
    script = (
        "import('./page/view.js').then(({ barPosition }) => [0, 50, 100, 282, 2820].map((x) => barPosition(x, 100, 0)))"
    )
    normal, half, threshold, above, far_above = page.evaluate(script)
    assert (normal, half, threshold) == (0, 0.25, 0.5)
    assert 0.5 < above < 0.7 < far_above < 1


def test_holding_the_image_hides_its_map(page: Any) -> None:
    choose(page, DEFECT)
    expect(page, "#overlay").to_be_visible()
    page.locator("#image").hover()
    page.mouse.down()
    expect(page, "#overlay").to_be_hidden()
    page.mouse.up()
    expect(page, "#overlay").to_be_visible()


def test_the_value_of_the_map_is_shown_under_the_pointer(page: Any, service: Running) -> None:
    grid = np.load(io.BytesIO(service.predict(DEFECT, {"accept": "application/x-npy"}, map_size="model").content))
    choose(page, DEFECT)
    expect(page, "#overlay").to_be_visible()
    box = page.locator("#overlay").bounding_box()
    page.mouse.move(box["x"] + 0.375 * box["width"], box["y"] + 0.375 * box["height"])
    expect(page, "#probe").to_contain_text(" at 67, 4")
    shown = float(page.locator("#probe").inner_text().split()[0].replace(",", "").replace("−", "-"))
    height, width = grid.shape
    assert shown == pytest.approx(grid[int(0.375 * height), int(0.375 * width)], abs=0.06)


def test_the_result_can_be_saved_as_json_and_as_an_image(page: Any, service: Running) -> None:
    choose(page, DEFECT, "part.one.png")
    expect(page, "#verdict").to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save JSON").click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "part.one.json"
    assert (saved["score"], saved["anomaly_map"]) == (service.predict(DEFECT, map="none").json()["score"], None)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save overlay").click()
    image = Image.open(download.value.path())
    assert (image.size, download.value.suggested_filename) == ((180, 120), "part.one.overlay.png")
    assert image.convert("RGB").getpixel((67, 45)) != (255, 255, 255)  # the white spot is coloured
