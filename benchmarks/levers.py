"""What each setting brings, judged without test pictures: by defects pasted into good pictures that were held out.

    python benchmarks/levers.py DATA --backbone NAME [--plugin MODULE] --out levers/ [--lever NAME …] [--seed 0 …]

Learns bottle → grid → magnetic_tile (``--task``) once for each lever: the ``small`` preset's flow with a field or two
changed. Two things may choose: the likelihood of held-out good pictures (of levers with the same input to the flow
only, as likelihoods of other spaces cannot be compared), and how well *pseudo-defects* are told from them, which
are made from held-out good pictures as CutPaste does (Li et al., CVPR 2021). Metrics of the real test pictures
are printed beside, for the report. Done rows are kept in ``OUT/levers.jsonl``; given again, only missing ones run.
``--scoring`` takes the maps that a lever left and prints what other smoothing and image scores would make of them.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pseudo_defects import make_pseudo
from scipy.ndimage import gaussian_filter

from model.backbone import Backbone, import_plugin
from model.features import FeatureExtractor
from model.merged import MergedExpert
from model.network import Base
from model.runtime import autocast, product_dtype, resolve_device, resolve_precision
from model.scoring import SMOOTHING_SIGMA, TOP_K, image_score
from model.threads import configure_threads, restart_prepared
from training.cache import EmbeddingCache
from training.calibrate import split
from training.config import NO_CHANGES, Preset, preset
from training.datasets import Category, load_category, read_mask, read_picture
from training.embeddings import Embeddings
from training.metrics import EVALUATION_SIDE, PixelScores, image_ranking
from training.task import TaskTrainer, task_seed

TASKS = ("bottle", "grid", "magnetic_tile")
START = {"epochs": 8, "folds": 1}
"""Epochs a row: what two cores do in minutes."""


@dataclass(frozen=True)
class Lever:
    """One setting: fields of the start configuration that it changes, and what no configuration says."""

    name: str
    flow: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
    averaged: float = 0.0
    """Share of the epochs, the last ones, whose weights are averaged (Izmailov et al., UAI 2018); 0: none."""

    def resolve(self, start: Preset) -> Preset:
        return start.with_changes(flow=self.flow, training=self.training, backbone=self.backbone)


ZCA = {"adapter": "zca"}


def _zca(name: str, flow: Mapping[str, Any] = NO_CHANGES, **others: Any) -> Lever:
    return Lever(f"ZCA, {name}", flow={**ZCA, **flow}, **others)


LEVERS = (
    Lever("start"),
    Lever("ZCA", flow=ZCA),
    _zca("batch 4", training={"batch_size": 4}),
    _zca("16 epochs", training={"epochs": 16}),
    _zca("3 epochs", training={"epochs": 3}),
    _zca("0 + 12 blocks", {"coupling_blocks": 0, "dia_blocks": 12}),
    _zca("no mixer", {"spatial_context_kernel": None}),
    _zca("peak 3e-4", training={"learning_rate": 3e-4}),
    _zca("peak 3e-3", training={"learning_rate": 3e-3}),
    _zca("LoRA scale 1", {"lora_alpha": 16.0}),
    _zca("tail weight 0.85", training={"tail_weight": 0.85}),
    _zca("tail weight 0", training={"tail_weight": 0.0}),
    _zca("6 + 2 blocks", {"coupling_blocks": 6, "dia_blocks": 2}),
    _zca("rank 64", {"lora_rank": 64}),
    _zca("last quarter averaged", averaged=0.25),
    _zca("NAdam", optimizer=torch.optim.NAdam),
    _zca("RAdam", optimizer=torch.optim.RAdam),
    _zca("gradient norm 5", training={"max_gradient_norm": 5.0}),
    _zca("D = 320", backbone={"embedding_dim": 320}),
    _zca("320 px", backbone={"image_size": 320}),
    _zca("stride 4 added", backbone={"strides": (4, 8, 16)}),
)
"""The first lever brought most, so the others are tried on top of it."""


@dataclass(frozen=True)
class Product:
    """A product's pictures: what is fitted to, what was held out, and the pseudo-defects made of the latter."""

    category: Category
    fit: tuple[Path, ...]
    held_out: tuple[Path, ...]
    pseudo: tuple[tuple[Path, Path], ...]


