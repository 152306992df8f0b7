"""Learn one product: embed its images, fit and calibrate its expert, and describe the product to the router."""

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from moleflow.model.config import ModelConfig
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.flow.expert import Base
from moleflow.model.memory.scorer import ProductParts
from moleflow.model.routing.router import Prototype, image_descriptor
from moleflow.model.store.checkpoint import FORMAT_VERSION
from moleflow.model.store.sections import digest_tensors, expert_tensors, profile_tensors
from moleflow.training.config import TrainingConfig
from moleflow.training.continual.save import LearnedProduct, task_info
from moleflow.training.data.datasets import Category
from moleflow.training.data.white_levels import Reader, find_white_level
from moleflow.training.embeddings.alterations import AlteredReader
from moleflow.training.embeddings.augment import AUGMENTATIONS, augmented_indices, descriptor_changes
from moleflow.training.embeddings.cache import EmbeddingCache, digest_image
from moleflow.training.embeddings.extraction import Embeddings, EmbeddingStore
from moleflow.training.fit.cross_fitting import FoldMaps, Split, cross_fit, cross_fitted_distances, split
from moleflow.training.fit.held_out import fit_fusion, held_out_scores, map_held_out, without_unused
from moleflow.training.fit.memory import FittedBank, fit_bank
from moleflow.training.fit.resume import ResumableFit
from moleflow.training.fit.trainer import TaskTrainer, fit_length, task_seed
from moleflow.training.progress import Reporter

