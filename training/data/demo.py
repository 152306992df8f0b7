"""Demo data: three products cropped from photographs that come with scikit-image, without network access.

The photographs are ``brick``, ``grass`` and ``gravel`` (512 × 512 grey, CC0, from https://cc0textures.com according to
scikit-image's documentation). Training and test images are different crops of the same photograph, with random
brightness and noise; defects are drawn on. Results on this data are too optimistic to mean anything: it only shows what
the output looks like.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw

from moleflow.training.errors import DatasetError

__all__ = ["DEFECTS", "PRODUCTS", "make_demo_data", "make_samples"]

PRODUCTS = ("brick", "grass", "gravel")
"""Names of the photographs and of the products."""

_VERSION = 2
"""Raised when the drawing changes, so that older folders are drawn again."""

_TRAIN_IMAGES = 60
_GOOD_TEST_IMAGES = 12
_IMAGES_PER_DEFECT = 8
"""Enough for calibration, and few enough to learn three products in two minutes."""

_SIDE = 256
"""Side of every image, in pixels."""

_CROP_SIDES = (160, 192)
"""Range of crop sides in the photograph, before resizing: small enough for many different crops."""

_GAIN = 0.04
"""Brightness varies by this fraction either way, as with a real camera."""

_NOISE = 1.5
"""Standard deviation of the noise, out of 255."""

_MARKED = 0.2
"""Pixels are in the mask if the defect covers more than this fraction of them."""

_DRAWING_SCALE = 4
"""Supersampling factor of drawn lines."""

_MARKER = "demo.json"
"""File in each complete product's folder that records that this module made it, and its version and seed."""


def make_demo_data(directory: Path, seed: int = 0) -> Path:
    """Write the three products below ``directory`` in MVTec AD's layout, and return ``directory``.

    Deterministic for a seed. A complete product from the same seed is kept. Each is drawn in a hidden folder and
    renamed when complete, so that an interrupted run leaves no incomplete product.

    Raises:
        DatasetError: a product's folder exists but was not made here, or writing fails.
    """
    recipe = {"version": _VERSION, "seed": seed}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for index, product in enumerate(PRODUCTS):
            _make_product(directory / product, recipe, np.random.default_rng([seed, index]))
    except OSError as error:
        raise DatasetError(
            f"the demo images cannot be written to {directory} ({error}); choose a writable folder."
        ) from error
    return directory


def make_samples(data: Path, directory: Path) -> Path:
    """Copy a good and a defective test image of each product below ``data`` to ``directory``, and return it.

    A further photograph shows a product that was not learned. Raises ``DatasetError`` if writing fails.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for product, defect in zip(PRODUCTS, DEFECTS, strict=True):
            for kind in ("good", defect):
                shutil.copyfile(data / product / "test" / kind / "000.png", directory / f"{product} {kind}.png")
        _save(skimage.data.coins().astype(np.float32), directory / "something else.png")
    except OSError as error:
        raise DatasetError(
            f"the sample images cannot be written to {directory} ({error}); choose a writable folder."
        ) from error
    return directory


def _make_product(folder: Path, recipe: dict[str, int], rng: np.random.Generator) -> None:
    """Draw one product unless it exists already."""
    if folder.exists():
        found = _recipe_of(folder)
        if found == recipe:
            return
        if found is None:
            raise DatasetError(
                f"{folder} exists already and was not made by the demo; choose another folder, or move it."
            )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _draw_product(getattr(skimage.data, folder.name)(), partial, rng)
    (partial / _MARKER).write_text(json.dumps(recipe) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _recipe_of(folder: Path) -> object:
    """The contents of a folder's marker, or ``None`` without a readable one."""
    try:
        return json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return None


def _draw_product(photograph: np.ndarray, folder: Path, rng: np.random.Generator) -> None:
    """Write all images and masks of one product; ``photograph`` is ``(height, width)`` uint8."""
    for number in range(_TRAIN_IMAGES):
        _save(_photographed(_crop(photograph, rng), rng), folder / "train" / "good" / f"{number:03}.png")
    for number in range(_GOOD_TEST_IMAGES):
        _save(_photographed(_crop(photograph, rng), rng), folder / "test" / "good" / f"{number:03}.png")
    for name, draw in DEFECTS.items():
        for number in range(_IMAGES_PER_DEFECT):
            spoilt, cover = draw(_crop(photograph, rng), rng)
            _save(_photographed(spoilt, rng), folder / "test" / name / f"{number:03}.png")
            _save((cover > _MARKED) * np.float32(255), folder / "ground_truth" / name / f"{number:03}_mask.png")


