"""The continual trainer: learn products one after another into one checkpoint, never touching the earlier ones."""

import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from moleflow.model.config import ModelConfig
from moleflow.model.errors import ConfigurationError, DuplicateTaskError
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.files.outputs import check_output_folder
from moleflow.model.flow.expert import Base
from moleflow.model.routing.router import Prototype, image_descriptor
from moleflow.model.runtime.device import resolve_device, resolve_precision
from moleflow.model.store.checkpoint import FORMAT_VERSION, Checkpoint, digest_tensors, expert_tensors, profile_tensors
from moleflow.model.verdict.results import TaskInfo
from moleflow.training.config import Preset
from moleflow.training.continual.journal import HISTORY, Journal, exclusive, side_file
from moleflow.training.continual.save import save_task, task_info
from moleflow.training.data.datasets import Category, load_categories
from moleflow.training.data.product_folders import checked_name
from moleflow.training.data.warnings import report_warnings
from moleflow.training.data.white_levels import Reader, find_white_level
from moleflow.training.embeddings.augment import AUGMENTATIONS, augmented_indices, descriptor_changes
from moleflow.training.embeddings.cache import EmbeddingCache, digest_image
from moleflow.training.embeddings.extraction import Embeddings, EmbeddingStore
from moleflow.training.fit.cross_fitting import HeldOutScores, cross_fit, cross_fitted_distances, score_held_out, split
from moleflow.training.fit.resume import ResumableFit
from moleflow.training.fit.trainer import TaskTrainer, task_seed
from moleflow.training.progress import Reporter

