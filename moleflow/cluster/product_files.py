"""A learned product as a file of its own, until it becomes part of a checkpoint."""

import json
import tempfile
from pathlib import Path

from moleflow.model.store.merging import StoredProduct
from moleflow.model.store.sections import digest_tensors
from moleflow.model.store.tensor_file import StoredSection, TensorFile, write_tensor_file
from moleflow.model.verdict.results import TaskInfo
from moleflow.training.continual.save import LearnedProduct

__all__ = ["open_product", "product_bytes"]

_METADATA_KEY = "moleflow_product"


def product_bytes(learned: LearnedProduct) -> bytes:
    """The file of a product: safetensors with the sections ``profile`` and ``expert``, and the record as metadata."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product"
        sections = {"profile": learned.profile, "expert": learned.expert}
        write_tensor_file(path, {_METADATA_KEY: learned.info.model_dump_json()}, sections)
        return path.read_bytes()


def open_product(path: Path) -> StoredProduct:
    """Open a product's file and check its digests.

    Raises:
        ValueError, CheckpointFormatError: it is damaged.
    """
    file = TensorFile.open(path)
    info = TaskInfo.model_validate(json.loads(file.metadata.get(_METADATA_KEY, "null")))
    for section, digest in (("profile", info.profile_sha256), ("expert", info.sha256)):
        if digest_tensors(file.section(section)) != digest:
            raise ValueError(f"section {section} of {path.name!r} differs from what was written")
    return StoredProduct(info, StoredSection(file, "profile"), StoredSection(file, "expert"))
