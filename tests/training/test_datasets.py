"""Every layout is read as documented, in one order, and whatever is wrong is said before any training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import DatasetError
from model.picture import open_rgb
from training.datasets import Layout, Sample, discover, load_category, read_mask, read_picture

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def put(path: Path, value: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    """Write a small picture of one grey, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """One product ``nut`` in MVTec AD's layout: two good pictures, one good test picture, two defects."""
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
    """One product ``candle`` in VisA's layout, without the table of the split."""
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


def test_the_mvtec_layout_gives_good_pictures_defects_and_masks(mvtec: Path) -> None:
    category = load_category(mvtec, "nut")
    nut = mvtec / "nut"
    assert category.layout is Layout.MVTEC
    assert category.train == (nut / "train/good/000.png", nut / "train/good/001.png")
    assert category.test == (
        Sample(nut / "test/good/000.png", None, None),
        Sample(nut / "test/crack/000.png", "crack", nut / "ground_truth/crack/000_mask.png"),
        Sample(nut / "test/crack/001.png", "crack", None),
        Sample(nut / "test/scratch/000.png", "scratch", nut / "ground_truth/scratch/000_mask.png"),
    )
    assert [sample.is_anomalous for sample in category.test] == [False, True, True, True]


def test_masks_named_as_their_pictures_are_found_too(mvtec: Path) -> None:
    mask = put(mvtec / "nut" / "ground_truth" / "crack" / "001.png", 255)
    assert load_category(mvtec, "nut").test[2].mask == mask


def test_test_folders_are_not_needed_for_training(mvtec: Path) -> None:
    put(mvtec / "bolt" / "train" / "good" / "a.png")
    assert load_category(mvtec, "bolt").test == ()


def test_visa_without_its_table_trains_on_every_normal_picture(visa: Path) -> None:
    category = load_category(visa, "candle")
    assert category.layout is Layout.VISA
    assert [path.name for path in category.train] == ["0000.JPG", "0001.JPG", "0002.JPG"]
    assert [(s.path.name, s.defect, s.mask.name if s.mask else None) for s in category.test] == [
        ("000.JPG", "anomaly", "000.png"),
        ("001.JPG", "anomaly", "001.png"),
    ]


def test_visa_with_its_table_follows_it(visa: Path) -> None:
    write_split(visa, VISA_ROWS)
    category = load_category(visa, "candle")
    images = visa / "candle" / "Data" / "Images"
    assert category.train == (images / "Normal" / "0001.JPG",)
    assert category.test == (
        Sample(images / "Normal" / "0000.JPG", None, None),
        Sample(images / "Anomaly" / "001.JPG", "anomaly", visa / "candle/Data/Masks/Anomaly/001.png"),
    )


def test_a_plain_folder_is_for_training_only(tmp_path: Path) -> None:
    put(tmp_path / "mug" / "one.png")
    category = load_category(tmp_path, "mug")
    assert category.layout is Layout.FOLDER
    assert category.train == (tmp_path / "mug" / "one.png",)
    assert category.test == ()


def test_names_are_ordered_as_people_count(tmp_path: Path) -> None:
    names = ["10.png", "2.png", "1.png", "b.png", "A1.png", "a10.png", "a9.png"]
    for name in names:
        put(tmp_path / "mug" / name)
    found = [path.name for path in load_category(tmp_path, "mug").train]
    assert found == ["1.png", "2.png", "10.png", "A1.png", "a9.png", "a10.png", "b.png"]


@pytest.mark.parametrize("name", ["a.JPG", "a.PNG", "a.jpeg", "a.bmp", "a.tif", "a.TIFF", "a.webp", "a.gif"])
def test_every_usual_ending_is_a_picture(tmp_path: Path, name: str) -> None:
    put(tmp_path / "mug" / name)
    assert [path.name for path in load_category(tmp_path, "mug").train] == [name]


@pytest.mark.parametrize("name", [".hidden.png", "._a.png", "Thumbs.db", "notes.txt", ".DS_Store"])
def test_other_files_are_passed_over(tmp_path: Path, name: str) -> None:
    kept = put(tmp_path / "mug" / "a.png")
    (tmp_path / "mug" / name).write_bytes(b"no picture")
    assert load_category(tmp_path, "mug").train == (kept,)


def test_products_of_every_layout_are_discovered_in_natural_order(mvtec: Path, visa: Path) -> None:
    put(mvtec / "mug10" / "a.png")
    put(mvtec / "mug9" / "a.png")
    (mvtec / "empty").mkdir()
    put(mvtec / ".cache" / "a.png")
    assert discover(mvtec) == ("candle", "mug9", "mug10", "nut")


def test_a_folder_without_products_is_refused_with_what_is_there(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"holds no product.*There now: a\.png\."):
        discover(tmp_path)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"There is no folder .*absent"):
        discover(tmp_path / "absent")


def test_a_missing_product_is_named_with_what_is_there(mvtec: Path) -> None:
    with pytest.raises(DatasetError, match=r"There is no folder .*bolt, where product 'bolt'.*There now: nut/\."):
        load_category(mvtec, "bolt")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/nut"])
def test_a_name_that_is_no_single_folder_is_refused(mvtec: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="cannot be a product's name"):
        load_category(mvtec, name)


def test_a_product_folder_without_any_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mug" / "inner").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"mug is no product: .*There now: inner/\."):
        load_category(tmp_path, "mug")


def test_a_missing_train_good_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "nut" / "train" / "ok" / "a.png")
    with pytest.raises(DatasetError, match=r"train/good holds no good pictures.*There is no folder .*train/good\."):
        load_category(tmp_path, "nut")


