"""Folders that are not quite as documented: what is meant is read, with a warning; what is unclear is refused."""

from pathlib import Path

import pytest
from dataset_folders import VISA_ROWS, put, write_split

from moleflow.training.data.datasets import discover, load_category, stray_images
from moleflow.training.errors import DatasetError


def warned(root: Path, name: str) -> dict[str, tuple[str, int, str]]:
    """The warnings about one product's files by kind: concern, count and example."""
    category = load_category(root, name, check=False)
    return {each.kind: (each.concerns, each.count, each.example) for each in category.warnings}


@pytest.fixture
def whole(mvtec: Path) -> Path:
    """``nut`` with a mask for each defective image: no warnings."""
    put(mvtec / "nut" / "ground_truth" / "crack" / "001_mask.png", 255)
    assert warned(mvtec, "nut") == {}
    return mvtec


def test_several_masks_of_an_image_may_be_in_a_folder_of_its_name(whole: Path) -> None:
    truth = whole / "nut" / "ground_truth" / "scratch"
    (truth / "000_mask.png").unlink()
    masks = tuple(put(truth / "000" / name, 255) for name in ("000.png", "001.png"))
    assert load_category(whole, "nut").test[-1].masks == masks
    assert warned(whole, "nut") == {}


@pytest.mark.parametrize("name", ["0", "000_masks"])
def test_a_folder_of_masks_without_an_image_is_refused(whole: Path, name: str) -> None:
    put(whole / "nut" / "ground_truth" / "scratch" / name / "000.png", 255)
    with pytest.raises(DatasetError, match=rf"scratch/{name} is a mask without an image"):
        load_category(whole, "nut")


def test_images_and_masks_are_matched_in_any_unicode_form(whole: Path) -> None:
    composed, decomposed = "rayé", "raye\u0301"
    put(whole / "nut" / "test" / composed / f"{decomposed}.png")
    mask = put(whole / "nut" / "ground_truth" / decomposed / f"{composed}_mask.png", 255)
    assert [(each.defect, each.masks) for each in load_category(whole, "nut").test if each.defect == composed] == [
        (composed, (mask,))
    ]
    assert warned(whole, "nut") == {}


def test_one_mask_for_two_images_is_refused(whole: Path) -> None:
    put(whole / "nut" / "test" / "crack" / "000.jpg")
    with pytest.raises(DatasetError, match=r"is a mask of both .*000\.jpg and .*000\.png"):
        load_category(whole, "nut")


