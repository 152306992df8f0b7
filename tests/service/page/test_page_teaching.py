"""The views in which products are taught and looked after, and the buttons for feedback, in Chromium."""

from pathlib import Path
from typing import Any

import pytest
from fake_training import Says
from pages import BROWSER_TESTS, GOOD, PHONE, choose, expect, opened, transfer
from running import Running, eventually, run_server, serve_checkpoint
from sample_images import encoded
from tiny_fixtures import tiny_backbone  # noqa: F401
from tiny_model import product_image, tiny_checkpoint

pytestmark = BROWSER_TESTS

HALF_DONE = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
progress = dict(phase="cog", done=1, total=2, fraction=0.5, seconds_left=30.0, epoch=3, epochs=8, loss=12.5)
(folder / "progress.json").write_text(json.dumps(progress))
while not (folder / "go").exists(): time.sleep(0.01)
"""
"""A training that waits in its middle."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "factory.safetensors", ("bolt", "nut", "cog")).path


def good_images(count: int) -> list[dict[str, Any]]:
    return [
        {"name": f"{seed}.png", "mimeType": "image/png", "buffer": encoded(product_image(2, seed))}
        for seed in range(count)
    ]


def open_view(page: Any, name: str) -> None:
    page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()


def test_a_product_is_taught_with_its_progress_and_first_results(
    browser: Any, path: Path, tmp_path: Path, training: Says
) -> None:
    training(HALF_DONE)
    with serve_checkpoint(path, teaching=tmp_path / "teaching") as running, opened(browser, running) as page:
        open_view(page, "Teach")
        expect(page, "#learn").to_be_disabled()
        page.set_input_files("#good", good_images(1))
        expect(page, "#teach-problem").to_have_text("Name the product first, then add its images.")
        page.get_by_label("Name").fill("cog")
        note = {"name": "note.txt", "mimeType": "text/plain", "buffer": b"no image"}
        page.set_input_files("#good", [*good_images(18), note])
        expect(page, "#refused li").to_contain_text("note.txt The image is not a PNG")
        expect(page, "#kept").to_have_text("18 images of cog. Some 30 are a start.")
        page.evaluate(
            "(files) => document.dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true }))",
            transfer(page, encoded(product_image(2, 70)), "dropped.png"),
        )
        page.get_by_role("button", name="Learn cog from 19 images").click()
        expect(page, ".job").to_contain_text("epoch 3 of 8, loss 12.5")
        expect(page, ".job progress").to_have_js_property("value", 0.5)
        expect(page, ".job .figure").to_have_text("50 %, 30 s left")
        page.reload()  # the job is found again
        expect(page, ".job").to_contain_text("30 s left")
        (job,) = (tmp_path / "teaching" / "jobs").glob("*/data")
        (job.parent / "go").touch()
        expect(page, ".job .histogram").to_be_visible()
        page.get_by_role("button", name="Inspect images of cog").click()
        expect(page, "#product").to_have_value("cog")
        expect(page, "#stage").to_be_visible()


def test_products_are_searched_renamed_and_removed_and_show_their_good_scores(browser: Any, path: Path) -> None:
    with serve_checkpoint(path) as running, opened(browser, running) as page:
        expect(page, "#to-teach").to_be_hidden()
        open_view(page, "Products")
        expect(page, ".product").to_have_count(3)
        page.get_by_label("Search").fill("NU")
        expect(page, ".product").to_have_count(1)
        page.get_by_role("button", name="nut").click()
        expect(page, ".histogram rect").to_have_count(24)
        page.get_by_label("New name of nut").fill("wing nut")
        page.get_by_role("button", name="Rename").click()
        expect(page, ".product h2").to_have_text("wing nut")
        page.get_by_label("Search").fill("")
        for name in ("bolt", "cog"):
            page.get_by_role("button", name=name).click()
            page.get_by_role("button", name="Remove…").click()
            page.get_by_role("button", name=f"Remove {name} for good").click()
            if name == "bolt":
                expect(page, ".details:not([hidden]) [role=alert]").to_contain_text("was learned first")
        expect(page, ".product").to_have_count(2)
        assert eventually(lambda: len(running.client.get("/tasks").json()["tasks"]) == 2)


def test_the_truth_about_an_image_is_told_below_its_result(browser: Any, tmp_path: Path) -> None:
    with run_server(feedback=tmp_path) as running, opened(browser, running) as page:
        choose(page, GOOD)
        page.get_by_role("button", name="Really a defect").click()
        expect(page, ".told + p").to_have_text("Kept as defective for green.")
        page.get_by_role("button", name="That was good").click()
        expect(page, ".told + p").to_have_text("Kept as good for green.")
        expect(page, ".told [aria-pressed=true]").to_have_text("That was good")
        assert len(list(tmp_path.glob("green/train/good/*.png"))) == 1
        assert not list(tmp_path.glob("green/test/defect/*.png"))


def test_without_feedback_nothing_is_asked(page: Any, service: Running) -> None:
    choose(page, GOOD)
    expect(page, "#verdict").to_be_visible()
    expect(page, ".told").to_have_count(0)


def test_every_view_fits_a_phone(browser: Any, tmp_path: Path) -> None:
    names = ("bolt", "a_product_whose_name_is_longer_than_any_phone_is_wide_" * 3)
    path = tiny_checkpoint(tmp_path / "factory.safetensors", names).path
    with serve_checkpoint(path, teaching=tmp_path / "teaching") as running, opened(browser, running, **PHONE) as page:
        open_view(page, "Teach")
        page.get_by_label("Name").fill(names[1])
        page.set_input_files("#good", good_images(8))
        expect(page, "#kept").to_contain_text("8 images of")
        widths = [page.evaluate("document.documentElement.scrollWidth")]
        open_view(page, "Products")
        page.get_by_role("button", name=names[1]).click()
        expect(page, ".histogram").to_be_visible()
        widths.append(page.evaluate("document.documentElement.scrollWidth"))
        assert widths == [375, 375]
