"""A task's embeddings, computed once: the backbone is frozen and training uses no augmentation."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol, Self

import numpy as np
import torch

from moleflow.model.errors import BackboneError, ConfigurationError
from moleflow.model.features.extractor import FeatureExtractor, as_levels, stack_images
from moleflow.model.runtime.device import autocast
from moleflow.model.runtime.soundness import not_finite
from moleflow.model.runtime.threads import helper_threads

__all__ = ["MEMORY_LIMIT", "EmbeddingStore", "Embeddings", "extract"]

MEMORY_LIMIT = 8 * 2**30
"""Embeddings of one task stay in memory up to this many bytes; larger ones go to an unnamed temporary file."""

EXTRACTION_BATCH = 16
"""Images per backbone pass. Fixed, so that embeddings do not depend on the training batch size."""


class Embeddings(Protocol):
    """Patch embeddings of a sequence of images, as a context manager."""

    def __len__(self) -> int: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def batch(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The embeddings at ``indices`` ``(b,)`` on ``device``: ``(b, H, W, D)`` float32."""

    def subset(self, rows: Sequence[int]) -> "Embeddings":
        """The images at ``rows``; shares storage with this one and is invalid once it is closed."""


class EmbeddingStore:
    """Patch embeddings ``(n, H, W, D)`` float32 of a task's images, in memory or memory-mapped from a temporary file,
    which leaving the context frees."""

    def __init__(self, values: torch.Tensor, file: IO[bytes] | None = None, rows: torch.Tensor | None = None) -> None:
        self.values, self._file, self._rows = values, file, rows

    def __len__(self) -> int:
        return len(self.values) if self._rows is None else len(self._rows)

    def __enter__(self) -> "EmbeddingStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.values = torch.empty(0)
        if self._file is not None:
            self._file.close()

    def batch(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The embeddings at ``indices`` ``(b,)`` on ``device``: ``(b, H, W, D)``."""
        rows = self.values[indices if self._rows is None else self._rows[indices]]
        if device.type != "cuda":
            return rows
        return rows.pin_memory().to(device, non_blocking=True)

    def subset(self, rows: Sequence[int]) -> "EmbeddingStore":
        """The images at ``rows``; shares storage with this one and is invalid once it is closed."""
        chosen = torch.tensor(rows)
        return EmbeddingStore(self.values, rows=chosen if self._rows is None else self._rows[chosen])

    @classmethod
    def compute(
        cls,
        features: FeatureExtractor,
        paths: Sequence[Path],
        read: Callable[[Path, int], np.ndarray],
        *,
        device: torch.device,
        precision: str,
        folder: Path,
        memory_limit: int = MEMORY_LIMIT,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> "EmbeddingStore":
        """Decode, resize and embed ``paths``; ``on_progress`` gets the number of images done since its last call.

        ``folder`` is where the temporary file goes if the embeddings exceed ``memory_limit`` bytes.

        Raises:
            ConfigurationError: ``folder`` has not enough space.
        """
        if not paths:
            raise ValueError("paths must not be empty")
        store: EmbeddingStore | None = None
        for start, values in extract(features, paths, read, device=device, precision=precision):
            if store is None:
                store = cls._empty((len(paths), *values.shape[1:]), folder, memory_limit)
            store.values[start : start + len(values)] = values
            on_progress(len(values))
        assert store is not None  # paths is not empty
        return store

    @classmethod
    def _empty(cls, shape: tuple[int, ...], folder: Path, memory_limit: int) -> "EmbeddingStore":
        size = 4 * int(np.prod(shape))
        if size <= memory_limit:
            return cls(torch.empty(shape))
        try:
            # Unnamed, so that a kill leaves nothing behind and no other program can truncate it; allocated at once, as
            # a disk that fills up under a memory map kills the process.
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                file.close()
                raise
        except OSError as error:
            raise ConfigurationError(
                f"the embeddings of this product take {size / 1e9:.1f} GB, which {str(folder)!r} cannot hold "
                f"({error.strerror}); make room there, or choose a smaller --image-size."
            ) from error
        return cls(torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape)), file)


def extract(
    features: FeatureExtractor,
    paths: Sequence[Path],
    read: Callable[[Path, int], np.ndarray],
    *,
    device: torch.device,
    precision: str,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Embed ``paths`` in batches: yields the index of each batch's first image, and embeddings ``(b, H, W, D)`` on the
    CPU.

    ``read`` decodes one image, given its path and the side of the model's input. The next batch is decoded while the
    backbone works on the current one.

    Raises:
        BackboneError: the features are not finite.
    """
    if not paths:
        return
    resize, side = features.preprocessing.resize, features.preprocessing.image_size
    starts = range(0, len(paths), EXTRACTION_BATCH)
    batches = [paths[start : start + EXTRACTION_BATCH] for start in starts]
    with ThreadPoolExecutor(helper_threads()) as pool:
        decoded = _ahead(pool, batches, lambda path: as_levels(read(path, side), resize))
        for start, images in zip(starts, decoded, strict=True):
            with torch.inference_mode(), autocast(device, precision):
                values = features(stack_images(images, resize, device)).to("cpu")
            if not_finite({"embeddings": values}):
                odd = next(path for path, each in zip(paths[start:], values, strict=False) if not each.isfinite().all())
                raise BackboneError(
                    f"the backbone's features of {odd} are not finite in {precision}; use --precision fp32, or other "
                    "weights."
                )
            yield start, values


def _ahead(pool: ThreadPoolExecutor, batches: Sequence[Sequence[Path]], work: Callable[[Path], np.ndarray]):  # type: ignore[no-untyped-def]
    """Yield the results of each batch, with the next one already submitted."""
    pending = [pool.submit(work, path) for path in batches[0]] if batches else []
    for following in [*batches[1:], ()]:
        current, pending = pending, [pool.submit(work, path) for path in following]
        yield [future.result() for future in current]
