"""Each row of a study runs once, resumes after an interruption, and is evaluated like a prediction."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tiny_model import product_image, tiny_config, write_product

from moleflow.model.detector import Detector
from moleflow.model.files.exclusive import side_file
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.training.ablation import runner as module
from moleflow.training.ablation.runner import Ablation, RowResult
from moleflow.training.ablation.studies import Row, Study
from moleflow.training.ablation.table import StudyTable
from moleflow.training.config import Preset, TrainingConfig
from moleflow.training.data.datasets import load_category, read_image
from moleflow.training.data.masks import read_mask
from moleflow.training.errors import DatasetError, DuplicateTaskError
from moleflow.training.evaluation.metrics import PixelScores, image_ranking
from moleflow.training.fit.trainer import EpochResult, TaskTrainer
from moleflow.training.progress import Reporter

TASKS = ("bolt", "nut")
PRESET = Preset(
    name="tiny",
    description="for tests",
    model=tiny_config(),
    training=TrainingConfig(epochs=2, batch_size=4, learning_rate=1e-3, min_held_out=2, folds=1),
)

PAIR = Study("pair", "Two rows", (Row("full"), Row("w/o mixer", flow={"spatial_context_kernel": None}, note="a note")))
ALONE = Study("alone", "The first of them", PAIR.rows[:1])
SCORING = Study("scoring", "Scoring", (Row("3", score_top_k=3), Row("1", score_top_k=1)))
SHARING = Study(
    "sharing", "Sharing", tuple(Row(name, flow={"sharing": name}) for name in ("frozen", "sequential")), forgetting=True
)


def write_tests(folder: Path, kind: int) -> None:
    """The MVTec layout: three good test images, and three with a white square, of which two have a mask."""
    for number in range(3):
        good = product_image(kind, 40 + number)
        bad, mask = product_image(kind, 50 + number), np.zeros((32, 32), dtype=np.uint8)
        bad[8:20, 4:16], mask[8:20, 4:16] = 255, 255
        images = {"test/good": good, "test/spot": bad}
        if number:
            images["ground_truth/spot"] = mask
        for part, rgb_image in images.items():
            name = f"{number}_mask.png" if part.startswith("ground") else f"{number}.png"
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb_image).save(folder / part / name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for kind, name in enumerate(TASKS):
        write_product(root / name / "train", "good", kind, count=8)
        write_tests(root / name, kind)
    return root


def ablation(data: Path, out: Path, preset: Preset = PRESET, **options: Any) -> Ablation:
    reporter = Reporter(console=Console(quiet=True))
    return Ablation(data, TASKS, out, preset, device="cpu", precision="fp32", reporter=reporter, **options)


class Counter:
    """Counts the fits that are started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fits: list[str] = []
        plain = TaskTrainer.epochs

        def epochs(trainer: TaskTrainer, *arguments: Any) -> Iterator[EpochResult]:
            self.fits.append(trainer.name)
            return plain(trainer, *arguments)

        monkeypatch.setattr(TaskTrainer, "epochs", epochs)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Row, RowResult]]]:
    """The output folder and results of a two-row study; read-only."""
    out = tmp_path_factory.mktemp("out")
    return out, ablation(data, out).run(PAIR)


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("runs/*/factory.safetensors"))


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


