"""A product in each layout that has test images."""

from pathlib import Path

import pytest
from dataset_folders import put


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """One product ``nut`` in MVTec AD's layout: two good images, one good test image, two defects."""
    nut = tmp_path / "nut"
    for name in ("000.png", "001.png"):
        put(nut / "train" / "good" / name)
    put(nut / "test" / "good" / "000.png")
    put(nut / "test" / "crack" / "000.png")
    put(nut / "test" / "crack" / "001.png")
    put(nut / "test" / "scratch" / "000.png")
    put(nut / "ground_truth" / "crack" / "000_mask.png", 255)
    put(nut / "ground_truth" / "scratch" / "000_mask.png", 255)
    return tmp_path


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    """One product ``candle`` in VisA's layout, without the split table."""
    data = tmp_path / "candle" / "Data"
    for name in ("0000.JPG", "0001.JPG", "0002.JPG"):
        put(data / "Images" / "Normal" / name)
    for name in ("000.JPG", "001.JPG"):
        put(data / "Images" / "Anomaly" / name)
        put(data / "Masks" / "Anomaly" / name.replace("JPG", "png"), 1)
    return tmp_path
