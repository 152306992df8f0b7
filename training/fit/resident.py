"""A task's embeddings on the device during a fit: copying a batch from the host takes longer than a step on a GPU."""

import torch

from moleflow.training.embeddings.extraction import Embeddings

__all__ = ["Batches"]

_SHARE = 0.5
"""Most of the free memory that embeddings may take; a step needs some too."""

_AT_ONCE = 32
"""Images copied at once."""


class Batches:
    """Batches of ``store`` on ``device``: from a copy there, if it is a GPU with room for one, else from the store."""

    def __init__(self, store: Embeddings, device: torch.device) -> None:
        self._store, self._device = store, device
        self._values: torch.Tensor | None = None
        if device.type != "cuda":
            return
        first = store.batch(torch.arange(1), device)
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's own cache
        if len(store) * first.nbytes > _SHARE * free:
            return
        self._values = first.new_empty((len(store), *first.shape[1:]))
        for rows in torch.arange(len(store)).split(_AT_ONCE):
            self._values[rows[0] : rows[-1] + 1] = store.batch(rows, device)

    def order(self, order: torch.Tensor) -> torch.Tensor:
        """``order`` of images ``(n,)`` where ``batch`` reads it."""
        return order if self._values is None else order.to(self._device)

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        """The embeddings at ``indices`` ``(b,)``, from ``order``: ``(b, H, W, D)`` float32 on the device."""
        if self._values is None:
            return self._store.batch(indices, self._device)
        return self._values.index_select(0, indices)
