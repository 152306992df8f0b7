"""Good images calibrate the inspected area of a product, and count for it when more are added."""

from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny_checkpoint, write_product

from moleflow.model.detector import Detector
from moleflow.model.store.areas import set_area
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.editing import rewrite
from moleflow.model.store.sections import digest_tensors
from moleflow.model.verdict.area import Outlines
from moleflow.model.verdict.calibration import Calibration
from moleflow.model.verdict.results import Prediction
from moleflow.training.continual.area import area_calibration
from moleflow.training.continual.recalibrate import recalibrate
from moleflow.training.data.datasets import load_categories, read_image
from moleflow.training.errors import DatasetError
from moleflow.training.progress import Reporter

RIGHT_HALF = Outlines(ignore=(((0, 0), (0.5, 0), (0.5, 1), (0, 1)),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "factory.safetensors").path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve good nuts."""
    root = tmp_path_factory.mktemp("good")
    write_product(root, "nut", 1, count=12)
    return root


def calibrate(path: Path, data: Path, reporter: Reporter | None = None) -> Checkpoint:
    detector = Detector.load(path, device="cpu", precision="fp32")
    [category] = load_categories(data, ["nut"])
    return set_area(path, "nut", RIGHT_HALF, area_calibration(detector, category, reporter or Reporter()))


def predicted(path: Path, good: Path) -> list[Prediction]:
    images = [read_image(file, 32) for file in sorted((good / "nut").iterdir())]
    detector = Detector.load(path, device="cpu", precision="fp32")
    return detector.predict(images, ["nut"] * len(images), refuse_unknown=False)


def values(checkpoint: Checkpoint, name: str) -> list[float]:
    return checkpoint.section("tasks.1.profile")[name].tolist()


def test_an_area_is_calibrated_by_what_prediction_says_of_the_good_images(path: Path, good: Path) -> None:
    new = calibrate(path, good)
    found = predicted(path, good)
    assert values(new, "inspected.scores") == pytest.approx(sorted(each.score for each in found), rel=1e-5)
    peaks = sorted(float(each.pixel_map().max()) for each in found)
    assert values(new, "inspected.peaks") == pytest.approx(peaks, rel=1e-5)
    assert found[0].threshold == Calibration.fit(values(new, "inspected.scores")).threshold(0.01)


def test_altered_copies_calibrate_where_they_did_at_training(path: Path, good: Path) -> None:
    old = Checkpoint.open(path)
    profile = old.section("tasks.1.profile")
    doubled = profile | {f"held_out.{key}": profile[f"held_out.{key}"].repeat(2) for key in ("scores", "peaks")}
    tasks = list(old.header.tasks)
    tasks[1] = tasks[1].model_copy(update={"altered_copies": 1, "profile_sha256": digest_tensors(doubled)})
    rewrite(old, tasks, {"tasks.1.profile": doubled})
    new = calibrate(path, good)
    assert len(values(new, "inspected.scores")) == 24
    assert new.header.tasks[1].area is not None
    assert new.header.tasks[1].area.calibration_images == 12


def test_recalibration_adds_to_both_calibrations(path: Path, good: Path, tmp_path: Path) -> None:
    before = values(Checkpoint.open(path), "held_out.scores")
    calibrate(path, good)
    write_product(tmp_path, "nut", 1, count=15)  # twelve of them calibrate the area already, but not the whole image
    detector = Detector.load(path, device="cpu", precision="fp32")
    [result] = recalibrate(path, detector, load_categories(tmp_path, ["nut"]))
    new = Checkpoint.open(path)
    new.verify()
    assert result.added == 3
    assert len(values(new, "held_out.scores")) == len(before) + 15
    assert len(values(new, "inspected.scores")) == 15
    assert result.threshold.after == new.header.tasks[1].threshold
    found = np.array([each.score for each in predicted(path, tmp_path)])
    assert result.alarms == ((found > result.threshold.before).sum(), (found > result.threshold.after).sum())


def test_an_area_without_its_own_calibration_stays_with_that_of_the_whole_image(path: Path, good: Path) -> None:
    set_area(path, "nut", RIGHT_HALF)
    detector = Detector.load(path, device="cpu", precision="fp32")
    recalibrate(path, detector, load_categories(good, ["nut"]))
    new = Checkpoint.open(path)
    assert not [name for name in new.section("tasks.1.profile") if name.startswith("inspected")]
    assert new.header.tasks[1].threshold == Calibration.fit(values(new, "held_out.scores")).threshold(0.01)


@pytest.mark.parametrize(("shift", "warns"), [(-60.0, False), (60.0, True)])
def test_good_images_that_score_lower_than_the_held_out_ones_are_reported(
    path: Path, good: Path, capsys: pytest.CaptureFixture[str], shift: float, warns: bool
) -> None:
    usual = float(np.mean([each.score for each in predicted(path, good)]))
    old = Checkpoint.open(path)
    profile = old.section("tasks.1.profile")
    profile["held_out.scores"] += usual + shift - float(profile["held_out.scores"].mean())
    tasks = list(old.header.tasks)
    tasks[1] = tasks[1].model_copy(update={"profile_sha256": digest_tensors(profile)})
    rewrite(old, tasks, {"tasks.1.profile": profile})
    calibrate(path, good)
    assert ("these images score lower than the held-out ones did" in capsys.readouterr().err) == warns


def test_a_single_good_image_is_too_few(path: Path, tmp_path: Path) -> None:
    write_product(tmp_path / "data", "nut", 1, count=1)
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="calibrate no area; give at least 2"):
        calibrate(path, tmp_path / "data")
    assert path.read_bytes() == before
