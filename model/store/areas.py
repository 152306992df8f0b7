"""The inspected area of a learned product, without touching any other product.

A profile keeps the scores of held-out images that calibrated the product before it got an area. Without new ones they
stay in force: an image's score within a smaller area is at most that within the larger one, so good images exceed the
threshold at most as often. Scores of good images within the area lie beside them while the area is set.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from moleflow.model.features.backbone import patch_grid
from moleflow.model.files.exclusive import exclusive
from moleflow.model.names import find_named
from moleflow.model.store.checkpoint import Checkpoint, Tensors
from moleflow.model.store.editing import rewrite
from moleflow.model.store.layout import HELD_OUT, INSPECTED
from moleflow.model.store.sections import digest_tensors
from moleflow.model.verdict.area import Area, Outlines
from moleflow.model.verdict.calibration import Calibration
from moleflow.model.verdict.outlines import area_of
from moleflow.model.verdict.results import TaskInfo

__all__ = ["Drawing", "Scores", "set_area", "threshold_of", "with_profile"]

Drawing = Outlines | np.ndarray
"""Polygons, or a mask as for ``moleflow.model.verdict.outlines.area_of``."""

Scores = Mapping[str, np.ndarray]
"""Image ``scores`` and ``peaks`` of maps of good images and their altered copies, each ``(n,)`` float32."""


def set_area(
    path: Path,
    name: str,
    drawing: Drawing | None,
    calibrate: Callable[[TaskInfo, Tensors], Scores] | None = None,
) -> Checkpoint:
    """Inspect only a part of a product's images; the changed checkpoint.

    Args:
        path: the checkpoint.
        name: the product.
        drawing: what to inspect. ``None`` inspects all that was learned, and restores the earlier calibration.
        calibrate: scores good images for the record of the product with its new area, given its profile so far too.
            Without it, the earlier calibration stays.

    Raises:
        UnknownTaskError, ConfigurationError, CheckpointError: as ``moleflow.model.store.editing.remove_products``.
        TaskError: the area has too few patches, or all of them.
    """
    Checkpoint.open(path)  # a missing file is an error before the lock makes one beside it
    with exclusive(path):
        old = Checkpoint.open(path)
        tasks = list(old.header.tasks)
        task = find_named(name, tasks)
        section = f"tasks.{task.index}.profile"
        area = None if drawing is None else _area(old, task, drawing)
        info = task.model_copy(update={"area": area})
        profile = old.section(section)
        changed = {key: value for key, value in profile.items() if not key.startswith(f"{INSPECTED}.")}
        if area is not None and calibrate is not None:
            scores = calibrate(info, profile)
            changed |= {f"{INSPECTED}.{key}": torch.from_numpy(np.sort(scores[key])) for key in ("scores", "peaks")}
        tasks[task.index] = with_profile(info, profile, changed)
        return rewrite(old, tasks, {section: changed})


def with_profile(info: TaskInfo, old: Tensors, new: Tensors) -> TaskInfo:
    """The record ``info`` of a product whose profile was ``old`` and becomes ``new``: thresholds, counts, digest."""
    update: dict[str, object] = {
        "threshold": threshold_of(new, "scores", info.false_alarm_rate),
        "pixel_threshold": threshold_of(new, "peaks", info.false_alarm_rate),
        "parameters": info.parameters + _count(new) - _count(old),
        "profile_sha256": digest_tensors(new),
    }
    if info.area is not None:
        scores = new.get(f"{INSPECTED}.scores")
        images = None if scores is None else len(scores) // (1 + info.altered_copies)
        update["area"] = info.area.model_copy(update={"calibration_images": images})
    return info.model_copy(update=update)


def threshold_of(profile: Tensors, key: str, rate: float) -> float:
    """The threshold of ``scores`` or ``peaks`` at a false-alarm rate, within the area if that is calibrated."""
    values = profile.get(f"{INSPECTED}.{key}", profile[f"{HELD_OUT}.{key}"])
    return Calibration.fit(values.tolist()).threshold(rate)


def _area(old: Checkpoint, task: TaskInfo, drawing: Drawing) -> Area:
    config, learned = old.header.config, task.learned_area
    within = None if learned is None else learned.mask
    return area_of(drawing, patch_grid(config.backbone), config.score_top_k, within)


def _count(tensors: Tensors) -> int:
    return sum(value.numel() for value in tensors.values())
