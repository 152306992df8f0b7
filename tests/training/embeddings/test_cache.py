"""Embeddings are cached by content: found again, and never mixed up."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedding_caches import CONFIG, CPU, embed, extractor, files, opened, values
from tiny_model import FUSED, product_image, tiny_config

from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.features.patches import PatchFeatures
from moleflow.training.data import white_levels
from moleflow.training.data.datasets import read_image
from moleflow.training.data.white_levels import Reader
from moleflow.training.embeddings.extraction import EmbeddingStore


class Unused(FeatureExtractor):
    """A backbone that must not be run."""

    def forward(self, images: torch.Tensor) -> PatchFeatures:
        raise AssertionError("embedded again")


def test_cached_embeddings_have_the_same_bits_as_uncached_ones(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path
) -> None:
    with EmbeddingStore.compute(features, paths, Reader(None), folder=tmp_path) as store:
        found = embed(opened(tmp_path / "cache", features), features, paths)
        assert len(found) == len(paths)
        assert torch.equal(values(found), store.values)
        indices = torch.tensor([7, 0, 3])
        assert torch.equal(found.batch(indices, CPU), store.batch(indices, CPU))


def test_cached_embeddings_are_found_in_any_order_and_under_any_name(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path
) -> None:
    first = values(embed(opened(tmp_path / "cache", features), features, paths))
    moved = tmp_path / "elsewhere.png"
    shutil.copy(paths[4], moved)
    unused = Unused(CONFIG, features.backbone)
    again = embed(opened(tmp_path / "cache", unused), unused, (paths[6], moved, paths[0], paths[0]))
    assert torch.equal(values(again), first[[6, 4, 0, 0]])


def test_only_what_is_missing_is_computed(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(tmp_path / "cache", features)
    embed(cache, features, paths[:4])
    decoded: list[Path] = []

    def read(path: Path, side: int) -> np.ndarray:
        decoded.append(path)
        return read_image(path, side)

    done: list[int] = []
    monkeypatch.setattr(white_levels, "read_image", read)
    found = cache.embed(features, paths, on_progress=done.append)
    monkeypatch.undo()
    assert sorted(decoded) == sorted(paths[4:])
    assert sum(done) == len(paths)
    assert torch.allclose(
        values(found), values(embed(opened(tmp_path / "other", features), features, paths)), atol=1e-5
    )


def test_an_image_changed_in_place_is_another_image(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path
) -> None:
    from PIL import Image

    cache, path = opened(tmp_path / "cache", features), tmp_path / "image.png"
    shutil.copy(paths[0], path)
    before = values(embed(cache, features, (path,))).clone()
    Image.fromarray(product_image(2, 5)).save(path)
    assert not torch.allclose(values(embed(cache, features, (path,))), before, atol=0.1)


@pytest.mark.parametrize("change", ["weights", "stages", "width", "size", "precision", "preprocessing"])
def test_everything_that_determines_an_embedding_is_part_of_its_source(
    features: FeatureExtractor, tmp_path: Path, change: str
) -> None:
    usual = opened(tmp_path, features).folder
    assert opened(tmp_path, features).folder == usual
    config, other, precision = CONFIG, extractor(), "fp32"
    if change == "weights":
        with torch.no_grad():
            next(other.backbone.net.parameters()).add_(1)
    elif change == "precision":
        precision = "bf16"
    elif change == "preprocessing":
        kept = other.backbone.preprocessing
        other.backbone.preprocessing = kept.model_copy(update={"mean": (0.1, 0.1, 0.1)})
    else:
        changes: dict[str, dict[str, Any]]
        changes = {"stages": {"strides": (8,)}, "width": {"embedding_dim": 8}, "size": {"image_size": 64}}
        config = CONFIG.model_copy(update={"backbone": CONFIG.backbone.model_copy(update=changes[change])})
        other = extractor(config)
    assert opened(tmp_path, other, config, precision).folder != usual


def test_using_the_embeddings_does_not_change_the_files(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path
) -> None:
    cache = opened(tmp_path, features)
    found = embed(cache, features, paths)
    before = [path.read_bytes() for path in files(cache)]
    values(found).zero_()
    assert [path.read_bytes() for path in files(cache)] == before


def test_pooled_stages_are_cached_beside_the_embeddings(paths: tuple[Path, ...], tmp_path: Path) -> None:
    config = tiny_config(scoring=FUSED)
    pooling = extractor(config)
    found = embed(opened(tmp_path / "cache", pooling, config), pooling, paths)
    indices = torch.tensor([7, 0, 3])
    with EmbeddingStore.compute(pooling, paths, Reader(None), folder=tmp_path) as store:
        for one, other in zip(found.features(indices, CPU).stages, store.features(indices, CPU).stages, strict=True):
            assert torch.equal(one, other)
    subset = found.subset([3, 7]).features(torch.tensor([1]), CPU)
    assert torch.equal(subset.stages[1], found.features(torch.tensor([7]), CPU).stages[1])


def test_a_cache_without_stages_gets_them_when_a_memory_needs_them(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path
) -> None:
    config = tiny_config(scoring=FUSED)
    pooling = extractor(config)
    plain = embed(opened(tmp_path / "cache", features), features, paths)
    fuller = embed(opened(tmp_path / "cache", pooling, config), pooling, paths)
    assert torch.equal(values(plain), values(fuller))
    assert len(fuller.features(torch.tensor([0]), CPU).stages) == 2
