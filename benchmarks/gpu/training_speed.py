"""How fast a GPU trains: embedding images, whole epochs, and single steps, of a first and of a later task.

Epochs are what a training runs; a step by itself may take another way, since epochs may replay a recorded one.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.models import chosen_preset
from benchmarks.gpu.timing import profiled, wall_ms
from benchmarks.shared.random_checkpoint import random_backbone
from benchmarks.speed.training_speed import synthetic_images
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.expert import Base
from moleflow.model.runtime.device import resolve_device, resolve_precision
from moleflow.training.config import Preset
from moleflow.training.embeddings.extraction import EmbeddingStore, extract
from moleflow.training.fit.trainer import TaskTrainer, task_seed

__all__ = ["measure"]

IMAGES = 64
AT_ONCE = 10
"""Steps between two looks at the clock: training does not wait for the device after each."""

WARM_STEPS = 10

EPOCHS, COPIES = 5, 4
"""Epochs that are timed, over so many copies of the images."""


def measure(context: Context) -> None:
    """Both presets: embedding, steps, and the kernels of a step of main."""
    for name in ("main", "fast"):
        context.attempt(context.result, name, partial(_preset, context, name))


def _preset(context: Context, name: str) -> dict[str, Any]:
    device, preset = resolve_device("auto"), chosen_preset(context, name)
    precision = resolve_precision("auto", device)
    found: dict[str, Any] = {"precision": precision, "batch": preset.training.batch_size}
    context.result[name] = found
    images = synthetic_images(16 if context.reduced else IMAGES, preset.model.backbone.image_size)
    features = FeatureExtractor.for_prediction(preset.model, random_backbone(preset.model.backbone), precision)
    stores: list[EmbeddingStore] = []
    context.attempt(found, "embedding", partial(_embed, features.to(device), images, stores))
    if not stores:
        return found
    for kind in ("first", "later"):
        make = partial(_trainer, preset, kind == "first", device, precision)
        step = _step(make(), stores[0])
        context.attempt(found, kind, partial(_steps, step, preset, device, context.reduced))
        context.attempt(found, f"{kind}, epochs", partial(_epochs, make(), stores[0]))
        if kind == "first":
            context.attempt(found, "profile", partial(profiled, step, device))
    return found


def _trainer(preset: Preset, first: bool, device: torch.device, precision: str) -> TaskTrainer:
    """A new trainer of a few epochs."""
    base = Base(preset.model, seed=task_seed(preset.training.seed, "", "base"))
    schedule = preset.with_changes(training={"epochs": EPOCHS}).training
    return TaskTrainer("noise", preset.model, schedule, base, first=first, device=device, precision=precision)


def _embed(features: FeatureExtractor, images: Sequence[np.ndarray], stores: list[EmbeddingStore]) -> dict[str, float]:
    """Images per second of the second of two passes; the embeddings go to ``stores``."""
    given = [Path(str(number)) for number in range(len(images))]  # an index in place of a file
    for _ in range(2):
        started = time.perf_counter()
        parts = list(extract(features, given, lambda path, side: images[int(path.name)]))
        seconds = time.perf_counter() - started
    stores.append(EmbeddingStore(PatchFeatures(torch.cat([values.embeddings for _, values in parts]))))
    return {"images_per_second": len(images) / seconds}


def _step(trainer: TaskTrainer, store: EmbeddingStore) -> Callable[[], object]:
    """A training step on the first images of ``store``, which are copied to the device as in training."""
    rows, rate = torch.arange(min(trainer.training.batch_size, len(store))), trainer.training.learning_rate
    trainer.expert.adapter.fit([store.batch(torch.arange(len(store)), trainer.device)])
    return lambda: trainer.step(store.batch(rows, trainer.device), rate)


def _epochs(trainer: TaskTrainer, store: EmbeddingStore) -> dict[str, Any]:
    """Images per second of whole epochs after the first one, in which kernels are compiled and steps recorded."""
    many = EmbeddingStore(PatchFeatures(torch.cat([store.values] * COPIES)))
    ends = [time.perf_counter()]
    for _ in trainer.epochs(many):  # each has read its loss from the device when it ends
        ends.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(ends)]
    return {"images_per_second": len(many) / median(seconds[1:]), "first_epoch_seconds": seconds[0]}


def _steps(step: Callable[[], object], preset: Preset, device: torch.device, reduced: bool) -> dict[str, Any]:
    """Milliseconds of a step, images per second, and the peak of the device's memory."""
    count, rounds, warm = (2, 2, 1) if reduced else (AT_ONCE, 10, WARM_STEPS)
    for _ in range(warm):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)

    def several() -> None:
        for _ in range(count):
            step()

    times = [each / count for each in wall_ms(several, device, rounds, 0)]
    ms, batch = median(times), preset.training.batch_size
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"ms": ms, "least_ms": min(times), "images_per_second": batch * 1e3 / ms, "peak_bytes": peak}
