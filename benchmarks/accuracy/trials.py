"""Trials of hyperparameters, judged without test images.

A trial learns products in order with one setting. Each product is judged by the NLL of held-out good images and by how
well *pseudo-defects* are separated from them, which are made from held-out good images as CutPaste does (Li et al.,
CVPR 2021). Metrics of the real test images are only reported. Results are rows of a JSONL file, so that a second run
trains only what is missing.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.judging import cells, judge_all
from benchmarks.accuracy.products import Product
from benchmarks.shared.rows import append_row, read_rows
from moleflow.model.config import ModelConfig
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.flow.expert import Base
from moleflow.model.flow.merged import MergedExpert
from moleflow.model.runtime.device import autocast, matmul_dtype, resolve_device, resolve_precision
from moleflow.training.config import Preset, TrainingConfig
from moleflow.training.embeddings.cache import EmbeddingCache
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.fit.trainer import TaskTrainer, task_seed

__all__ = [
    "Bench",
    "Images",
    "Setting",
    "add_arguments",
    "fit",
    "key_of",
    "run_missing",
]

Found = Mapping[str, Mapping[str, float]]
"""A trial's figures by product."""


@dataclass(frozen=True)
class Setting:
    """Fields of the start configuration that a trial changes, and options that are in no configuration."""

    name: str
    flow: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
    averaged: float = 0.0
    """Fraction of the epochs, at the end, whose weights are averaged (Izmailov et al., UAI 2018); 0: none."""

    def resolve(self, start: Preset) -> Preset:
        """The whole configuration."""
        return start.with_changes(flow=self.flow, training=self.training, backbone=self.backbone)


