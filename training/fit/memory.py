"""Fit a product's memory: principal components of its patches, and a coreset of them.

The coreset covers the patches evenly (k-center greedy): rare but good patches are kept, which random prototypes or
k-means would lose. It is searched among a sample of patches, in a random projection, as PatchCore does (arXiv
2106.08265, section 3.2; Johnson and Lindenstrauss 1984).
"""

from collections.abc import Callable, Sequence

import torch

from moleflow.model.config import MemoryConfig
from moleflow.model.memory.bank import STORED_TYPE, MemoryBank, concatenated, project
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

    A product with fewer patches than ``config.prototypes`` keeps them all.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = torch.arange(len(store)).split(_BATCH)
    first = store.features(batches[0][:1], _CPU)
    cells = first.stages[0].shape[1] * first.stages[0].shape[2]

    def sampled(most: int, values: Callable[[Sequence[torch.Tensor]], torch.Tensor]) -> torch.Tensor:
        """About ``most`` patches, as many of each image, of the maps that ``values`` makes of pooled stages."""
        each = min(cells, max(1, most // len(store)))
        found = []
        for rows in batches:
            for image in values(store.features(rows, _CPU).stages).flatten(1, 2):
                found.append(image[torch.randperm(cells, generator=generator)[:each]])
        return torch.cat(found)

    raw = sampled(COMPONENT_PATCHES, concatenated)
    mean = raw.mean(0).to(STORED_TYPE).float()
    axes = _principal_axes(raw - mean, config.dim).to(STORED_TYPE).float()
    patches = sampled(CORESET_PATCHES, lambda stages: project(stages, mean, axes))
    if len(patches) > config.prototypes:
        search = patches @ torch.randn(axes.shape[1], SEARCH_DIM, generator=generator)
        start = int(torch.randint(len(patches), (), generator=generator))
        patches = patches[farthest_first(search if axes.shape[1] > SEARCH_DIM else patches, start, config.prototypes)]
    return MemoryBank.of(mean, axes, patches)


def _principal_axes(centred: torch.Tensor, dim: int) -> torch.Tensor:
    """The ``dim`` directions ``(C, dim)`` of largest variance of ``centred`` ``(n, C)``, or all if there are fewer.

    The sign of an axis is arbitrary and does not change a distance; it is fixed, so that results can be compared.
    """
    vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :dim]
    return vectors * torch.where(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
