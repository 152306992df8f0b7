"""The detector of an exported folder: RGB images in, typed results out, without PyTorch."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.errors import CheckpointError, ExpertError, one_line
from moleflow.model.exported.folder import ExportedFolder
from moleflow.model.exported.graphs import Graph, Graphs, round_to_bfloat16
from moleflow.model.exported.manifest import expert_name
from moleflow.model.findings import Findings, Scored
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.images.value_range import Views
from moleflow.model.routing.novelty import background_nll
from moleflow.model.routing.routes import Shortlist, lower_median, nearest_products
from moleflow.model.runtime.lru import MAX_EXPERTS, WARM_EXPERTS, ExpertCache
from moleflow.model.runtime.threads import thread_count
from moleflow.model.runtime.user_cache import user_cache
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE
from moleflow.model.verdict.results import CheckpointInfo, Failure, Finding, Prediction, TaskInfo

__all__ = ["ExportedDetector"]


Features = list[np.ndarray]
"""Of all views, as an expert's graph takes them: embeddings ``(V, H, W, D)``, and pooled stages if it has a memory."""


class ExportedDetector:
    """Finds defects on every product of an exported folder, as ``moleflow.model.detector.Detector`` does for the
    checkpoint: on a CPU in float32, with the same results up to rounding. Thread-safe.

    Args:
        folder: an open folder.
        max_experts: compiled experts that are kept.
        false_alarm_rate, unknown_limit: see ``Detector``.
    """

    device, precision, engine = "cpu", "fp32", "openvino"

    def __init__(
        self,
        folder: ExportedFolder,
        *,
        max_experts: int = MAX_EXPERTS,
        false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
        unknown_limit: float = DEFAULT_UNKNOWN_LIMIT,
    ) -> None:
        self._folder, self._header = folder, folder.manifest.header
        self._findings = Findings(
            self._header.config,
            self._header.tasks,
            folder.calibrations(),
            false_alarm_rate=false_alarm_rate,
            unknown_limit=unknown_limit,
        )
        self.false_alarm_rate, self.unknown_limit = false_alarm_rate, unknown_limit
        self._graphs = Graphs(folder, thread_count(), user_cache() / "exported")
        self._embed = self._graphs.compiled("features", keep=True)
        self._router = self._graphs.compiled("router", keep=True)
        self._experts = ExpertCache(self._expert, max_experts)

    @classmethod
    def load(cls, path: Path | str, **options: float) -> Self:
        """Open a folder; ``options`` as for the class.

        Raises:
            CheckpointError, ConfigurationError: see ``moleflow.model.errors``.
        """
        return cls(ExportedFolder.open(path), **options)  # type: ignore[arg-type]

    @property
    def checkpoint(self) -> CheckpointInfo:
        """Name of the folder, and digest of its manifest."""
        return self._folder.info

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """The learned products in training order, with thresholds at this detector's false-alarm rate."""
        return self._findings.infos

    def good_scores(self, index: int) -> np.ndarray:
        """The scores of the good images that calibrate the product at ``index``, ascending, ``(n,)`` float64."""
        return self._findings.good_scores(index)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are resized and normalised."""
        return self._header.preprocessing

    def predict(
        self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None, *, refuse_unknown: bool = True
    ) -> list[Finding | Failure]:
        """Score RGB images; arguments, results and errors as ``Detector.predict``."""
        named = self._findings.named(images, [None] * len(images) if tasks is None else tasks)
        if not images:
            return []
        resized = list(map(self.preprocessing.resize, images))
        views = Views.of(resized, [each.white_level for each in self.tasks], named)
        features, routed = self._route(views, named)
        chosen = self._findings.chosen(routed, refuse_unknown=refuse_unknown)
        wanted = [(views.row(number, task), task) for number, task in enumerate(chosen) if task is not None]
        scored, failed = self._scored(features, wanted)
        results = self._findings.results(routed, chosen, iter(scored), failed, refuse_unknown=refuse_unknown)
        return [
            each if isinstance(each, Failure) else each.of_image(image, self.tasks)
            for image, each in zip(views.images, results, strict=True)
        ]

    def warm_up(self, batch_size: int = 1) -> None:
        """Compile the first few experts, and predict a batch of blank images. A damaged expert is an error only if
        every expert is damaged.

        Raises:
            PredictionError: no product can be scored.
        """
        damaged: dict[int, ExpertError] = {}
        warm = self.tasks[: min(WARM_EXPERTS, self._experts.limit)]
        for task in warm:
            try:
                self._experts.get(task.index)
            except ExpertError as error:
                damaged[task.index] = error
        if len(damaged) == len(self.tasks):
            raise damaged[0]
        name = next((task.name for task in warm if task.index not in damaged), None)
        side = self.preprocessing.image_size
        blank = np.zeros((side, side, 3), np.uint8)
        for result in self.predict([blank] * batch_size, [name] * batch_size)[:1]:
            if isinstance(result, Failure):
                raise result.error
            if isinstance(result, Prediction):
                result.pixel_map()  # fills the cache of resampling matrices

    def free_memory(self) -> None:
        """Drop compiled experts; they are compiled again on demand."""
        self._experts.clear()

    def _route(self, views: Views, named: Sequence[int | None]) -> tuple[Features, list[Shortlist]]:
        """The features of all views, and each image's nearest products, each by its own view."""
        embeddings, *stages = self._embed(np.stack(views.levels).astype(np.float32))
        features = [embeddings, *map(round_to_bfloat16, stages)]
        count, _, _, dim = embeddings.shape
        channels = np.ascontiguousarray(embeddings.reshape(count, -1, dim).swapaxes(1, 2))
        distances, ratios = self._router(lower_median(channels))
        if views.rows is not None:
            distances, ratios = (np.take_along_axis(each, views.rows, 0) for each in (distances, ratios))
        return features, nearest_products(distances, ratios, self._findings.median_distances, named)

    def _scored(
        self, features: Features, wanted: Sequence[tuple[int, int]]
    ) -> tuple[list[Scored], dict[int, ExpertError]]:
        """The numbers for each row of the features and the product that is to score it, and the errors of damaged
        experts; their numbers are NaN."""
        unscored = np.full(features[0].shape[1:3], np.nan, np.float32)
        nothing = Scored(unscored, np.nan, np.nan, unscored)
        scored, failed = [nothing] * len(wanted), {}
        members: dict[int, list[int]] = defaultdict(list)
        for place, (_, task) in enumerate(wanted):
            members[task].append(place)
        for task, places in members.items():
            try:
                expert = self._experts.get(task)
            except ExpertError as error:
                failed[task] = ExpertError(error.task, error.reason)  # a fresh one: no traceback
                continue
            rows = [wanted[place][0] for place in places]
            nll, anomaly, scores = expert(*(part[rows] for part in features))
            scored_map = nll if self._header.config.scoring.memory is None else anomaly
            numbers = anomaly, scores.tolist(), background_nll(nll).tolist(), scored_map
            for place, *each in zip(places, *numbers, strict=True):
                scored[place] = Scored(*each)
        return scored, failed

    def _expert(self, index: int) -> Graph:
        """The compiled expert of a product; only those of a warm start are kept on disk, which bounds the cache."""
        try:
            return self._graphs.compiled(expert_name(index), keep=index < WARM_EXPERTS)
        except CheckpointError as error:
            raise ExpertError(self._header.tasks[index].name, one_line(error)) from error
