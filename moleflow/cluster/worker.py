"""A worker: learns one product as the continual trainer does, on whatever node Ray chose."""

import io
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from rich.console import Console

import moleflow
from moleflow.cluster.keeper import FOLDS, STATE, Message
from moleflow.cluster.product_files import product_bytes
from moleflow.model.config import ModelConfig
from moleflow.model.errors import ConfigurationError, MoLEFlowError
from moleflow.model.features.backbone import Backbone, import_plugin
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.flow.expert import Base
from moleflow.model.images.decode import limit_pixels
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.runtime.device import resolve_device, resolve_precision
from moleflow.model.runtime.threads import configure_threads
from moleflow.model.verdict.area import Area
from moleflow.training.config import TrainingConfig
from moleflow.training.continual.product import ProductLearner, Shared
from moleflow.training.data.datasets import load_category
from moleflow.training.data.warnings import DataWarning, report_warnings
from moleflow.training.embeddings.cache import EmbeddingCache
from moleflow.training.errors import DatasetError, DivergenceError
from moleflow.training.fit.cross_fitting import FoldMaps
from moleflow.training.fit.resume import ResumableFit
from moleflow.training.fit.trainer import TaskTrainer
from moleflow.training.progress import Reporter

__all__ = ["Order", "Outcome", "SharedState", "learn"]


@dataclass(frozen=True, slots=True)
class Order:
    """A product to learn, and how. ``key`` names its files at the keeper; ``warnings`` are those of listing its files.

    ``data`` must exist on the worker's node, unless the images come with the order.
    """

    key: str
    name: str
    data: Path
    area: Area | None
    warnings: tuple[DataWarning, ...]
    training: TrainingConfig
    base_sha256: str
    device: str
    precision: str
    threads: int
    plugin: str | None
    max_pixels: int
    cache: Path | None
    strict: bool
    version: str = moleflow.__version__


@dataclass(frozen=True, slots=True)
class SharedState:
    """The parts of the checkpoint that every expert is learned with; ``backbone`` and ``base`` are state dicts."""

    config: ModelConfig
    preprocessing: Preprocessing
    backbone: Mapping[str, torch.Tensor]
    base: Mapping[str, torch.Tensor]


class Outcome(NamedTuple):
    """A product's file, or the error. It is ``fatal`` if other products would meet it as well."""

    node: str
    seconds: float
    data: bytes = b""
    error: str = ""
    fatal: bool = False


def learn(order: Order, shared: SharedState, images: Mapping[str, bytes] | None, keeper: Any) -> Outcome:
    """Learn a product, from its last state at the ``keeper`` if there is one. ``images`` are its files, by name.

    Only what is wrong with this product ends this call alone; errors of the node or the options are fatal for all.
    """
    started, node = time.perf_counter(), ray.util.get_node_ip_address()
    try:
        data = _Learning(order, keeper).run(shared, images)
    except (DatasetError, DivergenceError) as error:
        return Outcome(node, time.perf_counter() - started, error=str(error))
    except MoLEFlowError as error:
        return Outcome(node, time.perf_counter() - started, error=str(error), fatal=True)
    return Outcome(node, time.perf_counter() - started, data)


class _RemoteReporter(Reporter):
    """Sends what it reports to the driver."""

    def __init__(self, keeper: Any) -> None:
        super().__init__(console=Console(file=io.StringIO()))  # not a terminal, so there are lines instead of bars
        self._keeper = keeper

    def line(self, text: str) -> None:
        self._keeper.say.remote(Message("line", text, {}))

    def record(self, event: str, **values: object) -> None:
        self._keeper.say.remote(Message("event", event, values))


