"""The tensors of a product's sections, and the digest of a section."""

import hashlib

import torch

from moleflow.model.config import ExpertDtype
from moleflow.model.flow.expert import Base
from moleflow.model.memory.scorer import ProductParts
from moleflow.model.routing.router import Prototype
from moleflow.model.store.layout import STORED_TYPES
from moleflow.model.store.tensor_file import Tensors

__all__ = ["STORED_TYPES", "digest_tensors", "expert_tensors", "profile_tensors"]


def profile_tensors(prototype: Prototype, held_out: Tensors) -> dict[str, torch.Tensor]:
    """A task's profile section: prototype and held-out scores.

    ``held_out`` has one vector per field of ``TaskCalibration``. Each is sorted, so it does not identify images.
    """
    tensors = {f"prototype.{key}": value.detach().cpu() for key, value in prototype.state_dict().items()}
    return tensors | {f"held_out.{key}": value.detach().float().cpu().sort().values for key, value in held_out.items()}


def expert_tensors(
    parts: ProductParts, dtype: ExpertDtype = "float32", base: Base | None = None
) -> dict[str, torch.Tensor]:
    """A task's expert section with the flow's parameters as ``dtype``, and with its own ``base``, if any."""
    expert = parts.expert
    learned = {key for key, _ in expert.named_parameters()}
    tensors = {
        key: value.detach().cpu().to(STORED_TYPES[dtype] if key in learned else value.dtype)
        for key, value in expert.state_dict().items()
    }
    for prefix, part in (("memory", parts.bank), ("fusion", parts.fusion), ("base", base)):
        own = {} if part is None else part.state_dict()
        tensors |= {f"{prefix}.{key}": value.detach().cpu() for key, value in own.items()}
    return tensors


def digest_tensors(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        if value.numel():
            digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
