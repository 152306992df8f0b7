"""Pseudo-defects made from good images, to judge hyperparameters without test images.

Small and sharp ones after CutPaste (Li et al., CVPR 2021), and large or faint ones: real defects are of both kinds, and
what separates the one well may miss the other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from moleflow.training.data.datasets import read_image
from moleflow.training.fit.trainer import task_seed

__all__ = ["FAINT", "KINDS", "SHARP", "make_pseudo", "with_pseudo_defect"]

Changed = tuple[np.ndarray, np.ndarray]
"""The image ``(h, w, 3)`` float32 with a defect, and the defect's mask ``(h, w)`` bool."""


def make_pseudo(paths: Sequence[Path], folder: Path, name: str, kinds: Sequence[str]) -> tuple[tuple[Path, Path], ...]:
    """Make one pseudo-defect of each of ``kinds`` for every image.

    Returns the paths of image and mask, both PNG, named ``NUMBER_KIND.png`` and ``NUMBER_KIND_mask.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, path in enumerate(paths):
        image = read_image(path)
        for kind in kinds:
            rng = np.random.default_rng(task_seed(0, name, f"{kind} {number}"))
            changed, mask = with_pseudo_defect(image, kind, rng)
            target = folder / f"{number:03d}_{kind}.png"
            masked = folder / f"{number:03d}_{kind}_mask.png"
            Image.fromarray(changed).save(target)
            Image.fromarray(mask.astype(np.uint8) * 255).save(masked)
            made.append((target, masked))
    return tuple(made)


def with_pseudo_defect(image: np.ndarray, kind: str, rng: np.random.Generator) -> Changed:
    """The image ``(h, w, 3)`` uint8 with a defect of one of ``KINDS``, and the defect's mask ``(h, w)`` bool."""
    changed, mask = KINDS[kind](image.astype(np.float32), rng)
    return np.clip(changed, 0, 255).astype(np.uint8), mask


def _paste(image: np.ndarray, rng: np.random.Generator) -> Changed:
    """A piece of the image, its light changed, pasted elsewhere."""
    side = np.sqrt(image.shape[0] * image.shape[1])
    return _pasted(image, rng, side * rng.uniform(0.08, 0.2) * np.array([1, rng.uniform(0.4, 1)]))


def _scar(image: np.ndarray, rng: np.random.Generator) -> Changed:
    """A thin piece pasted elsewhere."""
    side = np.sqrt(image.shape[0] * image.shape[1])
    return _pasted(image, rng, side * np.array([rng.uniform(0.1, 0.25), rng.uniform(0.01, 0.03)]))


def _pasted(image: np.ndarray, rng: np.random.Generator, size: np.ndarray) -> Changed:
    height, width = image.shape[:2]
    wide, high = np.maximum(size.round().astype(int), 2)
    left, top = rng.integers(0, width - wide), rng.integers(0, height - high)
    piece = image[top : top + high, left : left + wide]
    piece = np.clip(piece * rng.uniform(0.7, 1.3) + rng.uniform(-25, 25, 3), 0, 255).astype(np.uint8)
    angle = float(rng.uniform(-45, 45))
    patch = Image.fromarray(piece).rotate(angle, expand=True)
    stencil = Image.new("L", (int(wide), int(high)), 255).rotate(angle, expand=True)
    at = (
        int(rng.uniform(0.15, 0.85) * width) - patch.width // 2,
        int(rng.uniform(0.15, 0.85) * height) - patch.height // 2,
    )
    changed, mask = Image.fromarray(image.astype(np.uint8)), Image.new("L", (width, height))
    changed.paste(patch, at, stencil)
    mask.paste(stencil, at)
    return np.asarray(changed, np.float32), np.asarray(mask) > 127


def _blob(image: np.ndarray, rng: np.random.Generator) -> Changed:
    """A bright or dark spot."""
    bump = _bump(image, rng, (0.03, 0.08))
    return image + rng.choice([-1.0, 1.0]) * rng.uniform(40, 90) * bump[..., None], bump > 0.4