def load_product(data: Path, name: str, out: Path, start: Preset, most: int) -> Product:
    """Split as training does, keep at most ``most`` pictures to fit to, and make the pseudo-defects."""
    category = load_category(data, name)
    parts = split(name, len(category.train), start.training)
    held_out = tuple(category.train[row] for row in parts.folds[0])
    fit = tuple(category.train[row] for row in parts.fit)
    fit = fit[:: -(-len(fit) // most)] if len(fit) > most else fit
    return Product(category, fit, held_out, make_pseudo(held_out, out / "pseudo" / name, name))


class Bench:
    """The products' embeddings for each backbone configuration, kept on disk, and the trainings on them."""

    def __init__(self, products: Sequence[Product], out: Path, weights: Path | None) -> None:
        self.products, self.out, self.weights = products, out, weights
        self.device = resolve_device("auto")
        self.precision = resolve_precision("auto", self.device)

    def run(self, lever: Lever, start: Preset, seed: int, key: str) -> dict[str, dict[str, float]]:
        """Learn the products in their order; what each came to, by its name."""
        wanted = lever.resolve(start).with_changes(training={"seed": seed})
        config = wanted.model
        backbone = Backbone.pretrained(config.backbone, self.weights)
        features = FeatureExtractor.for_prediction(config, backbone, self.precision).to(self.device)
        cache = EmbeddingCache.open(
            self.out / "embeddings", config.backbone, backbone, device=self.device, precision=self.precision
        )

        def embed(paths: Iterable[Path]) -> Embeddings:
            return cache.embed(features, list(paths), read_picture, device=self.device, precision=self.precision)

        base = Base(config, seed=task_seed(seed, "", "base"))
        found = {}
        for number, product in enumerate(self.products):
            trainer = TaskTrainer(
                product.category.name, config, wanted.training, base,
                first=number == 0, device=self.device, precision=self.precision,
            )  # fmt: skip
            if lever.optimizer is not torch.optim.AdamW:
                trainer.optimizer = lever.optimizer(
                    trainer.parameters, lr=wanted.training.learning_rate, weight_decay=wanted.training.weight_decay
                )  # type: ignore[call-arg]
            store = embed(product.fit)
            begun = time.perf_counter()
            fit(trainer, store, lever.averaged)
            seconds = time.perf_counter() - begun
            expert = MergedExpert(trainer.base.requires_grad_(False), trainer.expert, product_dtype(self.precision))
            maps = self._all_maps(expert, product, embed)
            self.maps_path(key, product).parent.mkdir(exist_ok=True)
            np.savez(self.maps_path(key, product), **{kind: values.numpy() for kind, values in maps.items()})
            dim, side = config.backbone.embedding_dim, config.backbone.image_size
            found[product.category.name] = (
                {"seconds": seconds, "held_out_nll": float(maps["good"].mean()) / dim} | judge_all(maps, product, side)
            )  # fmt: skip
        return found

    def maps_path(self, key: str, product: Product) -> Path:
        """Where the patch maps of a row lie: of held-out good pictures, of pseudo-defects, of test pictures."""
        return self.out / "maps" / f"{key}.{product.category.name}.npz"

    def _all_maps(
        self, expert: MergedExpert, product: Product, embed: Callable[[Iterable[Path]], Embeddings]
    ) -> dict[str, torch.Tensor]:
        return {
            "good": self._maps(expert, embed(product.held_out)),
            "pseudo": self._maps(expert, embed(path for path, _ in product.pseudo)),
            "test": self._maps(expert, embed(sample.path for sample in product.category.test)),
        }

    @torch.inference_mode()
    def _maps(self, expert: MergedExpert, embeddings: Embeddings) -> torch.Tensor:
        with autocast(self.device, self.precision):
            rows = torch.arange(len(embeddings)).split(8)
            return torch.cat([expert(embeddings.batch(part, self.device)).cpu() for part in rows])


def fit(trainer: TaskTrainer, store: Embeddings, averaged: float) -> None:
    """Train to the end; with ``averaged``, leave the mean of the weights after that share of the epochs, the last."""
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


COLUMNS = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro")


def judge_all(
    maps: Mapping[str, torch.Tensor], product: Product, side: int, *, top_k: int = TOP_K, sigma: float = SMOOTHING_SIGMA
) -> dict[str, float]:
    """The figures of pseudo-defects against held-out good pictures, and of the test pictures, in percent."""
    good, pseudo, tests = maps["good"], maps["pseudo"], product.category.test
    cases = {
        "pseudo": (torch.cat((good, pseudo)), [None] * len(good) + [mask for _, mask in product.pseudo],
                   [False] * len(good) + [True] * len(pseudo)),
        "test": (maps["test"], [sample.mask for sample in tests], [sample.is_anomalous for sample in tests]),
    }  # fmt: skip
    return {
        f"{kind}_{column}": value
        for kind, case in cases.items()
        for column, value in zip(COLUMNS, judge(*case, side, top_k, sigma), strict=True)
    }


def judge(
    maps: torch.Tensor,
    masks: Sequence[Path | None],
    anomalous: Sequence[bool],
    side: int,
    top_k: int,
    sigma: float,
) -> tuple[float, ...]:
    """Image AUROC, pixel AUROC, pixel AP and AUPRO of patch maps ``(n, H, W)``, in percent."""
    pixels = PixelScores()
    for grid_map, is_anomalous, mask in zip(maps, anomalous, masks, strict=True):
        if is_anomalous and mask is None:
            continue  # its pixels have no labels
        marked = None if mask is None else read_mask(mask, EVALUATION_SIDE, EVALUATION_SIDE)
        pixels.add(smoothed(grid_map, side, sigma), marked)
    image, pixel = image_ranking(image_score(maps, top_k).tolist(), anomalous), pixels.ranking()
    figures = (image.auroc, pixel.auroc, pixel.average_precision, pixels.aupro())
    return tuple(float("nan") if value is None else 100 * value for value in figures)


def smoothed(grid_map: torch.Tensor, side: int, sigma: float) -> np.ndarray:
    """``model.scoring.pixel_map`` at the evaluation size, with any ``sigma``, a share of the model's side."""
    up = F.interpolate(grid_map[None, None], size=side, mode="bilinear", align_corners=False)[0, 0].numpy()
    soft = torch.from_numpy(gaussian_filter(up, sigma * side, mode="nearest"))
    return F.interpolate(soft[None, None], size=EVALUATION_SIDE, mode="bilinear", align_corners=False)[0, 0].numpy()


def key_of(lever: Lever, start: Preset, seed: int, products: Sequence[Product]) -> str:
    """Identifies a row by everything but the program: resolved configuration, seed and pictures."""
    resolved = lever.resolve(start)
    document = {
        "model": resolved.model.model_dump(mode="json"),
        "training": resolved.training.model_dump(mode="json") | {"seed": seed},
        "optimizer": lever.optimizer.__name__,
        "averaged": lever.averaged,
        "products": [(product.category.name, len(product.fit)) for product in products],
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def done_rows(path: Path) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["key"]: row for row in rows}


def table(rows: Sequence[tuple[str, Sequence[Mapping[str, Mapping[str, float]]]]]) -> str:
    """Markdown: means over products and seeds, the pseudo-defects first."""
    lines = [
        "| lever | held-out NLL / D | pseudo: image AUROC | pixel AUROC | pixel AP | AUPRO "
        "| test: image AUROC | pixel AUROC | pixel AP | AUPRO | train s |",
        "| --- |" + " ---: |" * 10,
    ]
    for name, runs in rows:
        every = [figures for run in runs for figures in run.values()]
        cells = [f"{np.mean([each['held_out_nll'] for each in every]):.3f}"]
        for kind in ("pseudo", "test"):
            cells += [f"{np.mean([each[f'{kind}_{column}'] for each in every]):.1f}" for column in COLUMNS]
        cells.append(f"{np.sum([each['seconds'] for each in every]) / len(runs):.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


SIGMAS = (0.0, 2 / 224, 4 / 224, 6 / 224, 8 / 224)
TOP_KS = (1, 3, 5, 10, 20)


def scoring_table(bench: Bench, key: str, side: int) -> str:
    """Markdown: what smoothing and the number of patches in the image score make of the maps that a row left."""
    lines = [
        "| smoothing, px of 224 | patches in the score | pseudo: image AUROC | pixel AUROC | pixel AP | AUPRO "
        "| test: image AUROC | pixel AUROC | pixel AP | AUPRO |",
        "| ---: | ---: |" + " ---: |" * 8,
    ]
    for sigma, top_k in [(sigma, TOP_K) for sigma in SIGMAS] + [(SMOOTHING_SIGMA, top_k) for top_k in TOP_KS]:
        found = []
        for product in bench.products:
            with np.load(bench.maps_path(key, product)) as file:
                maps = {kind: torch.from_numpy(file[kind]) for kind in file.files}
            found.append(judge_all(maps, product, side, top_k=top_k, sigma=sigma))
        means = (np.mean([each[column] for each in found]) for column in found[0])
        lines.append(f"| {224 * sigma:.0f} | {top_k} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", action="append", help=f"products in their order; {', '.join(TASKS)} unless given")
    parser.add_argument("--out", type=Path, required=True, help="folder of embeddings, pseudo-defects and rows")
    parser.add_argument("--lever", action="append", help="only these; all unless given")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--most", type=int, default=100, help="pictures that a product is fitted to, at most")
    parser.add_argument("--backbone", default=None)
    parser.add_argument("--backbone-weights", type=Path)
    parser.add_argument("--plugin")
    parser.add_argument("--scoring", action="store_true", help="smoothing and image score, for the levers named")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    options = parser.parse_args(argv)
    unknown = {*(options.lever or ())} - {lever.name for lever in LEVERS}
    if unknown:
        parser.error(f"no lever {min(unknown)!r}; there are: {', '.join(lever.name for lever in LEVERS)}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(argv)
    configure_threads()
    if options.plugin:
        import_plugin(options.plugin)
    start = preset("small").with_changes(training=START)
    if options.backbone:
        start = start.with_changes(backbone={"name": options.backbone})
    chosen = [lever for lever in LEVERS if not options.lever or lever.name in options.lever]
    seeds = options.seed or [0]
    products = [load_product(options.data, name, options.out, start, options.most) for name in options.task or TASKS]
    bench = Bench(products, options.out, options.backbone_weights)
    rows_path = options.out / "levers.jsonl"
    shown = []
    for lever in chosen:
        runs = []
        for seed in seeds:
            key = key_of(lever, start, seed, products)
            row = done_rows(rows_path).get(key)
            if row is None and not options.table:
                row = {"key": key, "lever": lever.name, "seed": seed, "products": bench.run(lever, start, seed, key)}
                with rows_path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(table([(lever.name, [row["products"]])]).splitlines()[-1], file=sys.stderr, flush=True)
            if row is not None:
                runs.append(row["products"])
        if runs:
            shown.append((lever.name, runs))
    print(table(shown))
    if options.scoring:
        for lever in chosen:
            resolved = lever.resolve(start)
            key = key_of(lever, start, seeds[0], products)
            print(f"\n{lever.name}\n" + scoring_table(bench, key, resolved.model.backbone.image_size))


if __name__ == "__main__":
    restart_prepared()
    main()