def _crop(photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random square of the photograph, enlarged, as ``(_SIDE, _SIDE)`` float32."""
    size = int(rng.integers(_CROP_SIDES[0], _CROP_SIDES[1], endpoint=True))
    top = int(rng.integers(photograph.shape[0] - size, endpoint=True))
    left = int(rng.integers(photograph.shape[1] - size, endpoint=True))
    square = photograph[top : top + size, left : left + size]
    enlarged = Image.fromarray(square).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, dtype=np.float32)


def _photographed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gain = 1 + rng.uniform(-_GAIN, _GAIN)
    return image * gain + rng.normal(0, _NOISE, image.shape)


def _save(values: np.ndarray, path: Path) -> None:
    """Write grey values as an 8-bit PNG at low compression: noise does not compress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).save(path, compress_level=1)


def _scratch(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A bright, thin, curved, tapering line with a shadow. Returns the image and the defect's coverage (0…1)."""
    length, heading, bend = rng.uniform(90, 160), rng.uniform(0, 2 * math.pi), rng.uniform(-0.14, 0.14)
    middle = rng.uniform(0.35 * _SIDE, 0.65 * _SIDE, 2)
    along = np.array([math.cos(heading), math.sin(heading)])
    across = np.array([-along[1], along[0]])
    widest = rng.uniform(1.3, 2.2)
    large = Image.new("L", (_SIDE * _DRAWING_SCALE, _SIDE * _DRAWING_SCALE))
    brush = ImageDraw.Draw(large)
    for position in np.linspace(-1, 1, 400):
        x, y = (middle + along * position * length / 2 + across * bend * (1 - position**2) * length) * _DRAWING_SCALE
        radius = widest * (1 - 0.7 * abs(position) ** 3) * _DRAWING_SCALE
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    cover = np.asarray(large.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32) / 255
    shadow = np.roll(cover, (2, 2), axis=(0, 1)) * 0.6
    spoilt = image * (1 - shadow)
    return spoilt + (rng.uniform(205, 235) - spoilt) * 0.85 * cover, np.maximum(cover, shadow)


def _blot(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A dark stain with a darker rim and a few drops. Returns the image and the defect's coverage (0…1)."""
    middle, radius = rng.uniform(0.3 * _SIDE, 0.7 * _SIDE, 2), rng.uniform(20, 34)
    cover, rim = _puddle(middle, radius, rng)
    for _ in range(int(rng.integers(1, 4))):
        heading, reach = rng.uniform(0, 2 * math.pi), radius * rng.uniform(1.4, 1.9)
        beside = middle + reach * np.array([math.cos(heading), math.sin(heading)])
        drop, drop_rim = _puddle(beside, rng.uniform(2.5, 6), rng)
        cover, rim = np.maximum(cover, drop), np.maximum(rim, drop_rim)
    return image * (1 - rng.uniform(0.5, 0.62) * cover - 0.15 * rim), cover


def _smear(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A smear: motion-blurred, paler texture. Returns the image and the defect's coverage (0…1)."""
    middle, heading = rng.uniform(0.35 * _SIDE, 0.65 * _SIDE, 2), rng.uniform(0, math.pi)
    x, y = _offsets(middle)
    along, across = x * math.cos(heading) + y * math.sin(heading), y * math.cos(heading) - x * math.sin(heading)
    across = across + rng.uniform(3, 7) * np.sin(along / rng.uniform(14, 22))
    length, width = rng.uniform(42, 60), rng.uniform(14, 20)
    cover = _soft_step(1 - (along / length) ** 2 - (across / width) ** 2, 0.12)
    steps = range(-14, 15)
    turns = [(round(step * math.sin(heading)), round(step * math.cos(heading))) for step in steps]
    drawn_out = np.mean([np.roll(image, turn, axis=(0, 1)) for turn in turns], axis=0)
    mud = 0.6 * drawn_out + 0.4 * rng.uniform(155, 180)
    return image + (mud - image) * 0.92 * cover, cover


def _puddle(middle: np.ndarray, radius: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The coverage (0…1) of a round area with an uneven edge, and that of its rim."""
    x, y = _offsets(middle)
    angle = np.arctan2(y, x)
    edge = np.full_like(angle, radius)
    for waves in range(2, 7):
        edge += radius * rng.uniform(0, 0.35 / waves) * np.cos(waves * angle + rng.uniform(0, 2 * math.pi))
    depth = edge - np.hypot(x, y)
    return _soft_step(depth, 0.8), np.exp(-(((depth - 2) / 2) ** 2)).astype(np.float32)


def _offsets(middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's offset from ``middle`` (x, y): to the right and down."""
    grid = np.arange(_SIDE, dtype=np.float32)
    return np.broadcast_to(grid - middle[0], (_SIDE, _SIDE)), np.broadcast_to(
        (grid - middle[1])[:, None], (_SIDE, _SIDE)
    )


def _soft_step(values: np.ndarray, softness: float) -> np.ndarray:
    """A sigmoid step from 0 to 1 at zero, about ``4 × softness`` wide."""
    return (0.5 + 0.5 * np.tanh(values / (2 * softness))).astype(np.float32)


DEFECTS: dict[str, Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "blot": _blot,
    "scratch": _scratch,
    "smear": _smear,
}
"""Drawing functions by defect: each returns the defective image and the coverage of each pixel."""