class Images:
    """The features of images by one configuration, cached on disk below ``out``, and what is made of them."""

    def __init__(self, config: ModelConfig, out: Path, weights: Path | None) -> None:
        self.config, self.device = config, resolve_device("auto")
        self.precision = resolve_precision("auto", self.device)
        backbone = Backbone.pretrained(config.backbone, weights)
        self._features = FeatureExtractor.for_prediction(config, backbone, self.precision).to(self.device)
        self._cache = EmbeddingCache.open(
            out / "embeddings", config.backbone, backbone, device=self.device, precision=self.precision
        )

    def embed(self, paths: Iterable[Path]) -> Embeddings:
        """The features of images."""
        return self._cache.embed(self._features, list(paths))

    def trainer(self, product: Product, training: TrainingConfig, base: Base, *, first: bool) -> TaskTrainer:
        """A trainer of the product's expert."""
        name, device, precision = product.category.name, self.device, self.precision
        return TaskTrainer(name, self.config, training, base, first=first, device=device, precision=precision)

    @torch.inference_mode()
    def write_maps(
        self, path: Path, product: Product, maps: Callable[[Embeddings, torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Maps ``(n, H, W)`` of held-out good images, of pseudo-defects and of test images, also written to ``path``.

        ``maps`` gets embeddings and the rows to map.
        """
        images = {
            "good": product.held_out,
            "pseudo": [sample.path for sample in product.pseudo],
            "test": [sample.path for sample in product.category.test],
        }
        found = {}
        for kind, paths in images.items():
            store = self.embed(paths)
            with autocast(self.device, self.precision):
                found[kind] = torch.cat([maps(store, rows).cpu() for rows in torch.arange(len(store)).split(8)])
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {kind: values.float().numpy() for kind, values in found.items()}
        np.savez(path, **arrays)
        return found


class Bench:
    """Trains on the products' embeddings, which are cached on disk for each backbone configuration."""

    def __init__(self, products: Sequence[Product], out: Path, weights: Path | None) -> None:
        self.products, self.out, self.weights = products, out, weights

    def run(self, setting: Setting, start: Preset, seed: int, key: str) -> dict[str, dict[str, float]]:
        """Learn the products in order; returns the figures of each."""
        wanted = setting.resolve(start).with_changes(training={"seed": seed})
        config, images = wanted.model, Images(wanted.model, self.out, self.weights)
        base = Base(config, seed=task_seed(seed, "", "base"))
        found = {}
        for number, product in enumerate(self.products):
            trainer = images.trainer(product, wanted.training, base, first=number == 0)
            if setting.optimizer is not torch.optim.AdamW:
                trainer.optimizer = setting.optimizer(  # type: ignore[assignment, call-arg]
                    trainer.parameters, lr=wanted.training.learning_rate, weight_decay=wanted.training.weight_decay
                )
            store = images.embed(product.fit)
            begun = time.perf_counter()
            fit(trainer, store, setting.averaged)
            seconds = time.perf_counter() - begun
            expert = MergedExpert(trainer.base.requires_grad_(False), trainer.expert, matmul_dtype(images.precision))

            def nll(store: Embeddings, rows: torch.Tensor, expert: MergedExpert = expert) -> torch.Tensor:
                return expert(store.batch(rows, images.device))

            maps = images.write_maps(self.maps_path(key, product), product, nll)
            dim, side = config.backbone.embedding_dim, config.backbone.image_size
            found[product.category.name] = {
                "seconds": seconds,
                "held_out_nll": float(maps["good"].mean()) / dim,
            } | judge_all(maps, product, side)
        return found

    def maps_path(self, key: str, product: Product) -> Path:
        """File of a row's patch maps: of held-out good images, of pseudo-defects, and of test images."""
        return self.out / "maps" / f"{key}.{product.category.name}.npz"


def fit(trainer: TaskTrainer, store: Embeddings, averaged: float) -> None:
    """Train to the end; with ``averaged``, keep the mean of the weights over that fraction of the epochs."""
    sums: list[torch.Tensor] = []
    first = trainer.training.epochs * (1 - averaged)
    for result in trainer.epochs(store):
        if averaged and result.epoch > first:
            now = [parameter.detach().clone() for parameter in trainer.parameters]
            sums = [one + other for one, other in zip(sums, now, strict=True)] if sums else now
    count = trainer.training.epochs - int(first)
    with torch.no_grad():
        for parameter, total in zip(trainer.parameters, sums, strict=False):
            parameter.copy_(total / count)


def key_of(setting: Setting, start: Preset, seed: int, products: Sequence[Product]) -> str:
    """Identifies a row: resolved configuration, seed and images; not the code."""
    resolved = setting.resolve(start)
    document = {
        "model": resolved.model.model_dump(mode="json"),
        "training": resolved.training.model_dump(mode="json") | {"seed": seed},
        "optimizer": setting.optimizer.__name__,
        "averaged": setting.averaged,
        "products": [(product.category.name, len(product.fit)) for product in products],
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def run_missing(
    bench: Bench, settings: Sequence[Setting], start: Preset, seeds: Sequence[int], rows: Path, *, run: bool = True
) -> Iterator[tuple[Setting, list[Found]]]:
    """Each setting with its results, one per seed. Missing rows are trained and added to ``rows`` if ``run`` is set.

    A setting without any result is left out.
    """
    done = {row["key"]: row for row in read_rows(rows)}
    for setting in settings:
        runs: list[Found] = []
        for seed in seeds:
            key = key_of(setting, start, seed, bench.products)
            row = done.get(key)
            if row is None and run:
                found = bench.run(setting, start, seed, key)
                row = {"key": key, "setting": setting.name, "seed": seed, "products": found}
                append_row(rows, row)
                print(setting.name, seed, *cells(list(found.values())), sep=" | ", file=sys.stderr, flush=True)
            if row is not None:
                runs.append(row["products"])
        if runs:
            yield setting, runs


def add_arguments(parser: argparse.ArgumentParser, tasks: Sequence[str]) -> None:
    """Options that all studies share."""
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", action="append", help=f"products in order; default: {', '.join(tasks)}")
    parser.add_argument("--out", type=Path, required=True, help="folder for embeddings, pseudo-defects and rows")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--most", type=int, default=100, help="fit a product to at most this many images")
    parser.add_argument("--backbone", default=None)
    parser.add_argument("--backbone-weights", type=Path)
    parser.add_argument("--plugin")
    parser.add_argument("--table", action="store_true", help="print existing results, train nothing")
