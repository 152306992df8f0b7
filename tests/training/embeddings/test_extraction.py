"""Embeddings are computed once, in order, and kept in memory or in an unnamed file."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import FUSED, tiny_config

from moleflow.model.errors import ConfigurationError
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor, stack_images
from moleflow.training.data.datasets import read_image
from moleflow.training.data.white_levels import Reader
from moleflow.training.embeddings import extraction as embeddings
from moleflow.training.embeddings.extraction import EmbeddingStore
from moleflow.training.errors import DatasetError

CPU = torch.device("cpu")


def compute(features: FeatureExtractor, paths: tuple[Path, ...], folder: Path, **options: Any) -> EmbeddingStore:
    return EmbeddingStore.compute(features, paths, Reader(None), folder=folder, **options)


def test_embeddings_are_in_the_order_of_the_images(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path
) -> None:
    with torch.inference_mode():
        batch = stack_images([read_image(path) for path in paths], features.preprocessing.resize, CPU)
        expected = features(batch).embeddings
    with compute(features, paths, tmp_path) as store:
        assert len(store) == len(paths) == 10
        assert store._file is None
        assert torch.allclose(store.values, expected, atol=1e-5)
        indices = torch.tensor([7, 0, 3])
        assert torch.equal(store.batch(indices, CPU), store.values[indices])


def test_above_the_limit_they_are_in_a_file_with_the_same_bits(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path
) -> None:
    with compute(features, paths, tmp_path) as memory, compute(features, paths, tmp_path, memory_limit=1000) as disk:
        assert disk._file is not None
        assert torch.equal(memory.values, disk.values)
        indices = torch.tensor([1, 5])
        assert torch.equal(memory.batch(indices, CPU), disk.batch(indices, CPU))


def test_the_limit_is_in_bytes(features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path) -> None:
    size = 10 * 4 * 4 * 16 * 4
    for limit, on_disk in ((size, False), (size - 1, True)):
        with compute(features, paths, tmp_path, memory_limit=limit) as store:
            assert (store._file is not None) is on_disk


def test_the_temporary_file_is_unnamed(features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path) -> None:
    with compute(features, paths, tmp_path, memory_limit=0):
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_before_any_work_and_names_the_folder(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigurationError, match=f"'{tmp_path}' cannot hold .*No space left.*make room"):
        compute(features, paths, tmp_path, memory_limit=0)


def test_more_images_than_one_pass_takes_are_all_embedded(
    features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress: list[int] = []
    with compute(features, paths, tmp_path) as whole:
        monkeypatch.setattr(embeddings, "EXTRACTION_BATCH", 4)
        with compute(features, paths, tmp_path, on_progress=progress.append) as parts:
            assert torch.allclose(whole.values, parts.values, atol=1e-5)
    assert progress == [4, 4, 2]


def test_they_can_be_trained_on(features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path) -> None:
    with compute(features, paths, tmp_path) as store:
        weight = torch.ones(16, requires_grad=True)
        (store.batch(torch.arange(2), CPU) * weight).sum().backward()
        assert weight.grad is not None


def test_an_image_that_cannot_be_read_is_named(features: FeatureExtractor, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(DatasetError, match="bad.png"):
        compute(features, (bad,), tmp_path)


def test_images_are_resized_to_the_models_size(features: FeatureExtractor, tmp_path: Path) -> None:
    from PIL import Image

    for number, size in enumerate(((90, 40), (32, 32))):
        Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(tmp_path / f"{number}.png")
    with compute(features, tuple(sorted(tmp_path.iterdir())), tmp_path) as store:
        assert store.values.shape == (2, 4, 4, 16)
        assert torch.allclose(store.values[0], store.values[1], atol=1e-5)


def test_an_empty_list_of_images_is_refused(features: FeatureExtractor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="paths must not be empty"):
        compute(features, (), tmp_path)


def test_pooled_stages_are_kept_for_a_memory_in_memory_and_on_disk(paths: tuple[Path, ...], tmp_path: Path) -> None:
    config = tiny_config(scoring=FUSED)
    pooling = FeatureExtractor(config, Backbone.pretrained(config.backbone))
    rows = torch.tensor([7, 0, 3])
    with torch.inference_mode():
        batch = stack_images([read_image(paths[row]) for row in rows], pooling.preprocessing.resize, CPU)
        expected = pooling(batch).stages
    with compute(pooling, paths, tmp_path) as memory, compute(pooling, paths, tmp_path, memory_limit=0) as disk:
        for store in (memory, disk, memory.subset([3, 7, 0])):
            found = store.features(torch.tensor([1, 2, 0]) if len(store) == 3 else rows, CPU)
            assert [stage.shape for stage in found.stages] == [(3, 4, 4, 12), (3, 2, 2, 20)]
            for stage, right in zip(found.stages, expected, strict=True):
                assert torch.allclose(stage.float(), right.float(), rtol=0.02, atol=1e-3)


def test_without_a_memory_no_stage_is_kept(features: FeatureExtractor, paths: tuple[Path, ...], tmp_path: Path) -> None:
    with compute(features, paths, tmp_path) as store:
        assert store.features(torch.tensor([0]), CPU).stages == ()