def test_an_empty_train_good_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nut" / "train" / "good").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"train/good holds no good pictures.*is empty\."):
        load_category(tmp_path, "nut")


def test_unreadable_training_pictures_are_all_named(mvtec: Path) -> None:
    good = mvtec / "nut" / "train" / "good"
    (good / "002.png").write_bytes(b"")
    cut = put(good / "003.png", size=(64, 64)).read_bytes()
    (good / "003.png").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(DatasetError, match=r"2 of 4 training pictures .*002\.png is empty.*003\.png cannot be decoded"):
        load_category(mvtec, "nut")


@pytest.mark.parametrize("defect", ["crack", "dent"])
def test_a_mask_without_picture_is_refused(mvtec: Path, defect: str) -> None:
    put(mvtec / "nut" / "ground_truth" / defect / "007_mask.png", 255)
    with pytest.raises(DatasetError, match=rf"{defect}/007_mask\.png is a mask without picture: .*test/{defect} holds"):
        load_category(mvtec, "nut")


def test_two_masks_of_one_picture_are_refused(mvtec: Path) -> None:
    put(mvtec / "nut" / "ground_truth" / "crack" / "000.png", 255)
    with pytest.raises(DatasetError, match="are both masks of picture '000'"):
        load_category(mvtec, "nut")


@pytest.mark.parametrize("with_table", [False, True])
def test_a_visa_mask_without_picture_is_refused(visa: Path, with_table: bool) -> None:
    put(visa / "candle" / "Data" / "Masks" / "Anomaly" / "005.png", 1)
    if with_table:
        write_split(visa, VISA_ROWS)
    with pytest.raises(DatasetError, match=r"005\.png is a mask without picture"):
        load_category(visa, "candle")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("candle,train,normal,candle/Data/Images/Normal/9.JPG,", r"line 2: .*Normal/9\.JPG is listed but not there"),
        ("candle,train,anomaly,candle/Data/Images/Anomaly/001.JPG,", "split 'train' with label 'anomaly' is not used"),
        ("candle,valid,normal,candle/Data/Images/Normal/0001.JPG,", "split 'valid' with label 'normal' is not used"),
        ("pcb1,train,normal,pcb1/a.JPG,", "lists no normal picture for training on object 'candle'"),
        ("candle,test,normal,candle/Data/Images/Normal/0000.JPG,", "lists no normal picture for training"),
    ],
)
def test_a_visa_table_that_cannot_be_followed_is_refused(visa: Path, row: str, message: str) -> None:
    write_split(visa, [row])
    with pytest.raises(DatasetError, match=message):
        load_category(visa, "candle")


def test_a_visa_table_without_its_columns_is_refused(visa: Path) -> None:
    write_split(visa, [], header="object,split,picture")
    with pytest.raises(DatasetError, match=r"lacks the column\(s\) label, image, mask"):
        load_category(visa, "candle")


def test_a_visa_table_that_is_no_text_is_refused(visa: Path) -> None:
    write_split(visa, []).write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DatasetError, match="cannot be read as a table"):
        load_category(visa, "candle")


def test_training_reads_pictures_as_the_service_does(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 13000).save(path)
    assert np.array_equal(read_picture(path), open_rgb(path.read_bytes()))


def test_an_unreadable_picture_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent\.png cannot be read"):
        read_picture(tmp_path / "absent.png")


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "I;16", "1"])
def test_whatever_differs_from_0_is_marked_in_a_mask(tmp_path: Path, mode: str) -> None:
    marked = np.array([[False, True, True], [True, False, False]])
    if mode == "1":
        image = Image.fromarray(marked)
    elif mode == "I;16":
        image = Image.fromarray(marked.astype(np.uint16))
    elif mode == "P":
        image = Image.fromarray(marked.astype(np.uint8))
        image.putpalette([0, 0, 0] * 256)
    else:
        image = Image.fromarray(marked.astype(np.uint8)).convert(mode)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), marked)


def test_a_jpeg_mask_is_cut_in_the_middle(tmp_path: Path) -> None:
    marked = np.zeros((32, 32), bool)
    marked[5:20, 7:23] = True
    Image.fromarray(marked.astype(np.uint8) * 255).save(tmp_path / "mask.jpg", quality=80)
    assert np.array_equal(read_mask(tmp_path / "mask.jpg"), marked)


def test_a_mask_is_brought_to_the_wanted_size_by_the_nearest_pixel(tmp_path: Path) -> None:
    marked = np.array([[True, False], [False, True]])
    Image.fromarray(marked.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    expected = np.kron(marked, np.ones((3, 2), bool))
    assert np.array_equal(read_mask(tmp_path / "mask.png", 6, 4), expected)


def test_an_unreadable_mask_is_a_dataset_error(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"mask\.png is no PNG"):
        read_mask(tmp_path / "mask.png")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data beside the checkout is not there")
@pytest.mark.parametrize(
    ("name", "train", "good", "defective", "masks"), [("bottle", 209, 20, 63, 63), ("cookie", 31, 14, 40, 32)]
)
def test_real_categories_have_the_known_counts(name: str, train: int, good: int, defective: int, masks: int) -> None:
    category = load_category(SHARED, name)
    counts = [sum(not s.is_anomalous for s in category.test), sum(s.is_anomalous for s in category.test)]
    assert [len(category.train), *counts, sum(s.mask is not None for s in category.test)] == [
        train,
        good,
        defective,
        masks,
    ]
