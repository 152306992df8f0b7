"""Every layout is read as documented, in natural order, and problems are reported before training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moleflow.model.images.decode import open_rgb
from moleflow.training.data.datasets import Layout, Sample, discover, load_category, read_image, stray_images
from moleflow.training.errors import DatasetError

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def put(path: Path, value: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    """Write a small uniform grey image, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """One product ``nut`` in MVTec AD's layout: two good images, one good test image, two defects."""
    nut = tmp_path / "nut"
    for name in ("000.png", "001.png"):
        put(nut / "train" / "good" / name)
    put(nut / "test" / "good" / "000.png")
    put(nut / "test" / "crack" / "000.png")
    put(nut / "test" / "crack" / "001.png")
    put(nut / "test" / "scratch" / "000.png")
    put(nut / "ground_truth" / "crack" / "000_mask.png", 255)
    put(nut / "ground_truth" / "scratch" / "000_mask.png", 255)
    return tmp_path


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    """One product ``candle`` in VisA's layout, without the split table."""
    data = tmp_path / "candle" / "Data"
    for name in ("0000.JPG", "0001.JPG", "0002.JPG"):
        put(data / "Images" / "Normal" / name)
    for name in ("000.JPG", "001.JPG"):
        put(data / "Images" / "Anomaly" / name)
        put(data / "Masks" / "Anomaly" / name.replace("JPG", "png"), 1)
    return tmp_path


def write_split(root: Path, rows: list[str], header: str = "object,split,label,image,mask") -> Path:
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir()
    table.write_text("\n".join([header, *rows]) + "\n")
    return table


VISA_ROWS = [
    "candle,train,normal,candle/Data/Images/Normal/0001.JPG,",
    "candle,test,normal,candle/Data/Images/Normal/0000.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,candle/Data/Masks/Anomaly/001.png",
    "pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,",
]


def test_the_mvtec_layout_is_read(mvtec: Path) -> None:
    category = load_category(mvtec, "nut")
    nut = mvtec / "nut"
    assert category.layout is Layout.MVTEC
    assert category.train == (nut / "train/good/000.png", nut / "train/good/001.png")
    assert category.test == (
        Sample(nut / "test/good/000.png", None),
        Sample(nut / "test/crack/000.png", "crack", (nut / "ground_truth/crack/000_mask.png",)),
        Sample(nut / "test/crack/001.png", "crack"),
        Sample(nut / "test/scratch/000.png", "scratch", (nut / "ground_truth/scratch/000_mask.png",)),
    )
    assert [sample.is_anomalous for sample in category.test] == [False, True, True, True]


def test_masks_named_like_their_images_are_found_too(mvtec: Path) -> None:
    mask = put(mvtec / "nut" / "ground_truth" / "crack" / "001.png", 255)
    assert load_category(mvtec, "nut").test[2].masks == (mask,)


def test_test_folders_are_not_needed_for_training(mvtec: Path) -> None:
    put(mvtec / "bolt" / "train" / "good" / "a.png")
    assert load_category(mvtec, "bolt").test == ()


def test_visa_without_its_table_trains_on_every_normal_image(visa: Path) -> None:
    category = load_category(visa, "candle")
    assert category.layout is Layout.VISA
    assert [path.name for path in category.train] == ["0000.JPG", "0001.JPG", "0002.JPG"]
    assert [(s.path.name, s.defect, s.masks[0].name if s.masks else None) for s in category.test] == [
        ("000.JPG", "anomaly", "000.png"),
        ("001.JPG", "anomaly", "001.png"),
    ]


def test_visa_with_its_table_follows_it(visa: Path) -> None:
    write_split(visa, VISA_ROWS)
    category = load_category(visa, "candle")
    images = visa / "candle" / "Data" / "Images"
    assert category.train == (images / "Normal" / "0001.JPG",)
    assert category.test == (
        Sample(images / "Normal" / "0000.JPG", None),
        Sample(images / "Anomaly" / "001.JPG", "anomaly", (visa / "candle/Data/Masks/Anomaly/001.png",)),
    )


