"""A content-addressed embedding cache on disk.

One file per image, ``FOLDER/SOURCE/ab/abcdef….npy``. ``SOURCE`` is a digest of everything else that determines an
embedding: backbone weights and stages, preprocessing, embedding dimension, matmul precision and device type. The file
name is the SHA-256 of the image's bytes, plus the white level for 16-bit images. Where the scoring has a memory, pooled
stages lie beside it, ``abcdef….stage0.npy`` and so on, as the bits of bfloat16, which NumPy does not have.

Writes are atomic; concurrent writers only duplicate work. A cache that cannot be written, as on a full disk, is an
error rather than hours of work lost. Nothing is ever removed: delete the folder, or one ``SOURCE``, when no longer
needed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch

from moleflow.model.config import BackboneConfig
from moleflow.model.errors import ConfigurationError
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.features.patches import STAGE_TYPE, PatchFeatures
from moleflow.model.files.atomic import atomic_write, remove_stale_workspaces
from moleflow.model.files.outputs import reason
from moleflow.model.files.regular_file import read_regular_file
from moleflow.model.images.bit_depth import FULL_SCALE
from moleflow.model.runtime.soundness import not_finite
from moleflow.model.store.sections import digest_tensors
from moleflow.training.data.white_levels import Reader, is_16_bit
from moleflow.training.embeddings.extraction import extract
from moleflow.training.errors import DatasetError

__all__ = ["CachedEmbeddings", "EmbeddingCache", "digest_image"]

CACHE_FORMAT = 2
"""Part of ``SOURCE``; raised whenever the computation of embeddings changes."""


class CachedEmbeddings:
    """Features of a sequence of images, read from their files on demand; ``stages`` is the number of pooled stages.

    Not memory-mapped: if another program truncates a mapped file, touching it kills the process.
    """

    def __init__(self, files: Sequence[Path], stages: int = 0) -> None:
        self._files, self._stages = list(files), stages

    def __len__(self) -> int:
        return len(self._files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files = []

    def batch(self, indices: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The embeddings at ``indices`` ``(b,)`` on ``device``: ``(b, H, W, D)``, a copy.

        Raises:
            ConfigurationError: a file was removed or changed meanwhile.
        """
        return PatchFeatures(self._stack([self._files[index] for index in indices.tolist()])).to(device).embeddings

    def features(self, indices: torch.Tensor, device: torch.device) -> PatchFeatures:
        """The features at ``indices`` ``(b,)`` on ``device``, copies.

        Raises:
            ConfigurationError: a file was removed or changed meanwhile.
        """
        chosen = [self._files[index] for index in indices.tolist()]
        stages = [
            self._stack([_stage_file(file, number) for file in chosen]).view(STAGE_TYPE)
            for number in range(self._stages)
        ]
        return PatchFeatures(self._stack(chosen), tuple(stages)).to(device)

    def subset(self, rows: Sequence[int]) -> "CachedEmbeddings":
        """The images at ``rows``, from the same files."""
        return CachedEmbeddings([self._files[row] for row in rows], self._stages)

    @staticmethod
    def _stack(files: Sequence[Path]) -> torch.Tensor:
        return torch.stack([_read(file) for file in files])


class EmbeddingCache:
    """The cache of one ``SOURCE``; see the module's docstring."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder / source[:16]

    @classmethod
    def open(
        cls, folder: Path, config: BackboneConfig, backbone: Backbone, *, device: torch.device, precision: str
    ) -> Self:
        """The cache below ``folder`` for ``backbone`` on ``device`` at the resolved ``precision``."""
        source = {
            "format": CACHE_FORMAT,
            "backbone": config.model_dump(mode="json"),
            "backbone_sha256": digest_tensors(backbone.net.state_dict()),
            "preprocessing": backbone.preprocessing.model_dump(mode="json"),
            "precision": precision,
            "device": device.type,
        }
        document = json.dumps(source, indent=1, sort_keys=True)
        cache = cls(folder, hashlib.sha256(document.encode()).hexdigest())
        remove_stale_workspaces(cache.folder)
        described = cache.folder / "source.json"
        if not described.is_file():
            cache._write(described, lambda path: path.write_text(document, encoding="utf-8"))
        return cache

    def embed(
        self,
        features: FeatureExtractor,
        paths: Sequence[Path],
        white_level: int | None = None,
        *,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> CachedEmbeddings:
        """The embeddings of ``paths``, in order; missing ones are computed and stored.

        Embeddings of 16-bit images depend on the ``white_level`` of their product.

        Raises:
            ConfigurationError: a file cannot be written.
            DatasetError: an image cannot be read.
        """
        files = [self._file_of(path, white_level) for path in paths]
        stages = features.pooled_stages

        def parts(file: Path) -> list[Path]:
            return [file, *(_stage_file(file, number) for number in range(stages))]

        # Identical images share a file. Damaged files, as after a power failure, count as missing.
        missing = {file: path for file, path in zip(files, paths, strict=True) if None in map(_shape, parts(file))}
        on_progress(len(paths) - len(missing))
        targets = list(missing)
        for start, values in extract(features, list(missing.values()), Reader(white_level)):
            arrays = [values.embeddings.numpy(), *(stage.view(torch.int16).numpy() for stage in values.stages)]
            for target, *found in zip(targets[start:], *arrays, strict=False):
                for place, value in zip(parts(target), found, strict=True):
                    self._write(place, lambda path, value=value: _save(path, value))  # type: ignore[misc]
            on_progress(len(values))
        shapes = {file: [_shape(part) for part in parts(file)] for file in files}
        for file, shape in shapes.items():
            if None in shape or shape != shapes[files[0]]:
                raise _changed(file)
        return CachedEmbeddings(files, stages)

    def _file_of(self, path: Path, white_level: int | None) -> Path:
        digest = digest_image(path)
        scale = f"-{white_level or FULL_SCALE}" if is_16_bit(path) else ""
        return self.folder / digest[:2] / f"{digest}{scale}.npy"

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        try:
            with atomic_write(path) as temporary:
                write(temporary)
        except OSError as error:
            raise ConfigurationError(
                f"the embedding cache {str(path.parent)!r} cannot be written ({reason(error)}); make room there, or "
                "choose another folder with --cache. The same command continues from what is cached."
            ) from error


def digest_image(path: Path) -> str:
    """SHA-256 of an image file's bytes; ``DatasetError`` if it cannot be read."""
    try:
        return hashlib.sha256(read_regular_file(path)).hexdigest()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {reason(error)}; check that it still exists.") from error


def _stage_file(file: Path, number: int) -> Path:
    """The file of a pooled stage beside that of the embeddings."""
    return file.with_name(f"{file.stem}.stage{number}.npy")


def _save(path: Path, value: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, value)


def _shape(path: Path) -> tuple[int, ...] | None:
    """The shape ``(H, W, D)`` of one image's embeddings or pooled stage, or ``None`` without a complete file."""
    try:
        # Mapping checks the file's length; the map is dropped without reading it.
        found = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return found.shape if found.dtype in (np.float32, np.int16) and found.ndim == 3 else None


def _read(path: Path) -> torch.Tensor:
    try:
        with path.open("rb") as file:
            found = torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False))
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise _changed(path) from error
    if not_finite({"embeddings": found}):
        raise _changed(path)
    return found


def _changed(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{str(path)!r} was removed or changed while in use, or is from another network; remove it, and do not change "
        "the cache while it is in use."
    )
