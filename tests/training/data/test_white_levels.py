"""A product of 16-bit images is trained and scored with its own white level."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import png
from rich.console import Console
from tiny_model import product_image, tiny_config, write_product

from moleflow.model.detector import Detector
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.training.config import Preset
from moleflow.training.continual.sequence import train_tasks
from moleflow.training.data.datasets import load_category, read_image
from moleflow.training.data.white_levels import find_white_level
from moleflow.training.embeddings.augment import AUGMENTATIONS
from moleflow.training.embeddings.cache import EmbeddingCache
from moleflow.training.evaluation.evaluate import evaluate
from moleflow.training.evaluation.metrics import image_ranking
from moleflow.training.fit.cross_fitting import split
from moleflow.training.progress import Reporter

SIDE = Preprocessing(image_size=32, mean=(0, 0, 0), std=(1, 1, 1))


def write_deep(root: Path, name: str, kind: int, white: int, count: int = 10) -> Path:
    """The product's images as 16-bit RGB from a sensor with that white level."""
    folder = root / name
    folder.mkdir(parents=True)
    for number in range(count):
        values = np.rint(product_image(kind, number).astype(float) * white / 255)
        (folder / f"{number}.png").write_bytes(png(values, 16, 2))
    return folder


def learn(data: Path, path: Path, preset: Preset, *names: str) -> Reporter:
    reporter = Reporter(console=Console(record=True, quiet=False, width=200))
    train_tasks(data, list(names), path, preset=preset, reporter=reporter, device="cpu", precision="fp32")
    return reporter


@pytest.mark.parametrize(("white", "expected"), [(255, 255), (1000, 1023), (4000, 4095), (65_535, 65_535)])
def test_the_white_level_is_estimated_from_good_images_and_logged(tmp_path: Path, white: int, expected: int) -> None:
    folder = tmp_path / "bolt"
    folder.mkdir()
    paths = []
    for number in range(3):
        paths.append(folder / f"{number}.png")
        paths[-1].write_bytes(png(np.full((32, 32), white - number), 16, 0))
    lines: list[str] = []
    assert find_white_level("bolt", paths, SIDE, lines.append) == expected
    assert lines == [f"bolt: 3 16-bit images, largest value {white}: white level {expected}"]


def test_8_bit_images_have_no_white_level(products: Path) -> None:
    lines: list[str] = []
    assert find_white_level("bolt", load_category(products, "bolt").train, SIDE, lines.append) is None
    assert not lines


def test_a_product_is_learned_from_10_bit_images_like_8_bit_ones(tmp_path: Path, tiny_preset: Preset) -> None:
    write_product(tmp_path / "plain", "bolt", 0, count=10)
    write_deep(tmp_path / "deep", "bolt", 0, 1023)
    learn(tmp_path / "plain", tmp_path / "plain.safetensors", tiny_preset, "bolt")
    learn(tmp_path / "deep", tmp_path / "deep.safetensors", tiny_preset, "bolt")
    plain, deep = (Checkpoint.open(tmp_path / f"{name}.safetensors").header.task("bolt") for name in ("plain", "deep"))
    assert (plain.white_level, deep.white_level) == (None, 1023)
    assert deep.threshold == pytest.approx(plain.threshold, rel=0.02)


def test_held_out_images_have_the_same_scores_in_training_and_prediction(tmp_path: Path, tiny_preset: Preset) -> None:
    write_deep(tmp_path, "bolt", 0, 4095)
    path = tmp_path / "factory.safetensors"
    learn(tmp_path, path, tiny_preset, "bolt")
    detector, train = Detector.load(path, device="cpu", precision="fp32"), load_category(tmp_path, "bolt").train
    held_out = split("bolt", len(train), tiny_preset.training).folds[0]
    found = detector.predict([read_image(train[row], 32) for row in held_out], refuse_unknown=False)
    stored = Checkpoint.open(path).section("tasks.0.profile")["held_out.scores"]
    assert torch.allclose(torch.tensor([each.score for each in found]).sort().values, stored, rtol=1e-4)
    assert not any(each.warnings for each in found)


