"""Running the rows of a study: train and evaluate what is missing, and save each result at once.

Output folder: ``runs/DIGEST/`` with the checkpoint and history of each training, ``results/DIGEST.json`` with each
row's result, and ``embeddings/``, the default embedding cache. Digests cover everything that determines the result:
resolved configuration, tasks in order, contents of images and masks, backbone weights, precision and device type. Equal
rows of different studies share one training, and a repeated study runs only what is missing. Code changes are not
detected: use a new folder.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from moleflow.model.config import ModelConfig
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.files.exclusive import side_file
from moleflow.model.files.outputs import check_output_folder, write_text
from moleflow.model.files.regular_file import read_regular_file
from moleflow.model.runtime.device import resolve_device, resolve_precision
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.sections import digest_tensors
from moleflow.training.ablation.studies import STUDIES, Row, Study, rows_for
from moleflow.training.config import Preset, TrainingConfig
from moleflow.training.continual.journal import HISTORY
from moleflow.training.continual.sequence import train_tasks
from moleflow.training.data.datasets import Category, load_categories
from moleflow.training.data.selection import checked_for_testing
from moleflow.training.data.warnings import report_warnings
from moleflow.training.embeddings.cache import EmbeddingCache, digest_image
from moleflow.training.errors import DatasetError, DuplicateTaskError
from moleflow.training.evaluation.cached import CachedEvaluation, CategoryMetrics
from moleflow.training.evaluation.records import CategoryFigures, Record
from moleflow.training.progress import Reporter, epoch_seconds

__all__ = ["Ablation", "RowResult"]

RESULT_FORMAT = 1
"""Part of every digest; raised whenever the meaning of a result changes."""


class RowResult(Record):
    """The result of one row: metrics after the last task, parameter counts and time."""

    digest: str
    tasks: tuple[str, ...]
    model: ModelConfig
    training: TrainingConfig
    categories: tuple[CategoryMetrics, ...]
    after_learning: tuple[CategoryMetrics, ...] | None = None
    at_end: tuple[CategoryMetrics, ...] | None = None
    """Metrics of each task just after it was learned and after the whole sequence, for studies of forgetting. With the
    product named: routing gets harder with more products, which is not forgetting."""
    parameters: tuple[int, ...]
    base_parameters: int
    train_seconds: float
    finished_at: datetime
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Source:
    """Inputs shared by all rows."""

    categories: tuple[Category, ...]
    features: FeatureExtractor
    cache: EmbeddingCache
    identity: dict[str, Any]


class Ablation:
    """Runs studies on one sequence of tasks in one output folder.

    Args:
        data, tasks: the products, in training order; each needs test images.
        out: the output folder.
        preset: the full configuration.
        cache: folder of the embedding cache; ``out/embeddings`` by default.
        strict: treat data warnings as errors.

    Raises:
        DuplicateTaskError: a task is named twice.
    """

    def __init__(
        self,
        data: Path,
        tasks: Sequence[str],
        out: Path,
        preset: Preset,
        *,
        backbone_weights: Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        cache: Path | None = None,
        reporter: Reporter | None = None,
        strict: bool = False,
    ) -> None:
        if len(set(tasks)) != len(tasks):
            raise DuplicateTaskError(f"a task is named more than once in {', '.join(tasks)}; name each product once.")
        self.data, self.tasks, self.out, self.preset = data, tuple(tasks), out, preset
        self.backbone_weights, self.cache = backbone_weights, cache or out / "embeddings"
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.reporter, self.strict = reporter or Reporter(), strict

    def run(self, study: Study) -> list[tuple[Row, RowResult]]:
        """Every row of ``study`` with its result, the full configuration first.

        Raises:
            DatasetError, BackboneError, CheckpointError, ConfigurationError: see ``moleflow.model.errors``.
        """
        check_output_folder("the folder of results", self.out / "results")
        check_output_folder("the embedding cache", self.cache)
        source = self._source()
        rows = rows_for(study, self.preset)
        results = []
        for number, (row, preset) in enumerate(rows, 1):
            self.reporter.line(f"{study.name}, row {number} of {len(rows)}: {row.name}")
            result = self._kept(preset, source)
            if result is not None:
                self.reporter.line(f"{row.name}: already measured on {result.finished_at:%Y-%m-%d}")
            results.append((row, result or self._measure(preset, source)))
        return results

    def _source(self) -> _Source:
        """Check the data and open the cache; ``DatasetError`` if a product lacks test images."""
        categories = checked_for_testing(load_categories(self.data, self.tasks))
        report_warnings(
            (warning for each in categories for warning in each.warnings), self.reporter, strict=self.strict
        )
        for category in categories:
            if len({sample.is_anomalous for sample in category.test}) < 2:
                raise DatasetError(
                    f"product {category.name!r} in {self.data} lacks good or defective test images, so it cannot be "
                    "evaluated; leave it out, or add test/good and test/DEFECT."
                )
        config = self.preset.model.backbone
        backbone = Backbone.pretrained(config, self.backbone_weights)
        features = FeatureExtractor.for_prediction(self.preset.model, backbone, self.precision).to(self.device)
        cache = EmbeddingCache.open(self.cache, config, backbone, device=self.device, precision=self.precision)
        identity = {
            "format": RESULT_FORMAT,
            "tasks": {category.name: _digest_category(category) for category in categories},
            "order": self.tasks,
            "backbone_sha256": digest_tensors(backbone.net.state_dict()),
            "precision": self.precision,
            "device": self.device.type,
        }
        return _Source(tuple(categories), features, cache, identity)

    def _result_path(self, preset: Preset, source: _Source) -> Path:
        return self.out / "results" / f"{_digest(preset, source)}.json"

    def _kept(self, preset: Preset, source: _Source) -> RowResult | None:
        """The saved result, or ``None`` if it is missing, damaged, or from another version."""
        try:
            return RowResult.model_validate_json(read_regular_file(self._result_path(preset, source)))
        except (FileNotFoundError, ValueError):
            return None

    def _measure(self, preset: Preset, source: _Source) -> RowResult:
        # Rows that differ only in scoring share one training.
        weights = preset.with_changes(model={"score_top_k": self.preset.model.score_top_k})
        folder = self.out / "runs" / _digest(weights, source)
        after = self._train(weights, folder, source)
        if weights != preset:
            after = None  # measured with another scoring
        checkpoint = Checkpoint.open(folder / "factory.safetensors")
        figures = self._evaluate(checkpoint, preset, source.categories, source)
        result = RowResult(
            digest=_digest(preset, source),
            tasks=self.tasks,
            model=preset.model,
            training=preset.training,
            categories=tuple(CategoryMetrics.of(each, each.routed) for each in figures),
            after_learning=after,
            at_end=None if after is None else tuple(CategoryMetrics.of(each, each.named) for each in figures),
            parameters=tuple(task.parameters for task in checkpoint.header.tasks),
            base_parameters=checkpoint.section_parameters().get("base", 0),
            train_seconds=epoch_seconds(side_file(checkpoint.path, HISTORY)),
            finished_at=datetime.now(UTC),
            environment={
                "torch": torch.__version__,
                "threads": str(torch.get_num_threads()),
                "device": str(self.device),
                "precision": self.precision,
                "machine": platform.machine(),
            },
        )
        _write(self._result_path(preset, source), result)
        return result

    def _train(self, preset: Preset, folder: Path, source: _Source) -> tuple[CategoryMetrics, ...] | None:
        """Train the missing tasks of the run in ``folder``; the metrics of each just after it was learned, if needed.

        They are needed for every configuration that occurs in a study of forgetting, whichever study trains it.
        """
        wanted = any(
            preset == resolved
            for study in STUDIES.values()
            if study.forgetting
            for _, resolved in rows_for(study, self.preset)
        )
        path = folder / "factory.safetensors"
        after = []
        for index, category in enumerate(source.categories):
            if index >= _learned(path):
                reporter = self.reporter.with_history(side_file(path, HISTORY))
                train_tasks(
                    self.data,
                    [category.name],
                    path,
                    preset=preset,
                    backbone_weights=self.backbone_weights,
                    device=str(self.device),
                    precision=self.precision,
                    cache=self.cache,
                    reporter=reporter,
                )
            if wanted:
                after.append(self._just_learned(path, index, preset, source))
        found = tuple(metrics for metrics in after if metrics is not None)
        return found if wanted and len(found) == len(source.categories) else None

    def _just_learned(self, path: Path, index: int, preset: Preset, source: _Source) -> CategoryMetrics | None:
        """The metrics of the task at ``index`` while it is the last one; saved, as they cannot be measured later."""
        kept = path.with_name(f"after.{index}.json")
        try:
            return CategoryMetrics.model_validate_json(read_regular_file(kept))
        except (FileNotFoundError, ValueError):
            if _learned(path) != index + 1:
                return None
        (figures,) = self._evaluate(Checkpoint.open(path), preset, [source.categories[index]], source)
        metrics = CategoryMetrics.of(figures, figures.named)
        _write(kept, metrics)
        return metrics

    def _evaluate(
        self, checkpoint: Checkpoint, preset: Preset, categories: Sequence[Category], source: _Source
    ) -> list[CategoryFigures]:
        evaluation = CachedEvaluation(
            checkpoint, top_k=preset.model.score_top_k, device=self.device, precision=self.precision
        )
        results = []
        for category in categories:
            level, paths = checkpoint.header.task(category.name).white_level, [each.path for each in category.test]
            with self.reporter.phase(f"{category.name}: test embeddings", len(paths)) as phase:
                embeddings = source.cache.embed(source.features, paths, level, on_progress=phase.advance)
            with self.reporter.phase(category.name, len(paths)) as phase:
                results.append(evaluation.category(category, embeddings, phase.advance))
        return results


def _learned(path: Path) -> int:
    return len(Checkpoint.open(path).header.tasks) if path.exists() else 0


def _digest(preset: Preset, source: _Source) -> str:
    """Identifies one configuration on one source; short enough for a file name."""
    resolved = {"model": preset.model.model_dump(mode="json"), "training": preset.training.model_dump(mode="json")}
    document = json.dumps(source.identity | resolved, sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:32]


def _digest_category(category: Category) -> str:
    """Digest of the contents and roles of all images and masks, independent of their folder."""
    digest = hashlib.sha256()
    entries: list[tuple[str, Path, tuple[Path, ...]]] = [("train", path, ()) for path in category.train]
    entries += [(sample.defect or "good", sample.path, sample.masks) for sample in category.test]
    for kind, path, masks in entries:
        marked = "+".join(digest_image(mask) for mask in masks)
        digest.update(f"{kind}|{path.name}|{digest_image(path)}|{marked}\n".encode())
    return digest.hexdigest()


def _write(path: Path, value: BaseModel) -> None:
    write_text("the result", path, value.model_dump_json(indent=1) + "\n")
