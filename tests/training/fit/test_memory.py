"""A memory is fitted to patches of good images: principal components, and a coreset that covers them."""

import pytest
import torch

from moleflow.model.config import MemoryConfig
from moleflow.model.errors import ConfigurationError
from moleflow.model.features.patches import STAGE_TYPE, PatchFeatures
from moleflow.model.memory.bank import MergedBank, concatenated, project
from moleflow.training.embeddings.extraction import EmbeddingStore
from moleflow.training.fit import memory
from moleflow.training.fit.memory import fit_bank

SMALL = MemoryConfig(prototypes=30, pooled=10, dim=4)


def store(count: int = 12, seed: int = 0) -> EmbeddingStore:
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randn(count, 4, 4, 10, generator=generator) * torch.linspace(3, 0.1, 10)
    coarse = torch.randn(count, 2, 2, 6, generator=generator)
    stages = tuple(stage.to(STAGE_TYPE) for stage in (fine, coarse))
    return EmbeddingStore(PatchFeatures(torch.zeros(count, 4, 4, 8), stages))


def all_patches(images: EmbeddingStore) -> torch.Tensor:
    return concatenated(images.features(torch.arange(len(images)), torch.device("cpu")).stages).flatten(0, 2)


def test_the_axes_are_the_principal_components_of_the_patches() -> None:
    bank = fit_bank(store(), SMALL, seed=0).bank
    patches = all_patches(store())
    assert torch.allclose(bank.mean.float(), patches.mean(0), atol=0.02)
    centred = patches - patches.mean(0)
    best = torch.linalg.svd(centred, full_matrices=False).S[:4].square().sum()
    kept = (centred @ bank.axes.float()).square().sum()
    assert kept > 0.99 * best
    assert torch.allclose(bank.axes.float().T @ bank.axes.float(), torch.eye(4), atol=0.02)


def test_the_prototypes_are_patches_of_the_images_and_cover_them() -> None:
    bank = fit_bank(store(), SMALL, seed=0).bank
    patches = project(
        list(store().features(torch.arange(12), torch.device("cpu")).stages), bank.mean.float(), bank.axes.float()
    ).flatten(0, 2)
    to_patch = torch.cdist(bank.prototypes.float(), patches).amin(1)
    assert to_patch.max() < 0.05
    covered = torch.cdist(patches, bank.prototypes.float()).amin(1).max()
    drawn = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(1))[:30]]
    assert covered < torch.cdist(patches, drawn).amin(1).max()


def test_few_patches_are_all_remembered() -> None:
    bank = fit_bank(store(1), SMALL, seed=0).bank
    assert len(bank.prototypes) == 16
    assert len(bank.pooled) == 4
    assert MergedBank(bank)(store(1).features(torch.arange(1), torch.device("cpu")).stages).max() < 0.05


def test_pooled_patches_are_remembered_only_if_they_are_wanted() -> None:
    assert len(fit_bank(store(), SMALL, seed=0).bank.pooled) == 10
    assert len(fit_bank(store(), SMALL.model_copy(update={"pooled": 0}), seed=0).bank.pooled) == 0


def test_no_more_components_are_kept_than_there_are_channels() -> None:
    assert fit_bank(store(), MemoryConfig(prototypes=8, pooled=0, dim=64), seed=0).bank.axes.shape == (16, 16)


def test_the_seed_alone_determines_a_memory() -> None:
    one, same, other = (fit_bank(store(), SMALL, seed=seed).bank for seed in (1, 1, 2))
    assert torch.equal(one.prototypes, same.prototypes)
    assert not torch.equal(one.prototypes, other.prototypes)


def test_many_patches_are_sampled_evenly_from_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CORESET_PATCHES", 24)
    images = store()
    # Two patches of each of twelve images are fewer than the prototypes, so that all are kept.
    bank = fit_bank(images, SMALL, seed=0).bank
    assert len(bank.prototypes) == 24
    for row in range(len(images)):
        own = project(
            images.features(torch.tensor([row]), torch.device("cpu")).stages, bank.mean.float(), bank.axes.float()
        ).flatten(0, 2)
        assert (torch.cdist(bank.prototypes.float(), own).amin(1) < 0.05).sum() == 2


def test_a_memory_without_some_images_keeps_the_patches_of_all_others() -> None:
    fitted = fit_bank(store(), SMALL, seed=0)
    less = fitted.without((0, 3, 5))
    kept = ~torch.isin(fitted.images, torch.tensor([0, 3, 5]))
    assert torch.equal(less.prototypes, fitted.bank.prototypes[kept])
    assert 0 < len(less.prototypes) < 30
    assert len(less.pooled) == int((~torch.isin(fitted.pooled_images, torch.tensor([0, 3, 5]))).sum())
    assert torch.equal(less.axes, fitted.bank.axes)


def test_every_prototype_is_a_patch_of_the_image_that_is_named() -> None:
    images = store()
    fitted = fit_bank(images, SMALL, seed=0)
    for row in range(len(images)):
        patches = project(
            images.features(torch.tensor([row]), torch.device("cpu")).stages,
            fitted.bank.mean.float(),
            fitted.bank.axes.float(),
        )
        own = fitted.bank.prototypes[fitted.images == row].float()
        assert not len(own) or torch.cdist(own, patches.flatten(0, 2)).amin(1).max() < 0.05


def test_an_image_is_further_from_the_memory_without_its_own_patches() -> None:
    images = store()
    fitted = fit_bank(images, SMALL, seed=0)
    stages = images.features(torch.tensor([2]), torch.device("cpu")).stages
    assert MergedBank(fitted.without((2,)))(stages).mean() > MergedBank(fitted.bank)(stages).mean()


def test_a_memory_that_would_be_empty_is_an_error() -> None:
    fitted = fit_bank(store(2), MemoryConfig(prototypes=1, pooled=0, dim=4), seed=0)
    with pytest.raises(ConfigurationError, match="has none but those of 2 images"):
        fitted.without((0, 1))


def test_only_inspected_patches_are_remembered_and_shape_the_axes() -> None:
    inspected = torch.zeros(4, 4, dtype=torch.bool)
    inspected[:, 2:] = True
    found = fit_bank(store(), SMALL, seed=0, inspected=inspected).bank
    fine, coarse = store().features(torch.arange(12), torch.device("cpu")).stages
    other = fine.clone()
    other[:, :, 0] = 100  # no pooled patch beside an inspected one reaches that far
    changed = EmbeddingStore(PatchFeatures(torch.zeros(12, 4, 4, 8), (other, coarse)))
    again = fit_bank(changed, SMALL, seed=0, inspected=inspected).bank
    for part in ("mean", "axes", "prototypes"):
        assert torch.equal(getattr(again, part), getattr(found, part))
    patches = project([fine, coarse], found.mean.float(), found.axes.float())[:, inspected].flatten(0, 1)
    assert torch.cdist(found.prototypes.float(), patches).amin(1).max() < 0.05


def test_a_narrow_area_has_pooled_patches_too() -> None:
    inspected = torch.zeros(4, 4, dtype=torch.bool)
    inspected[1] = True  # between two rows of pooled patches
    assert len(fit_bank(store(1), SMALL, seed=0, inspected=inspected).bank.pooled) == 2
