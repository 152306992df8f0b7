"""The features of a task's images, computed once: the backbone is frozen and training uses no augmentation."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Protocol, Self, TypeVar

import numpy as np
import torch

from moleflow.model.errors import BackboneError, ConfigurationError
from moleflow.model.features.extractor import FeatureExtractor, as_levels, stack_images
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.runtime.soundness import not_finite
from moleflow.model.runtime.threads import helper_threads

__all__ = ["MEMORY_LIMIT", "EmbeddingStore", "Embeddings", "ahead", "extract"]

Item = TypeVar("Item")
Result = TypeVar("Result")

MEMORY_LIMIT = 8 * 2**30
"""Embeddings of one task stay in memory up to this many bytes; larger ones go to an unnamed temporary file."""

EXTRACTION_BATCH = 16
"""Images per backbone pass. Fixed, so that embeddings do not depend on the training batch size."""


class Embeddings(Protocol):
    """Patch features of a sequence of images, as a context manager."""

    def __len__(self) -> int: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def batch(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The embeddings at ``indices`` ``(b,)`` on ``device``: ``(b, H, W, D)`` float32."""

    def features(self, indices: torch.Tensor, device: torch.device) -> PatchFeatures:
        """The features at ``indices`` ``(b,)`` on ``device``: embeddings, and pooled stages where there is a memory."""

    def subset(self, rows: Sequence[int]) -> "Embeddings":
        """The images at ``rows``; shares storage with this one and is invalid once it is closed."""


class EmbeddingStore:
    """Patch features of a task's images: ``values`` are the embeddings ``(n, H, W, D)``. In memory, or memory-mapped
    from a temporary file, which leaving the context frees."""

    def __init__(
        self, features: PatchFeatures, file: IO[bytes] | None = None, rows: torch.Tensor | None = None
    ) -> None:
        self._features, self._file, self._rows = features, file, rows

    @property
    def values(self) -> torch.Tensor:
        """Embeddings of all images that are stored, ``(n, H, W, D)`` float32."""
        return self._features.embeddings

    def __len__(self) -> int:
        return len(self.values) if self._rows is None else len(self._rows)

    def __enter__(self) -> "EmbeddingStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._features = PatchFeatures(torch.empty(0))
        if self._file is not None:
            self._file.close()

    def batch(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The embeddings at ``indices`` ``(b,)`` on ``device``: ``(b, H, W, D)``."""
        rows = self.values[indices if self._rows is None else self._rows[indices]]
        return PatchFeatures(rows).to(device).embeddings

    def features(self, indices: torch.Tensor, device: torch.device) -> PatchFeatures:
        """The features at ``indices`` ``(b,)`` on ``device``."""
        return self._features.rows(indices if self._rows is None else self._rows[indices]).to(device)

    def subset(self, rows: Sequence[int]) -> "EmbeddingStore":
        """The images at ``rows``; shares storage with this one and is invalid once it is closed."""
        chosen = torch.tensor(rows)
        return EmbeddingStore(self._features, rows=chosen if self._rows is None else self._rows[chosen])

    @classmethod
    def compute(
        cls,
        features: FeatureExtractor,
        paths: Sequence[Path],
        read: Callable[[Path, int], np.ndarray],
        *,
        folder: Path,
        memory_limit: int = MEMORY_LIMIT,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> "EmbeddingStore":
        """Decode, resize and embed ``paths``; ``on_progress`` gets the number of images done since its last call.

        ``read`` decodes one image, as for ``extract``; ``folder`` takes a temporary file if the embeddings exceed
        ``memory_limit`` bytes.

        Raises:
            ConfigurationError: ``folder`` has not enough space.
        """
        if not paths:
            raise ValueError("paths must not be empty")
        store: EmbeddingStore | None = None
        for start, values in extract(features, paths, read):
            if store is None:
                store = cls._empty(len(paths), values, folder, memory_limit)
            kept = store._features.rows(slice(start, start + len(values)))
            for target, source in zip(
                (kept.embeddings, *kept.stages), (values.embeddings, *values.stages), strict=True
            ):
                target.copy_(source)
            on_progress(len(values))
        assert store is not None  # paths is not empty
        return store

    @classmethod
    def _empty(cls, count: int, like: PatchFeatures, folder: Path, memory_limit: int) -> "EmbeddingStore":
        """Room for ``count`` images with features of the shapes of ``like``."""
        parts = [(part.dtype, (count, *part.shape[1:])) for part in (like.embeddings, *like.stages)]
        sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in parts]
        size = sum(sizes)
        if size <= memory_limit:
            values = [torch.empty(shape, dtype=dtype) for dtype, shape in parts]
            return cls(PatchFeatures(values[0], tuple(values[1:])))
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
        every = torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,)))
        values = [
            piece.view(dtype).view(shape) for piece, (dtype, shape) in zip(every.split(sizes), parts, strict=True)
        ]
        return cls(PatchFeatures(values[0], tuple(values[1:])), file)


def extract(
    features: FeatureExtractor, paths: Sequence[Path], read: Callable[[Path, int], np.ndarray]
) -> Iterator[tuple[int, PatchFeatures]]:
    """Embed ``paths`` in batches: yields the index of each batch's first image, and its features on the CPU.

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
        decoded = ahead(pool, batches, lambda path: as_levels(read(path, side), resize))
        for start, images in zip(starts, decoded, strict=True):
            with torch.inference_mode():
                found = features(stack_images(images, resize, features.device))
            values = PatchFeatures(found.embeddings.cpu(), tuple(stage.cpu() for stage in found.stages))
            if not_finite({"embeddings": values.embeddings}):
                odd = next(
                    path
                    for path, each in zip(paths[start:], values.embeddings, strict=False)
                    if not each.isfinite().all()
                )
                raise BackboneError(
                    f"the backbone's features of {odd} are not finite in {features.precision}; use --precision fp32, "
                    "or other weights."
                )
            yield start, values


def ahead(
    pool: ThreadPoolExecutor, batches: Sequence[Sequence[Item]], work: Callable[[Item], Result]
) -> Iterator[list[Result]]:
    """The results of each batch, with the next one already submitted."""
    pending = [pool.submit(work, path) for path in batches[0]] if batches else []
    for following in [*batches[1:], ()]:
        current, pending = pending, [pool.submit(work, path) for path in following]
        yield [future.result() for future in current]
