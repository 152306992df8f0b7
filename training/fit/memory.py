"""Fit a product's memory: principal components of its patches, and a coreset of them.

The coreset covers the patches evenly (k-center greedy): rare but good patches are kept, which random prototypes or
k-means would lose. It is searched among a sample of patches, in a random projection, as PatchCore does (arXiv
2106.08265, section 3.2; Johnson and Lindenstrauss 1984).
"""

from collections.abc import Callable, Sequence

import torch

from moleflow.model.config import MemoryConfig
from moleflow.model.memory.bank import STORED_TYPE, MemoryBank, concatenated, pool_patches, project
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.fit.coreset import farthest_first

__all__ = ["fit_bank"]

COMPONENT_PATCHES = 12_288
"""Most patches that the principal components are fitted to: eight times their channels with a ResNet-50."""

CORESET_PATCHES = 150_000
"""Most patches that the coreset is chosen from: those of 190 images of 28 × 28."""

SEARCH_DIM = 128
"""Dimensions of the random projection in which the coreset is searched."""

_BATCH = 16
"""Images read at a time."""

_CPU = torch.device("cpu")


def fit_bank(store: Embeddings, config: MemoryConfig, seed: int) -> MemoryBank:
    """The memory of the images in ``store``; the same for the same ``seed``. Computed on the CPU.

    A product with fewer patches than ``config.prototypes`` keeps them all, and likewise its pooled patches.
    """
    generator = torch.Generator().manual_seed(seed)

    def sampled(most: int, values: Callable[[Sequence[torch.Tensor]], torch.Tensor]) -> torch.Tensor:
        """About ``most`` patches, as many of each image, of the maps that ``values`` makes of pooled stages."""
        found = []
        for rows in torch.arange(len(store)).split(_BATCH):
            for image in values(store.features(rows, _CPU).stages).flatten(1, 2):
                chosen = torch.randperm(len(image), generator=generator)[: max(1, most // len(store))]
                found.append(image[chosen])
        return torch.cat(found)

    def coreset(patches: torch.Tensor, most: int) -> torch.Tensor:
        """At most ``most`` of the ``patches`` ``(n, d)``, which cover them."""
        if len(patches) <= most:
            return patches
        dim, search = patches.shape[1], patches
        if dim > SEARCH_DIM:
            search = patches @ torch.randn(dim, SEARCH_DIM, generator=generator)
        return patches[farthest_first(search, int(torch.randint(len(patches), (), generator=generator)), most)]

    raw = sampled(COMPONENT_PATCHES, concatenated)
    mean = raw.mean(0).to(STORED_TYPE).float()
    axes = _principal_axes(raw - mean, config.dim).to(STORED_TYPE).float()
    prototypes = coreset(sampled(CORESET_PATCHES, lambda stages: project(stages, mean, axes)), config.prototypes)
    pooled = None
    if config.pooled:
        every = sampled(CORESET_PATCHES // 2, lambda stages: pool_patches(project(stages, mean, axes)))
        pooled = coreset(every, config.pooled)
    return MemoryBank.of(mean, axes, prototypes, pooled)


def _principal_axes(centred: torch.Tensor, dim: int) -> torch.Tensor:
    """The ``dim`` directions ``(C, dim)`` of largest variance of ``centred`` ``(n, C)``, or all if there are fewer.

    The sign of an axis is arbitrary and does not change a distance; it is fixed, so that results can be compared.
    """
    vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :dim]
    return vectors * torch.where(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
