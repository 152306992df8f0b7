"""Fit a product's thresholds and p-values to more good images, without training.

The checkpoint keeps the scores of a product's held-out images. Those of new good images, which its expert was not
fitted to either, join them, each image with as many altered copies as at training. An inspected area that good images
calibrated gets their scores as well. Nothing else changes: the expert, the prototype, and every other product stay
bit-identical. Defective images calibrate nothing; they show what is still found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from moleflow.model.detector import Detector
from moleflow.model.files.exclusive import exclusive
from moleflow.model.names import find_named
from moleflow.model.store.areas import threshold_of, with_profile
from moleflow.model.store.checkpoint import Checkpoint, Tensors
from moleflow.model.store.editing import rewrite
from moleflow.model.store.layout import HELD_OUT, INSPECTED
from moleflow.model.verdict.results import TaskInfo
from moleflow.training.continual.good_images import GoodImages, Numbers, joined
from moleflow.training.data.datasets import Category
from moleflow.training.progress import Reporter

__all__ = ["Recalibrated", "recalibrate"]

_SAME = 1e-4
"""Relative difference of two numbers of one image, computed in another batch or with another number of threads; in
float32 it is about 1e-6."""


class Change(NamedTuple):
    """A number before and after."""

    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """What more good images changed for a product.

    ``added`` of its ``good`` images are new to the calibration in force; the others calibrated it already. ``alarms``
    are the good images above the threshold, ``found`` the ``defects`` above it. After the change, the added images are
    among those that calibrate.
    """

    product: str
    good: int
    added: int
    threshold: Change
    alarms: Change
    defects: int
    found: Change


def recalibrate(
    path: Path,
    detector: Detector,
    categories: Sequence[Category],
    *,
    reporter: Reporter | None = None,
    dry_run: bool = False,
) -> list[Recalibrated]:
    """Recalibrate the products of ``categories`` in the checkpoint at ``path`` with their good training images.

    ``detector`` has the checkpoint open. Test images are counted only. With ``dry_run`` nothing is written.

    Raises:
        UnknownTaskError: a category was not learned.
        DatasetError: an image cannot be read.
        ConfigurationError, CheckpointError: another process writes, or the file cannot be read or written.
    """
    reporter = reporter or Reporter()
    with exclusive(path):
        old = Checkpoint.open(path)
        tasks, sections, results = list(old.header.tasks), dict[str, Tensors](), []
        for category in categories:
            task = find_named(category.name, old.header.visible)
            name = f"tasks.{task.index}.profile"
            images = GoodImages(detector, task, reporter)
            joint = _joined(old.section(name), task, images, category, detector.false_alarm_rate)
            profile, tasks[task.index], result = joint
            if tasks[task.index].profile_sha256 != task.profile_sha256:
                sections[name] = profile
            results.append(result)
        if sections and not dry_run:
            rewrite(old, tasks, sections)
    return results


def _joined(
    profile: Tensors, task: TaskInfo, images: GoodImages, category: Category, rate: float
) -> tuple[Tensors, TaskInfo, Recalibrated]:
    """The profile and record of a product with its good images among those that calibrate, and what that changes at
    the false-alarm ``rate``."""
    found = images.numbers(category.train, "good images")
    changed, added = dict(profile), {}
    for prefix in (HELD_OUT, INSPECTED):
        stored = {key: value.numpy() for key, value in profile.items() if key.startswith(f"{prefix}.")}
        if stored:
            is_new = ~_known(found, stored)
            added[prefix] = [path for path, fresh in zip(category.train, is_new, strict=True) if fresh]
            new = {key: values[is_new] for key, values in found.items()}
            values = joined([stored, new, images.altered(added[prefix])], stored)
            changed |= {key: torch.from_numpy(np.sort(each)) for key, each in values.items()}
    info = task.model_copy(update={"held_out_images": task.held_out_images + len(added[HELD_OUT])})
    before, after = (threshold_of(each, "scores", rate) for each in (profile, changed))
    bad = [sample.path for sample in category.test if sample.is_anomalous]
    score = f"{HELD_OUT if task.area is None else INSPECTED}.scores"
    defective = images.numbers(bad, "defective images")[score]
    result = Recalibrated(
        product=task.name,
        good=len(category.train),
        added=len(added.get(INSPECTED, added[HELD_OUT])),
        threshold=Change(before, after),
        alarms=Change(*(int((found[score] > limit).sum()) for limit in (before, after))),
        defects=len(bad),
        found=Change(*(int((defective > limit).sum()) for limit in (before, after))),
    )
    return changed, with_profile(info, profile, changed), result


def _known(found: Numbers, stored: Numbers) -> np.ndarray:
    """Which images calibrate already, ``(n,)``: all of their numbers are among those that are stored."""
    known = np.ones(len(next(iter(found.values()))), bool)
    for name, others in stored.items():
        apart = np.abs(found[name][:, None] - others).min(1, initial=np.inf)
        known &= apart <= _SAME * np.maximum(np.abs(found[name]), 1)
    return known
