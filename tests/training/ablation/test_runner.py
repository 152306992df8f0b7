"""Each row of a study runs once and is evaluated like a prediction."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_model import write_product
from tiny_studies import PAIR, PRESET, SCORING, TASKS, Counter, ablation, checkpoints

from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.training.ablation.runner import Ablation, RowResult
from moleflow.training.ablation.studies import Row
from moleflow.training.data.datasets import load_category, read_image
from moleflow.training.data.masks import read_mask
from moleflow.training.errors import DatasetError, DuplicateTaskError
from moleflow.training.evaluation.metrics import PixelScores, image_ranking
from moleflow.training.progress import Reporter


def test_each_row_trains_its_own_configuration_on_every_task(
    finished: tuple[Path, list[tuple[Row, RowResult]]],
) -> None:
    out, results = finished
    assert [row.name for row, _ in results] == ["full", "w/o mixer"]
    headers = [Checkpoint.open(path).header for path in checkpoints(out)]
    assert sorted(header.config.flow.spatial_context_kernel or 0 for header in headers) == [0, 3]
    assert all(tuple(task.name for task in header.tasks) == TASKS for header in headers)
    for (_, result), kernel in zip(results, (3, None), strict=True):
        assert result.model.flow.spatial_context_kernel == kernel
        assert result.tasks == TASKS
        assert result.train_seconds > 0


def test_a_row_is_evaluated_like_the_detector(data: Path, finished: tuple[Path, list[tuple[Row, RowResult]]]) -> None:
    out, results = finished
    full = next(path for path in checkpoints(out) if Checkpoint.open(path).header.config == PRESET.model)
    detector = Detector.load(full, device="cpu", precision="fp32")
    for name, found in zip(TASKS, results[0][1].categories, strict=True):
        samples = load_category(data, name).test
        predictions = detector.predict([read_image(sample.path) for sample in samples], refuse_unknown=False)
        pixels = PixelScores()
        for sample, prediction in zip(samples, predictions, strict=True):
            if sample.masks or not sample.is_anomalous:
                mask = read_mask(sample.masks, 256, 256) if sample.masks else None
                pixels.add(prediction.pixel_map(256, 256), mask)
        image = image_ranking([p.score for p in predictions], [s.is_anomalous for s in samples])
        pixel = pixels.ranking()
        routed = [prediction.task.name == name for prediction in predictions]
        assert (found.name, found.good, found.defective) == (name, 3, 3)
        assert found.image_auroc == pytest.approx(image.auroc)
        assert found.image_ap == pytest.approx(image.average_precision)
        assert found.pixel_auroc == pytest.approx(pixel.auroc, abs=1e-4)
        assert found.pixel_ap == pytest.approx(pixel.average_precision, abs=1e-3)
        assert found.routing == pytest.approx(np.mean(routed))


def test_studies_share_the_full_row_and_scoring_rows_share_its_weights(
    data: Path, finished: tuple[Path, list[tuple[Row, RowResult]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results = finished
    counter = Counter(monkeypatch)
    (_, three), (_, one) = ablation(data, out).run(SCORING)
    assert counter.fits == []
    assert three == results[0][1]
    assert one.model.score_top_k == 1
    assert one.parameters == three.parameters
    assert one.digest != three.digest
    assert [metrics.pixel_ap for metrics in one.categories] == [metrics.pixel_ap for metrics in three.categories]
    (out / "results" / f"{one.digest}.json").unlink()


@pytest.mark.parametrize("change", ["epochs", "seed", "an image", "a mask", "the order"])
def test_everything_that_determines_a_result_changes_its_digest(
    data: Path, finished: tuple[Path, list[tuple[Row, RowResult]]], tmp_path: Path, change: str
) -> None:
    out, _ = finished
    preset, root, tasks = PRESET, data, TASKS
    if change in ("epochs", "seed"):
        preset = PRESET.with_changes(training={change: 3})
    elif change == "the order":
        tasks = TASKS[::-1]
    else:
        root = tmp_path / "data"
        shutil.copytree(data, root)
        changed = {"an image": "bolt/train/good/3.png", "a mask": "nut/ground_truth/spot/1_mask.png"}[change]
        rgb_image = np.array(Image.open(root / changed))
        rgb_image[0] = 255 - rgb_image[0]
        Image.fromarray(rgb_image).save(root / changed)
    other = Ablation(
        root, tasks, out, preset, device="cpu", precision="fp32", reporter=Reporter(console=Console(quiet=True))
    )
    assert other._kept(preset, other._source()) is None
    usual = ablation(data, out)
    assert usual._kept(PRESET, usual._source()) is not None


def test_the_location_of_the_data_does_not_matter(
    data: Path, finished: tuple[Path, list[tuple[Row, RowResult]]], tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "moved")
    moved = ablation(tmp_path / "moved", finished[0])
    assert moved._kept(PRESET, moved._source()) == finished[1][0][1]


def test_a_product_without_defective_test_images_is_refused_before_any_training(tmp_path: Path) -> None:
    for kind, name in enumerate(TASKS):
        write_product(tmp_path / "data", name, kind)
    with pytest.raises(DatasetError, match="'bolt' .* lacks good or defective test images"):
        ablation(tmp_path / "data", tmp_path / "out").run(PAIR)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_task_named_twice_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DuplicateTaskError, match="named more than once"):
        Ablation(data, ("bolt", "bolt"), tmp_path, PRESET)
