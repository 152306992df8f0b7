"""Learning products one after another: what is added, what must not move, and what an interruption loses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_model import product_image, write_product

from moleflow.model.detector import Detector
from moleflow.model.errors import BackboneError, ConfigurationError
from moleflow.model.features.embedding import PatchEmbedder
from moleflow.model.files.exclusive import exclusive, side_file
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.training.config import Preset
from moleflow.training.continual.sequence import train_tasks
from moleflow.training.data.datasets import load_category, read_image
from moleflow.training.errors import DatasetError, DivergenceError, DuplicateTaskError
from moleflow.training.fit.cross_fitting import split
from moleflow.training.fit.trainer import TaskTrainer
from moleflow.training.progress import Reporter


def quiet() -> Reporter:
    return Reporter(console=Console(quiet=True))


def learn(data: Path, tasks: list[str], path: Path, preset: Preset, **options: Any) -> Path:
    train_tasks(data, tasks, path, preset=preset, reporter=quiet(), device="cpu", precision="fp32", **options)
    return path


def sections(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    checkpoint = Checkpoint.open(path)
    found = {part: checkpoint.section(part) for part in ("base", "backbone")}
    for task in checkpoint.header.tasks:
        profile, expert = (checkpoint.section(f"tasks.{task.index}.{part}") for part in ("profile", "expert"))
        found[task.name] = profile | expert
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def learned(products: Path, tiny_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same checkpoint after one, two and three products."""
    folder, path = tmp_path_factory.mktemp("learned"), tmp_path_factory.mktemp("work") / "factory.safetensors"
    stages = {}
    for name in ("bolt", "nut", "gear"):
        learn(products, [name], path, tiny_preset)
        stages[name] = folder / f"{name}.safetensors"
        stages[name].write_bytes(path.read_bytes())
    return stages


def test_older_products_keep_their_tensors_bit_for_bit(learned: dict[str, Path]) -> None:
    first, last = sections(learned["bolt"]), sections(learned["gear"])
    for part in ("backbone", "base", "bolt"):
        assert same(first[part], last[part]), part


def test_older_products_keep_their_outputs_bit_for_bit(learned: dict[str, Path]) -> None:
    rgb_images = [product_image(0, seed) for seed in range(20, 24)]
    before, after = (Detector.load(learned[stage], device="cpu") for stage in ("bolt", "gear"))
    for old, new in zip(before.predict(rgb_images), after.predict(rgb_images, ["bolt"] * 4), strict=True):
        assert old.score == new.score
        assert np.array_equal(old.grid_map, new.grid_map)


def test_every_product_is_routed_to_its_own_expert(learned: dict[str, Path]) -> None:
    detector = Detector.load(learned["gear"], device="cpu")
    found = detector.predict([product_image(kind, 30) for kind in (2, 0, 1)])
    assert [prediction.task.name for prediction in found] == ["gear", "bolt", "nut"]


def test_the_order_of_later_products_does_not_change_what_they_learn(
    learned: dict[str, Path], products: Path, tmp_path: Path, tiny_preset: Preset
) -> None:
    other = sections(learn(products, ["bolt", "gear", "nut"], tmp_path / "other.safetensors", tiny_preset))
    usual = sections(learned["gear"])
    for part in ("base", "bolt", "nut", "gear"):
        assert same(other[part], usual[part]), part


def test_another_seed_gives_other_weights(
    learned: dict[str, Path], products: Path, tmp_path: Path, tiny_preset: Preset
) -> None:
    preset = tiny_preset.with_changes(backbone={}, training={"seed": 1})
    other = sections(learn(products, ["bolt"], tmp_path / "other.safetensors", preset))
    assert not same(other["bolt"], sections(learned["bolt"])["bolt"])


