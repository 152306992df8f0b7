"""A product is learned from a part of its images, and inspects no more of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_model import FUSED, tiny_config

from moleflow.model.detector import Detector
from moleflow.model.errors import ConfigurationError, TaskError
from moleflow.model.store.areas import set_area
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.area import Outlines
from moleflow.training.config import Preset
from moleflow.training.continual.sequence import train_tasks
from moleflow.training.data.areas import digest_drawings, read_areas
from moleflow.training.data.datasets import load_category, read_image
from moleflow.training.fit.cross_fitting import split
from moleflow.training.progress import Reporter

RIGHT_HALF = Outlines(ignore=(((0, 0), (0.5, 0), (0.5, 1), (0, 1)),))
LOWER_HALF = Outlines(ignore=(((0, 0), (1, 0), (1, 0.5), (0, 0.5)),))
RIGHT = ("0011",) * 4


def learn(data: Path, name: str, path: Path, preset: Preset, **options: Any) -> Checkpoint:
    quiet = Reporter(console=Console(quiet=True))
    train_tasks(data, [name], path, preset=preset, reporter=quiet, device="cpu", precision="fp32", **options)
    return Checkpoint.open(path)


@pytest.fixture(scope="module")
def learned(products: Path, tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Bolt, and nut learned from the right half of its images, with memories."""
    path = tmp_path_factory.mktemp("areas") / "factory.safetensors"
    preset = tiny_preset.model_copy(update={"model": tiny_config(scoring=FUSED)})
    learn(products, "bolt", path, preset)
    return learn(products, "nut", path, preset, areas={"nut": RIGHT_HALF})


def test_it_is_calibrated_by_what_prediction_says_of_its_held_out_images(
    learned: Checkpoint, products: Path, tiny_preset: Preset
) -> None:
    area = learned.header.tasks[1].learned_area
    assert area is not None
    assert (area.patches, area.ignore) == (RIGHT, RIGHT_HALF.ignore)
    assert learned.header.tasks[0].learned_area is None
    category = load_category(products, "nut")
    [fold] = split("nut", len(category.train), tiny_preset.training).folds
    images = [read_image(category.train[row]) for row in fold]
    detector = Detector.load(learned.path, device="cpu", precision="fp32")
    found = detector.predict(images, ["nut"] * len(images), refuse_unknown=False)
    profile = learned.section("tasks.1.profile")
    assert sorted(each.score for each in found) == pytest.approx(profile["held_out.scores"].tolist(), rel=1e-4)
    peaks = sorted(float(each.pixel_map().max()) for each in found)
    assert peaks == pytest.approx(profile["held_out.peaks"].tolist(), rel=1e-4)
    assert all(each.inspected is not None and np.array_equal(each.inspected, area.mask) for each in found)


def test_the_area_that_a_product_inspects_is_kept_when_it_is_learned_anew(
    learned: Checkpoint, products: Path, tiny_preset: Preset, tmp_path: Path
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(learned.path.read_bytes())
    preset = tiny_preset.model_copy(update={"model": tiny_config(scoring=FUSED)})
    set_area(path, "nut", LOWER_HALF)
    task = learn(products, "nut", path, preset, replace=True).header.tasks[1]
    assert task.area is None
    assert task.learned_area is not None
    assert task.learned_area.patches == ("0000", "0000", "0011", "0011")
    task = learn(products, "nut", path, preset, replace=True, areas={"nut": None}).header.tasks[1]
    assert task.learned_area is None


@pytest.mark.parametrize(
    ("areas", "error", "says"),
    [
        ({"bolt": RIGHT_HALF}, ConfigurationError, "there is an area of 'bolt', which is not learned now"),
        ({"nut": np.zeros((8, 8), bool)}, TaskError, "inspects 0 of 4 × 4 patches"),
    ],
)
def test_an_area_that_cannot_be_is_an_error_before_any_training(
    areas: dict[str, Any], error: type[Exception], says: str, products: Path, tiny_preset: Preset, tmp_path: Path
) -> None:
    path = tmp_path / "new.safetensors"
    with pytest.raises(error, match=says):
        learn(products, "nut", path, tiny_preset, areas=areas)
    assert not path.exists()


def test_a_file_has_polygons_masks_and_whole_images(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "mask.png")
    entries = {"nut": {"ignore": [[[0, 0], [1, 0], [1, 1]]]}, "bolt": {"mask": "mask.png"}, "gear": None}
    (tmp_path / "areas.json").write_text(json.dumps(entries))
    found = read_areas(tmp_path / "areas.json")
    assert found["nut"] == Outlines(ignore=(((0, 0), (1, 0), (1, 1)),))
    assert isinstance(found["bolt"], np.ndarray)
    assert found["bolt"].tolist() == [[False, True]]
    assert found["gear"] is None
    assert digest_drawings(found) == digest_drawings({name: found[name] for name in ("gear", "nut", "bolt")})
    assert digest_drawings(found) != digest_drawings({**found, "bolt": ~found["bolt"]})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "object"),
        ('{"nut": {"ignore": [[[0, 0], [1, 1]]]}}', r"nut.ignore.0: a polygon needs at least 3 points.*for example"),
        ('{"nut": {"mask": "none.png"}}', "the mask of 'nut'.*cannot be read"),
        ('{"nut": {"mask": "none.png", "ignore": [[[0, 0], [1, 1], [0, 1]]]}}', "has a mask and polygons"),
    ],
)
def test_a_file_of_anything_else_is_an_error(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "areas.json").write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        read_areas(tmp_path / "areas.json")
    with pytest.raises(ConfigurationError, match=r"cannot be read"):
        read_areas(tmp_path / "missing.json")
