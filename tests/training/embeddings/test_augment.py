"""Augmentations of good images, from which the router learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import product_image, tiny_config

from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.routing.router import image_descriptor
from moleflow.training.data.datasets import load_category, read_image
from moleflow.training.embeddings.augment import AUGMENTATIONS, MAX_IMAGES, augmented_indices, descriptor_changes
from moleflow.training.embeddings.extraction import extract

CPU = torch.device("cpu")
SIDE = 64
EVEN = np.full((SIDE, SIDE, 3), 120, np.uint8)


def drawn(name: str, seed: int, image: np.ndarray = EVEN) -> np.ndarray:
    return AUGMENTATIONS[name](image, np.random.default_rng(seed))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_is_deterministic_for_a_seed(name: str) -> None:
    image = product_image(1, 3, SIDE)
    before = image.copy()
    one, other = drawn(name, 5, image), drawn(name, 5, image)
    assert np.array_equal(one, other)
    assert not np.array_equal(one, drawn(name, 6, image))
    assert one.shape == image.shape
    assert one.dtype == np.uint8
    assert np.array_equal(image, before)


def test_an_occlusion_leaves_most_of_the_image_unchanged() -> None:
    changed = [(drawn("cover", seed) != EVEN).any(2).mean() for seed in range(200)]
    assert max(changed) < 0.6
    assert 0.05 < np.mean(changed) < 0.33


def test_lighting_changes_brightness_by_a_fifth_at_most_and_uniformly() -> None:
    for seed in range(50):
        found = drawn("light", seed)
        assert np.ptp(found.reshape(-1, 3), axis=0).max() == 0
        assert 0.8 * 0.96 * 120 - 1 <= found.min() <= found.max() <= 1.2 * 1.04 * 120 + 1


def test_focus_keeps_a_uniform_image_unchanged() -> None:
    assert all(np.array_equal(drawn("focus", seed), EVEN) for seed in range(20))


@pytest.mark.parametrize("count", [1, 3, MAX_IMAGES, MAX_IMAGES + 1, 209, 1000])
def test_a_limited_number_of_images_is_augmented_evenly_spaced(count: int) -> None:
    chosen = augmented_indices(count)
    assert min(count, MAX_IMAGES // 2) <= len(chosen) <= MAX_IMAGES
    assert chosen[-1] >= count - chosen.step


def test_changes_are_the_differences_of_augmented_descriptors(products: Path) -> None:
    paths = load_category(products, "bolt").train
    config = tiny_config()
    features = FeatureExtractor(config, Backbone.pretrained(config.backbone))
    plain = torch.cat([image_descriptor(values.embeddings) for _, values in extract(features, paths, read_image)])
    counted: list[int] = []
    changes = descriptor_changes(features, paths, plain, None, on_progress=counted.append)
    assert changes.shape == (len(AUGMENTATIONS) * len(paths), plain.shape[1])
    assert sum(counted) == len(changes)
    assert (changes[: len(paths)].norm(dim=1) > 0).all()  # occlusions; blur changes little in such small images
    # Relative to zero, the changes are the augmented descriptors themselves.
    altered = descriptor_changes(features, paths, torch.zeros_like(plain), None)
    assert torch.allclose(altered - plain.repeat(len(AUGMENTATIONS), 1), changes, atol=1e-5)