@pytest.mark.parametrize("name", ["Good", "GOOD", "ok", "OK", "normal", "defect-free"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_synonym_of_good_is_accepted_with_a_warning(whole: Path, part: str, name: str) -> None:
    before = load_category(whole, "nut")
    (whole / "nut" / part / "good").rename(whole / "nut" / part / name)
    after = load_category(whole, "nut")
    assert [path.name for path in after.train] == [path.name for path in before.train]
    assert [sample.is_anomalous for sample in after.test] == [sample.is_anomalous for sample in before.test]
    kind = f"folders in {part} that are treated as {part}/good"
    assert warned(whole, "nut") == {kind: ("training" if part == "train" else "testing", 1, f"nut/{part}/{name}")}


def test_the_folders_of_a_layout_are_found_ignoring_case(whole: Path, visa: Path) -> None:
    nut, images = whole / "nut", visa / "candle" / "Data" / "Images"
    for folder in (nut / "train", nut / "test", nut / "ground_truth"):
        folder.rename(nut / folder.name.title())
    (images / "Normal").rename(images / "normal")
    assert discover(whole) == ("candle", "nut")
    nut_found, candle = load_category(whole, "nut"), load_category(whole, "candle")
    assert (len(nut_found.train), len(nut_found.test), nut_found.test[-1].masks != ()) == (2, 4, True)
    assert len(candle.train) == 3


LEFT_OVER = {
    "train/good/deeper/a.png": ("training", "images in subfolders (train/good)"),
    "test/crack/deeper/a/b.JPG": ("testing", "images in subfolders (test/crack)"),
    "train/bad/a.png": ("training", "images in folders that are not part of the layout (train)"),
    "train/a.png": ("training", "images in folders that are not part of the layout (train)"),
    "test/a.png": ("testing", "images in folders that are not part of the layout (test)"),
    "validation/good/a.png": ("training", "images in folders that are not part of the layout (validation)"),
    "a.png": ("training", "images in folders that are not part of the layout (nut)"),
    "train/good/.a.png": ("training", "hidden image files (train/good)"),
    "train/good/a.heic": ("training", "files with an unsupported suffix (train/good)"),
    "train/good/a": ("training", "files with an unsupported suffix (train/good)"),
    "test/good/a.jp2": ("testing", "files with an unsupported suffix (test/good)"),
}


@pytest.mark.parametrize("path", LEFT_OVER)
def test_an_unused_file_that_could_be_an_image_gives_a_warning(whole: Path, path: str) -> None:
    before = load_category(whole, "nut")
    put(whole / "nut" / "b.png").rename(whole / "nut" / "b")
    target = whole / "nut" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    (whole / "nut" / "b").rename(target)
    concerns, kind = LEFT_OVER[path]
    assert warned(whole, "nut") == {kind: (concerns, 1, f"nut/{path}")}
    after = load_category(whole, "nut")
    assert (after.train, after.test) == (before.train, before.test)


def test_unused_files_are_counted_per_folder(whole: Path) -> None:
    for number in (2, 10, 1):
        put(whole / "nut" / "validation" / "good" / f"{number}.png")
    kind = "images in folders that are not part of the layout (validation)"
    assert warned(whole, "nut") == {kind: ("training", 3, "nut/validation/good/1.png")}


@pytest.mark.parametrize("name", ["._a.png", ".DS_Store", "Thumbs.db", "readme.txt", "labels.csv"])
def test_obvious_non_images_give_no_warning(whole: Path, name: str) -> None:
    for folder in ("train/good", "test/crack", "."):
        (whole / "nut" / folder / name).write_bytes(b"no image")
    assert warned(whole, "nut") == {}


def test_images_in_subfolders_of_a_plain_folder_give_a_warning(tmp_path: Path) -> None:
    put(tmp_path / "mug" / "a.png")
    put(tmp_path / "mug" / "more" / "b.png")
    assert warned(tmp_path, "mug") == {"images in subfolders (mug)": ("training", 1, "mug/more/b.png")}


def test_cyclic_and_broken_links_give_a_warning_and_are_not_followed(whole: Path) -> None:
    good = whole / "nut" / "train" / "good"
    (good / "circle").symlink_to(whole)
    (good / "self.png").symlink_to(good / "self.png")
    (good / "gone.png").symlink_to(whole / "gone.png")
    assert warned(whole, "nut") == {
        "links to folders, which are not followed (train/good)": ("training", 1, "nut/train/good/circle"),
        "broken links and other entries that are not files (train/good)": ("training", 2, "nut/train/good/gone.png"),
    }


def test_links_to_the_folders_of_a_layout_are_followed(whole: Path) -> None:
    elsewhere = whole / ".elsewhere"
    (whole / "nut" / "test").rename(elsewhere)
    (whole / "nut" / "test").symlink_to(elsewhere)
    put(elsewhere / "crack" / "deeper" / "a.png")
    assert len(load_category(whole, "nut").test) == 4
    assert set(warned(whole, "nut")) == {"images in subfolders (test/crack)"}


def test_an_empty_defect_and_a_missing_kind_of_test_images_give_a_warning(whole: Path) -> None:
    test = whole / "nut" / "test"
    (test / "dent").mkdir()
    (test / "good" / "000.png").unlink()
    assert warned(whole, "nut") == {
        "defects without images": ("testing", 1, "nut/test/dent"),
        "test folders without good images": ("testing", 1, "nut/test"),
    }


@pytest.mark.parametrize("inside", [".", "test", "train", "ground_truth", "test/crack", "validation"])
def test_a_product_or_its_subfolder_is_refused_as_a_folder_of_products(whole: Path, inside: str) -> None:
    (whole / "nut" / "validation").mkdir()
    with pytest.raises(
        DatasetError, match=rf"product.*; use the folder that contains the products, .*{whole.name}, with --task nut\."
    ):
        discover(whole / "nut" / inside)
    with pytest.raises(DatasetError, match=r"--task nut\."):
        load_category(whole / "nut" / inside, "good")


def test_a_subfolder_of_a_visa_product_is_refused_too(visa: Path) -> None:
    with pytest.raises(DatasetError, match=r"is inside the product .*candle; .*--task candle\."):
        discover(visa / "candle" / "Data" / "Images")


def test_products_one_folder_deeper_are_suggested(whole: Path) -> None:
    (whole / "mvtec").mkdir()
    (whole / "nut").rename(whole / "mvtec" / "nut")
    with pytest.raises(DatasetError, match=r"contains no product; .*There are products in .*mvtec: use that folder"):
        discover(whole)


def test_images_beside_the_products_give_a_warning(whole: Path) -> None:
    put(whole / "loose.png")
    put(whole / "old" / "batch" / "a.png")
    put(whole / "phone" / "a.png").rename(whole / "phone" / "a.heic")
    (whole / "bracket").symlink_to(whole / "unplugged" / "bracket")
    (whole / "split_csv").mkdir()
    (whole / "split_csv" / "1cls.csv").write_text("object,split,label,image,mask\n")
    found = {each.kind: (each.count, each.example) for each in stray_images(whole)}
    assert found == {
        "folders with images that are not products": (2, "old"),
        "broken links beside the products": (1, "bracket"),
        "images beside the products": (1, "loose.png"),
    }


@pytest.mark.parametrize("label", ["Normal", "good", "OK"])
def test_a_synonym_of_good_is_accepted_in_visas_table(visa: Path, label: str) -> None:
    write_split(visa, [row.replace("normal", label) for row in VISA_ROWS])
    category = load_category(visa, "candle")
    assert ([len(category.train)], [sample.is_anomalous for sample in category.test]) == ([1], [False, True])


def test_images_missing_from_visas_table_give_a_warning(visa: Path) -> None:
    write_split(visa, VISA_ROWS)
    found = warned(visa, "candle")
    kind = "images that the split table does not list (Data/Images/Normal)"
    assert found[kind] == (
        "training",
        1,
        "candle/Data/Images/Normal/0002.JPG",
    )
