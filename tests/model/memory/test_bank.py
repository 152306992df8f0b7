"""The memory measures the distance of a patch, in the principal components, to the nearest prototype."""

import pytest
import torch
import torch.nn.functional as F

from moleflow.model.features.patches import STAGE_TYPE, pooled_stage
from moleflow.model.memory.bank import MemoryBank, MergedBank, concatenated, pool_patches, project

CHANNELS = (12, 20)


def stages(count: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((count, 4, 4, CHANNELS[0]), (count, 2, 2, CHANNELS[1]))
    return [torch.randn(size, generator=generator).to(STAGE_TYPE) for size in sizes]


@pytest.fixture
def bank() -> MemoryBank:
    generator = torch.Generator().manual_seed(7)
    mean, axes, prototypes = (torch.randn(size, generator=generator) for size in ((32,), (32, 6), (50, 6)))
    return MemoryBank.of(mean, axes, prototypes)


def test_a_pooled_stage_is_the_mean_of_each_neighbourhood_with_zeros_around() -> None:
    stage = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    found = pooled_stage(stage)
    assert found.shape == (2, 4, 4, 5)
    assert found.dtype == STAGE_TYPE
    assert found[1, 2, 1].float() == pytest.approx(stage[1, :, 1:4, 0:3].mean((1, 2)).numpy(), abs=0.01)
    assert found[0, 0, 0].float() == pytest.approx((stage[0, :, :2, :2].sum((1, 2)) / 9).numpy(), abs=0.01)


def test_projecting_each_stage_before_upsampling_equals_projecting_the_concatenation() -> None:
    generator = torch.Generator().manual_seed(1)
    mean, axes = torch.randn(32, generator=generator), torch.randn(32, 6, generator=generator)
    first, second = (stage.float() for stage in stages())
    large = F.interpolate(second.permute(0, 3, 1, 2), size=(4, 4), mode="bilinear", align_corners=False)
    whole = torch.cat((first, large.permute(0, 2, 3, 1)), -1)
    assert torch.equal(concatenated(stages()), whole)
    assert torch.allclose(project(stages(), mean, axes), (whole - mean) @ axes, atol=1e-4)


def test_the_distance_is_that_to_the_nearest_prototype(bank: MemoryBank) -> None:
    patches = project(stages(), bank.mean.float(), bank.axes.float())
    expected = torch.cdist(patches.flatten(0, 2), bank.prototypes.float()).amin(1).view(3, 4, 4)
    found = MergedBank(bank)(stages())
    assert found.shape == (3, 1, 4, 4)
    assert torch.allclose(found[:, 0], expected, atol=1e-3)


def test_pooled_patches_have_distances_of_their_own(bank: MemoryBank) -> None:
    pooled = torch.randn(9, 6, generator=torch.Generator().manual_seed(8))
    both = MemoryBank.of(bank.mean, bank.axes, bank.prototypes, pooled)
    found = MergedBank(both)(stages())
    assert torch.equal(found[:, :1], MergedBank(bank)(stages()))
    patches = pool_patches(project(stages(), both.mean.float(), both.axes.float()))
    assert patches.shape == (3, 2, 2, 6)
    nearest = torch.cdist(patches.flatten(0, 2), both.pooled.float()).amin(1).view(3, 1, 2, 2)
    expected = F.interpolate(nearest, size=(4, 4), mode="bilinear", align_corners=False)
    assert torch.allclose(found[:, 1:], expected, atol=1e-3)


def test_a_pooled_patch_is_the_mean_of_its_neighbourhood_without_what_lies_outside() -> None:
    patches = torch.randn(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    found = pool_patches(patches)
    assert found.shape == (1, 4, 4, 3)
    assert torch.allclose(found[0, 0, 0], patches[0, :3, :3].mean((0, 1)), atol=1e-6)
    assert torch.allclose(found[0, 2, 1], patches[0, 2:7, 0:5].mean((0, 1)), atol=1e-6)


def test_a_patch_that_is_remembered_has_no_distance(bank: MemoryBank) -> None:
    patches = project(stages(), bank.mean.float(), bank.axes.float()).flatten(0, 2)
    found = MergedBank(MemoryBank.of(bank.mean, bank.axes, patches))(stages())
    assert float(found.max()) < 2**-8 * float(patches.norm(dim=1).max())  # what storing it in bfloat16 loses


def test_half_precision_around_it_changes_nothing(bank: MemoryBank) -> None:
    exact = MergedBank(bank)(stages())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MergedBank(bank)(stages()), exact)


def test_the_distances_of_an_image_do_not_depend_on_its_batch(bank: MemoryBank) -> None:
    merged, batch = MergedBank(bank), stages(5)
    alone = torch.cat([merged([stage[row : row + 1] for stage in batch]) for row in range(5)])
    assert torch.allclose(merged(batch), alone, rtol=1e-5)


def test_a_memory_is_stored_in_half_of_the_bytes(bank: MemoryBank) -> None:
    assert {value.dtype for value in bank.state_dict().values()} == {torch.bfloat16}
    assert set(bank.state_dict()) == {"mean", "axes", "prototypes", "pooled"}
