"""Fit a product's memory: principal components of its patches, and a coreset of them.

The coreset covers the patches evenly (k-center greedy): rare but good patches are kept, which random prototypes or
k-means would lose. It is searched among a sample of patches, in a random projection, as PatchCore does (arXiv
2106.08265, section 3.2; Johnson and Lindenstrauss 1984).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from moleflow.model.config import MemoryConfig
from moleflow.model.errors import ConfigurationError
from moleflow.model.memory.bank import POOLED_STRIDE, STORED_TYPE, MemoryBank, concatenated, pool_patches, project
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.fit.coreset import farthest_first

__all__ = ["FittedBank", "fit_bank"]

COMPONENT_PATCHES = 12_288
"""Most patches that the principal components are fitted to: eight times their channels with a ResNet-50."""

CORESET_PATCHES = 150_000
"""Most patches that the coreset is chosen from: those of 190 images of 28 × 28."""

SEARCH_DIM = 128
"""Dimensions of the random projection in which the coreset is searched."""

_BATCH = 16
"""Images read at a time."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class FittedBank:
    """A memory, and the image that each prototype ``(n,)`` and each pooled patch ``(m,)`` is taken from."""

    bank: MemoryBank
    images: torch.Tensor
    pooled_images: torch.Tensor

    def without(self, images: Sequence[int]) -> MemoryBank:
        """The memory less the patches of ``images``, to which these images are new.

        Distances to it are a little larger than those of new images to the whole memory, which has more prototypes.

        Raises:
            ConfigurationError: no prototype is left.
        """
        gone = torch.tensor(images)
        kept, pooled = ~torch.isin(self.images, gone), ~torch.isin(self.pooled_images, gone)
        if not kept.any() or (len(pooled) and not pooled.any()):
            raise ConfigurationError(
                f"a memory of {len(kept)} prototypes and {len(pooled)} pooled patches has none but those of "
                f"{len(gone)} images; configure more of them."
            )
        bank = self.bank
        return MemoryBank.of(bank.mean, bank.axes, bank.prototypes[kept], bank.pooled[pooled])


def fit_bank(store: Embeddings, config: MemoryConfig, seed: int, inspected: torch.Tensor | None = None) -> FittedBank:
    """The memory of the images in ``store``; the same for the same ``seed``. Computed on the CPU.

    Only patches that are ``inspected`` ``(H, W)`` are kept, and pooled ones around such a patch; all by default.
    A product with fewer patches than ``config.prototypes`` keeps them all, and likewise its pooled patches.
    """
    generator = torch.Generator().manual_seed(seed)
    around = None if inspected is None else _pooled(inspected)

    def sampled(
        most: int, values: Callable[[Sequence[torch.Tensor]], torch.Tensor], kept: torch.Tensor | None = inspected
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """About ``most`` patches, as many of each image, of the maps that ``values`` makes of pooled stages where they
        are ``kept``, and the image of each."""
        found, images = [], []
        for rows in torch.arange(len(store)).split(_BATCH):
            for row, image in zip(rows, values(store.features(rows, _CPU).stages).flatten(1, 2), strict=True):
                if kept is not None:
                    image = image[kept.flatten()]
                chosen = torch.randperm(len(image), generator=generator)[: max(1, most // len(store))]
                found.append(image[chosen])
                images.append(row.expand(len(chosen)))
        return torch.cat(found), torch.cat(images)

    def coreset(patches: torch.Tensor, images: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """At most ``most`` of the ``patches`` ``(n, d)``, which cover them, and their ``images`` ``(n,)``."""
        if len(patches) <= most:
            return patches, images
        dim, search = patches.shape[1], patches
        if dim > SEARCH_DIM:
            search = patches @ torch.randn(dim, SEARCH_DIM, generator=generator)
        rows = farthest_first(search, int(torch.randint(len(patches), (), generator=generator)), most)
        return patches[rows], images[rows]

    raw, _ = sampled(COMPONENT_PATCHES, concatenated)
    mean = raw.mean(0).to(STORED_TYPE).float()
    axes = _principal_axes(raw - mean, config.dim).to(STORED_TYPE).float()
    every = sampled(CORESET_PATCHES, lambda stages: project(stages, mean, axes))
    prototypes, images = coreset(*every, config.prototypes)
    if not config.pooled:
        return FittedBank(MemoryBank.of(mean, axes, prototypes), images, torch.empty(0, dtype=torch.long))
    every = sampled(CORESET_PATCHES // 2, lambda stages: pool_patches(project(stages, mean, axes)), around)
    pooled, pooled_images = coreset(*every, config.pooled)
    return FittedBank(MemoryBank.of(mean, axes, prototypes, pooled), images, pooled_images)


def _pooled(inspected: torch.Tensor) -> torch.Tensor:
    """Which pooled patches have an inspected one beside them: ``(H, W)`` to ``(⌈H/2⌉, ⌈W/2⌉)`` bool."""
    return F.max_pool2d(inspected[None].float(), POOLED_STRIDE, ceil_mode=True)[0] > 0


def _principal_axes(centred: torch.Tensor, dim: int) -> torch.Tensor:
    """The ``dim`` directions ``(C, dim)`` of largest variance of ``centred`` ``(n, C)``, or all if there are fewer.

    The sign of an axis is arbitrary and does not change a distance; it is fixed, so that results can be compared.
    """
    vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :dim]
    return vectors * torch.where(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