class _KeptFit(ResumableFit):
    """Runs fits whose state is handed to the keeper after every epoch, beginning with the one that is there."""

    def __init__(self, key: str, path: Path, reporter: Reporter, keeper: Any) -> None:
        super().__init__(path, reporter)
        self._name, self._keeper = key + STATE, keeper
        stored = ray.get(keeper.find.remote(self._name))
        if stored is not None:
            path.write_bytes(stored)

    def save(self, trainer: TaskTrainer, fingerprint: str) -> None:
        super().save(trainer, fingerprint)
        ray.get(self._keeper.keep.remote(self._name, self.state_path.read_bytes()))


class _Learning:
    """One call of ``learn``."""

    def __init__(self, order: Order, keeper: Any) -> None:
        self._order, self._keeper, self._reporter = order, keeper, _RemoteReporter(keeper)

    def run(self, shared: SharedState, images: Mapping[str, bytes] | None) -> bytes:
        """The file of the learned product."""
        order = self._order
        self._reporter.line(f"{order.name}: on {ray.util.get_node_ip_address()}")
        if order.version != moleflow.__version__:
            raise ConfigurationError(
                f"MoLE-Flow is {moleflow.__version__} on this node and {order.version} on the driver's; install one "
                "version on all nodes."
            )
        configure_threads(order.threads)
        limit_pixels(order.max_pixels)
        device = resolve_device(order.device)
        precision = resolve_precision(order.precision, device)
        with tempfile.TemporaryDirectory(prefix="moleflow.") as name:
            folder = Path(name)
            category = load_category(self._data(folder, images), order.name)
            warnings = dict.fromkeys([*order.warnings, *category.warnings_on("training")])
            report_warnings(warnings, self._reporter, strict=order.strict)
            if order.area is not None:
                self._reporter.line(f"{order.name}: is learned from {order.area.fraction:.0%} of its images, its area")
            category = replace(category, area=order.area)
            parts = _shared_parts(shared, order, device, precision)
            learner = ProductLearner(
                order.training,
                _KeptFit(order.key, folder / "state", self._reporter, self._keeper),
                folder,
                device=device,
                precision=precision,
                reporter=self._reporter,
            )
            stored = ray.get(self._keeper.find.remote(order.key + FOLDS))
            folds = None if stored is None else FoldMaps.model_validate_json(stored)
            # Any index but the first: the driver numbers the products.
            return product_bytes(learner.learn(category, 1, parts, order.base_sha256, folds, self._keep_folds))

    def _keep_folds(self, folds: FoldMaps) -> None:
        ray.get(self._keeper.keep.remote(self._order.key + FOLDS, folds.model_dump_json().encode()))

    def _data(self, folder: Path, images: Mapping[str, bytes] | None) -> Path:
        """The folder of products: the shared one, or a new one with the ``images`` of this product."""
        if images is None:
            if not self._order.data.is_dir():
                raise ConfigurationError(
                    f"this node does not see {str(self._order.data)!r}; put the data on storage that all nodes mount "
                    "at this path, or send the images along (--ship-images)."
                )
            return self._order.data
        product = folder / "data" / self._order.name
        product.mkdir(parents=True)
        for name, data in images.items():
            (product / name).write_bytes(data)
        return product.parent


_loaded: dict[tuple[str, str, str], Shared] = {}
"""Of this process, which learns one product after another: the shared parts by base, device and precision."""


def _shared_parts(state: SharedState, order: Order, device: torch.device, precision: str) -> Shared:
    """Backbone and base on the device, made once in a process."""
    key = order.base_sha256, str(device), precision
    if key not in _loaded:
        if order.plugin:
            import_plugin(order.plugin)
        backbone, base = Backbone.empty(state.config.backbone, state.preprocessing), Base(state.config)
        backbone.net.load_state_dict(state.backbone)
        base.load_state_dict(state.base)
        features = FeatureExtractor.for_prediction(state.config, backbone, precision).to(device)
        cache = order.cache and EmbeddingCache.open(
            order.cache, state.config.backbone, backbone, device=device, precision=precision
        )
        _loaded.clear()
        _loaded[key] = Shared(state.config, backbone, features, base.requires_grad_(False).to(device), cache or None)
    return _loaded[key]