def _scratch(image: np.ndarray, rng: np.random.Generator) -> Changed:
    """A bright or dark curve, one or two pixels wide, over a third to a half of the image."""
    height, width = image.shape[:2]
    steps = np.linspace(0, 1, 24)
    angle, length = rng.uniform(0, np.pi), rng.uniform(0.3, 0.5)
    bend = rng.uniform(-0.08, 0.08) * np.sin(np.pi * steps)
    along = np.stack((np.cos(angle), np.sin(angle)))
    line = rng.uniform(0.3, 0.7, 2) + (steps[:, None] - 0.5) * length * along + bend[:, None] * along[::-1] * (1, -1)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).line(
        [tuple(point) for point in (line * (width, height)).tolist()], 255, int(rng.integers(1, 3))
    )
    soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(0.5)), np.float32)[..., None] / 255
    drawn = np.asarray(mask.filter(ImageFilter.MaxFilter(3))) > 0
    return image + rng.choice([-1.0, 1.0]) * rng.uniform(40, 90) * soft, drawn


def _stain(image: np.ndarray, rng: np.random.Generator) -> Changed:
    """A faint ragged stain over about a fifth of the image."""
    shape = _ragged(image, rng, rng.uniform(0.12, 0.25))
    change = rng.choice([-1.0, 1.0]) * rng.uniform(12, 25) + rng.uniform(-6, 6, 3)
    return image + shape[..., None] * change, shape > 0.5


def _light(image: np.ndarray, rng: np.random.Generator) -> Changed:
    """A part of the image lit unevenly, without an edge."""
    bump = _bump(image, rng, (0.15, 0.25))
    return image * (1 + rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 0.35) * bump[..., None]), bump > 0.5


def _swap(image: np.ndarray, rng: np.random.Generator) -> Changed:
    """The texture of another place, turned or mirrored, blended in with a soft edge."""
    shape = _ragged(image, rng, rng.uniform(0.03, 0.1))
    turned = image[:, ::-1] if rng.random() < 0.5 else image[::-1]
    moved = np.roll(turned, tuple(int(rng.uniform(0.2, 0.8) * side) for side in image.shape[:2]), (0, 1))
    return image + shape[..., None] * (moved - image), shape > 0.5


def _missing(image: np.ndarray, rng: np.random.Generator) -> Changed:
    """A part that is gone: replaced by the blurred surroundings of its place."""
    shape = _ragged(image, rng, rng.uniform(0.02, 0.06))
    blurred = Image.fromarray(image.astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.06 * image.shape[1]))
    return image + shape[..., None] * (np.asarray(blurred, np.float32) - image), shape > 0.5


def _bump(image: np.ndarray, rng: np.random.Generator, radii: tuple[float, float]) -> np.ndarray:
    """A Gaussian bump ``(h, w)`` of height 1 near the centre; ``radii`` are relative to the image's side."""
    height, width = image.shape[:2]
    centre = rng.uniform(0.25, 0.75, 2) * (height, width)
    radius = np.sqrt(height * width) * rng.uniform(*radii, 2)
    rows, columns = np.ogrid[:height, :width]
    return np.exp(-0.5 * (((rows - centre[0]) / radius[0]) ** 2 + ((columns - centre[1]) / radius[1]) ** 2))


def _ragged(image: np.ndarray, rng: np.random.Generator, area: float) -> np.ndarray:
    """A ragged spot ``(h, w)`` in 0…1 with a soft edge, which covers about ``area`` of the image."""
    height, width = image.shape[:2]
    corners = int(rng.integers(6, 12))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = np.sqrt(area * height * width / np.pi) * rng.uniform(0.75, 1.3, corners)
    centre = rng.uniform(0.3, 0.7, 2) * (width, height)
    outline = centre + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
    spot = Image.new("L", (width, height))
    ImageDraw.Draw(spot).polygon([tuple(corner) for corner in outline.tolist()], fill=255)
    return np.asarray(spot.filter(ImageFilter.GaussianBlur(0.01 * width)), np.float32) / 255


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], Changed]] = {
    "paste": _paste,
    "scar": _scar,
    "blob": _blob,
    "scratch": _scratch,
    "stain": _stain,
    "light": _light,
    "swap": _swap,
    "missing": _missing,
}
"""All kinds, by name."""

SHARP = ("paste", "scar", "blob")
"""Small defects with edges, as in CutPaste."""

FAINT = ("scratch", "stain", "light", "swap", "missing")
"""Large, thin or faint ones."""
