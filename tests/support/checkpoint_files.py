"""The bytes of a checkpoint's file, for tests that read or change them."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

__all__ = ["document_of", "header_length", "rewritten"]


def header_length(data: bytes) -> int:
    """Bytes of the table that stands before the tensors."""
    return struct.unpack("<Q", data[:8])[0]


def document_of(path: Path) -> dict[str, Any]:
    """The header of ours, as it is written in the file's metadata."""
    data = path.read_bytes()
    return json.loads(json.loads(data[8 : 8 + header_length(data)])["__metadata__"]["moleflow"])


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a checkpoint after ``change(document, tensors)``, with digests as they were."""
    document, tensors = document_of(source), load_file(source)
    change(document, tensors)
    save_file(tensors, target, metadata={"moleflow": json.dumps(document)})
    return target
