"""Augmentations of good images that imitate defects and changes of lighting and focus.

They show the router (``moleflow.model.routing.router``) how descriptors of a product may vary. No expert is fitted to
them and nothing is calibrated with them. Kinds and strengths were chosen on good training images
(``python -m benchmarks unknown_products``): occlusion of up to a third of the image, lighting and focus all help;
CutPaste patches (Li et al., CVPR 2021) and small shifts add nothing.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from moleflow.model.features.extractor import FeatureExtractor, as_levels
from moleflow.model.routing.router import image_descriptor
from moleflow.training.data.white_levels import Reader
from moleflow.training.embeddings.extraction import extract

__all__ = ["AUGMENTATIONS", "MAX_IMAGES", "Augmentation", "augmented_indices", "descriptor_changes"]

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Maps an RGB image ``(S, S, 3)``, uint8 or float32 in 0…255, to a randomly augmented one of the same type."""

MAX_IMAGES = 32
"""Most good images per product that are augmented, evenly spaced."""


def cover(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Occlusion by one to three ragged spots of random colour and grain: 5 % to 33 % of the image in total."""
    height, width = image.shape[:2]
    number = int(random.integers(1, 4))
    mean_radius = (random.uniform(0.05, 0.33) * height * width / number / np.pi) ** 0.5
    mask = Image.new("L", (width, height), 0)
    for _ in range(number):
        x, y, corners = random.uniform(0, width), random.uniform(0, height), int(random.integers(4, 10))
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        radii = mean_radius * random.uniform(0.66, 1.54, corners)
        outline = np.stack((x + radii * np.cos(angles), y + radii * np.sin(angles)), 1)
        ImageDraw.Draw(mask).polygon([tuple(corner) for corner in outline.tolist()], fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(random.uniform(0, 0.012) * width))
    colour = random.uniform(0, 255) + random.normal(0, 25, 3)
    grain = random.normal(0, random.uniform(0, 30), (height, width, 1))
    weight = np.asarray(mask, np.float32)[..., None] / 255
    return _clipped(image + weight * (np.clip(colour + grain, 0, 255) - image), image.dtype)


def light(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Brightness ±20 %, contrast −20 % to +25 %, and a colour tint of ±4 %."""
    bright = image * random.uniform(0.8, 1.2)
    middle = bright.mean()
    altered = (middle + (bright - middle) * random.uniform(0.8, 1.25)) * random.uniform(0.96, 1.04, 3)
    return _clipped(altered, image.dtype)


def focus(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Gaussian blur of up to 0.5 % of the image's width, or sharpening."""
    width = image.shape[1]
    if random.random() < 0.6:
        kernel: ImageFilter.Filter = ImageFilter.GaussianBlur(random.uniform(0.0015, 0.005) * width)
    else:
        kernel = ImageFilter.UnsharpMask(0.008 * width, int(random.integers(40, 120)), 0)
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).filter(kernel))
    # Pillow filters 8 bits only: stretch the value range to use them all.
    low, high = float(image.min()), max(float(image.max()), float(image.min()) + 1e-3)
    stretched = np.rint((image - low) * (255 / (high - low))).astype(np.uint8)
    filtered = np.asarray(Image.fromarray(stretched).filter(kernel)).astype(np.float32)
    return filtered * np.float32((high - low) / 255) + np.float32(low)


AUGMENTATIONS: dict[str, Augmentation] = {"cover": cover, "light": light, "focus": focus}
"""All augmentations by name; each is applied once per image."""


def augmented_indices(count: int) -> range:
    return range(0, count, -(-count // MAX_IMAGES))


def descriptor_changes(
    features: FeatureExtractor,
    paths: Sequence[Path],
    descriptors: torch.Tensor,
    white_level: int | None,
    *,
    on_progress: Callable[[int], None] = lambda count: None,
) -> torch.Tensor:
    """How augmentation moves the ``descriptors`` ``(n, D)`` of the images at ``paths``: differences ``(m, D)``.

    At most ``MAX_IMAGES`` per augmentation, with 16-bit values scaled by ``white_level``. The random seed depends only
    on the augmentation and the file's name.

    Raises:
        DatasetError: an image cannot be read.
    """
    chosen = augmented_indices(len(paths))
    read, resize = Reader(white_level), features.preprocessing.resize
    moved = []
    for name, augmentation in AUGMENTATIONS.items():

        def augmented(path: Path, side: int, name: str = name, augment: Augmentation = augmentation) -> np.ndarray:
            seed = hashlib.sha256(f"{name}|{path.name}".encode()).digest()
            return augment(as_levels(read(path, side), resize), np.random.default_rng(list(seed)))

        found = []
        inputs = [paths[row] for row in chosen]
        for _, values in extract(features, inputs, augmented):
            found.append(image_descriptor(values.embeddings))
            on_progress(len(values))
        moved.append(torch.cat(found) - descriptors[list(chosen)])
    return torch.cat(moved)


def _clipped(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values clipped to 0…255, rounded for uint8."""
    clipped = np.clip(values, 0, 255)
    return clipped.round().astype(dtype) if dtype == np.uint8 else clipped.astype(dtype)
