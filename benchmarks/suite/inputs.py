"""Make what several sections of ``make bench`` use: a checkpoint with random weights, and images for the service.

    python -m benchmarks.suite.inputs FOLDER

``FOLDER/random.safetensors`` has the MAIN configuration and eight products. ``FOLDER/images`` holds the three
photographs that scikit-image ships and the demo is made of, enlarged to 1024 × 1024 and tinted, since factory cameras
take images of that size and in colour.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from benchmarks.shared.synthetic_checkpoint import write_synthetic_checkpoint
from moleflow.model.files.atomic import atomic_write
from moleflow.training.config import preset
from moleflow.training.data.demo import PRODUCTS as PHOTOGRAPHS

__all__ = ["write_images"]

PRODUCTS = 8
"""The largest batch of ``lower_bound`` has an image of each."""

SIDE = 1024
TINT = (1.0, 0.97, 0.93)
"""Factors of the grey value for red, green and blue."""


def write_images(folder: Path) -> None:
    """Write the images as PNG."""
    for name in PHOTOGRAPHS:
        grey = Image.fromarray(getattr(skimage.data, name)()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        colours = np.asarray(grey, dtype=np.float32)[..., None] * np.array(TINT, dtype=np.float32)
        with atomic_write(folder / f"{name}.png") as path:
            Image.fromarray(np.rint(colours).astype(np.uint8)).save(path)


def main() -> None:
    """Run from a command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_images(folder / "images")
    write_synthetic_checkpoint(folder / "random.safetensors", preset("main"), PRODUCTS)


if __name__ == "__main__":
    main()
