"""Pictures as a camera makes them: smooth structures and slight noise, so that a PNG is as large as a real one."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.speed.training_speed import synthetic_images

__all__ = ["KINDS", "write_pictures"]

KINDS: dict[str, dict[str, Any]] = {"jpeg": {"quality": 92}, "png": {}}
"""Formats by name, with Pillow's options."""

NOISE = 2.0
"""Standard deviation of the noise, of 255."""


def write_pictures(folder: Path, count: int, side: int) -> dict[str, list[Path]]:
    """Write ``count`` pictures of ``side`` × ``side`` pixels in every format; returns their paths by format."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    rng = np.random.default_rng(0)
    for number, smooth in enumerate(synthetic_images(count, side)):
        noisy = np.clip(smooth + rng.normal(0, NOISE, smooth.shape), 0, 255).astype(np.uint8)
        for kind, options in KINDS.items():
            path = folder / f"{side}-{number}.{kind}"
            Image.fromarray(noisy).save(path, **options)
            found[kind].append(path)
    return found