def test_low_contrast_defects_are_found_at_10_bits(tmp_path: Path, tiny_preset: Preset) -> None:
    folder = tmp_path / "sheet"
    folder.mkdir()

    def sheet(seed: int, *, spot: bool = False) -> np.ndarray:
        values = np.random.default_rng(seed).normal(560, 8, (32, 32))
        if spot:
            values[8:20, 8:20] += 60  # 15 of 255 grey levels, but less than one after scaling by the full 16-bit range
        return np.rint(values)

    for number in range(12):
        (folder / f"{number}.png").write_bytes(png(sheet(number), 16, 0))
    path = tmp_path / "factory.safetensors"
    learn(tmp_path, path, tiny_preset, "sheet")
    detector = Detector.load(path, device="cpu", precision="fp32")
    tests = [png(sheet(seed, spot=seed % 2 == 1), 16, 0) for seed in range(100, 116)]
    files = []
    for number, data in enumerate(tests):
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(data)
    found = detector.predict([read_image(file, 32) for file in files], refuse_unknown=False)
    assert image_ranking([each.score for each in found], [seed % 2 == 1 for seed in range(100, 116)]).auroc == 1.0


def test_a_16_bit_product_does_not_change_earlier_ones(tmp_path: Path, tiny_preset: Preset) -> None:
    write_product(tmp_path, "bolt", 0, count=10)
    write_deep(tmp_path, "nut", 1, 1023)
    path = tmp_path / "factory.safetensors"
    learn(tmp_path, path, tiny_preset, "bolt")
    before, alone = Checkpoint.open(path).header.task("bolt"), Detector.load(path, device="cpu", precision="fp32")
    image = product_image(0, 50)
    (expected,) = alone.predict([image], ["bolt"])
    learn(tmp_path, path, tiny_preset, "nut")
    assert Checkpoint.open(path).header.task("bolt") == before
    (found,) = Detector.load(path, device="cpu", precision="fp32").predict([image], ["bolt"])
    assert found.score == expected.score


def test_the_cache_keeps_one_embedding_per_white_level(tmp_path: Path) -> None:
    folder = write_deep(tmp_path, "bolt", 0, 1023, count=2)
    paths = sorted(folder.iterdir())
    config, cpu = tiny_config(), torch.device("cpu")
    backbone = Backbone.pretrained(config.backbone)
    features = FeatureExtractor(config, backbone)
    cache = EmbeddingCache.open(tmp_path / "cache", config.backbone, backbone, device=cpu, precision="fp32")

    def first(white: int | None) -> torch.Tensor:
        found = cache.embed(features, paths, white)
        return found.batch(torch.tensor([0]), cpu)

    bright = first(1023)
    assert not torch.allclose(bright, first(None))
    assert torch.equal(bright, first(1023))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_keep_fractional_grey_levels(name: str) -> None:
    image = np.random.default_rng(0).uniform(20, 21, (32, 32, 3)).astype(np.float32)
    altered = AUGMENTATIONS[name](image, np.random.default_rng(1))
    assert altered.dtype == np.float32
    assert len(np.unique(altered)) > 100
    assert altered.min() >= 0
    assert altered.max() <= 255


def test_an_evaluation_warns_of_mismatched_test_images(tmp_path: Path, tiny_detector: Detector) -> None:
    folder = tmp_path / "bolt" / "test" / "good"
    folder.mkdir(parents=True)
    (tmp_path / "bolt" / "train" / "good").mkdir(parents=True)
    write_product(tmp_path / "bolt" / "train", "good", 0, count=1)
    for number in range(2):
        (folder / f"{number}.png").write_bytes(png(product_image(0, number).astype(np.uint16) * 257, 16, 2))
    console = Console(record=True, file=io.StringIO(), width=300)
    evaluate(tiny_detector, [load_category(tmp_path, "bolt", check=False)], reporter=Reporter(console=console))
    assert "bolt: 2 of 2 test images do not fit what was learned; " in console.export_text()
