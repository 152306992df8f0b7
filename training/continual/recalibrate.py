"""Fit a product's thresholds and p-values to more good images, without training.

The checkpoint keeps the scores of a product's held-out images. Those of new good images, which its expert was not
fitted to either, join them, each image with as many altered copies as at training. Nothing else changes: the expert,
the prototype, and every other product stay bit-identical. Defective images calibrate nothing; they show what is still
found.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from moleflow.model.detector import Detector
from moleflow.model.features.extractor import stack_images
from moleflow.model.files.exclusive import exclusive
from moleflow.model.memory.scorer import image_scores
from moleflow.model.names import find_named
from moleflow.model.routing.novelty import background_nll
from moleflow.model.runtime.threads import helper_threads
from moleflow.model.store.checkpoint import Checkpoint, Tensors
from moleflow.model.store.editing import rewrite
from moleflow.model.store.sections import digest_tensors
from moleflow.model.verdict.calibration import Calibration, TaskCalibration
from moleflow.model.verdict.maps import pixel_map
from moleflow.model.verdict.results import TaskInfo
from moleflow.training.data.datasets import Category
from moleflow.training.data.white_levels import Reader
from moleflow.training.embeddings.alterations import AlteredReader
from moleflow.training.embeddings.extraction import ahead
from moleflow.training.progress import Reporter

__all__ = ["Recalibrated", "recalibrate"]

_BATCH = 8
"""Images that are scored at once."""

_SAME = 1e-4
"""Relative difference of two numbers of one image, computed in another batch or with another number of threads; in
float32 it is about 1e-6."""

Numbers = dict[str, np.ndarray]
"""Of each image, by the names of ``TaskCalibration``: ``(n,)`` float32."""


class Change(NamedTuple):
    """A number before and after."""

    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """What more good images changed for a product.

    ``added`` of its ``good`` images are new; the others calibrated it already. ``alarms`` are the good images above the
    threshold, ``found`` the ``defects`` above it. After the change, the added images are among those that calibrate.
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
            scorer = _Scorer(detector, task, reporter)
            profile, tasks[task.index], result = _joined(old.section(name), task, scorer, category)
            if result.added:
                sections[name] = profile
            results.append(result)
        if sections and not dry_run:
            rewrite(old, tasks, sections)
    return results


def _joined(
    profile: Tensors, task: TaskInfo, scorer: "_Scorer", category: Category
) -> tuple[Tensors, TaskInfo, Recalibrated]:
    """The profile and record of a product with its good images among those that calibrate, and what that changes."""
    stored = {key: profile[f"held_out.{key}"].numpy() for key in TaskCalibration.__dataclass_fields__}
    found = scorer.numbers(category.train, Reader(task.white_level), "good images")
    is_new = ~_known(found, stored)
    new = [path for path, fresh in zip(category.train, is_new, strict=True) if fresh]
    joined = {key: [stored[key], found[key][is_new]] for key in stored}
    for copy in range(task.altered_copies if new else 0):
        read = AlteredReader(task.white_level, scorer.resize, copy)
        altered = scorer.numbers(new, read, "altered copies")
        for key in ("scores", "peaks"):
            joined[key].append(altered[key])
    values = {key: np.sort(np.concatenate(parts)) for key, parts in joined.items()}
    changed = dict(profile) | {f"held_out.{key}": torch.from_numpy(each) for key, each in values.items()}
    scores, peaks = (Calibration.fit(values[key].tolist()) for key in ("scores", "peaks"))
    rate, size = task.false_alarm_rate, {key: each.numel() for key, each in changed.items()}
    info = task.model_copy(
        update={
            "held_out_images": task.held_out_images + len(new),
            "threshold": scores.threshold(rate),
            "pixel_threshold": peaks.threshold(rate),
            "parameters": task.parameters + sum(size.values()) - sum(each.numel() for each in profile.values()),
            "profile_sha256": digest_tensors(changed),
        }
    )
    before, after = Calibration.fit(stored["scores"].tolist()).threshold(scorer.rate), scores.threshold(scorer.rate)
    bad = [sample.path for sample in category.test if sample.is_anomalous]
    defective = scorer.numbers(bad, Reader(task.white_level), "defective images")["scores"]
    result = Recalibrated(
        product=task.name,
        good=len(category.train),
        added=len(new),
        threshold=Change(before, after),
        alarms=Change(*(int((found["scores"] > limit).sum()) for limit in (before, after))),
        defects=len(bad),
        found=Change(*(int((defective > limit).sum()) for limit in (before, after))),
    )
    return changed, info, result


def _known(found: Numbers, stored: Numbers) -> np.ndarray:
    """Which images calibrate already, ``(n,)``: all four of their numbers are among those that are stored."""
    known = np.ones(len(found["scores"]), bool)
    for key, values in found.items():
        apart = np.abs(values[:, None] - stored[key]).min(1, initial=np.inf)
        known &= apart <= _SAME * np.maximum(np.abs(values), 1)
    return known


class _Scorer:
    """The numbers of images for one product, computed as in prediction."""

    def __init__(self, detector: Detector, task: TaskInfo, reporter: Reporter) -> None:
        self._detector, self._task, self._reporter = detector, task, reporter
        self._place = find_named(task.name, detector.tasks).index
        self.resize, self.rate = detector.preprocessing.resize, detector.false_alarm_rate

    @torch.inference_mode()
    def numbers(self, paths: Sequence[Path], read: Callable[[Path, int], np.ndarray], what: str) -> Numbers:
        """The numbers of each image. ``DatasetError`` if one cannot be read."""
        side, parts = self._detector.preprocessing.image_size, [self._of([])]
        with self._reporter.phase(f"{self._task.name}: {what}", len(paths)) as phase:
            batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
            with ThreadPoolExecutor(helper_threads()) as pool:
                for images in ahead(pool, batches, lambda path: read(path, side)):
                    parts.append(self._of(images))
                    phase.advance(len(images))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _of(self, images: list[np.ndarray]) -> Numbers:
        if not images:
            return {key: np.empty(0, np.float32) for key in TaskCalibration.__dataclass_fields__}
        detector, side = self._detector, self._detector.preprocessing.image_size
        features, distances, _ = detector.embed_and_route(stack_images(images, self.resize, detector.device))
        maps = detector.products.maps(features, [self._place] * len(images))
        config = detector.config
        peaks = [pixel_map(each, side, side, side).max() for each in maps.anomaly.cpu().numpy()]
        return {
            "scores": image_scores(maps, config.scoring, config.score_top_k).cpu().numpy(),
            "peaks": np.array(peaks, np.float32),
            "grounds": background_nll(maps.nll.cpu().numpy()).astype(np.float32),
            "distances": distances[:, self._place].cpu().numpy(),
        }
