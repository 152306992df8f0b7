"""The images of a tiny product, and what computes their embeddings."""

from pathlib import Path

import pytest
from embedding_caches import extractor

from moleflow.model.features.extractor import FeatureExtractor
from moleflow.training.data.datasets import load_category


@pytest.fixture(scope="session")
def features() -> FeatureExtractor:
    return extractor()


@pytest.fixture(scope="session")
def paths(products: Path) -> tuple[Path, ...]:
    return load_category(products, "nut").train
