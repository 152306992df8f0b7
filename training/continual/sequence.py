"""The continual trainer: learn products one after another into one checkpoint, never touching the earlier ones."""

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from moleflow.model.config import ModelConfig
from moleflow.model.errors import ConfigurationError
from moleflow.model.features.backbone import Backbone, patch_grid
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.files.exclusive import exclusive, side_file
from moleflow.model.files.outputs import check_output_folder
from moleflow.model.flow.expert import Base
from moleflow.model.runtime.device import resolve_device, resolve_precision
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.outlines import area_of
from moleflow.training.config import Preset
from moleflow.training.continual.journal import HISTORY, Journal
from moleflow.training.continual.product import ProductLearner, Shared
from moleflow.training.continual.save import LearnedProduct, save_task
from moleflow.training.data.areas import Drawings, check_areas, digest_drawings
from moleflow.training.data.datasets import Category, load_categories
from moleflow.training.data.product_folders import checked_name
from moleflow.training.data.warnings import report_warnings
from moleflow.training.embeddings.cache import EmbeddingCache
from moleflow.training.errors import DuplicateTaskError
from moleflow.training.fit.cross_fitting import FoldMaps, split
from moleflow.training.fit.resume import ResumableFit
from moleflow.training.fit.trainer import task_seed
from moleflow.training.progress import Reporter

__all__ = ["distinct_names", "train_tasks"]


def train_tasks(
    data: Path,
    tasks: Sequence[str],
    checkpoint: Path,
    *,
    preset: Preset,
    backbone_weights: Path | None = None,
    replace: bool = False,
    device: str = "auto",
    precision: str = "auto",
    cache: Path | None = None,
    areas: Drawings | None = None,
    reporter: Reporter | None = None,
    strict: bool = False,
) -> None:
    """Learn ``tasks`` from ``data`` in the order given, each written to ``checkpoint`` as soon as it is learned.

    Every image is checked before any training. An existing checkpoint is extended with its own configuration;
    ``preset.model`` and ``backbone_weights`` are for a new one. After an interruption, the same call continues where it
    stopped. Files beside the checkpoint (beside the target, if it is a link), named after it: ``.history.jsonl``
    (stays), ``.training``, ``.journal`` and ``.lock`` (until the call completes). ``cache`` is a folder that keeps
    embeddings for later calls (``moleflow.training.embeddings.cache``). Warnings about the images go to ``reporter``,
    or are an error if ``strict``.

    A product with an entry in ``areas`` is learned from that part of its images, and inspects no more. One that is
    replaced and has none is learned from the area that it inspects.

    Raises:
        DatasetError, DuplicateTaskError, ConfigurationError, BackboneError, CheckpointError, DeviceError,
        DivergenceError.

    Example:
        >>> from pathlib import Path
        >>> from moleflow.training.config import preset
        >>> quick = preset("small").with_changes(training={"epochs": 1, "folds": 1})
        >>> train_tasks(Path("data"), ["washer", "bracket"], Path("new.safetensors"), preset=quick)
        >>> [task.name for task in Checkpoint.open("new.safetensors").header.tasks]
        ['washer', 'bracket']
    """
    path = side_file(checkpoint, "")  # a link is resolved once, even if it is changed meanwhile
    tasks = distinct_names(tasks)
    check_areas(areas or {}, tasks)
    if cache is not None:
        check_output_folder("the embedding cache", cache)
    with exclusive(path):
        trainer = _ContinualTrainer(path, preset, device, precision, cache, reporter or Reporter())
        journal = trainer.resume(tasks, areas or {}, replace=replace)
        remaining = [name for name in tasks if name not in journal.done]
        trainer.check_names(remaining, replace=replace)
        categories = load_categories(data, remaining)
        warnings = [warning for each in categories for warning in each.warnings_on("training")]
        report_warnings(warnings, trainer.reporter, strict=strict)
        for category in categories:
            # Too few images are an error now, not after hours.
            split(category.name, len(category.train), preset.training)
        categories = [trainer.within_area(category, areas or {}) for category in categories]
        journal.write(trainer.journal_path)
        shared = trainer.shared_parts(backbone_weights)
        for category in categories:
            trainer.learn(category, shared, journal)
            journal.write(trainer.journal_path)
        trainer.journal_path.unlink(missing_ok=True)


def distinct_names(tasks: Sequence[str]) -> list[str]:
    """The names in normal form. ``DatasetError`` for an invalid one, ``DuplicateTaskError`` for one named twice."""
    names = [checked_name(name) for name in tasks]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DuplicateTaskError(f"task {min(repeated)!r} is named more than once; name each product once.")
    return names