def test_a_plain_folder_is_for_training_only(tmp_path: Path) -> None:
    put(tmp_path / "mug" / "one.png")
    category = load_category(tmp_path, "mug")
    assert category.layout is Layout.FOLDER
    assert category.train == (tmp_path / "mug" / "one.png",)
    assert category.test == ()


def test_names_are_in_natural_order(tmp_path: Path) -> None:
    names = ["10.png", "2.png", "1.png", "b.png", "A1.png", "a10.png", "a9.png"]
    for name in names:
        put(tmp_path / "mug" / name)
    found = [path.name for path in load_category(tmp_path, "mug").train]
    assert found == ["1.png", "2.png", "10.png", "A1.png", "a9.png", "a10.png", "b.png"]


@pytest.mark.parametrize("name", ["a.JPG", "a.PNG", "a.jpeg", "a.bmp", "a.tif", "a.TIFF", "a.webp", "a.gif"])
def test_every_supported_suffix_is_an_image(tmp_path: Path, name: str) -> None:
    put(tmp_path / "mug" / name)
    assert [path.name for path in load_category(tmp_path, "mug").train] == [name]


@pytest.mark.parametrize("name", [".hidden.png", "._a.png", "Thumbs.db", "notes.txt", ".DS_Store"])
def test_other_files_are_ignored(tmp_path: Path, name: str) -> None:
    kept = put(tmp_path / "mug" / "a.png")
    (tmp_path / "mug" / name).write_bytes(b"no image")
    assert load_category(tmp_path, "mug").train == (kept,)


def test_products_of_every_layout_are_discovered_in_natural_order(mvtec: Path, visa: Path) -> None:
    put(mvtec / "mug10" / "a.png")
    put(mvtec / "mug9" / "a.png")
    (mvtec / "empty").mkdir()
    put(mvtec / ".cache" / "a.png")
    assert discover(mvtec) == ("candle", "mug9", "mug10", "nut")


def test_a_folder_without_products_is_refused_with_its_contents(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"contains no product.*It contains: a\.png\."):
        discover(tmp_path)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"There is no folder .*absent"):
        discover(tmp_path / "absent")


def test_a_missing_product_is_named_with_the_folders_contents(mvtec: Path) -> None:
    with pytest.raises(DatasetError, match=r"There is no folder .*bolt for product 'bolt'.*It contains: nut/\."):
        load_category(mvtec, "bolt")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/nut"])
def test_a_name_that_is_a_path_is_refused(mvtec: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="cannot be a product's name"):
        load_category(mvtec, name)


def test_a_product_folder_without_any_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mug" / "inner").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"mug is not a product: .*It contains: inner/\."):
        load_category(tmp_path, "mug")


def test_a_missing_train_good_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "nut" / "train" / "bad" / "a.png")
    with pytest.raises(DatasetError, match=r"train/good contains no good images.*It contains: bad/\."):
        load_category(tmp_path, "nut")


def test_an_empty_train_good_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nut" / "train" / "good").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"train/good contains no good images.*is empty\."):
        load_category(tmp_path, "nut")


def test_unreadable_training_images_are_all_named(mvtec: Path) -> None:
    good = mvtec / "nut" / "train" / "good"
    (good / "002.png").write_bytes(b"")
    cut = put(good / "003.png", size=(64, 64)).read_bytes()
    (good / "003.png").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(DatasetError, match=r"2 of 4 training images .*002\.png is empty.*003\.png cannot be decoded"):
        load_category(mvtec, "nut")


@pytest.mark.parametrize("defect", ["crack", "dent"])
def test_a_mask_without_an_image_is_refused(mvtec: Path, defect: str) -> None:
    put(mvtec / "nut" / "ground_truth" / defect / "007_mask.png", 255)
    with pytest.raises(DatasetError, match=rf"{defect}/007_mask\.png is a mask without an image: .*test/{defect} has"):
        load_category(mvtec, "nut")


