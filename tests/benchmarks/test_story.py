"""The whole day at once, against a real service: no bit of an older product's answers changes, and no request fails."""

from pathlib import Path

import pytest
from PIL import Image
from tiny_model import PLUGIN, product_image, tiny_checkpoint, write_tested_product

from benchmarks.story.day import Day, Taught
from moleflow.training.data.datasets import load_category

ROOT = Path(__file__).parents[2]
GRID = ROOT.parent / "shared" / "data" / "grid"


def images_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))


@pytest.fixture
def taught(tmp_path: Path) -> Taught:
    """Real grids where there are any, else synthetic nuts."""
    if GRID.is_dir():
        good, defective = images_of(GRID / "test" / "good"), images_of(GRID / "test" / "bent")
        return Taught("grid", images_of(GRID / "train")[:6], good[:3], defective[:2])
    root = write_tested_product(tmp_path / "data", "nut", 1).parent
    category = load_category(root, "nut")
    good = [each.path for each in category.test if not each.is_anomalous]
    defective = [each.path for each in category.test if each.is_anomalous]
    return Taught("nut", category.train, good, defective)


def test_a_day_in_the_factory_changes_no_bit_of_an_older_product(tmp_path: Path, taught: Taught) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "factory.safetensors", ("bolt",)).path
    inspected = []
    for number in range(3):
        inspected.append(tmp_path / f"bolt{number}.png")
        Image.fromarray(product_image(0, 60 + number)).save(inspected[-1])
    day = Day(checkpoint, tmp_path, inspected, taught, plugin=Path(PLUGIN), epochs=1, alone_seconds=0)
    found = day.play()
    assert (found["different"], found["failed"]) == ([], [])
    assert found["latency"]["beside a training job"]
    assert found["latency"]["while the service restarts"]
    assert list(found["seconds"])[-2:] == ["restart", "remove"]
