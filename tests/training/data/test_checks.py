"""Oddities of images and masks give warnings with count and example, or errors in strict mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_model import product_image, write_tested_product

from moleflow.training.data.datasets import load_categories, load_category
from moleflow.training.data.selection import checked_for_testing, load_test_categories
from moleflow.training.data.warnings import DataWarning, report_warnings
from moleflow.training.errors import DatasetError
from moleflow.training.progress import Reporter

ORIENTATION = 0x0112


def image_of(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(product_image(0, seed, side))


def write(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def turned(image: Image.Image, orientation: int) -> dict[str, object]:
    """Options that make Pillow store that orientation."""
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    return {"exif": exif}


@pytest.fixture
def bolt(tmp_path: Path) -> Path:
    """The folder of one product without warnings."""
    return write_tested_product(tmp_path, "bolt", 0)


def warned_on_training(folder: Path) -> dict[str, DataWarning]:
    return {each.kind: each for each in load_category(folder.parent, folder.name).warnings_on("training")}


def warned_on_testing(folder: Path) -> dict[str, DataWarning]:
    (category,) = checked_for_testing([load_category(folder.parent, folder.name, check=False)])
    return {each.kind: each for each in category.warnings_on("testing")}


def only(found: dict[str, DataWarning], kind: str, count: int, example: str) -> None:
    assert [(each.kind, each.count, each.example) for each in found.values()] == [(kind, count, example)]


def test_a_correct_product_has_no_warnings(bolt: Path) -> None:
    assert warned_on_training(bolt) == warned_on_testing(bolt) == {}


def test_duplicate_training_images_are_found_in_any_format(bolt: Path) -> None:
    good = bolt / "train" / "good"
    with Image.open(good / "0.png") as image:
        write(good / "2.bmp", image)
    only(warned_on_training(bolt), "training images that are duplicates", 1, "bolt/train/good/2.bmp")


def test_a_test_image_among_the_training_images_gives_warnings_on_both_sides(bolt: Path) -> None:
    with Image.open(bolt / "train" / "good" / "1.png") as image:
        write(bolt / "test" / "good" / "copy.tif", image)
    kind, example = "test images that are also training images", "bolt/test/good/copy.tif"
    only(warned_on_training(bolt), kind, 1, example)
    only(warned_on_testing(bolt), kind, 1, example)


def test_an_image_labelled_good_and_defective_gives_a_warning(bolt: Path) -> None:
    with Image.open(bolt / "test" / "good" / "100.png") as image:
        write(bolt / "test" / "spot" / "200.png", image)
    assert warned_on_testing(bolt)["test images that are labelled both good and defective"].count == 1


@pytest.mark.parametrize("side", ["training", "testing"])
def test_an_image_of_a_single_colour_gives_a_warning(bolt: Path, side: str) -> None:
    folder = bolt / ("train" if side == "training" else "test") / "good"
    write(folder / "black.png", Image.new("L", (32, 32)))
    found = warned_on_training(bolt) if side == "training" else warned_on_testing(bolt)
    only(found, f"{side} images of a single colour", 1, str((folder / "black.png").relative_to(bolt.parent)))


@pytest.mark.parametrize("side", ["training", "testing"])
def test_a_truncated_jpeg_gives_a_warning(bolt: Path, side: str) -> None:
    folder = bolt / ("train" if side == "training" else "test") / "good"
    path = write(folder / "cut.jpg", image_of(7), quality=95)
    path.write_bytes(path.read_bytes()[:-150] + b"\xff\xd9")
    found = warned_on_training(bolt) if side == "training" else warned_on_testing(bolt)
    only(found, f"{side} images that are truncated", 1, str(path.relative_to(bolt.parent)))


def test_training_images_unlike_the_others_give_a_warning(bolt: Path) -> None:
    good = bolt / "train" / "good"
    write(good / "a.png", image_of(5, 64).resize((64, 32)))
    write(good / "b.png", image_of(6, 128))
    write(good / "c.png", image_of(7).convert("L").convert("RGB"))
    for number in range(3, 6):
        write(good / f"{number}.png", image_of(number))
    found = warned_on_training(bolt)
    assert {kind: each.example for kind, each in found.items()} == {
        "training images with another aspect ratio than most": "bolt/train/good/a.png",
        "training images that are much larger or smaller than most": "bolt/train/good/b.png",
        "training images in grey where most are in colour": "bolt/train/good/c.png",
    }


def test_test_images_unlike_the_training_images_give_a_warning(bolt: Path) -> None:
    for path in sorted((bolt / "test").rglob("*.png")):
        with Image.open(path) as image:
            write(path, image.convert("L").resize((64, 32)))
    for path in (bolt / "ground_truth").rglob("*.png"):
        path.unlink()
    found = {kind: each.count for kind, each in warned_on_testing(bolt).items() if "training" in kind}
    assert found == {
        "testing images with another aspect ratio than most training images": 7,
        "testing images in grey where most training images are in colour": 7,
    }


def test_unread_pages_give_a_warning(bolt: Path) -> None:
    path = write(bolt / "train" / "good" / "pages.tif", image_of(3), save_all=True, append_images=[image_of(4)])
    only(warned_on_training(bolt), "training images with several pages or frames", 1, "bolt/train/good/pages.tif")
    assert path.exists()


def test_16_bit_training_images_among_8_bit_ones_give_a_warning(bolt: Path) -> None:
    values = np.full((32, 32), 3000, np.uint16)
    values[0] = 0
    for number in range(3):
        write(bolt / "train" / "good" / f"more{number}.png", image_of(300 + number).convert("L").convert("RGB"))
    write(bolt / "train" / "good" / "deep.png", Image.fromarray(values))
    found = warned_on_training(bolt)
    warning = found["training images with 16 bits where most are with 8 bits"]
    assert (warning.count, warning.example.endswith("deep.png")) == (1, True)


def test_distinct_12_bit_images_are_not_duplicates(bolt: Path) -> None:
    good = bolt / "train" / "good"
    rng = np.random.default_rng(0)
    for path in good.iterdir():
        path.unlink()
    for number in range(3):
        write(good / f"{number}.png", Image.fromarray(rng.integers(0, 200, (32, 32)).astype(np.uint16)))
    assert warned_on_training(bolt) == {}


def mask_of(bolt: Path, name: str = "200") -> Path:
    return bolt / "ground_truth" / "spot" / f"{name}_mask.png"


MASKS: dict[str, tuple[Callable[[Image.Image], Image.Image], str]] = {
    "black": (lambda mask: mask.point(lambda value: 0), "defective images with an empty mask"),
    "white": (lambda mask: mask.point(lambda value: 255), "defective images whose mask covers every pixel"),
    "inverted": (lambda mask: mask.point(lambda value: 255 - value), "more than half of them"),
    "soft": (lambda mask: mask.resize((13, 11)).resize((32, 32)), "masks with soft edges"),
    "alpha": (lambda mask: Image.merge("RGBA", [mask.point(lambda value: 0)] * 3 + [mask]), "varying alpha channel"),
}


@pytest.mark.parametrize("name", MASKS)
def test_an_empty_or_ambiguous_mask_gives_a_warning(bolt: Path, name: str) -> None:
    change, kind = MASKS[name]
    with Image.open(mask_of(bolt)) as mask:
        changed = change(mask)
    write(mask_of(bolt), changed)
    (found,) = warned_on_testing(bolt).values()
    assert found.kind.endswith(kind)
    assert (found.count, found.example) == (1, "bolt/test/spot/200.png")


def test_defective_images_without_a_mask_are_counted(bolt: Path) -> None:
    mask_of(bolt, "201").unlink()
    mask_of(bolt, "202").unlink()
    only(warned_on_testing(bolt), "defective images without a mask", 2, "bolt/test/spot/201.png")


def test_a_mask_with_another_aspect_ratio_is_refused(bolt: Path) -> None:
    write(mask_of(bolt), Image.new("L", (32, 24), 255))
    with pytest.raises(
        DatasetError, match=r"200_mask\.png has 32 × 24 pixels, but .*200\.png has 32 × 32: the aspect ratios"
    ):
        warned_on_testing(bolt)


def test_a_smaller_mask_with_the_same_aspect_ratio_is_accepted(bolt: Path) -> None:
    with Image.open(mask_of(bolt)) as mask:
        write(mask_of(bolt), mask.resize((16, 16), Image.Resampling.NEAREST))
    assert warned_on_testing(bolt) == {}


@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_mask_rotated_by_90_degrees_is_refused(bolt: Path, which: str) -> None:
    image, mask = image_of(1).resize((48, 32)), Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 9, 9))
    write(bolt / "test" / "spot" / "200.png", image, **(turned(image, 6) if which == "image" else {}))
    write(mask_of(bolt), mask, **(turned(mask, 6) if which == "mask" else {}))
    with pytest.raises(DatasetError, match=r"1 of 10 test images and masks.*rotated by its EXIF orientation"):
        warned_on_testing(bolt)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_mask_with_another_orientation_of_the_same_size_gives_a_warning(bolt: Path, orientation: int) -> None:
    image = image_of(1)
    write(bolt / "test" / "spot" / "200.png", image, **turned(image, orientation))
    only(
        warned_on_testing(bolt),
        "masks with another EXIF orientation than their images",
        1,
        "bolt/test/spot/200.png",
    )


def test_a_mask_drawn_on_the_upright_image_is_accepted(bolt: Path) -> None:
    mask = Image.new("L", (32, 48))
    mask.paste(255, (0, 0, 9, 9))
    image = image_of(1).resize((48, 32))
    write(bolt / "test" / "spot" / "200.png", image, **turned(image, 6))
    write(mask_of(bolt), mask)
    assert not [kind for kind in warned_on_testing(bolt) if "mask" in kind]


def test_a_mask_with_the_orientation_of_its_image_is_accepted(bolt: Path) -> None:
    image, mask = image_of(1).resize((48, 32)), Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 9, 9))
    write(bolt / "test" / "spot" / "200.png", image, **turned(image, 6))
    write(mask_of(bolt), mask, **turned(mask, 6))
    assert not [kind for kind in warned_on_testing(bolt) if "mask" in kind]


def test_a_mask_of_a_good_image_that_is_not_empty_gives_a_warning(bolt: Path) -> None:
    write(bolt / "ground_truth" / "good" / "100_mask.png", Image.new("L", (32, 32)))
    assert warned_on_testing(bolt) == {}
    path = write(bolt / "ground_truth" / "good" / "101_mask.png", Image.new("L", (32, 32), 255))
    only(warned_on_testing(bolt), "masks of good images that are not empty", 1, str(path.relative_to(bolt.parent)))


def test_all_unusable_files_of_all_products_are_named(bolt: Path) -> None:
    nut = write_tested_product(bolt.parent, "nut", 1)
    (bolt / "test" / "good" / "100.png").write_bytes(b"")
    mask_of(bolt).write_bytes(b"")
    (nut / "test" / "spot" / "200.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"3 of 20 .*bolt/test/good/100\.png.*200_mask\.png.*nut/test/spot/200\.png"):
        load_test_categories(bolt.parent, ["bolt", "nut"])
    for folder in (bolt, nut):
        (folder / "train" / "good" / "0.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"2 of 4 training images .*bolt/train/good/0\.png.*nut/train/good/0\.png"):
        load_categories(bolt.parent, ["bolt", "nut"])


def test_a_warning_is_one_line_with_count_and_example_shown_once(
    bolt: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mask_of(bolt, "201").unlink()
    reporter = Reporter()
    load_test_categories(bolt.parent, ["bolt"], reporter=reporter)
    load_test_categories(bolt.parent, ["bolt"], reporter=reporter.with_history(tmp_path / "history.jsonl"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: bolt: defective images without a mask: 1, such as bolt/test/spot/201.png. ")


def test_strict_turns_all_warnings_into_one_error(bolt: Path) -> None:
    mask_of(bolt, "201").unlink()
    write(bolt / "test" / "good" / "black.png", Image.new("L", (32, 32)))
    with pytest.raises(DatasetError, match=r"2 warning\(s\).*--strict.*\(1\) bolt: .*\(2\) bolt: "):
        load_test_categories(bolt.parent, ["bolt"], strict=True)


def test_without_warnings_strict_changes_nothing(bolt: Path) -> None:
    report_warnings([], None, strict=True)
    assert load_test_categories(bolt.parent, ["bolt"], strict=True)
