"""A checkpoint whose products have a memory predicts by it, and stores it with each product."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import CAPPED, FUSED, damage, product_image, tiny_checkpoint, tiny_config, tiny_parts

from moleflow.model.config import ScoringConfig
from moleflow.model.detector import Detector
from moleflow.model.errors import CheckpointFormatError, ExpertError
from moleflow.model.features.extractor import FeatureExtractor, stack_images
from moleflow.model.memory.scorer import PatchMaps, ProductScorer, image_scores
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.results import Failure

IMAGES = [product_image(kind, 70 + kind) for kind in range(3)]


def detector(folder: Path, scoring: ScoringConfig) -> Detector:
    path = tiny_checkpoint(folder / "factory.safetensors", config=tiny_config(scoring=scoring)).path
    return Detector.load(path, device="cpu", precision="fp32")


@pytest.mark.parametrize("scoring", [CAPPED, FUSED], ids=["capped", "fused"])
def test_a_prediction_is_made_of_the_parts_that_are_stored(tmp_path: Path, scoring: ScoringConfig) -> None:
    found = detector(tmp_path, scoring)
    checkpoint = Checkpoint.open(tmp_path / "factory.safetensors")
    features = FeatureExtractor.for_prediction(checkpoint.header.config, checkpoint.backbone(), "fp32")
    with torch.inference_mode():
        seen = features(stack_images(IMAGES[1:2], features.preprocessing.resize, torch.device("cpu")))
        maps = ProductScorer(checkpoint.base(), checkpoint.product(1))(seen)
    result = found.predict(IMAGES[1:2], ["nut"])[0]
    assert result.grid_map == pytest.approx(maps.anomaly[0].numpy(), rel=1e-5)
    assert result.score == pytest.approx(image_scores(maps, scoring, 3).item(), rel=1e-5)


def test_the_image_score_is_of_the_fused_map_with_a_memory_and_of_the_likelihoods_without() -> None:
    maps = PatchMaps(torch.tensor([[[9.0, 1.0]]]), torch.tensor([[[2.0, 3.0]]]))
    assert image_scores(maps, FUSED, 1).item() == 3
    assert image_scores(maps, CAPPED, 1).item() == 9
    assert image_scores(maps, ScoringConfig(), 1).item() == 9


def test_published_scoring_maps_the_likelihoods_themselves(tmp_path: Path) -> None:
    parts = tiny_parts(tiny_config())
    assert parts.bank is None
    assert parts.fusion is None
    published, capped = detector(tmp_path, ScoringConfig()), detector(tmp_path, CAPPED)
    one, other = published.predict(IMAGES[:1], ["bolt"])[0], capped.predict(IMAGES[:1], ["bolt"])[0]
    assert one.score == other.score
    assert one.grid_map.max() > 3 >= other.grid_map.max()


def test_an_image_gets_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    found = detector(tmp_path, FUSED)
    together = found.predict([*IMAGES, *IMAGES], ["bolt", "nut", "gear", "nut", "gear", "bolt"])
    alone = found.predict(IMAGES[:1], ["bolt"])[0]
    assert np.array_equal(together[0].grid_map, alone.grid_map)
    assert together[0].score == alone.score


def test_a_version_without_scoring_opens_with_the_published_one(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "old.safetensors").path
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(size))
        data = file.read()
    header = json.loads(table["__metadata__"]["moleflow"])
    header["format_version"] = 4
    del header["config"]["scoring"]
    table["__metadata__"]["moleflow"] = json.dumps(header)
    document = json.dumps(table).encode()
    document += b" " * (-len(document) % 8)
    path.write_bytes(len(document).to_bytes(8, "little") + document + data)
    opened = Checkpoint.open(path)
    assert opened.header.config.scoring == ScoringConfig()
    assert Detector(opened, device="cpu").predict(IMAGES[:1], ["bolt"])[0].score


def test_a_damaged_memory_fails_its_own_product_only(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "factory.safetensors", config=tiny_config(scoring=FUSED)).path
    damage(path, "tasks.1.expert")
    results = Detector.load(path, device="cpu").predict(IMAGES, ["bolt", "nut", "gear"])
    assert [isinstance(each, Failure) for each in results] == [False, True, False]
    assert isinstance(results[1].error, ExpertError)


def rewritten(path: Path, key: str, value: torch.Tensor) -> Path:
    """The checkpoint with another tensor under ``key``; its digest no longer fits."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors[key] = value
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("memory.prototypes", (21, 6)),  # more than the configuration allows
        ("memory.pooled", (9, 6)),
        ("memory.pooled", (0, 6)),  # the fusion has statistics for them
        ("memory.prototypes", (0, 6)),
        ("memory.prototypes", (20, 5)),
        ("memory.axes", (32, 7)),
        ("memory.mean", (31,)),
        ("fusion.gate", ()),
    ],
)
def test_a_memory_of_another_shape_is_refused_when_the_file_is_opened(
    tmp_path: Path, key: str, shape: tuple[int, ...]
) -> None:
    path = tiny_checkpoint(tmp_path / "factory.safetensors", config=tiny_config(scoring=FUSED)).path
    kind = torch.float32 if key.startswith("fusion") else torch.bfloat16
    with pytest.raises(CheckpointFormatError, match="does not fit its configuration"):
        Checkpoint.open(rewritten(path, f"tasks.1.expert.{key}", torch.ones(shape, dtype=kind)))


def test_a_memory_that_is_not_configured_is_refused(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "factory.safetensors").path
    with pytest.raises(CheckpointFormatError, match="does not belong there"):
        Checkpoint.open(rewritten(path, "tasks.1.expert.memory.mean", torch.ones(32, dtype=torch.bfloat16)))