def test_a_repeated_study_runs_nothing_and_gives_the_same_results(
    data: Path, finished: tuple[Path, list[tuple[Row, RowResult]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results = finished
    counter = Counter(monkeypatch)
    monkeypatch.setattr(module, "CachedEvaluation", None)  # would fail if it were used
    assert ablation(data, out).run(PAIR) == results
    assert counter.fits == []


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


class StoppedError(Exception):
    """Simulates a kill."""


@pytest.mark.parametrize(("task", "epoch"), [("bolt", 1), ("nut", 0), ("nut", 1)])
def test_a_study_killed_inside_a_row_resumes_to_the_same_result(
    data: Path,
    finished: tuple[Path, list[tuple[Row, RowResult]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    epoch: int,
) -> None:
    plain = TaskTrainer.step

    def step(self: TaskTrainer, embeddings: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        if (self.name, self.epoch) == (task, epoch):
            raise StoppedError
        return plain(self, embeddings, rate)

    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "step", step)
        with pytest.raises(StoppedError):
            ablation(data, tmp_path).run(ALONE)
    ((_, found),), (_, expected) = ablation(data, tmp_path).run(ALONE), finished[1][0]
    assert found.categories == expected.categories
    assert found.digest == expected.digest
    (checkpoint,) = checkpoints(tmp_path)
    history = side_file(checkpoint, ".history.jsonl").read_text().splitlines()
    epochs = [entry for entry in map(json.loads, history) if entry["event"] == "epoch"]
    assert len(epochs) == 4
    assert all(entry["seconds"] > 0 for entry in epochs)


def test_a_study_killed_before_an_evaluation_trains_nothing_again(
    data: Path, finished: tuple[Path, list[tuple[Row, RowResult]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(module, "CachedEvaluation", stop)
        with pytest.raises(StoppedError):
            ablation(data, tmp_path, PRESET.with_changes(flow={"spatial_context_kernel": 5})).run(SCORING)
    counter = Counter(monkeypatch)
    ablation(data, tmp_path, PRESET.with_changes(flow={"spatial_context_kernel": 5})).run(SCORING)
    assert counter.fits == ["nut"]  # bolt was trained already; the kill came before its evaluation


@pytest.mark.parametrize("damage", ["", '{"digest":', "[" * 10_000, "null", "\udcff"])
def test_a_damaged_result_is_measured_again_without_training(
    data: Path,
    finished: tuple[Path, list[tuple[Row, RowResult]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    out, expected = finished
    shutil.copytree(out, tmp_path / "out")
    for path in (tmp_path / "out" / "results").iterdir():
        path.write_text(damage, errors="surrogateescape")
    for path in (tmp_path / "out").glob("runs/*/*.history.jsonl"):
        path.write_text('null\n{"event": "epoch"}\n[]\n' + path.read_text() + '{"event": "epo')
    counter = Counter(monkeypatch)
    ((_, again),) = ablation(data, tmp_path / "out").run(ALONE)
    assert counter.fits == []
    assert again.categories == expected[0][1].categories


def test_forgetting_is_the_mean_drop_of_earlier_tasks_and_only_a_sequential_base_forgets(
    data: Path, tmp_path: Path
) -> None:
    results = ablation(data, tmp_path, PRESET.with_changes(training={"learning_rate": 0.03})).run(SHARING)
    (_, frozen), (_, sequential) = results
    assert frozen.at_end is not None and sequential.at_end is not None
    assert frozen.after_learning is not None and sequential.after_learning is not None
    for result in (frozen, sequential):
        assert [metrics.name for metrics in result.after_learning] == list(TASKS)
    document = StudyTable(SHARING, results).document()
    kept, moved = document["rows"]
    scores = [
        [each.model_dump(exclude={"routing"}) for each in which or ()]
        for which in (frozen.after_learning, frozen.at_end)
    ]
    assert scores[0] == scores[1]
    # With products named: routing would change the first product's metrics although nothing was forgotten.
    assert frozen.categories[0].routing < 1
    assert frozen.categories[0].pixel_ap != frozen.at_end[0].pixel_ap
    assert kept["forgetting"] == {"image_auroc": 0.0, "pixel_ap": 0.0}
    before, after = sequential.after_learning[0], sequential.at_end[0]
    assert before.pixel_ap is not None and after.pixel_ap is not None
    assert moved["forgetting"]["pixel_ap"] == before.pixel_ap - after.pixel_ap
    assert moved["forgetting"]["pixel_ap"] != 0


def test_forgetting_that_was_not_measured_is_not_shown(
    finished: tuple[Path, list[tuple[Row, RowResult]]],
) -> None:
    _, results = finished
    unmeasured = [(row, result.model_copy(update={"after_learning": None})) for row, result in results]
    table = StudyTable(Study("x", "X", PAIR.rows, forgetting=True), unmeasured)
    assert {value for row in table.document()["rows"] for value in row["forgetting"].values()} == {None}
    assert table.cells()[0][6:8] == ["–", "–"]


def test_the_table_has_differences_to_the_first_row_and_published_results(
    finished: tuple[Path, list[tuple[Row, RowResult]]],
) -> None:
    table = StudyTable(PAIR, finished[1])
    full, other = table.document()["rows"]
    assert set(full["delta"].values()) == {0.0}
    assert other["delta"]["pixel_ap"] == pytest.approx(other["mean"]["pixel_ap"] - full["mean"]["pixel_ap"])
    metrics = finished[1][1][1].categories
    assert other["mean"]["pixel_ap"] == pytest.approx(np.mean([each.pixel_ap for each in metrics]))
    assert other["parameters_per_later_task"] == finished[1][1][1].parameters[1]
    lines = table.markdown().splitlines()
    assert lines[0] == "### Two rows (`pair`)"
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert [line for line in lines if line.startswith("| w/o mixer")]
    assert "- w/o mixer: a note." in lines
    assert "bolt → nut" in table.markdown()
    assert json.loads(json.dumps(table.document())) == table.document()


def test_a_product_without_defective_test_images_is_refused_before_any_training(tmp_path: Path) -> None:
    for kind, name in enumerate(TASKS):
        write_product(tmp_path / "data", name, kind)
    with pytest.raises(DatasetError, match="'bolt' .* lacks good or defective test images"):
        ablation(tmp_path / "data", tmp_path / "out").run(PAIR)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_task_named_twice_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DuplicateTaskError, match="named more than once"):
        Ablation(data, ("bolt", "bolt"), tmp_path, PRESET)