__all__ = ["ContinualTrainer", "train_tasks"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Shared:
    """The parts of a checkpoint that no later task changes, unless ``FlowConfig.sharing`` says so of the base."""

    config: ModelConfig
    backbone: Backbone
    features: FeatureExtractor
    base: Base
    cache: EmbeddingCache | None


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
    reporter: Reporter | None = None,
    strict: bool = False,
) -> None:
    """Learn ``tasks`` from ``data`` in the order given, each written to ``checkpoint`` as soon as it is learned.

    Every image is checked before any training. An existing checkpoint is added to, and its own configuration
    counts; ``preset.model`` and ``backbone_weights`` are for a new one. Given again after an interruption, the same
    call goes on where it stopped. Files beside the checkpoint (where a link leads to), with its name in front:
    ``.history.jsonl`` (stays), ``.training``, ``.folds``, ``.journal`` and ``.lock`` (until the call is through).
    ``cache`` is a folder that keeps embeddings for later calls (``moleflow.training.embeddings.cache``). What is odd
    about the images is told to ``reporter``, or an error where ``strict``.

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
    trainer = ContinualTrainer(
        checkpoint, preset, device=device, precision=precision, cache=cache, reporter=reporter or Reporter()
    )
    tasks = [checked_name(name) for name in tasks]
    repeated = {name for name in tasks if list(tasks).count(name) > 1}
    if repeated:
        raise DuplicateTaskError(f"task {min(repeated)!r} is named more than once; name each product once.")
    if cache is not None:
        check_output_folder("the embedding cache", cache)
    with exclusive(trainer.path):
        journal_path = side_file(trainer.path, ".journal")
        asked = f"{list(tasks)}|{replace}|{preset.training.model_dump_json()}"
        fingerprint = hashlib.sha256(asked.encode()).hexdigest()
        known = trainer.known()
        earlier = Journal.find(journal_path, fingerprint)
        # A call that adds began when none of its tasks was known: what is in the checkpoint now is its own work, even
        # if it was killed before it could note so. And what is not there is not done, whatever was noted.
        begun: Sequence[str] = () if earlier is None else earlier.done if replace else tasks
        journal = Journal(fingerprint=fingerprint, done=[name for name in begun if name in known])
        trainer.check_names([name for name in tasks if name not in journal.done], replace=replace)
        categories = load_categories(data, [name for name in tasks if name not in journal.done])
        warnings = [warning for each in categories for warning in each.warnings_on("training")]
        report_warnings(warnings, trainer.reporter, strict=strict)
        for category in categories:
            # Too few images are an error now, not after hours.
            split(category.name, len(category.train), preset.training)
        journal.write(journal_path)
        shared = trainer.shared_parts(backbone_weights)
        for category in categories:
            trainer.learn(category, shared)
            journal.done.append(category.name)
            journal.write(journal_path)
        journal_path.unlink(missing_ok=True)


class ContinualTrainer:
    """Adds tasks to one checkpoint file."""

    def __init__(
        self,
        path: Path,
        preset: Preset,
        *,
        device: str,
        precision: str,
        reporter: Reporter,
        cache: Path | None = None,
    ) -> None:
        # Where a link leads to now is where everything goes, also if it is led elsewhere meanwhile.
        self.path = side_file(path, "")
        self.preset, self.training, self.reporter = preset, preset.training, reporter
        self.cache = cache
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.reporter.history = self.reporter.history or side_file(self.path, HISTORY)
        self._state_path, self._folds_path = side_file(self.path, ".training"), side_file(self.path, ".folds")

    def known(self) -> list[str]:
        """Names of the tasks in the checkpoint, in order of learning; none while there is no file."""
        return [task.name for task in Checkpoint.open(self.path).header.tasks] if self.path.exists() else []

    def check_names(self, names: Sequence[str], *, replace: bool) -> None:
        """Refuse names that were learned already, unless they are to be replaced and are not the first.

        Raises:
            DuplicateTaskError, ConfigurationError, UnknownTaskError.
        """
        known = self.known()
        sharing = Checkpoint.open(self.path).header.config.flow.sharing if known else "frozen"
        if replace and sharing == "sequential":
            raise ConfigurationError(
                "the base of this checkpoint learns with every task (sharing: sequential), so replacing one would "
                "change every other product; train a new checkpoint instead."
            )
        for name in names:
            if replace and known and name == known[0] and sharing != "separated":
                raise ConfigurationError(
                    f"task {name!r} was learned first and the base with it, so replacing it would change every other "
                    "product; train a new checkpoint instead."
                )
            if name in known and not replace:
                raise DuplicateTaskError(
                    f"product {name!r} was learned already into {str(self.path)!r}; retrain it with --replace, or "
                    "leave it out."
                )
            if replace and name not in known:
                raise ConfigurationError(
                    f"there is no product {name!r} to replace in {str(self.path)!r}; leave out --replace to add it."
                )

    def shared_parts(self, backbone_weights: Path | None) -> _Shared:
        """Backbone and base: from the checkpoint where there is one, else new.

        Raises:
            BackboneError, CheckpointError.
        """
        if self.path.exists():
            checkpoint = Checkpoint.open(self.path)
            config, backbone, base = checkpoint.header.config, checkpoint.backbone(), checkpoint.base()
        else:
            config = self.preset.model
            backbone = Backbone.pretrained(config.backbone, backbone_weights)
            base = self._new_base(config)
        features = FeatureExtractor.for_prediction(config, backbone, self.precision).to(self.device)
        cache = self.cache and EmbeddingCache.open(
            self.cache, config.backbone, backbone, device=self.device, precision=self.precision
        )
        return _Shared(config, backbone, features, base.to(self.device), cache or None)

    def _new_base(self, config: ModelConfig) -> Base:
        """A base as it is before the first task; its seed is the run's alone, so that it is the same for every task."""
        return Base(config, seed=task_seed(self.training.seed, "", "base"))

    def learn(self, category: Category, shared: _Shared) -> TaskInfo:
        """Learn one product and write the checkpoint with it. An interrupted fit is continued.

        Raises:
            DatasetError: too few good images, or one became unreadable.
        """
        started = time.perf_counter()
        index = self._index_of(category.name)
        first = shared.config.flow.starts_base(index)
        if first and self.path.exists():
            shared = dataclasses.replace(shared, base=self._new_base(shared.config).to(self.device))
        white = find_white_level(category.name, category.train, shared.backbone.preprocessing, self.reporter.line)
        fingerprint = self._fingerprint(category, shared, white)
        parts = split(category.name, len(category.train), self.training)
        fitting = ResumableFit(self._state_path, self.reporter)
        make_trainer = functools.partial(self._trainer, shared.config, first)
        with self._embed(category, shared, white) as store:
            held_out = HeldOutScores()
            if parts.is_cross_fitted:
                self.reporter.line(
                    f"{category.name}: cross-fits its {len(store)} images in {len(parts.folds)} folds to calibrate"
                )
                held_out = cross_fit(
                    category.name, store, parts.folds, make_trainer, shared.base, shared.config, fitting,
                    self._folds_path, fingerprint,
                )  # fmt: skip
            trainer = make_trainer(category.name, shared.base)
            fitting.run(trainer, store.subset(parts.fit), fingerprint)
            shared.base.requires_grad_(False)
            trainer.expert.requires_grad_(False)
            if not parts.is_cross_fitted:
                held_out = score_held_out(trainer, store.subset(parts.folds[0]), shared.config)
            every = torch.arange(len(store))
            descriptors = torch.cat([image_descriptor(store.batch(part, _CPU)) for part in every.split(64)])
        with self.reporter.phase(
            f"{category.name}: altered images for the router",
            len(AUGMENTATIONS) * len(augmented_indices(len(category.train))),
        ) as phase:
            changes = descriptor_changes(
                shared.features, category.train, descriptors, Reader(white), device=self.device,
                precision=self.precision, on_progress=phase.advance,
            )  # fmt: skip
        prototype = Prototype.fit(descriptors, shared.config.router, changes)
        values = {
            "scores": torch.tensor(held_out.scores),
            "peaks": torch.tensor(held_out.peaks),
            "grounds": torch.tensor(held_out.grounds),
            "distances": cross_fitted_distances(descriptors, shared.config.router),
        }
        profile = profile_tensors(prototype, values)
        own_base = shared.base if shared.config.flow.sharing == "separated" else None
        expert = expert_tensors(trainer.expert, shared.config.expert_dtype, own_base)
        info = task_info(category.name, index, parts, self.training, values, profile, expert, white)
        save_task(self.path, self.preset.name, shared.config, shared.backbone, shared.base, info, profile, expert)
        fitting.forget()
        self._folds_path.unlink(missing_ok=True)
        self._report(info, [*profile.values(), *expert.values()], time.perf_counter() - started)
        return info

    def _trainer(self, config: ModelConfig, first: bool, name: str, base: Base) -> TaskTrainer:
        return TaskTrainer(name, config, self.training, base, first=first, device=self.device, precision=self.precision)

    def _report(self, info: TaskInfo, tensors: Sequence[torch.Tensor], seconds: float) -> None:
        size = self.path.stat().st_size
        how = "held-out" if info.folds == 1 else "cross-fitted"
        self.reporter.line(
            f"{info.name}: learned from {info.train_images} images in {seconds:.0f} s, threshold "
            f"{info.threshold:.1f} from {info.held_out_images} {how}; {self.path.name} is {size / 1e6:.1f} MB"
        )
        added = sum(value.numel() * value.element_size() for value in tensors)
        self.reporter.record(
            "task", name=info.name, seconds=round(seconds, 1), images=info.train_images, epochs=info.epochs,
            threshold=info.threshold, task_bytes=added, checkpoint_bytes=size,
        )  # fmt: skip

    def _index_of(self, name: str) -> int:
        known = self.known()
        return known.index(name) if name in known else len(known)

    def _fingerprint(self, category: Category, shared: _Shared, white_level: int | None) -> str:
        """Of everything that what is kept of an unfinished task depends on, by content."""
        digest = hashlib.sha256()
        base = "" if not self.path.exists() else Checkpoint.open(self.path).header.base_sha256
        for part in (
            FORMAT_VERSION,  # an older program kept other figures of its folds
            category.name,
            shared.config.model_dump_json(),
            self.training.model_dump_json(),
            base,
            self.precision,
            white_level,
        ):
            digest.update(f"{part}\n".encode())
        digest.update(digest_tensors(shared.backbone.net.state_dict()).encode())
        for path in category.train:
            digest.update(os.fsencode(path.name) + bytes.fromhex(digest_image(path)))
        return digest.hexdigest()

    def _embed(self, category: Category, shared: _Shared, white_level: int | None) -> Embeddings:
        with self.reporter.phase(f"{category.name}: embeddings", len(category.train)) as phase:
            if shared.cache is not None:
                return shared.cache.embed(
                    shared.features, category.train, Reader(white_level), device=self.device, precision=self.precision,
                    white_level=white_level, on_progress=phase.advance,
                )  # fmt: skip
            return EmbeddingStore.compute(
                shared.features, category.train, Reader(white_level), device=self.device, precision=self.precision,
                folder=self.path.parent, on_progress=phase.advance,
            )  # fmt: skip