def test_a_learned_name_is_refused_and_the_checkpoint_left_alone(
    learned: dict[str, Path], products: Path, tmp_path: Path, tiny_preset: Preset
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(learned["nut"].read_bytes())
    with pytest.raises(DuplicateTaskError, match="'nut' was learned already"):
        learn(products, ["gear", "nut"], path, tiny_preset)
    assert path.read_bytes() == learned["nut"].read_bytes()


def test_replace_retrains_one_product_and_moves_no_other(
    learned: dict[str, Path], products: Path, tmp_path: Path, tiny_preset: Preset
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(learned["gear"].read_bytes())
    preset = tiny_preset.with_changes(backbone={}, training={"seed": 5})
    learn(products, ["nut"], path, preset, replace=True)
    before, after = sections(learned["gear"]), sections(path)
    assert [task.name for task in Checkpoint.open(path).header.tasks] == ["bolt", "nut", "gear"]
    assert not same(before["nut"], after["nut"])
    for part in ("backbone", "base", "bolt", "gear"):
        assert same(before[part], after[part]), part


def test_the_first_product_cannot_be_replaced(
    learned: dict[str, Path], products: Path, tmp_path: Path, tiny_preset: Preset
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(learned["nut"].read_bytes())
    with pytest.raises(ConfigurationError, match="the base with it"):
        learn(products, ["bolt"], path, tiny_preset, replace=True)


def test_the_first_product_is_replaced_with_its_base_while_there_is_no_other(
    learned: dict[str, Path], products: Path, tmp_path: Path, tiny_preset: Preset
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(learned["bolt"].read_bytes())
    preset = tiny_preset.with_changes(backbone={}, training={"seed": 1})
    learn(products, ["bolt"], path, preset, replace=True)
    anew = sections(learn(products, ["bolt"], tmp_path / "other.safetensors", preset))
    assert all(same(found, anew[part]) for part, found in sections(path).items())


def test_every_product_is_checked_before_any_training(products: Path, tmp_path: Path, tiny_preset: Preset) -> None:
    path = tmp_path / "factory.safetensors"
    with pytest.raises(DatasetError, match="missing"):
        learn(products, ["bolt", "missing"], path, tiny_preset)
    assert not path.exists()


def test_held_out_images_are_never_fitted_and_calibrate(
    learned: dict[str, Path], products: Path, tiny_preset: Preset
) -> None:
    category = load_category(products, "bolt")
    parts = split("bolt", len(category.train), tiny_preset.training)
    info = Checkpoint.open(learned["bolt"]).header.tasks[0]
    held_out = sections(learned["bolt"])["bolt"]
    assert (
        (info.train_images, info.held_out_images, info.folds) == (len(parts.fit), len(parts.folds[0]), 1) == (7, 3, 1)
    )
    rgb_images = [read_image(category.train[row]) for row in parts.folds[0]]
    again = Detector.load(learned["bolt"], device="cpu", precision="fp32").predict(rgb_images, ["bolt"] * 3)
    assert sorted(each.score for each in again) == pytest.approx(held_out["held_out.scores"].tolist(), rel=1e-5)
    peaks = [float(each.pixel_map().max()) for each in again]
    assert sorted(peaks) == pytest.approx(held_out["held_out.peaks"].tolist(), rel=1e-5)
    assert len(held_out["held_out.distances"]) == 10  # the router is cross-fitted over all images


def test_the_recorded_thresholds_are_those_of_the_held_out_images(learned: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(learned["gear"])
    for info in checkpoint.header.tasks:
        calibration = checkpoint.profile(info.index).calibration
        assert info.threshold == pytest.approx(calibration.scores.threshold(info.false_alarm_rate))
        assert info.pixel_threshold == pytest.approx(calibration.peaks.threshold(info.false_alarm_rate))


def test_two_images_are_too_few(tmp_path: Path, tiny_preset: Preset) -> None:
    write_product(tmp_path / "data", "pair", 0, count=2)
    with pytest.raises(DatasetError, match="at least 3"):
        learn(tmp_path / "data", ["pair"], tmp_path / "factory.safetensors", tiny_preset)


class StoppedError(Exception):
    """Stands for the power cut."""


def stop_before_epoch(monkeypatch: pytest.MonkeyPatch, name: str, epoch: int) -> None:
    """Stop the training of ``name`` in the middle of an epoch."""
    plain = TaskTrainer.step

    def step(self: TaskTrainer, embeddings: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        result = plain(self, embeddings, rate)
        if self.name == name and self.epoch == epoch:
            raise StoppedError
        return result

    monkeypatch.setattr(TaskTrainer, "step", step)


@pytest.mark.parametrize("name", ["bolt", "nut"])
def test_a_stopped_training_goes_on_and_ends_with_the_same_weights(
    name: str,
    learned: dict[str, Path],
    products: Path,
    tmp_path: Path,
    tiny_preset: Preset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "factory.safetensors"
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, name, epoch=1)
        with pytest.raises(StoppedError):
            learn(products, ["bolt", "nut"], path, tiny_preset)
    assert side_file(path, ".training").is_file()
    learn(products, ["bolt", "nut"], path, tiny_preset)
    found, expected = sections(path), sections(learned["nut"])
    for part in ("backbone", "base", "bolt", "nut"):
        assert same(found[part], expected[part]), part
    history = [json.loads(line) for line in side_file(path, ".history.jsonl").read_text().splitlines()]
    epochs = [entry["epoch"] for entry in history if entry["event"] == "epoch" and entry["name"] == name]
    assert epochs == [1, 2]
    assert not side_file(path, ".training").exists()
    assert not side_file(path, ".journal").exists()


def test_a_stopped_training_with_other_settings_starts_anew(
    learned: dict[str, Path], products: Path, tmp_path: Path, tiny_preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "factory.safetensors"
    with monkeypatch.context() as patch:
        stop_before_epoch(patch, "bolt", epoch=1)
        with pytest.raises(StoppedError):
            learn(products, ["bolt"], path, tiny_preset.with_changes(backbone={}, training={"seed": 3}))
    learn(products, ["bolt"], path, tiny_preset)
    assert same(sections(path)["bolt"], sections(learned["bolt"])["bolt"])


def test_a_damaged_training_state_is_set_aside_with_a_word(
    learned: dict[str, Path], products: Path, tmp_path: Path, tiny_preset: Preset
) -> None:
    path = tmp_path / "factory.safetensors"
    side_file(path, ".training").write_bytes(b"half of someth")
    learn(products, ["bolt"], path, tiny_preset)
    assert same(sections(path)["bolt"], sections(learned["bolt"])["bolt"])


def test_a_second_trainer_on_the_same_checkpoint_is_refused(
    products: Path, tmp_path: Path, tiny_preset: Preset
) -> None:
    path = tmp_path / "factory.safetensors"
    with exclusive(path), pytest.raises(ConfigurationError, match="another process"):
        learn(products, ["bolt"], path, tiny_preset)


def test_kept_embeddings_give_the_same_checkpoint_and_are_not_computed_again(
    learned: dict[str, Path], products: Path, tmp_path: Path, tiny_preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_to_embed(features: object, paths: list[Path], *_: object, **__: object) -> list:
        assert not paths
        return []

    cache = tmp_path / "cache"
    for name in ("first", "second"):
        path = learn(products, ["bolt"], tmp_path / name / "factory.safetensors", tiny_preset, cache=cache)
        assert same(sections(path)["bolt"], sections(learned["bolt"])["bolt"])
        assert same(sections(path)["base"], sections(learned["bolt"])["base"])
        monkeypatch.setattr("moleflow.training.embeddings.cache.extract", nothing_to_embed)
    assert len(list(cache.rglob("*.npy"))) == 10


def test_longer_training_lowers_the_loss(products: Path, tmp_path: Path, tiny_preset: Preset) -> None:
    path = tmp_path / "factory.safetensors"
    learn(products, ["bolt"], path, tiny_preset.with_changes(backbone={}, training={"epochs": 8}))
    history = [json.loads(line) for line in side_file(path, ".history.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in history if entry["event"] == "epoch"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("folds", [1, 3])
def test_a_fit_that_diverges_is_an_error_and_leaves_the_checkpoint_as_it_was(
    products: Path, tiny_preset: Preset, learned: dict[str, Path], tmp_path: Path, folds: int
) -> None:
    path = tmp_path / "factory.safetensors"
    path.write_bytes(learned["bolt"].read_bytes())
    wild = tiny_preset.with_changes(training={"learning_rate": 1e30, "folds": folds})
    for _ in range(2):  # and again: no state is kept that would go on from there
        with pytest.raises(DivergenceError, match="fit of 'nut.*diverged.*lower --learning-rate"):
            learn(products, ["nut"], path, wild)
    assert path.read_bytes() == learned["bolt"].read_bytes()
    assert names_in(learn(products, ["nut"], path, tiny_preset)) == ["bolt", "nut"]


def names_in(path: Path) -> list[str]:
    return [task.name for task in Checkpoint.open(path).header.tasks]


def test_features_that_are_not_finite_are_an_error_that_names_the_image(
    products: Path, tiny_preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PatchEmbedder.forward
    monkeypatch.setattr(PatchEmbedder, "forward", lambda self, stages: plain(self, stages) * float("inf"))
    with pytest.raises(BackboneError, match=r"features of .*0\.png are not finite in fp32"):
        learn(products, ["bolt"], tmp_path / "factory.safetensors", tiny_preset)
    assert not (tmp_path / "factory.safetensors").exists()


@pytest.mark.parametrize("name", ["", "a/b", "two\nlines", "\x1b[31m", "x" * 10**6, "\ud800"])
def test_a_name_that_no_product_can_have_is_an_error_before_anything_is_written(
    products: Path, tiny_preset: Preset, tmp_path: Path, name: str
) -> None:
    with pytest.raises(DatasetError, match="cannot be a product's name") as caught:
        learn(products, [name], tmp_path / "factory.safetensors", tiny_preset)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert not (tmp_path / "factory.safetensors").exists()