def test_two_masks_of_one_image_are_refused(mvtec: Path) -> None:
    put(mvtec / "nut" / "ground_truth" / "crack" / "000.png", 255)
    with pytest.raises(DatasetError, match="are both masks of image '000'"):
        load_category(mvtec, "nut")


@pytest.mark.parametrize("with_table", [False, True])
def test_a_visa_mask_without_an_image_is_refused(visa: Path, with_table: bool) -> None:
    put(visa / "candle" / "Data" / "Masks" / "Anomaly" / "005.png", 1)
    if with_table:
        write_split(visa, VISA_ROWS)
    with pytest.raises(DatasetError, match=r"005\.png is a mask without an image"):
        load_category(visa, "candle")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("candle,train,normal,candle/Data/Images/Normal/9.JPG,", r"line 2: .*Normal/9\.JPG is listed but missing"),
        ("candle,train,anomaly,candle/Data/Images/Anomaly/001.JPG,", "split 'train' with label 'anomaly' is invalid"),
        ("candle,valid,normal,candle/Data/Images/Normal/0001.JPG,", "split 'valid' with label 'normal' is invalid"),
        ("pcb1,train,normal,pcb1/a.JPG,", "lists no normal training image of object 'candle'"),
        ("candle,test,normal,candle/Data/Images/Normal/0000.JPG,", "lists no normal training image"),
    ],
)
def test_an_invalid_visa_table_is_refused(visa: Path, row: str, message: str) -> None:
    write_split(visa, [row])
    with pytest.raises(DatasetError, match=message):
        load_category(visa, "candle")


def test_a_visa_table_without_its_columns_is_refused(visa: Path) -> None:
    write_split(visa, [], header="object,split,path")
    with pytest.raises(DatasetError, match=r"lacks the column\(s\) label, image, mask"):
        load_category(visa, "candle")


def test_a_visa_table_that_is_not_text_is_refused(visa: Path) -> None:
    write_split(visa, []).write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DatasetError, match="cannot be read as a table"):
        load_category(visa, "candle")


def test_training_reads_images_as_the_service_does(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 13000).save(path)
    assert np.array_equal(read_image(path), open_rgb(path.read_bytes()))


def test_an_unreadable_image_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent\.png cannot be read"):
        read_image(tmp_path / "absent.png")


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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("candle,test,,candle/Data/Images/Normal/0002.JPG,", "with label '' is invalid"),
        ("candle,test,normal,candle/Data/Images/Normal/0001.JPG,", r"line 6: .*0001\.JPG is also listed in line 2"),
    ],
)
def test_an_empty_or_repeated_row_is_refused(visa: Path, row: str, message: str) -> None:
    write_split(visa, [*VISA_ROWS, row])
    with pytest.raises(DatasetError, match=message):
        load_category(visa, "candle")


def test_images_missing_from_visas_table_give_a_warning(visa: Path) -> None:
    write_split(visa, VISA_ROWS)
    found = warned(visa, "candle")
    kind = "images that the split table does not list (Data/Images/Normal)"
    assert found[kind] == (
        "training",
        1,
        "candle/Data/Images/Normal/0002.JPG",
    )


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data beside the checkout is not there")
@pytest.mark.parametrize(
    ("name", "train", "good", "defective", "masks"), [("bottle", 209, 20, 63, 63), ("cookie", 31, 14, 40, 32)]
)
def test_real_categories_have_the_known_counts(name: str, train: int, good: int, defective: int, masks: int) -> None:
    category = load_category(SHARED, name)
    counts = [sum(not s.is_anomalous for s in category.test), sum(s.is_anomalous for s in category.test)]
    assert [len(category.train), *counts, sum(bool(s.masks) for s in category.test)] == [
        train,
        good,
        defective,
        masks,
    ]