__all__ = ["ProductLearner", "Shared"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Shared:
    """The parts of a checkpoint that all tasks use; only the base may change (``FlowConfig.sharing``)."""

    config: ModelConfig
    backbone: Backbone
    features: FeatureExtractor
    base: Base
    cache: EmbeddingCache | None


class ProductLearner:
    """Learns one product after another.

    Args:
        training: hyperparameters.
        fitting: runs the fits, and continues an interrupted one.
        folder: takes a temporary file if a product's embeddings do not fit into memory.
    """

    def __init__(
        self,
        training: TrainingConfig,
        fitting: ResumableFit,
        folder: Path,
        *,
        device: torch.device,
        precision: str,
        reporter: Reporter,
    ) -> None:
        self.training, self.fitting, self.folder = training, fitting, folder
        self.device, self.precision, self.reporter = device, precision, reporter

    def learn(
        self,
        category: Category,
        index: int,
        shared: Shared,
        base_sha256: str,
        folds: FoldMaps | None,
        keep_folds: Callable[[FoldMaps], None],
    ) -> LearnedProduct:
        """Learn ``category`` as the task at ``index``; trains ``shared.base`` where the configuration says so.

        ``base_sha256`` identifies the base of the checkpoint, empty if there is none yet. ``folds`` are those that an
        interrupted call passed to ``keep_folds``.

        Raises:
            DatasetError: too few good images, or one became unreadable.
            DivergenceError: losses, weights or scores are not finite.
        """
        config = shared.config
        first = config.flow.starts_base(index)
        white = find_white_level(category.name, category.train, shared.backbone.preprocessing, self.reporter.line)
        fingerprint = self._fingerprint(category, shared, base_sha256, white)
        parts = split(category.name, len(category.train), self.training)
        inspected = None if category.area is None else torch.from_numpy(category.area.mask)
        make_trainer = functools.partial(self._trainer, config, first, inspected)
        held_out = sorted(itertools.chain(*parts.folds))
        if folds is None or folds.fingerprint != fingerprint:
            folds = FoldMaps(fingerprint=fingerprint)
        self._plan(category, parts, len(folds.folds))
        with ExitStack() as stack:
            store = stack.enter_context(self._embed(category, shared, white))
            copies = [
                stack.enter_context(self._altered(category, held_out, shared, white, number))
                for number in range(self.training.altered_copies)
            ]
            own = store.subset(parts.fit)
            memory = self._memory(config, category.name, own, inspected)
            if parts.is_cross_fitted:
                self.reporter.line(
                    f"{category.name}: cross-fits its {len(store)} images in {len(parts.folds)} folds to calibrate"
                )
                maps = cross_fit(
                    category.name,
                    [store, *copies],
                    parts.folds,
                    make_trainer,
                    memory,
                    shared.base,
                    self.fitting,
                    folds,
                    keep_folds,
                )
            trainer = make_trainer(category.name, shared.base)
            self.fitting.run(trainer, own, fingerprint)
            shared.base.requires_grad_(False)
            trainer.expert.requires_grad_(False)
            bank = None if memory is None else memory.bank
            if not parts.is_cross_fitted:
                maps = [map_held_out(trainer, bank, images) for images in (store.subset(held_out), *copies)]
            every = torch.arange(len(store))
            descriptors = torch.cat([image_descriptor(store.batch(part, _CPU)) for part in every.split(64)])
        prototype = Prototype.fit(descriptors, config.router, self._changes(category, shared, descriptors, white))
        fusion = fit_fusion(config, maps[0], inspected)
        values = held_out_scores(config, fusion, maps[0], maps[1:], category.area)
        values["distances"] = cross_fitted_distances(descriptors, config.router)
        profile = profile_tensors(prototype, values)
        bank, fusion = without_unused(bank, fusion)
        own_base = shared.base if config.flow.sharing == "separated" else None
        expert = expert_tensors(ProductParts(trainer.expert, bank, fusion), config.expert_dtype, own_base)
        info = task_info(category.name, index, parts, self.training, trainer.epoch, values, profile, expert, white)
        return LearnedProduct(info.model_copy(update={"learned_area": category.area}), profile, expert)

    def _plan(self, category: Category, parts: Split, done: int) -> None:
        """Announce how many images will be embedded, altered ones included, and fitted to; ``done`` folds are."""
        count, held_out = len(category.train), sum(map(len, parts.folds))
        fits = [len(parts.fit)]
        if parts.is_cross_fitted:
            fits += [count - len(fold) for fold in parts.folds[done:]]
        self.reporter.plan(
            category.name,
            embed=count + self.training.altered_copies * held_out + _router_images(count),
            fit=sum(round(images * fit_length(self.training, images)) for images in fits),
        )

    def _trainer(
        self, config: ModelConfig, first: bool, inspected: torch.Tensor | None, name: str, base: Base
    ) -> TaskTrainer:
        return TaskTrainer(
            name,
            config,
            self.training,
            base,
            first=first,
            device=self.device,
            precision=self.precision,
            inspected=inspected,
        )

    def _memory(
        self, config: ModelConfig, name: str, images: Embeddings, inspected: torch.Tensor | None
    ) -> FittedBank | None:
        if config.scoring.memory is None:
            return None
        self.reporter.line(f"{name}: chooses the patches to remember")
        seed = task_seed(self.training.seed, name, "memory")
        return fit_bank(images, config.scoring.memory, seed, inspected)

    def _fingerprint(self, category: Category, shared: Shared, base_sha256: str, white_level: int | None) -> str:
        """A digest of everything that the state of an unfinished task depends on."""
        digest = hashlib.sha256()
        for part in (
            FORMAT_VERSION,  # an older program kept other scores of its folds
            category.name,
            shared.config.model_dump_json(),
            self.training.model_dump_json(),
            base_sha256,
            self.precision,
            white_level,
        ):
            digest.update(f"{part}\n".encode())
        if category.area is not None:
            digest.update(str(category.area.patches).encode())
        digest.update(digest_tensors(shared.backbone.net.state_dict()).encode())
        for path in category.train:
            digest.update(os.fsencode(path.name) + bytes.fromhex(digest_image(path)))
        return digest.hexdigest()

    def _embed(self, category: Category, shared: Shared, white_level: int | None) -> Embeddings:
        with self.reporter.phase(f"{category.name}: embeddings", len(category.train), work="embed") as phase:
            features, paths = shared.features, category.train
            if shared.cache is not None:
                return shared.cache.embed(features, paths, white_level, on_progress=phase.advance)
            read = Reader(white_level)
            return EmbeddingStore.compute(features, paths, read, folder=self.folder, on_progress=phase.advance)

    def _altered(
        self, category: Category, rows: Sequence[int], shared: Shared, white_level: int | None, copy: int
    ) -> Embeddings:
        """Altered copies of the images at ``rows``."""
        with self.reporter.phase(f"{category.name}: altered copies that calibrate", len(rows), work="embed") as phase:
            read = AlteredReader(white_level, shared.features.preprocessing.resize, copy)
            paths = [category.train[row] for row in rows]
            return EmbeddingStore.compute(shared.features, paths, read, folder=self.folder, on_progress=phase.advance)

    def _changes(
        self, category: Category, shared: Shared, descriptors: torch.Tensor, white_level: int | None
    ) -> torch.Tensor:
        """How the descriptors move when images are altered."""
        count = _router_images(len(category.train))
        with self.reporter.phase(f"{category.name}: altered images for the router", count, work="embed") as phase:
            return descriptor_changes(
                shared.features, category.train, descriptors, white_level, on_progress=phase.advance
            )


def _router_images(count: int) -> int:
    """Altered images of a product with ``count`` good ones that show the router how they may vary."""
    return len(AUGMENTATIONS) * len(augmented_indices(count))
