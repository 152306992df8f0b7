"""The detector: RGB images in, typed results out, on CPU or CUDA."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, overload

import numpy as np
import torch

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.errors import PredictionError
from moleflow.model.features.backbone import import_plugin
from moleflow.model.features.extractor import FeatureExtractor, stack_images
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.images.value_range import Views
from moleflow.model.judge import Judge, Scored
from moleflow.model.memory.scorer import PatchMaps, image_scores
from moleflow.model.routing.novelty import background_nll, check_limit
from moleflow.model.routing.router import Router, image_descriptor
from moleflow.model.routing.shortlist import Shortlist, shortlist
from moleflow.model.runtime.device import autocast, resolve_device, resolve_precision
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.experts import Experts
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, check_rate
from moleflow.model.verdict.results import CheckpointInfo, Failure, Finding, Prediction, TaskInfo

__all__ = ["MAX_EXPERTS", "WARM_EXPERTS", "Detector"]

MAX_EXPERTS = 32
"""Merged experts kept on the device (LRU). One expert of the ``main`` preset takes 60 MB in float32."""

WARM_EXPERTS = 8
"""Experts merged by ``warm_up``, at most: start-up time does not grow with the number of products."""


class Detector:
    """Finds defects on every product in a checkpoint.

    The backbone runs once per batch and the router reads the same features. Images of one product then go through its
    expert together; on a CPU, images run in parallel. Methods keep no per-call state, so several threads may predict
    at once.

    Args:
        checkpoint: an open checkpoint.
        device, precision: see ``moleflow.model.runtime.device``.
        max_experts: merged experts kept on the device.
        false_alarm_rate: fraction of good images that may be called anomalous, in (0, 1).
        unknown_limit: images with a higher novelty score (``moleflow.model.routing.novelty``) are refused as an
            unknown product; 0 refuses nothing.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> detector = Detector.load("factory.safetensors")
        >>> [task.name for task in detector.tasks]
        ['bolt', 'nut', 'gear']
        >>> image = np.asarray(Image.open("part.png").convert("RGB"))
        >>> found = detector.predict([image])[0]
        >>> found.product.name
        'bolt'
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        precision: str = "auto",
        max_experts: int = MAX_EXPERTS,
        false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
        unknown_limit: float = DEFAULT_UNKNOWN_LIMIT,
    ) -> None:
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.false_alarm_rate = check_rate(false_alarm_rate, "the false-alarm rate")
        self.unknown_limit = check_limit(unknown_limit)
        self._checkpoint = checkpoint
        self._config = checkpoint.header.config
        features = FeatureExtractor.for_prediction(self._config, checkpoint.backbone(), self.precision)
        self._features = features.to(self.device)
        # Experts are read on first use; only the profiles are read here.
        profiles = [checkpoint.profile(task.index) for task in checkpoint.header.tasks]
        self._router = Router([each.prototype for each in profiles]).to(self.device)
        self._calibrations = [each.calibration for each in profiles]
        self._median_distances = torch.tensor(
            [each.distances.median for each in self._calibrations], device=self.device
        )
        self._tasks = tuple(self._at_rate(info) for info in checkpoint.header.tasks)
        self._judge = Judge(
            self._tasks,
            self._calibrations,
            false_alarm_rate=self.false_alarm_rate,
            unknown_limit=self.unknown_limit,
            model_size=self.preprocessing.image_size,
            dim=self._config.backbone.embedding_dim,
        )
        self._experts = Experts(checkpoint, self.device, self.precision, max_experts)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        device: str = "auto",
        precision: str = "auto",
        plugin: str | None = None,
        false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
        unknown_limit: float = DEFAULT_UNKNOWN_LIMIT,
    ) -> Self:
        """Open a checkpoint. ``plugin`` is a module to import first, which registers the backbone with timm.

        Raises:
            CheckpointError, BackboneError, DeviceError, ConfigurationError: see ``moleflow.model.errors``.
        """
        if plugin:
            import_plugin(plugin)
        return cls(
            Checkpoint.open(path),
            device=device,
            precision=precision,
            false_alarm_rate=false_alarm_rate,
            unknown_limit=unknown_limit,
        )

    @property
    def checkpoint(self) -> CheckpointInfo:
        """Name and digest of the checkpoint file."""
        return self._checkpoint.info

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The learned products in training order, with thresholds at this detector's false-alarm rate."""
        return self._tasks

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are resized and normalised."""
        return self._checkpoint.header.preprocessing

    @overload
    def predict(
        self,
        images: Sequence[np.ndarray],
        tasks: Sequence[str | None] | None = None,
        *,
        refuse_unknown: Literal[False],
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None, *, refuse_unknown: bool = True
    ) -> list[Finding | Failure]: ...

    def predict(
        self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None, *, refuse_unknown: bool = True
    ) -> list[Finding | Failure] | list[Prediction]:
        """Score RGB images, each ``(height, width, 3)`` of any size; a batch may mix products.

        Pixels are uint8, or uint16 as decoded: each product scales 16-bit values by its own white level.

        ``tasks[i]`` names the product of image ``i``; ``None`` lets the router choose. An image of an unknown product
        gets a ``Refusal``, unless its product was named or ``refuse_unknown`` is off (for evaluation); then the
        nearest product's expert scores it.

        An image whose expert is damaged, or whose scores are not finite, gets a ``Failure``; the rest of the batch is
        not affected. With ``refuse_unknown`` off the first such error is raised instead.

        Raises:
            UnknownTaskError: a name in ``tasks`` was not learned.
            PredictionError: an image cannot be scored and ``refuse_unknown`` is off.
        """
        wanted = list(tasks) if tasks is not None else [None] * len(images)
        if len(wanted) != len(images):
            raise ValueError(f"tasks must have one entry per image; got {len(wanted)} for {len(images)} images")
        forced = [None if name is None else self._checkpoint.header.task(name).index for name in wanted]
        if not images:
            return []
        with torch.inference_mode():
            views = self._views(images, forced)
            features, distances, ratios = self._compare(views)
            # The only device synchronisation before scoring: which experts does this batch need?
            routed = self._shortlist(distances, ratios, forced)
            refuses = refuse_unknown and self.unknown_limit > 0
            chosen = [
                None if refuses and found.named is None and found.least_ratio > self.unknown_limit else found.task.index
                for found in routed
            ]
            seen = [views.row(number, task) for number, task in enumerate(chosen) if task is not None]
            if seen != list(range(len(features))):
                features = features.rows(torch.tensor(seen, dtype=torch.long, device=self.device))
            maps, failed = self._experts.maps(features, [task for task in chosen if task is not None])
            scored = iter(self._scored(maps))
        results: list[Finding | Failure] = []
        for image, found, task in zip(views.images, routed, chosen, strict=True):
            numbers = None if task is None else next(scored)
            try:
                results.append(self._judge.find(found, numbers, failed, refuses=refuses).of_image(image, self.tasks))
            except PredictionError as error:
                if not refuse_unknown:
                    raise
                results.append(Failure(error.with_traceback(None)))  # frames would keep the batch's tensors alive
        return results

    def predict_both(self, images: Sequence[np.ndarray], tasks: Sequence[str]) -> list[tuple[Prediction, Prediction]]:
        """Each image as routed, and with its true product ``tasks[i]`` named; for evaluation.

        Nothing is refused. The backbone runs once; where an image is routed to its true product, both results are the
        same object.

        Raises:
            UnknownTaskError: a name in ``tasks`` was not learned.
        """
        if len(tasks) != len(images):
            raise ValueError(f"tasks must have one entry per image; got {len(tasks)} for {len(images)} images")
        named = [self._checkpoint.header.task(name).index for name in tasks]
        if not images:
            return []
        with torch.inference_mode():
            views = self._views(images, [None] * len(images))
            features, distances, ratios = self._compare(views)
            routed = self._shortlist(distances, ratios, named)
            wrong = [row for row, found in enumerate(routed) if found.nearest[0] != found.task]
            rows = [*range(len(images)), *wrong]
            chosen = [*(found.nearest[0] for found in routed), *(routed[row].task for row in wrong)]
            seen = [views.row(row, route.index) for row, route in zip(rows, chosen, strict=True)]
            if seen != list(range(len(features))):
                features = features.rows(seen)
            scored = self._scored(self.maps(features, [route.index for route in chosen]))
            results = [
                self._judge.prediction(routed[row], route, numbers).of_image(views.images[row], self.tasks)
                for row, route, numbers in zip(rows, chosen, scored, strict=True)
            ]
        again = dict(zip(wrong, results[len(images) :], strict=True))
        return [(result, again.get(row, result)) for row, result in enumerate(results[: len(images)])]

    def _views(self, images: Sequence[np.ndarray], named: Sequence[int | None]) -> Views:
        """The images at the model's size, scaled by each product's white level."""
        return Views.of(list(map(self.preprocessing.resize, images)), [each.white_level for each in self.tasks], named)

    def _compare(self, views: Views) -> tuple[PatchFeatures, torch.Tensor, torch.Tensor]:
        """Features of all views, and each image's distances and distance ratios ``(images, T)`` in each product's
        own view."""
        batch = stack_images(views.levels, self.preprocessing.resize, self.device)
        features, distances, ratios = self.embed_and_route(batch)
        if views.rows is not None:
            rows = torch.from_numpy(views.rows).to(self.device, non_blocking=True)
            distances, ratios = distances.gather(0, rows), ratios.gather(0, rows)
        return features, distances, ratios

    def embed_and_route(self, batch: torch.Tensor) -> tuple[PatchFeatures, torch.Tensor, torch.Tensor]:
        """``(B, S, S, 3)`` in 0…255 on the device to features, distances and distance ratios ``(B, T)``.
        Asynchronous on CUDA."""
        with autocast(self.device, self.precision):
            features = self._features(batch)
        return features, *self._router(image_descriptor(features.embeddings))

    def maps(self, features: PatchFeatures, tasks: Sequence[int]) -> PatchMaps:
        """Features and the task of each image to patch maps; asynchronous on CUDA.

        Raises:
            ExpertError: the expert of one of the tasks is damaged.
        """
        maps, failed = self._experts.maps(features, tasks)
        for error in failed.values():
            raise error
        return maps

    def _scored(self, maps: PatchMaps) -> list[Scored]:
        """The maps and scores of each image, on the host."""
        scores = image_scores(maps, self._config.scoring, self._config.score_top_k).tolist()
        nll, anomaly = maps.nll.cpu().numpy(), maps.anomaly.cpu().numpy()
        return [Scored(*each) for each in zip(anomaly, scores, map(background_nll, nll), strict=True)]

    def warm_up(self, batch_size: int = 1) -> None:
        """Merge the first few experts and predict once on blank images, so that the first request is not slow.

        The first request for any other product pays for reading and merging its expert. A damaged expert is an error
        only if every expert is damaged.

        Raises:
            PredictionError: no product can be scored.
        """
        warm = self.tasks[: min(WARM_EXPERTS, self._experts.limit)]
        damaged = self._experts.prepare([task.index for task in warm])
        if len(damaged) == len(self.tasks) > 0:
            raise damaged[0]
        usable = [task.name for task in warm if task.index not in damaged]
        size = self.preprocessing.image_size
        blank = [np.zeros((size, size, 3), dtype=np.uint8)] * batch_size
        for result in self.predict(blank, [usable[0] if usable else None] * batch_size)[:1]:
            if isinstance(result, Failure):
                raise result.error
            if isinstance(result, Prediction):
                result.pixel_map()  # fills the cache of resampling matrices

    def free_memory(self) -> None:
        """Drop merged experts and empty PyTorch's CUDA cache."""
        self._experts.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _at_rate(self, info: TaskInfo) -> TaskInfo:
        """``info`` with thresholds at this detector's false-alarm rate."""
        rate, calibration = self.false_alarm_rate, self._calibrations[info.index]
        return info.model_copy(
            update={
                "false_alarm_rate": rate,
                "threshold": calibration.scores.threshold(rate),
                "pixel_threshold": calibration.peaks.threshold(rate),
            }
        )

    def _shortlist(self, distances: torch.Tensor, ratios: torch.Tensor, named: Sequence[int | None]) -> list[Shortlist]:
        return shortlist(distances, ratios, self._median_distances, named)
