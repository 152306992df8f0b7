"""Defects pasted into good images, to judge hyperparameters without test images (CutPaste; Li et al., CVPR 2021)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from moleflow.training.data.datasets import read_image
from moleflow.training.fit.trainer import task_seed

__all__ = ["KINDS", "make_pseudo", "with_pseudo_defect"]

KINDS = ("paste", "scar", "blob")
"""A piece of the image moved elsewhere, a thin piece, and a bright or dark spot."""


def make_pseudo(paths: Sequence[Path], folder: Path, name: str) -> tuple[tuple[Path, Path], ...]:
    """Make one pseudo-defect of each kind for every image; returns the paths of image and mask, both PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, path in enumerate(paths):
        image = read_image(path)
        for kind in KINDS:
            rng = np.random.default_rng(task_seed(0, name, f"{kind} {number}"))
            changed, mask = with_pseudo_defect(image, kind, rng)
            target = folder / f"{number:03d}_{kind}.png"
            masked = folder / f"{number:03d}_{kind}_mask.png"
            Image.fromarray(changed).save(target)
            Image.fromarray(mask.astype(np.uint8) * 255).save(masked)
            made.append((target, masked))
    return tuple(made)


def with_pseudo_defect(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The image ``(h, w, 3)`` uint8 with a defect of one of ``KINDS``, and the defect's mask ``(h, w)`` bool."""
    height, width = image.shape[:2]
    side = np.sqrt(height * width)
    if kind == "blob":
        centre = rng.uniform(0.25, 0.75, 2) * (height, width)
        radius = side * rng.uniform(0.03, 0.08, 2)
        rows, columns = np.ogrid[:height, :width]
        bump = np.exp(-0.5 * (((rows - centre[0]) / radius[0]) ** 2 + ((columns - centre[1]) / radius[1]) ** 2))
        change = rng.choice([-1.0, 1.0]) * rng.uniform(40, 90) * bump[..., None]
        return np.clip(image + change, 0, 255).astype(np.uint8), bump > 0.4
    if kind == "paste":
        size = side * rng.uniform(0.08, 0.2) * np.array([1, rng.uniform(0.4, 1)])
    else:
        size = side * np.array([rng.uniform(0.1, 0.25), rng.uniform(0.01, 0.03)])
    wide, high = np.maximum(size.round().astype(int), 2)
    left, top = rng.integers(0, width - wide), rng.integers(0, height - high)
    piece = image[top : top + high, left : left + wide].astype(np.float32)
    piece = np.clip(piece * rng.uniform(0.7, 1.3) + rng.uniform(-25, 25, 3), 0, 255).astype(np.uint8)
    angle = float(rng.uniform(-45, 45))
    patch = Image.fromarray(piece).rotate(angle, expand=True)
    stencil = Image.new("L", (int(wide), int(high)), 255).rotate(angle, expand=True)
    at = (
        int(rng.uniform(0.15, 0.85) * width) - patch.width // 2,
        int(rng.uniform(0.15, 0.85) * height) - patch.height // 2,
    )
    changed, mask = Image.fromarray(image), Image.new("L", (width, height))
    changed.paste(patch, at, stencil)
    mask.paste(stencil, at)
    return np.asarray(changed), np.asarray(mask) > 127
