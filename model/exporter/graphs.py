"""What a checkpoint computes, as graphs: features, routing, and an expert for each product.

The router's median is not part of a graph: NumPy selects it several times as fast as a sort does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from moleflow.model.config import ModelConfig
from moleflow.model.features.backbone import stage_channels
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.features.plain import PlainFeatures
from moleflow.model.flow.plain import PlainFlow
from moleflow.model.memory.plain import PlainBank
from moleflow.model.memory.scorer import PatchMaps, ProductScorer, image_scores
from moleflow.model.routing.router import Router, image_descriptor
from moleflow.model.store.checkpoint import Checkpoint

__all__ = ["EXAMPLES", "Network", "expert_graph", "features_graph", "router_graph"]


EXAMPLES = 3
"""Images that are computed to compare an exported graph with PyTorch."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network to be exported: a module without control flow, examples of its inputs with ``EXAMPLES`` images each,
    and the names of inputs and outputs. The first dimension is the number of images, any in the exported graph."""

    module: nn.Module
    examples: tuple[torch.Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tolerance: float = 1e-3
    """Largest difference of an exported graph's result from PyTorch's, as a fraction of the largest value."""


class _Expert(nn.Module):
    """Embeddings and pooled stages to NLL and anomaly map ``(B, H, W)`` and image scores ``(B,)``."""

    def __init__(self, scorer: ProductScorer, config: ModelConfig) -> None:
        super().__init__()
        self.flow = PlainFlow(scorer.flow, config.backbone.embedding_dim)
        self.bank = None if scorer.bank is None else PlainBank(scorer.bank, stage_channels(config.backbone))
        self.fusion, self._config = scorer.fusion, config

    def forward(self, embeddings: torch.Tensor, *stages: torch.Tensor) -> tuple[torch.Tensor, ...]:
        nll = self.flow(embeddings)
        distances = None if self.bank is None else self.bank(*stages)
        # Added to zero: an output of its own, not another name of the NLL's.
        anomaly = nll + 0 if self.fusion is None else self.fusion(nll, distances)
        scores = image_scores(PatchMaps(nll, anomaly), self._config.scoring, self._config.score_top_k)
        return nll, anomaly, scores


class _Router(Router):
    """The router in operators that every form has."""

    def apart(self, place: torch.Tensor) -> torch.Tensor:
        """As ``Router``; cdist is no operator of ONNX. The products come first: OpenVINO 2026.4 sums the differences
        wrongly where the dynamic axis does."""
        return (place[None] - self.places[:, None]).square().sum(-1).sqrt().T


def features_graph(checkpoint: Checkpoint) -> Network:
    """Images to features; the examples are noise."""
    config = checkpoint.header.config
    extractor = FeatureExtractor(config, checkpoint.backbone())
    names = tuple(f"stage_{number}" for number in range(extractor.pooled_stages))
    size = config.backbone.image_size
    images = 255 * torch.rand(EXAMPLES, size, size, 3, generator=torch.Generator().manual_seed(0))
    # PyTorch rounds stages to bfloat16, OpenVINO leaves that to who reads its results.
    return Network(PlainFeatures(extractor), (images,), ("images",), ("embeddings", *names), tolerance=2**-7)


def router_graph(checkpoint: Checkpoint, features: Sequence[torch.Tensor]) -> Network:
    """Descriptors ``(B, D)`` to distances and distance ratios ``(B, T)``; the examples are of ``features``."""
    router = _Router([checkpoint.profile(task.index).prototype for task in checkpoint.header.visible])
    return Network(router, (image_descriptor(features[0]),), ("descriptors",), ("distances", "ratios"))


def expert_graph(checkpoint: Checkpoint, index: int, features: Sequence[torch.Tensor]) -> Network:
    """Features to a product's maps and scores; the examples are ``features``."""
    config, names = checkpoint.header.config, tuple(f"stage_{number}" for number in range(len(features) - 1))
    module = _Expert(ProductScorer(checkpoint.base(index), checkpoint.product(index)), config)
    return Network(module, tuple(features), ("embeddings", *names), ("nll", "anomaly", "score"))
