"""Learning on a Ray cluster: the first product here, since its base is every other's, then one task per product.

The driver, which runs this, is the only one that writes the checkpoint. Beside it, in ``CHECKPOINT.ray``, lie learned
products and the states of unfinished ones, until all are put together; the same call goes on from them.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from moleflow.cluster.connection import Share, connected, nodes_without
from moleflow.cluster.keeper import FOLDS, STATE, Keeper
from moleflow.cluster.orders import Orders
from moleflow.cluster.work import Work
from moleflow.cluster.worker import Order, Outcome, SharedState, learn
from moleflow.model.errors import ConfigurationError, describe
from moleflow.model.files.exclusive import exclusive, side_file
from moleflow.model.images.decode import MAX_PIXELS
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.merging import StoredProduct, allow_open_files
from moleflow.training.config import Preset
from moleflow.training.continual.journal import HISTORY
from moleflow.training.continual.sequence import distinct_names, train_tasks
from moleflow.training.data.areas import Drawings, check_areas, digest_drawings
from moleflow.training.data.datasets import Category
from moleflow.training.errors import DatasetError, DuplicateTaskError
from moleflow.training.progress import Reporter

__all__ = ["RETRIES", "ClusterOptions", "train_on_ray"]

RETRIES = 3
"""How often a product is tried again whose worker or node died; if its images kill every worker, it fails alone."""

_LOOK_SECONDS = 0.5
"""Time between two looks at messages of workers."""

_WAITING_PER_SLOT = 2
"""Products given to Ray for each worker that fits into the cluster: the next one starts at once, and a cluster that can
grow is asked to."""

_MOST_LISTED = 10
"""Products that the final error describes; the others are counted, and all are in the output above."""


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where to learn: the address of Ray, what each worker takes of its node, and how images get there.

    With ``ship_images`` they are sent through Ray's object store; else all nodes see the folder of the data.
    """

    address: str
    share: Share
    ship_images: bool = False


def train_on_ray(
    data: Path,
    tasks: Sequence[str],
    checkpoint: Path,
    *,
    cluster: ClusterOptions,
    preset: Preset,
    backbone_weights: Path | None = None,
    plugin: str | None = None,
    max_pixels: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    cache: Path | None = None,
    areas: Drawings | None = None,
    reporter: Reporter | None = None,
    strict: bool = False,
) -> None:
    """Learn ``tasks`` as ``train_tasks`` does, with the same result, but every product beside the others.

    A product that cannot be learned fails alone: it is named at the end, and all others are in the checkpoint. After an
    interruption, and after the images of such products were corrected, the same call goes on.

    Raises:
        DatasetError: products were not learned.
        DuplicateTaskError, ConfigurationError, BackboneError, CheckpointError, DeviceError, DivergenceError: as
            ``train_tasks``, before anything is learned or with the first product; or something is wrong with a node.
    """
    path, names, reporter = side_file(checkpoint, ""), distinct_names(tasks), reporter or Reporter()
    areas = areas or {}
    check_areas(areas, names)
    reporter.history = reporter.history or side_file(path, HISTORY)
    _check_sharing(path, preset)
    work = Work(path, f"{names}|{preset.training.model_dump_json()}|{digest_drawings(areas)}")
    if not work.begun:
        _check_new(path, names)
    work.begin()
    if not path.exists():
        train_tasks(
            data,
            names[:1],
            path,
            preset=preset,
            backbone_weights=backbone_weights,
            device=device,
            precision=precision,
            cache=cache,
            areas={name: areas[name] for name in names[:1] if name in areas},
            reporter=reporter,
            strict=strict,
        )
    with exclusive(path):
        old = Checkpoint.open(path)
        known = {task.name for task in old.header.tasks}
        left = [name for name in names if name not in known]
        with connected(cluster.address):
            template = Order(
                key="",
                name="",
                data=data.resolve(),
                area=None,
                warnings=(),
                training=preset.training,
                base_sha256=old.header.base_sha256,
                device=cluster.share.device(device),
                precision=precision,
                threads=cluster.share.threads,
                plugin=plugin,
                max_pixels=max_pixels or MAX_PIXELS,
                cache=cache and cache.resolve(),
                strict=strict,
            )
            run = _Run(work, Orders(old.header, areas, template), cluster, old, reporter)
            run.learn(left)
        work.assemble(old, [run.done[name] for name in left if name in run.done])
    work.end(complete=not run.failed)
    size = path.stat().st_size / 1e6
    reporter.line(f"{path.name} ({size:.1f} MB) has {len(known) + len(run.done):,} products")
    if run.failed:
        raise DatasetError(_summary(run.failed, len(names), path))


def _check_sharing(path: Path, preset: Preset) -> None:
    config = Checkpoint.open(path).header.config if path.exists() else preset.model
    if config.flow.sharing != "frozen":
        raise ConfigurationError(
            f"products with sharing: {config.flow.sharing} cannot be learned beside each other; leave out --ray."
        )


def _check_new(path: Path, names: Sequence[str]) -> None:
    known = {task.name for task in Checkpoint.open(path).header.tasks} if path.exists() else set()
    for name in names:
        if name in known:
            raise DuplicateTaskError(
                f"product {name!r} was learned already into {str(path)!r}; leave it out, retrain it with --replace and "
                "without --ray, or give the old one another name with `moleflow rename`."
            )


