"""The demo images need no network, are deterministic, and are never left incomplete."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from moleflow.training.data import demo
from moleflow.training.data.datasets import Layout, discover, load_category
from moleflow.training.data.demo import DEFECTS, PRODUCTS, make_demo_data
from moleflow.training.data.masks import read_mask
from moleflow.training.errors import DatasetError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("demo") / "data")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few images, to save time."""
    for name in ("_TRAIN_IMAGES", "_GOOD_TEST_IMAGES", "_IMAGES_PER_DEFECT"):
        monkeypatch.setattr(demo, name, 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_three_products_are_written_in_the_mvtec_layout(made: Path) -> None:
    assert discover(made) == PRODUCTS
    for name in PRODUCTS:
        category = load_category(made, name)
        assert category.layout is Layout.MVTEC
        assert len(category.train) == 60
        assert sum(not sample.is_anomalous for sample in category.test) == 12
        assert {sample.defect for sample in category.test} == {None, *DEFECTS}
        assert all(bool(sample.masks) == sample.is_anomalous for sample in category.test)


@pytest.mark.parametrize("product", PRODUCTS)
def test_every_defect_covers_a_small_but_visible_area(made: Path, product: str) -> None:
    for sample in load_category(made, product).test:
        if sample.masks:
            assert 0.002 < read_mask(sample.masks).mean() < 0.12


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_changes_what_its_mask_marks_and_nothing_else(product: str, defect: str) -> None:
    image = getattr(skimage.data, product)()[:256, :256].astype(np.float32)
    spoilt, cover = DEFECTS[defect](image, np.random.default_rng(3))
    changed = np.abs(spoilt - image)
    marked = cover > demo._MARKED
    assert changed[marked].mean() > 20
    assert changed[~marked].mean() < 1
    assert spoilt.min() >= -1
    assert spoilt.max() <= 256


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_test_image_is_a_training_image(made: Path, product: str) -> None:
    train = {path.read_bytes() for path in (made / product / "train" / "good").iterdir()}
    test = {path.read_bytes() for path in (made / product / "test" / "good").iterdir()}
    assert len(train) == 60
    assert len(test) == 12
    assert not train & test


def test_the_same_seed_gives_the_same_files(few: None, tmp_path: Path) -> None:
    assert contents(make_demo_data(tmp_path / "a", 7)) == contents(make_demo_data(tmp_path / "b", 7))


def test_another_seed_gives_other_images_in_the_same_folder(few: None, tmp_path: Path) -> None:
    first = contents(make_demo_data(tmp_path, 1))
    second = contents(make_demo_data(tmp_path, 2))
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first if "train" in name)


def test_complete_products_are_kept(few: None, tmp_path: Path) -> None:
    make_demo_data(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    make_demo_data(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_killed_run_leaves_only_complete_products_and_the_next_adds_the_rest(few: None, tmp_path: Path) -> None:
    # The process kills itself while the second product is being drawn.
    code = (
        "import os, signal, sys; from pathlib import Path; from moleflow.training.data import demo\n"
        "save = demo._save\n"
        "def dying(values, path):\n"
        "    save(values, path)\n"
        "    if 'grass' in str(path) and path.name == '005.png': os.kill(os.getpid(), signal.SIGKILL)\n"
        "demo._save = dying\n"
        "demo.make_demo_data(Path(sys.argv[1]))\n"
    )
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert discover(tmp_path) == ("brick",)
    make_demo_data(tmp_path)
    assert discover(tmp_path) == PRODUCTS
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PRODUCTS)


def test_a_folder_that_was_not_made_here_is_kept(few: None, tmp_path: Path) -> None:
    kept = tmp_path / "grass" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(DatasetError, match="grass exists already and was not made by the demo"):
        make_demo_data(tmp_path)
    assert kept.read_text() == "mine"


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="the demo images cannot be written to .*file/data"):
        make_demo_data(tmp_path / "file" / "data")
