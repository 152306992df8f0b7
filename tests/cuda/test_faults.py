"""On a GPU too a damaged expert costs only its own images their verdict, and images may have 16 bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from agreement import relative_error
from tiny_model import damage, product_image, tiny_checkpoint

from moleflow.model.detector import Detector
from moleflow.model.errors import ExpertError
from moleflow.model.verdict.results import Failure, Prediction, Refusal

NAMES = ("bolt", "nut", "gear")
LEVELS = (1023, None, 4095)
FOREIGN = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def deep(kind: int, white: int) -> np.ndarray:
    """An image of a product from a sensor of higher bit depth."""
    return np.rint(product_image(kind, 50).astype(float) * white / 255).astype(np.uint16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("max_experts", [1, 32])
def test_a_damaged_expert_fails_its_own_images_only(
    precision: str, max_experts: int, device: torch.device, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "factory.safetensors", NAMES)
    images = [product_image(kind, 60 + kind) for kind in (1, 0, 2, 1, 0)]
    sound = Detector(checkpoint, device=str(device), precision=precision).predict(images)
    damage(checkpoint.path, "tasks.1.expert")
    damaged = Detector.load(checkpoint.path, device=str(device), precision=precision)
    damaged = Detector(damaged._checkpoint, device=str(device), precision=precision, max_experts=max_experts)
    for _ in range(3):
        found = damaged.predict(images)
        assert [type(each) for each in found] == [Failure, Prediction, Prediction, Failure, Prediction]
        errors = [each.error for each in found if isinstance(each, Failure)]
        assert all(isinstance(error, ExpertError) and error.task == "nut" for error in errors)
        for row in (1, 2, 4):
            assert found[row].score == pytest.approx(sound[row].score, rel=1e-2 if precision == "bf16" else 1e-4)


def test_maps_with_a_damaged_expert_are_an_error(device: torch.device, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "factory.safetensors", NAMES)
    damage(checkpoint.path, "tasks.1.expert")
    damaged = Detector.load(checkpoint.path, device=str(device), precision="fp32")
    with pytest.raises(ExpertError, match="'nut'"):
        damaged.predict([product_image(1, 61)], refuse_unknown=False)


def test_an_unknown_image_is_refused_beside_known_ones(device: torch.device, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "factory.safetensors", NAMES)
    found = Detector(checkpoint, device=str(device), precision="fp32").predict(
        [FOREIGN, product_image(0, 61), FOREIGN, product_image(2, 60)]
    )
    assert [type(each) for each in found] == [Refusal, Prediction, Refusal, Prediction]


def test_images_of_16_bits_beside_those_of_8_are_scored_as_on_a_cpu(device: torch.device, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "factory.safetensors", NAMES, white_levels=LEVELS)
    images = [deep(0, 1023), product_image(1, 50), deep(2, 4095), deep(1, 65_535), product_image(0, 50)]
    on_device, on_cpu = (
        Detector(checkpoint, device=str(where), precision="fp32").predict(images, refuse_unknown=False)
        for where in (device, "cpu")
    )
    assert [each.task.name for each in on_device] == ["bolt", "nut", "gear", "nut", "bolt"]
    for found, expected in zip(on_device, on_cpu, strict=True):
        assert found.score == pytest.approx(expected.score, rel=1e-3)
        assert relative_error(found.grid_map, expected.grid_map) < 1e-3
        assert (found.white_level, found.warnings) == (expected.white_level, expected.warnings)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (47, 90)])
def test_16_bit_images_of_other_sizes_are_resized_as_on_a_cpu(
    height: int, width: int, device: torch.device, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "factory.safetensors", NAMES, white_levels=LEVELS)
    rows, columns = np.arange(height) * 32 // height, np.arange(width) * 32 // width
    image = deep(0, 1023)[rows][:, columns]
    (found,), (expected,) = (
        Detector(checkpoint, device=str(where), precision="fp32").predict([image], ["bolt"])
        for where in (device, "cpu")
    )
    assert isinstance(found, Prediction)
    assert found.score == pytest.approx(expected.score, rel=1e-3)
