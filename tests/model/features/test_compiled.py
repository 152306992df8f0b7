"""Features by OpenVINO are those of PyTorch."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import product_image

from moleflow.model.errors import BackboneError
from moleflow.model.features.compiled import CompiledFeatures
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.store.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs OpenVINO")

IMAGES = torch.from_numpy(np.stack([product_image(kind, 80 + kind) for kind in (0, 2, 1, 0, 1)]))


@pytest.fixture(scope="module")
def plain(fused: Checkpoint) -> FeatureExtractor:
    """The network in PyTorch; with pooled stages, as the checkpoint has memories."""
    return FeatureExtractor(fused.header.config, fused.backbone())


@pytest.fixture(scope="module")
def features(plain: FeatureExtractor, converted_folder: Path) -> CompiledFeatures:
    return CompiledFeatures(plain, "tiny", converted_folder)


def test_features_are_those_of_pytorch(plain: FeatureExtractor, features: CompiledFeatures) -> None:
    found, expected = features(IMAGES), plain(IMAGES)
    assert torch.allclose(found.embeddings, expected.embeddings, rtol=1e-4, atol=1e-5)
    for one, other in zip(found.stages, expected.stages, strict=True):
        # They are rounded to bf16, and now and then to the other neighbour.
        assert torch.allclose(one.float(), other.float(), rtol=2**-7, atol=1e-5)
    assert features.grids == [tuple(each.shape[1:]) for each in (expected.embeddings, *expected.stages)]


def test_an_image_has_the_same_features_in_every_batch_and_thread(features: CompiledFeatures) -> None:
    expected = features(IMAGES).embeddings
    with ThreadPoolExecutor(4) as pool:
        alone = pool.map(lambda image: features(image[None]).embeddings[0], [*IMAGES] * 5)
    for found, other in zip(alone, [*expected] * 5, strict=True):
        assert torch.allclose(found, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("identity", ["tiny", "other"])
def test_a_network_is_converted_once(
    identity: str,
    plain: FeatureExtractor,
    features: CompiledFeatures,
    converted_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a branch depends on data")

    monkeypatch.setattr("moleflow.model.features.compiled.converted", fail)
    if identity == "tiny":
        expected = features(IMAGES).embeddings
        assert torch.equal(CompiledFeatures(plain, identity, converted_folder)(IMAGES).embeddings, expected)
    else:
        with pytest.raises(BackboneError, match=r"OpenVINO cannot run the backbone \(.*on data\); use engine torch"):
            CompiledFeatures(plain, identity, converted_folder)
