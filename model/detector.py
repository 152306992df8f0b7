"""The detector: RGB images in, typed results out, on CPU or CUDA."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self, overload

import numpy as np
import torch

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT, ModelConfig
from moleflow.model.engines import Engine, openvino_engine, torch_engine
from moleflow.model.features.backbone import import_plugin
from moleflow.model.features.extractor import stack_images
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.images.value_range import Views
from moleflow.model.products import Products
from moleflow.model.routing.routes import Shortlist
from moleflow.model.runtime.conversion import cache_folder
from moleflow.model.runtime.device import resolve_device, resolve_engine, resolve_precision
from moleflow.model.runtime.faults import freeing_memory
from moleflow.model.runtime.graphs import Captured
from moleflow.model.runtime.lru import MAX_EXPERTS, WARM_EXPERTS
from moleflow.model.store.checkpoint import Checkpoint, Header
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE
from moleflow.model.verdict.results import CheckpointInfo, Failure, Finding, Prediction, TaskInfo

__all__ = ["Detector"]


class Detector:
    """Finds defects on every product in a checkpoint.

    The backbone runs once per batch and the router reads the same features. Images of one product then go through its
    expert together; on a CPU, images run in parallel. Methods keep no per-call state, so several threads may predict
    at once.

    Args:
        checkpoint: an open checkpoint.
        device, precision, engine: see ``moleflow.model.runtime.device``.
        max_experts: merged experts kept on the device.
        false_alarm_rate: fraction of good images that may be called anomalous, in (0, 1).
        unknown_limit: images with a higher novelty score (``moleflow.model.routing.novelty``) are refused as an
            unknown product; 0 refuses nothing.
        previous: a detector that this one replaces. Its backbone and merged experts are used where they are the same;
            it may be in use meanwhile, and afterwards.

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

    products: Products
    _computes: Engine
    _checkpoint: Checkpoint

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "torch",
        max_experts: int = MAX_EXPERTS,
        false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
        unknown_limit: float = DEFAULT_UNKNOWN_LIMIT,
        previous: Self | None = None,
    ) -> None:
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.engine, self._maps = resolve_engine(engine, self.device, self.precision), engine == "openvino"
        self._threads = torch.get_num_threads()
        if previous is not None:
            # A new thread has a number of its own, and merging with another one could change the last digits.
            self._threads = previous._threads
            torch.set_num_threads(self._threads)
            previous = previous if self._computes_as(previous) else None
        if previous is not None and _see_alike(checkpoint.header, previous._checkpoint.header):
            self._computes = previous._computes
        elif self.engine == "openvino":
            self._computes = openvino_engine(checkpoint, cache_folder(), maps=self._maps)
        else:
            self._computes = torch_engine(checkpoint, self.device, self.precision)
        self.products = Products(
            checkpoint,
            self.device,
            self.precision,
            max_experts=max_experts,
            false_alarm_rate=false_alarm_rate,
            unknown_limit=unknown_limit,
            scorer=self._computes.scorer,
            previous=None if previous is None else previous.products,
        )
        self.false_alarm_rate, self.unknown_limit = false_alarm_rate, unknown_limit
        self._checkpoint = checkpoint
        # Not a method, whose reference to the detector would keep its memory until a garbage collection.
        self._embedded = Captured(functools.partial(_embed, self._computes.features, self.products), self.device)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "torch",
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
            engine=engine,
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
        return self.products.infos

    def good_scores(self, index: int) -> np.ndarray:
        """The scores of the good images that calibrate the product at ``index``, ascending, ``(n,)`` float64."""
        return self.products.findings.good_scores(index)

    @property
    def config(self) -> ModelConfig:
        """The checkpoint's configuration."""
        return self._checkpoint.header.config

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
            RuntimeError, MemoryError: memory ran out (``moleflow.model.runtime.faults``); a smaller batch may succeed,
                since what was made for this one is freed.
        """
        named = self.products.findings.named(images, [None] * len(images) if tasks is None else tasks)
        if not images:
            return []
        with torch.inference_mode(), freeing_memory(self.free_memory):
            views, features, routed = self._route(images, named, seen_by=named)
            results = self.products.find(features, routed, views.row, refuse_unknown=refuse_unknown)
        return [
            each if isinstance(each, Failure) else each.of_image(image, self.tasks)
            for image, each in zip(views.images, results, strict=True)
        ]

    def predict_both(self, images: Sequence[np.ndarray], tasks: Sequence[str]) -> list[tuple[Prediction, Prediction]]:
        """Each image as routed, and with its true product ``tasks[i]`` named; for evaluation.

        Nothing is refused. The backbone runs once; where an image is routed to its true product, both results are the
        same object.

        Raises:
            UnknownTaskError: a name in ``tasks`` was not learned.
        """
        named = self.products.findings.named(images, tasks)
        if not images:
            return []
        with torch.inference_mode(), freeing_memory(self.free_memory):
            views, features, routed = self._route(images, named, seen_by=[None] * len(images))
            pairs = self.products.find_both(features, routed, views.row)
        results = []
        for image, (routed_result, named_result) in zip(views.images, pairs, strict=True):
            result = routed_result.of_image(image, self.tasks)
            again = result if named_result is routed_result else named_result.of_image(image, self.tasks)
            results.append((result, again))
        return results

    def _route(
        self, images: Sequence[np.ndarray], named: Sequence[int | None], *, seen_by: Sequence[int | None]
    ) -> tuple[Views, PatchFeatures, list[Shortlist]]:
        """The views of the images, the features of all views, and each image's nearest products, each by its own view.

        ``named`` are the products that the caller named, ``seen_by`` those that alone see an image.
        """
        resized = list(map(self.preprocessing.resize, images))
        views = Views.of(resized, [each.white_level for each in self.tasks], seen_by)
        batch = stack_images(views.levels, self.preprocessing.resize, self.device)
        features, distances, ratios = self.embed_and_route(batch)
        if views.rows is not None:
            rows = torch.from_numpy(views.rows).to(self.device, non_blocking=True)
            distances, ratios = distances.gather(0, rows), ratios.gather(0, rows)
        return views, features, self.products.shortlist(distances, ratios, named)

    def embed_and_route(self, batch: torch.Tensor) -> tuple[PatchFeatures, torch.Tensor, torch.Tensor]:
        """``(B, S, S, 3)`` in 0…255 on the device to features, distances and distance ratios ``(B, T)``.
        Asynchronous on CUDA."""
        distances, ratios, embeddings, *stages = self._embedded(batch)
        return PatchFeatures(embeddings, tuple(stages)), distances, ratios

    def _computes_as(self, other: Self) -> bool:
        mine = self.device, self.precision, self.engine, self._maps
        return mine == (other.device, other.precision, other.engine, other._maps)

    def warm_up(self, batch_size: int = 1) -> None:
        """Merge the first few experts and predict on blank images, so that the first request is not slow; on a GPU
        with every batch size that is recorded, up to ``batch_size``.

        The first request for any other product pays for reading and merging its expert. A damaged expert is an error
        only if every expert is damaged.

        Raises:
            PredictionError: no product can be scored.
        """
        warm = self.tasks[: min(WARM_EXPERTS, self.products.experts.limit)]
        damaged = self.products.experts.prepare([task.index for task in warm])
        if len(damaged) == len(self.tasks) > 0:
            raise damaged[0]
        usable = [task.name for task in warm if task.index not in damaged]
        side, name = self.preprocessing.image_size, usable[0] if usable else None
        blank = np.zeros((side, side, 3), dtype=np.uint8)
        for size in self._embedded.sizes(batch_size):
            result = self.predict([blank] * size, [name] * size)[0]
            if isinstance(result, Failure):
                raise result.error
            if isinstance(result, Prediction):
                result.pixel_map()  # fills the cache of resampling matrices

    def free_memory(self) -> None:
        """Drop merged experts and recorded graphs, and empty PyTorch's CUDA cache."""
        self.products.experts.clear()
        self._embedded.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _embed(
    extract: Callable[[torch.Tensor], PatchFeatures], products: Products, batch: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Distances, distance ratios and the parts of the features, in one recorded graph on a GPU."""
    features = extract(batch)
    return *products.route(features.embeddings), features.embeddings, *features.stages


def _see_alike(header: Header, other: Header) -> bool:
    """Whether two checkpoints compute the same features."""
    same = header.config == other.config and header.preprocessing == other.preprocessing
    return same and header.backbone_sha256 == other.backbone_sha256
