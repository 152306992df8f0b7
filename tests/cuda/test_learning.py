"""Checkpoints learned on a GPU: read by a CPU and the other way round, extended, and continued."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from agreement import relative_error
from rich.console import Console
from tiny_model import FUSED, product_image, tiny_config, write_product

from moleflow.model.detector import Detector
from moleflow.model.files.exclusive import side_file
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.results import Prediction
from moleflow.training.config import Preset, TrainingConfig
from moleflow.training.continual.sequence import train_tasks
from moleflow.training.fit.trainer import TaskTrainer
from moleflow.training.progress import Reporter

TRAINING = TrainingConfig(epochs=2, batch_size=4, learning_rate=1e-3, min_held_out=3, folds=1, altered_copies=0)
PRESETS = {
    "main": Preset(name="main", description="tiny", model=tiny_config(), training=TRAINING),
    "fast": Preset(name="fast", description="tiny", model=tiny_config(adapter="zca", scoring=FUSED), training=TRAINING),
}
BOUNDS = {"main": 1e-3, "fast": 1e-1}
"""Of scores and of each map. A capped one is a small difference of large values (see ``test_agreement``)."""

IMAGES = [product_image(kind, 30 + seed) for seed in range(2) for kind in (1, 0)]

Learn = Callable[..., Path]


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bolt and nut, ten images each."""
    root = tmp_path_factory.mktemp("data")
    for kind, name in enumerate(("bolt", "nut")):
        write_product(root, name, kind, count=10)
    return root


@pytest.fixture(scope="module")
def learn(products: Path) -> Learn:
    """Learns products into a checkpoint."""

    def learned(names: list[str], path: Path, preset: str, where: torch.device | str) -> Path:
        reporter = Reporter(console=Console(quiet=True))
        train_tasks(
            products, names, path, preset=PRESETS[preset], device=str(where), precision="fp32", reporter=reporter
        )
        return path

    return learned


@pytest.fixture(scope="module", params=PRESETS)
def stages(
    request: pytest.FixtureRequest, learn: Learn, device: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """A preset, and a checkpoint learned on the device after one product and after two."""
    folder = tmp_path_factory.mktemp("learned")
    path = learn(["bolt"], folder / "factory.safetensors", request.param, device)
    before = folder / "before.safetensors"
    before.write_bytes(path.read_bytes())
    return request.param, before, learn(["nut"], path, request.param, device)


def predictions(path: Path, where: torch.device | str, names: list[str | None] | None = None) -> list[Prediction]:
    detector = Detector.load(path, device=str(where), precision="fp32")
    return detector.predict(IMAGES, names, refuse_unknown=False)


def assert_alike(found: list[Prediction], expected: list[Prediction], bound: float) -> None:
    assert [each.task.name for each in found] == [each.task.name for each in expected] == ["nut", "bolt"] * 2
    scores = [torch.tensor([each.score for each in part]) for part in (found, expected)]
    assert relative_error(*scores) < bound
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one.grid_map, other.grid_map) < bound
        assert one.threshold == other.threshold


def sections(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(path)
    names = [
        "base",
        *(f"tasks.{task.index}.{part}" for task in checkpoint.header.tasks for part in ("profile", "expert")),
    ]
    return {f"{name}.{key}": value for name in names for key, value in checkpoint.section(name).items()}


def test_what_was_learned_on_the_device_predicts_the_same_on_a_cpu(
    stages: tuple[str, Path, Path], device: torch.device
) -> None:
    preset, _, path = stages
    assert_alike(predictions(path, "cpu"), predictions(path, device), BOUNDS[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_what_was_learned_on_a_cpu_predicts_the_same_on_the_device(
    preset: str, learn: Learn, device: torch.device, tmp_path: Path
) -> None:
    path = learn(["bolt", "nut"], tmp_path / "factory.safetensors", preset, "cpu")
    assert_alike(predictions(path, device), predictions(path, "cpu"), BOUNDS[preset])


def test_a_checkpoint_is_extended_on_another_device(learn: Learn, device: torch.device, tmp_path: Path) -> None:
    path = learn(["bolt"], tmp_path / "factory.safetensors", "main", "cpu")
    before = sections(path)
    after = sections(learn(["nut"], path, "main", device))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert_alike(predictions(path, device), predictions(path, "cpu"), BOUNDS["main"])


def test_older_products_keep_their_tensors_and_outputs_bit_for_bit(
    stages: tuple[str, Path, Path], device: torch.device
) -> None:
    _, before, after = stages
    kept, now = sections(before), sections(after)
    assert all(torch.equal(now[name], value) for name, value in kept.items())
    names: list[str | None] = ["bolt"] * len(IMAGES)
    for one, other in zip(predictions(before, device, names), predictions(after, device, names), strict=True):
        assert one.score == other.score
        assert np.array_equal(one.grid_map, other.grid_map)


def test_training_on_the_device_is_that_of_a_cpu(learn: Learn, device: torch.device, tmp_path: Path) -> None:
    # Of the preset without a memory: which patches are remembered may depend on the last digit.
    one, other = (
        learn(["bolt", "nut"], tmp_path / str(number) / "factory.safetensors", "main", where)
        for number, where in enumerate((device, "cpu"))
    )
    found, expected = (predictions(path, "cpu") for path in (one, other))
    assert [each.task.name for each in found] == ["nut", "bolt"] * 2
    for mine, theirs in zip(found, expected, strict=True):
        assert relative_error(mine.grid_map, theirs.grid_map) < 1e-2
        assert mine.threshold == pytest.approx(theirs.threshold, rel=1e-2)


class StoppedError(Exception):
    """Stands for the power cut."""


@pytest.mark.parametrize("name", ["bolt", "nut"])
def test_a_stopped_training_goes_on_to_the_same_weights(
    name: str, stages: tuple[str, Path, Path], learn: Learn, device: torch.device, tmp_path: Path
) -> None:
    preset, _, uninterrupted = stages
    path = tmp_path / "factory.safetensors"
    plain = TaskTrainer.step

    def step(self: TaskTrainer, embeddings: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        result = plain(self, embeddings, rate)
        if self.name == name and self.epoch == 1:
            raise StoppedError
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskTrainer, "step", step)
        with pytest.raises(StoppedError):
            learn(["bolt", "nut"], path, preset, device)
    assert side_file(path, ".training").is_file()
    learn(["bolt", "nut"], path, preset, device)
    found, expected = sections(path), sections(uninterrupted)
    assert found.keys() == expected.keys()
    far = [key for key, value in found.items() if value.any() and relative_error(value, expected[key]) > 1e-4]
    assert far == []
    history = [json.loads(line) for line in side_file(path, ".history.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history if entry["event"] == "epoch" and entry["name"] == name] == [1, 2]
