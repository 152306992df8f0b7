"""Good images altered as a defect, another light or another focus would alter them.

They tell the router (``moleflow.model.routing.router``) how far and where to an image of a product may move without
being another product. No expert is fitted to them, and nothing is calibrated with them. The kinds and their extents
were chosen on good training images (``python -m benchmarks unknown_products``): covering up to a third of the image,
light and focus are needed; pasted patches (Li et al., CutPaste, CVPR 2021) and small movements add nothing to them.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from moleflow.model.features.extractor import FeatureExtractor, as_levels
from moleflow.model.routing.router import image_descriptor
from moleflow.training.embeddings.extraction import extract

__all__ = ["ALTERATIONS", "MOST_IMAGES", "Alteration", "chosen_images", "descriptor_changes"]

Alteration = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""An RGB image ``(S, S, 3)``, uint8 or float32 over 0…255, to its altered form, drawn by the generator."""

MOST_IMAGES = 32
"""Good images that are altered, at most; spread evenly over those of the product."""


def cover(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Covered by one to three ragged spots of any colour and grain, a twentieth to a third of the image together."""
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
    return _limited(image + weight * (np.clip(colour + grain, 0, 255) - image), image.dtype)


def light(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A fifth brighter or darker, a quarter more or a fifth less contrast, and a tinge of colour, at most."""
    bright = image * random.uniform(0.8, 1.2)
    middle = bright.mean()
    altered = (middle + (bright - middle) * random.uniform(0.8, 1.25)) * random.uniform(0.96, 1.04, 3)
    return _limited(altered, image.dtype)


def focus(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Blurred by up to half a hundredth of the image's width, or sharpened."""
    width = image.shape[1]
    if random.random() < 0.6:
        kernel: ImageFilter.Filter = ImageFilter.GaussianBlur(random.uniform(0.0015, 0.005) * width)
    else:
        kernel = ImageFilter.UnsharpMask(0.008 * width, int(random.integers(40, 120)), 0)
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).filter(kernel))
    # Pillow filters 8 bits only: let the values that there are have all of them.
    low, high = float(image.min()), max(float(image.max()), float(image.min()) + 1e-3)
    stretched = np.rint((image - low) * (255 / (high - low))).astype(np.uint8)
    filtered = np.asarray(Image.fromarray(stretched).filter(kernel)).astype(np.float32)
    return filtered * np.float32((high - low) / 255) + np.float32(low)


ALTERATIONS: dict[str, Alteration] = {"cover": cover, "light": light, "focus": focus}
"""What is done to each image, by name; one altered form of each."""


def chosen_images(count: int) -> range:
    """Which of ``count`` images are altered, by position."""
    return range(0, count, -(-count // MOST_IMAGES))


def descriptor_changes(
    features: FeatureExtractor,
    paths: Sequence[Path],
    descriptors: torch.Tensor,
    read: Callable[[Path, int], np.ndarray],
    *,
    device: torch.device,
    precision: str,
    on_progress: Callable[[int], None] = lambda count: None,
) -> torch.Tensor:
    """How alterations move the descriptors ``(n, D)`` of the images at ``paths``: ``(m, D)``.

    At most ``MOST_IMAGES`` of each kind, each decoded by ``read`` as for ``extract``. What is drawn depends on
    the kind and the file's name alone.

    Raises:
        DatasetError: an image cannot be read.
    """
    chosen = chosen_images(len(paths))
    resize = features.preprocessing.resize
    moved = []
    for name, alteration in ALTERATIONS.items():

        def altered(path: Path, side: int, name: str = name, alteration: Alteration = alteration) -> np.ndarray:
            seed = hashlib.sha256(f"{name}|{path.name}".encode()).digest()
            return alteration(as_levels(read(path, side), resize), np.random.default_rng(list(seed)))

        found = []
        for _, values in extract(features, [paths[row] for row in chosen], altered, device=device, precision=precision):
            found.append(image_descriptor(values))
            on_progress(len(values))
        moved.append(torch.cat(found) - descriptors[list(chosen)])
    return torch.cat(moved)


def _limited(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values within 0…255; rounded where they are to be whole numbers."""
    limited = np.clip(values, 0, 255)
    return limited.round().astype(dtype) if dtype == np.uint8 else limited.astype(dtype)
