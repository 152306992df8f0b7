"""Every layout is read as documented, in natural order, and problems are reported before training."""

from pathlib import Path

import numpy as np
import pytest
from dataset_folders import VISA_ROWS, put, write_split
from PIL import Image

from moleflow.model.images.decode import open_rgb
from moleflow.training.data.datasets import Layout, Sample, discover, load_category, read_image
from moleflow.training.errors import DatasetError

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


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
