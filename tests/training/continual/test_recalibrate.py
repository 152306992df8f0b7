"""More good images recalibrate a product, without training and without touching anything else."""

from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny_checkpoint, write_product, write_tested_product

from moleflow.model.detector import Detector
from moleflow.model.errors import UnknownTaskError
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.editing import rewrite
from moleflow.model.store.sections import digest_tensors
from moleflow.model.verdict.calibration import TaskCalibration
from moleflow.model.verdict.results import Prediction
from moleflow.training.continual.recalibrate import Recalibrated, recalibrate
from moleflow.training.data.datasets import load_categories, read_image

STATISTICS = [*TaskCalibration.__dataclass_fields__]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "factory.safetensors").path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good nuts."""
    root = tmp_path_factory.mktemp("good")
    write_product(root, "nut", 1, count=12)
    return root


def run(path: Path, data: Path, name: str = "nut", *, dry_run: bool = False) -> Recalibrated:
    detector = Detector.load(path, device="cpu", precision="fp32")
    (result,) = recalibrate(path, detector, load_categories(data, [name]), dry_run=dry_run)
    return result


def test_the_numbers_of_new_images_join_those_that_are_stored(path: Path, good: Path) -> None:
    old = Checkpoint.open(path)
    detector = Detector(old, device="cpu", precision="fp32")
    images = [read_image(file, 32) for file in sorted((good / "nut").iterdir())]
    found = detector.predict(images, ["nut"] * len(images))
    assert run(path, good).added == 12
    before, after = (checkpoint.section("tasks.1.profile") for checkpoint in (old, Checkpoint.open(path)))
    new = {
        key: sorted({*after[f"held_out.{key}"].tolist()} - {*before[f"held_out.{key}"].tolist()}) for key in STATISTICS
    }
    assert all(len(values) == 12 for values in new.values())
    predictions = [each for each in found if isinstance(each, Prediction)]
    assert new["scores"] == pytest.approx(sorted(each.score for each in predictions), rel=1e-5)
    assert new["peaks"] == pytest.approx(sorted(float(each.pixel_map().max()) for each in predictions), rel=1e-5)
    assert new["distances"] == pytest.approx(sorted(each.task.distance for each in predictions), rel=1e-5)


def test_everything_else_stays_bit_identical(path: Path, good: Path) -> None:
    old = Checkpoint.open(path)
    run(path, good)
    new = Checkpoint.open(path)
    new.verify()
    assert {name for name, digest in new.header.digests().items() if digest != old.header.digests()[name]} == {
        "tasks.1.profile"
    }
    changed = {key for key, value in new.header.tasks[1] if value != getattr(old.header.tasks[1], key)}
    assert changed == {"held_out_images", "threshold", "pixel_threshold", "parameters", "profile_sha256"}
    before, after = old.section("tasks.1.profile"), new.section("tasks.1.profile")
    assert all(np.array_equal(before[key], after[key]) for key in before if key.startswith("prototype."))


def test_good_images_that_alarmed_do_not_any_more(path: Path, good: Path) -> None:
    result = run(path, good)
    assert result.alarms.before > result.alarms.after
    assert result.threshold.before < result.threshold.after
    detector = Detector.load(path, device="cpu", precision="fp32")
    assert detector.tasks[1].threshold == result.threshold.after == Checkpoint.open(path).header.tasks[1].threshold


def test_an_image_counts_once_however_often_it_is_given(path: Path, good: Path) -> None:
    run(path, good)
    once = path.read_bytes()
    again = run(path, good)
    assert (again.good, again.added) == (12, 0)
    assert path.read_bytes() == once


def test_altered_copies_calibrate_where_they_did_at_training(path: Path, good: Path) -> None:
    old = Checkpoint.open(path)
    profile = old.section("tasks.1.profile")
    doubled = profile | {f"held_out.{key}": profile[f"held_out.{key}"].repeat(2) for key in ("scores", "peaks")}
    tasks = list(old.header.tasks)
    tasks[1] = tasks[1].model_copy(update={"altered_copies": 1, "profile_sha256": digest_tensors(doubled)})
    rewrite(old, tasks, {"tasks.1.profile": doubled})
    run(path, good)
    counts = {key: len(Checkpoint.open(path).section("tasks.1.profile")[f"held_out.{key}"]) for key in STATISTICS}
    assert counts == {"scores": 64, "peaks": 64, "grounds": 32, "distances": 32}


def test_defective_images_are_counted_and_calibrate_nothing(path: Path, tmp_path: Path) -> None:
    write_tested_product(tmp_path / "tested", "nut", 1, bad=3)
    result = run(path, tmp_path / "tested")
    assert (result.good, result.added, result.defects) == (2, 2, 3)
    assert 0 <= result.found.after <= result.found.before <= 3


def test_a_dry_run_writes_nothing(path: Path, good: Path) -> None:
    before = path.read_bytes()
    assert run(path, good, dry_run=True).added == 12
    assert path.read_bytes() == before


def test_a_product_that_was_not_learned_is_an_error(path: Path, tmp_path: Path) -> None:
    write_product(tmp_path / "data", "cog", 1, count=3)
    with pytest.raises(UnknownTaskError, match="'cog'"):
        run(path, tmp_path / "data", "cog")