class _ContinualTrainer:
    """Adds tasks to the checkpoint at ``path``, which nobody else may write meanwhile."""

    def __init__(
        self, path: Path, preset: Preset, device: str, precision: str, cache: Path | None, reporter: Reporter
    ) -> None:
        self.path, self.preset, self.cache, self.reporter = path, preset, cache, reporter
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.reporter.history = self.reporter.history or side_file(path, HISTORY)
        self.journal_path = side_file(path, ".journal")
        self.checkpoint = Checkpoint.open(path) if path.exists() else None
        self._learner = ProductLearner(
            preset.training,
            ResumableFit(side_file(path, ".training"), reporter),
            path.parent,
            device=self.device,
            precision=self.precision,
            reporter=reporter,
        )

    @property
    def known(self) -> list[str]:
        """Names of the tasks in the checkpoint, in order of learning; none before there is a file."""
        return [] if self.checkpoint is None else [task.name for task in self.checkpoint.header.tasks]

    def resume(self, tasks: Sequence[str], areas: Drawings, *, replace: bool) -> Journal:
        """The journal of this call, with what the same call has done before it was interrupted."""
        asked = f"{list(tasks)}|{replace}|{self.preset.training.model_dump_json()}"
        if areas:
            asked += f"|{digest_drawings(areas)}"
        fingerprint = hashlib.sha256(asked.encode()).hexdigest()
        earlier = Journal.find(self.journal_path)
        # A call that adds began when none of its tasks was known, so those in the checkpoint are its own work, even if
        # it was killed before it could note them. Tasks that are not there are not done, whatever was noted.
        begun: Sequence[str] = ()
        if earlier.fingerprint == fingerprint:
            begun = earlier.done if replace else tasks
        done = [name for name in begun if name in self.known]
        return Journal(fingerprint=fingerprint, done=done, folds=earlier.folds)

    def check_names(self, names: Sequence[str], *, replace: bool) -> None:
        """Refuse names that are already learned, or with ``replace`` those that cannot be replaced.

        Raises:
            DuplicateTaskError, ConfigurationError.
        """
        known = self.known
        sharing = "frozen" if self.checkpoint is None else self.checkpoint.header.config.flow.sharing
        if replace and sharing == "sequential":
            raise ConfigurationError(
                "the base of this checkpoint learns with every task (sharing: sequential), so replacing one would "
                "change every other product; train a new checkpoint instead."
            )
        for name in names:
            if replace and len(known) > 1 and name == known[0] and sharing != "separated":
                raise ConfigurationError(
                    f"task {name!r} was learned first and the base with it, so replacing it would change every other "
                    "product; train a new checkpoint instead."
                )
            if name in known and not replace:
                raise DuplicateTaskError(
                    f"product {name!r} was learned already into {str(self.path)!r}; retrain it with --replace, leave "
                    "it out, or give the old one another name with `moleflow rename`."
                )
            if replace and name not in known:
                raise ConfigurationError(
                    f"there is no product {name!r} to replace in {str(self.path)!r}; leave out --replace to add it."
                )

    def within_area(self, category: Category, areas: Drawings) -> Category:
        """The category with the area to learn it from. Raises ``TaskError`` if that has too few patches, or all."""
        config = self.preset.model if self.checkpoint is None else self.checkpoint.header.config
        area = None
        if category.name in areas:
            drawing = areas[category.name]
            if drawing is not None:
                area = area_of(drawing, patch_grid(config.backbone), config.score_top_k)
        elif self.checkpoint is not None and category.name in self.known:
            kept = self.checkpoint.header.task(category.name).inspected_area
            area = kept and kept.model_copy(update={"calibration_images": None})
        if area is not None:
            self.reporter.line(f"{category.name}: is learned from {area.fraction:.0%} of its images, its area")
        return dataclasses.replace(category, area=area)

    def shared_parts(self, backbone_weights: Path | None) -> Shared:
        """Backbone and base: from the checkpoint if there is one, else new.

        Raises:
            BackboneError, CheckpointError.
        """
        if self.checkpoint is not None:
            config, backbone = self.checkpoint.header.config, self.checkpoint.backbone()
            base = self.checkpoint.base()
        else:
            config = self.preset.model
            backbone = Backbone.pretrained(config.backbone, backbone_weights)
            base = self._new_base(config)
        features = FeatureExtractor.for_prediction(config, backbone, self.precision).to(self.device)
        cache = self.cache and EmbeddingCache.open(
            self.cache, config.backbone, backbone, device=self.device, precision=self.precision
        )
        return Shared(config, backbone, features, base.to(self.device), cache or None)

    def _new_base(self, config: ModelConfig) -> Base:
        """An untrained base. Its seed depends on the run alone, so that it is the same for every task."""
        return Base(config, seed=task_seed(self.preset.training.seed, "", "base"))

    def learn(self, category: Category, shared: Shared, journal: Journal) -> None:
        """Learn one product and write the checkpoint with it; an interrupted fit is continued.

        Raises:
            DatasetError, CheckpointError, DivergenceError.
        """
        started = time.perf_counter()
        known = self.known
        index = known.index(category.name) if category.name in known else len(known)
        base_sha256 = ""
        if self.checkpoint is not None:
            base_sha256 = self.checkpoint.header.base_sha256
            if shared.config.flow.starts_base(index):
                shared = dataclasses.replace(shared, base=self._new_base(shared.config).to(self.device))

        def keep_folds(folds: FoldMaps) -> None:
            journal.folds = folds
            journal.write(self.journal_path)

        learned = self._learner.learn(category, index, shared, base_sha256, journal.folds, keep_folds)
        parts = shared.config, shared.backbone, shared.base
        self.checkpoint = save_task(self.path, self.checkpoint, self.preset.name, *parts, learned)
        self._learner.fitting.forget()
        journal.done.append(category.name)
        journal.folds = None
        self._report(learned, time.perf_counter() - started)

    def _report(self, learned: LearnedProduct, seconds: float) -> None:
        info, size = learned.info, self.path.stat().st_size
        how = "held-out" if info.folds == 1 else "cross-fitted"
        self.reporter.line(
            f"{info.name}: learned from {info.train_images} images in {seconds:.0f} s, threshold "
            f"{info.threshold:.1f} from {info.held_out_images} {how}; {self.path.name} is {size / 1e6:.1f} MB"
        )
        tensors = [*learned.profile.values(), *learned.expert.values()]
        self.reporter.record(
            "task",
            name=info.name,
            seconds=round(seconds, 1),
            images=info.train_images,
            epochs=info.epochs,
            threshold=info.threshold,
            task_bytes=sum(value.numel() * value.element_size() for value in tensors),
            checkpoint_bytes=size,
        )
