"""What computes a prediction: the features of images, and the patch maps of each product.

PyTorch is the reference: training uses it, and a GPU. On a CPU in float32 OpenVINO computes the features faster. It can
compute the maps too, which is faster or slower depending on the width of the embeddings and the processor.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from moleflow.model.features.compiled import CompiledFeatures
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.memory.compiled import ScorerCompiler
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.experts import MakeScorer

__all__ = ["Engine", "openvino_engine", "torch_engine"]


class Engine(NamedTuple):
    """Computes with the networks of one checkpoint; thread-safe.

    ``features``: images ``(B, S, S, 3)`` in 0…255 to features. ``scorer``: makes what computes the maps of a product;
    ``None`` for PyTorch (``moleflow.model.products``).
    """

    features: Callable[[torch.Tensor], PatchFeatures]
    scorer: MakeScorer | None


def torch_engine(checkpoint: Checkpoint, device: torch.device, precision: str) -> Engine:
    """PyTorch on ``device``, in the resolved ``precision``."""
    extractor = FeatureExtractor.for_prediction(checkpoint.header.config, checkpoint.backbone(), precision)
    return Engine(extractor.to(device), None)


def openvino_engine(checkpoint: Checkpoint, folder: Path, *, maps: bool) -> Engine:
    """OpenVINO on the CPU in float32, for the features and, with ``maps``, for the maps of products.

    Converted networks are kept in ``folder``.

    Raises:
        BackboneError: OpenVINO cannot convert or compile the backbone.
    """
    config = checkpoint.header.config
    identity = f"{config.backbone.model_dump_json()} {checkpoint.header.backbone_sha256}"
    features = CompiledFeatures(FeatureExtractor(config, checkpoint.backbone()), identity, folder)
    return Engine(features, ScorerCompiler(config, features.grids, folder) if maps else None)
