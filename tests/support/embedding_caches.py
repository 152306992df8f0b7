"""Caches of the embeddings of tiny images."""

from pathlib import Path
from typing import Any

import torch
from tiny_model import tiny_config

from moleflow.model.config import ModelConfig
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.training.embeddings.cache import CachedEmbeddings, EmbeddingCache

CPU = torch.device("cpu")

CONFIG = tiny_config()


def extractor(config: ModelConfig = CONFIG) -> FeatureExtractor:
    return FeatureExtractor(config, Backbone.pretrained(config.backbone))


def opened(
    folder: Path, features: FeatureExtractor, config: ModelConfig = CONFIG, precision: str = "fp32"
) -> EmbeddingCache:
    return EmbeddingCache.open(folder, config.backbone, features.backbone, device=CPU, precision=precision)


def embed(
    cache: EmbeddingCache, features: FeatureExtractor, paths: tuple[Path, ...], **options: Any
) -> CachedEmbeddings:
    return cache.embed(features, paths, **options)


def values(embeddings: CachedEmbeddings) -> torch.Tensor:
    return embeddings.batch(torch.arange(len(embeddings)), CPU)


def files(cache: EmbeddingCache) -> list[Path]:
    return sorted(cache.folder.rglob("*.npy"))
