"""Cross-fitting: every good image is scored by an expert that has not seen it, and nothing is lost by a kill."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_model import CAPPED, FUSED, tiny_config

from moleflow.model.config import RouterConfig, ScoringConfig
from moleflow.model.detector import Detector
from moleflow.model.files.exclusive import side_file
from moleflow.model.memory.bank import MemoryBank
from moleflow.model.routing.router import Prototype, Router
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.training.config import Preset, TrainingConfig
from moleflow.training.continual.sequence import train_tasks
from moleflow.training.data.datasets import load_category, read_image
from moleflow.training.embeddings.alterations import AlteredReader
from moleflow.training.embeddings.extraction import EmbeddingStore
from moleflow.training.errors import DatasetError
from moleflow.training.fit import cross_fitting
from moleflow.training.fit.cross_fitting import cross_fitted_distances, split
from moleflow.training.fit.held_out import HeldOutMaps
from moleflow.training.fit.memory import FittedBank
from moleflow.training.fit.trainer import TaskTrainer
from moleflow.training.progress import Reporter

FOLDS = 3


@pytest.fixture(scope="module")
def preset(tiny_preset: Preset) -> Preset:
    """Several folds, and a memory, which is fitted in each."""
    return tiny_preset.with_changes(model={"scoring": FUSED}, training={"folds": FOLDS})


def learn(data: Path, tasks: list[str], path: Path, preset: Preset, precision: str = "fp32") -> Path:
    reporter = Reporter(console=Console(quiet=True))
    train_tasks(data, tasks, path, preset=preset, reporter=reporter, device="cpu", precision=precision)
    return path


@pytest.fixture(scope="module")
def learned(products: Path, preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learn(products, ["bolt", "nut"], tmp_path_factory.mktemp("folds") / "factory.safetensors", preset)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(path)
    parts = [part for part in checkpoint.header.digests() if part != "backbone"]
    return {f"{part}.{key}": value for part in parts for key, value in checkpoint.section(part).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("count", [3, 4, 31, 99])
def test_few_images_are_split_into_folds_that_share_none_and_the_expert_gets_all(count: int) -> None:
    parts = split("cookie", count, TrainingConfig())
    assert parts.is_cross_fitted
    assert parts.fit == tuple(range(count))
    assert sorted(row for fold in parts.folds for row in fold) == list(range(count))
    sizes = [len(fold) for fold in parts.folds]
    assert len(sizes) == min(5, count)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("count", "held_out"), [(100, 20), (209, 21), (762, 76)])
def test_of_many_images_some_are_held_out(count: int, held_out: int) -> None:
    parts = split("bottle", count, TrainingConfig())
    assert not parts.is_cross_fitted
    assert len(parts.folds[0]) == held_out
    assert sorted((*parts.fit, *parts.folds[0])) == list(range(count))


@pytest.mark.parametrize(("count", "held_out"), [(3, 2), (9, 3), (31, 10)])
def test_without_folds_a_third_at_most_is_held_out_and_never_fewer_than_two(count: int, held_out: int) -> None:
    assert len(split("cookie", count, TrainingConfig(folds=1)).folds[0]) == held_out


def test_the_split_depends_on_seed_and_name_alone() -> None:
    usual = split("cookie", 31, TrainingConfig())
    assert split("cookie", 31, TrainingConfig()) == usual
    assert split("cookie", 31, TrainingConfig(seed=1)) != usual
    assert split("biscuit", 31, TrainingConfig()) != usual


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_are_an_error_that_says_how_many_are_needed(count: int) -> None:
    with pytest.raises(DatasetError, match="at least 3 are needed"):
        split("cookie", count, TrainingConfig())


def test_no_image_is_scored_by_an_expert_that_was_fitted_to_it(
    products: Path, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: dict[str, set[int]] = {}
    left_out: list[set[int]] = []
    scored: list[set[int]] = []
    plain_epochs, plain_without, plain_map = TaskTrainer.epochs, FittedBank.without, cross_fitting.map_held_out

    def epochs(self: TaskTrainer, store: EmbeddingStore, on_step: Any) -> Any:
        fitted[self.name] = rows(store)
        return plain_epochs(self, store, on_step)

    def without(self: FittedBank, images: Sequence[int]) -> MemoryBank:
        left_out.append(set(images))
        return plain_without(self, images)

    def map_held_out(trainer: TaskTrainer, bank: MemoryBank, store: EmbeddingStore) -> HeldOutMaps:
        scored.append(rows(store))
        return plain_map(trainer, bank, store)

    monkeypatch.setattr(TaskTrainer, "epochs", epochs)
    monkeypatch.setattr(FittedBank, "without", without)
    monkeypatch.setattr(cross_fitting, "map_held_out", map_held_out)
    learn(products, ["bolt"], tmp_path / "factory.safetensors", preset)
    names = [f"bolt, fold {number} of {FOLDS}" for number in range(1, FOLDS + 1)]
    assert list(fitted) == [*names, "bolt"]
    assert scored == left_out
    everything = set(range(10))
    assert [fitted[name] for name in names] == [everything - fold for fold in scored]
    assert set.union(*scored) == fitted["bolt"] == everything


def rows(store: EmbeddingStore) -> set[int]:
    assert store._rows is not None
    return set(store._rows.tolist())


def test_every_image_calibrates_and_is_fitted_to(learned: Path) -> None:
    for task in Checkpoint.open(learned).header.tasks:
        assert (task.train_images, task.held_out_images, task.folds) == (10, 10, FOLDS)


def test_the_kept_expert_and_base_are_those_of_a_plain_fit_to_all_images(
    learned: Path, products: Path, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other folds give another calibration and not another weight: nothing of the temporary experts stays. The fusion's
    # statistics are a part of the calibration, and decide whether pooled patches are kept.
    other = learn(products, ["bolt", "nut"], tmp_path / "f", preset.with_changes(backbone={}, training={"folds": 2}))
    one, two = tensors(learned), tensors(other)
    calibrating = {key for key in one if (".held_out." in key and "distances" not in key) or ".fusion." in key}
    assert len(calibrating) == 2 * (3 + 5)
    differing = {key for key in one if not torch.equal(one[key], two[key]) and not key.endswith("memory.pooled")}
    assert differing == calibrating


class StoppedError(Exception):
    """Stands for the power cut."""


@pytest.mark.parametrize("task", ["bolt", "nut"])
@pytest.mark.parametrize("where", [f", fold 2 of {FOLDS}", ""])
def test_a_kill_loses_at_most_an_epoch_and_changes_nothing(
    task: str,
    where: str,
    learned: Path,
    products: Path,
    preset: Preset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, plain = tmp_path / "factory.safetensors", TaskTrainer.step

    def step(self: TaskTrainer, *arguments: Any) -> object:
        if self.name == f"{task}{where}" and self.epoch == 1:
            raise StoppedError
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TaskTrainer, "step", step)
        with pytest.raises(StoppedError):
            learn(products, ["bolt", "nut"], path, preset)
    learn(products, ["bolt", "nut"], path, preset)
    assert same(tensors(path), tensors(learned))
    history = [json.loads(line) for line in side_file(path, ".history.jsonl").read_text().splitlines()]
    epochs = [(entry["name"], entry["epoch"]) for entry in history if entry["event"] == "epoch"]
    assert len(epochs) == len(set(epochs)) == 2 * (FOLDS + 1) * 2
    for suffix in (".training", ".journal"):
        assert not side_file(path, suffix).exists()


def test_a_damaged_journal_starts_the_folds_anew(learned: Path, products: Path, preset: Preset, tmp_path: Path) -> None:
    path = tmp_path / "factory.safetensors"
    side_file(path, ".journal").write_bytes(b'{"fingerprint": "half of someth')
    learn(products, ["bolt", "nut"], path, preset)
    assert same(tensors(path), tensors(learned))


def test_distances_are_to_prototypes_that_were_fitted_without_the_image() -> None:
    points = torch.randn(30, tiny_config().backbone.embedding_dim, generator=torch.Generator().manual_seed(0))
    config = RouterConfig(axes=4)
    within = Router([Prototype.fit(points, config)])(points)[0][:, 0]
    without = cross_fitted_distances(points, config)
    assert without.shape == (30,)
    assert without.mean() > within.mean()
    left = torch.arange(30) % 10 != 3
    expected = Router([Prototype.fit(points[left], config)])(points[~left])[0][:, 0]
    assert torch.allclose(without[~left], expected)


@pytest.mark.parametrize("scoring", [ScoringConfig(), CAPPED, FUSED], ids=["published", "capped", "fused"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_held_out_image_gets_the_score_that_it_calibrated_with_when_it_is_served(
    products: Path, tiny_preset: Preset, tmp_path: Path, precision: str, scoring: ScoringConfig
) -> None:
    preset = tiny_preset.with_changes(model={"scoring": scoring}, training={"folds": 1})
    path = learn(products, ["bolt", "nut"], tmp_path / "factory.safetensors", preset, precision)
    detector = Detector.load(path, device="cpu", precision=precision)
    for index, name in enumerate(("bolt", "nut")):
        images = load_category(products, name).train
        rows = split(name, len(images), preset.training).folds[0]
        found = detector.predict([read_image(images[row]) for row in rows], [name] * len(rows))
        calibrated = Checkpoint.open(path).section(f"tasks.{index}.profile")["held_out.scores"]
        assert torch.allclose(torch.tensor([each.score for each in found]).sort().values, calibrated, rtol=1e-6)


def test_altered_copies_of_held_out_images_calibrate_beside_them(
    products: Path, tiny_preset: Preset, tmp_path: Path
) -> None:
    preset = tiny_preset.with_changes(model={"scoring": FUSED}, training={"altered_copies": 2})
    path = learn(products, ["bolt"], tmp_path / "factory.safetensors", preset)
    detector = Detector.load(path, device="cpu", precision="fp32")
    images = load_category(products, "bolt").train
    held_out = [images[row] for row in split("bolt", len(images), preset.training).folds[0]]
    altered = (AlteredReader(None, detector.preprocessing.resize, copy) for copy in range(2))
    readers: list[Callable[[Path, int], np.ndarray]] = [read_image, *altered]
    shown = [read(each, 32) for read in readers for each in held_out]
    expected = torch.tensor([each.score for each in detector.predict(shown, ["bolt"] * len(shown))])
    found = Checkpoint.open(path).section("tasks.0.profile")
    assert torch.allclose(found["held_out.scores"], expected.sort().values, rtol=1e-5)
    assert len(found["held_out.grounds"]) == len(held_out) == Checkpoint.open(path).header.tasks[0].held_out_images


def test_altered_copies_are_cross_fitted_with_their_images(products: Path, preset: Preset, tmp_path: Path) -> None:
    alone = Checkpoint.open(learn(products, ["bolt"], tmp_path / "alone.safetensors", preset))
    preset = preset.with_changes(training={"altered_copies": 1})
    both = Checkpoint.open(learn(products, ["bolt"], tmp_path / "both.safetensors", preset))
    fewer, scores = (each.section("tasks.0.profile")["held_out.scores"] for each in (alone, both))
    assert len(scores) == 2 * len(fewer) == 20
    assert torch.isin(fewer, scores).all()
    assert alone.header.tasks[0].sha256 == both.header.tasks[0].sha256
