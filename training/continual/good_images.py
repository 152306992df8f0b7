"""The numbers of good images that calibrate a learned product, computed as in prediction."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from moleflow.model.detector import Detector
from moleflow.model.features.extractor import stack_images
from moleflow.model.names import find_named
from moleflow.model.routing.novelty import background_nll
from moleflow.model.runtime.threads import helper_threads
from moleflow.model.store.layout import HELD_OUT, INSPECTED
from moleflow.model.verdict.results import TaskInfo
from moleflow.training.data.white_levels import Reader
from moleflow.training.embeddings.alterations import AlteredReader
from moleflow.training.embeddings.extraction import ahead
from moleflow.training.fit.held_out import calibrating_numbers
from moleflow.training.progress import Reporter

__all__ = ["GoodImages", "Numbers", "joined"]

_BATCH = 8
"""Images that are scored at once."""

_OF_COPIES = (".scores", ".peaks")
"""Ends of the names of what altered copies calibrate too."""

Numbers = dict[str, np.ndarray]
"""Of each image, by the names of a profile's tensors: ``(n,)`` float32."""


class GoodImages:
    """Scores images for the product ``task``, whose area need not be the one that ``detector`` knows."""

    def __init__(self, detector: Detector, task: TaskInfo, reporter: Reporter) -> None:
        self._detector, self._task, self._reporter = detector, task, reporter
        self._place = find_named(task.name, detector.tasks).index

    def numbers(self, paths: Sequence[Path], what: str) -> Numbers:
        """The numbers of each image: those under ``held_out`` of all that was learned, and with an area those under
        ``inspected``. ``DatasetError`` if one cannot be read."""
        return self._numbers(paths, Reader(self._task.white_level), what)

    def altered(self, paths: Sequence[Path]) -> Numbers:
        """The scores and peaks of altered copies, as many of each image as at training. Errors as ``numbers``."""
        resize = self._detector.preprocessing.resize
        parts = [
            self._numbers(paths, AlteredReader(self._task.white_level, resize, copy), "altered copies")
            for copy in range(self._task.altered_copies)
        ]
        names = [name for name in self._of([]) if name.endswith(_OF_COPIES)]
        return joined([self._of([]), *parts], names)

    @torch.inference_mode()
    def _numbers(self, paths: Sequence[Path], read: Callable[[Path, int], np.ndarray], what: str) -> Numbers:
        side, parts = self._detector.preprocessing.image_size, [self._of([])]
        with self._reporter.phase(f"{self._task.name}: {what}", len(paths)) as phase:
            batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
            with ThreadPoolExecutor(helper_threads()) as pool:
                for images in ahead(pool, batches, lambda path: read(path, side)):
                    parts.append(self._of(images))
                    phase.advance(len(images))
        return joined(parts, parts[0])

    def _of(self, images: list[np.ndarray]) -> Numbers:
        areas = {HELD_OUT: self._task.learned_area} | ({INSPECTED: self._task.area} if self._task.area else {})
        if not images:
            names = [f"{prefix}{end}" for prefix in areas for end in _OF_COPIES]
            names += [f"{HELD_OUT}.grounds", f"{HELD_OUT}.distances"]
            return {name: np.empty(0, np.float32) for name in names}
        detector = self._detector
        batch = stack_images(images, detector.preprocessing.resize, detector.device)
        features, distances, _ = detector.embed_and_route(batch)
        maps = detector.products.maps(features, [self._place] * len(images))
        found: Numbers = {}
        for prefix, area in areas.items():
            scores, peaks = calibrating_numbers(detector.config, maps, area)
            found |= {f"{prefix}.scores": scores.numpy(), f"{prefix}.peaks": peaks.numpy()}
        found[f"{HELD_OUT}.grounds"] = background_nll(maps.nll.cpu().numpy()).astype(np.float32)
        found[f"{HELD_OUT}.distances"] = distances[:, self._place].cpu().numpy()
        return found


def joined(parts: Sequence[Numbers], names: Iterable[str]) -> Numbers:
    """The numbers of these ``names`` of several groups of images; a group may lack some."""
    return {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}