def _summary(failed: dict[str, str], count: int, path: Path) -> str:
    listed = " ".join(f"({name}) {text}" for name, text in list(failed.items())[:_MOST_LISTED])
    more = f" And {len(failed) - _MOST_LISTED} more." if len(failed) > _MOST_LISTED else ""
    return (
        f"{len(failed):,} of {count:,} products were not learned; all others are in {str(path)!r}. {listed}{more} "
        "Correct their images and give the same command again."
    )


class _Run:
    """Gives orders to Ray and collects the products; ``done`` and ``failed`` are by name."""

    def __init__(
        self, work: Work, orders: Orders, cluster: ClusterOptions, checkpoint: Checkpoint, reporter: Reporter
    ) -> None:
        self._work, self._orders, self._reporter = work, orders, reporter
        self._share, self._ships_images = cluster.share, cluster.ship_images
        self.done: dict[str, StoredProduct] = {}
        self.failed: dict[str, str] = {}
        self._pending: dict[Any, tuple[Order, int]] = {}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._keeper = ray.remote(Keeper).options(num_cpus=0, scheduling_strategy=here).remote(work.folder)
        self._learn = ray.remote(learn).options(
            num_cpus=self._share.cpus, num_gpus=self._share.gpus, max_retries=RETRIES, retry_exceptions=False
        )
        header = checkpoint.header
        parts = (checkpoint.section(name) for name in ("backbone", "base"))
        self._shared = ray.put(SharedState(header.config, header.preprocessing, *parts))

    def learn(self, names: Sequence[str]) -> None:
        """Learn all products of these ``names`` that are not done yet.

        Raises:
            ConfigurationError: something is wrong with a node or with the options; what was learned is kept.
        """
        allow_open_files(len(names))
        waiting = deque(self._open(names))
        if waiting and nodes_without(self._share):
            self._reporter.warn(
                f"no node has {self._share.cpus:g} processors and {self._share.gpus:g} GPUs; waits until one joins "
                "(--worker-cpus, --worker-gpus)"
            )
        images = sum(len(category.train) for _, category in waiting)
        with self._reporter.phase(f"{len(waiting):,} products", images) as bar:
            while waiting or self._pending:
                while waiting and len(self._pending) < self._window():
                    self._submit(*waiting.popleft())
                ready, _ = ray.wait(list(self._pending), timeout=_LOOK_SECONDS)
                self._relay()
                for reference in ready:
                    order, images = self._pending.pop(reference)
                    self._collect(order, reference, len(names))
                    bar.advance(images)

    def _open(self, names: Sequence[str]) -> Iterator[tuple[Order, Category]]:
        """The orders of all products that are not done."""
        for name in names:
            try:
                category = self._orders.find(name)
            except DatasetError as error:
                self._fail(name, str(error))
                continue
            order = self._orders.make(category)
            stored = self._work.find(order.key)
            if stored is None:
                yield order, category
            else:
                self.done[name] = stored
        if self.done:
            self._reporter.line(f"{len(self.done):,} products were learned before and are kept")

    def _window(self) -> int:
        """How many products Ray may have at a time."""
        return _WAITING_PER_SLOT * max(self._share.slots(ray.cluster_resources()), 1)

    def _submit(self, order: Order, category: Category) -> None:
        images = None
        if self._ships_images:
            images = ray.put({path.name: path.read_bytes() for path in category.train})
        reference = self._learn.remote(order, self._shared, images, self._keeper)
        self._pending[reference] = order, len(category.train)

    def _relay(self) -> None:
        """Show and record what workers said."""
        for message in ray.get(self._keeper.heard.remote()):
            if message.kind == "line":
                self._reporter.line(message.text)
            else:
                self._reporter.record(message.text, **message.values)

    def _collect(self, order: Order, reference: Any, count: int) -> None:
        """Take the outcome of a task that has ended."""
        try:
            outcome: Outcome = ray.get(reference)
        except ray.exceptions.RayError as error:  # its worker died too often, or a defect of ours
            self._fail(order.name, f"its worker failed: {describe(error)}.")
            return
        if outcome.fatal:
            raise ConfigurationError(f"product {order.name!r} cannot be learned on {outcome.node}: {outcome.error}")
        if outcome.error:
            self._fail(order.name, outcome.error)
            return
        product = self.done[order.name] = self._work.keep(order.key, outcome.data)
        ray.get(self._keeper.forget.remote([order.key + STATE, order.key + FOLDS]))
        info = product.info
        self._reporter.line(
            f"{info.name}: learned from {info.train_images} images in {outcome.seconds:.0f} s on {outcome.node}, "
            f"threshold {info.threshold:.1f}; {len(self.done):,} of {count:,} products"
        )
        self._reporter.record(
            "task",
            name=info.name,
            seconds=round(outcome.seconds, 1),
            images=info.train_images,
            epochs=info.epochs,
            threshold=info.threshold,
            task_bytes=len(outcome.data),
        )

    def _fail(self, name: str, why: str) -> None:
        self.failed[name] = why
        self._reporter.line(f"{name}: not learned: {why}")
