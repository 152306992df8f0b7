"""How should a product's likelihoods and its memory become one map? Variants of the scoring, chosen on good images.

    python -m benchmarks scoring DATA --out scoring/ [--task bottle …] [--backbone NAME --plugin MODULE] [--most 200]

Each product is learned once, in order; its flow's NLL and its memories' distances are kept as maps.
Every variant is then a matter of arithmetic. It is judged by *pseudo-defects* made of held-out good images
(``pseudo_defects.py``): sharp ones as in CutPaste, and large, thin or faint ones. Metrics of the test images are only
reported; the last table tells how well the order of variants by pseudo-defects agrees with that by test images.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from benchmarks.accuracy.judging import COLUMNS, anomaly_map
from benchmarks.accuracy.products import Product, load_product
from benchmarks.accuracy.pseudo_defects import FAINT, KINDS, SHARP
from benchmarks.accuracy.trials import Images, add_arguments
from benchmarks.shared.command import make_parser, positive, prepare
from moleflow.model.config import MemoryConfig, ScoringConfig
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.expert import Base
from moleflow.model.memory.bank import MergedBank
from moleflow.model.memory.fusion import Fusion
from moleflow.model.memory.scorer import PatchMaps, ProductParts, ProductScorer, image_scores
from moleflow.model.runtime.device import matmul_dtype
from moleflow.model.runtime.memory import keep_freed_memory
from moleflow.training.config import PRESETS, Preset, preset
from moleflow.training.data.datasets import Sample
from moleflow.training.evaluation.figures import category_figures, labelled_pixels
from moleflow.training.evaluation.metrics import PixelScores
from moleflow.training.fit.memory import fit_bank
from moleflow.training.fit.trainer import task_seed
from moleflow.training.report.markdown import markdown_table

__all__ = ["VARIANTS", "Variant", "agreement", "main"]

Maps = Mapping[str, torch.Tensor]
"""Maps ``(n, H, W)`` of held-out good images (``good``), pseudo-defects (``pseudo``) and test images (``test``)."""

TASKS = ("bottle", "grid", "magnetic_tile")

USUAL = MemoryConfig()

LEAST_VARIANTS = 3
"""With fewer, a rank correlation says nothing."""


@dataclass(frozen=True)
class Variant:
    """One way of scoring; ``flow`` is whether the flow takes part, ``gated`` whether gates apply. Without them pooled
    patches do not count."""

    name: str
    cap: float | None = None
    memory: MemoryConfig | None = None
    weight: float = 0.5
    flow: bool = True
    gated: bool = True
    top_k: int = 3


VARIANTS = (
    Variant("flow, NLL"),
    Variant("flow, c = 3", cap=3.0),
    Variant("flow, c = 4", cap=4.0),
    Variant("memory alone", memory=USUAL, flow=False, gated=False),
    Variant("fused, c = 3", cap=3.0, memory=USUAL),
    Variant("fused, c = 4", cap=4.0, memory=USUAL),
    Variant("fused, c = 6", cap=6.0, memory=USUAL),
    Variant("fused, no gate", cap=4.0, memory=USUAL, gated=False),
    Variant("fused, weight 0.25", cap=4.0, memory=USUAL, weight=0.25),
    Variant("fused, weight 1", cap=4.0, memory=USUAL, weight=1.0),
    Variant("fused, top 1", cap=4.0, memory=USUAL, top_k=1),
    Variant("fused, top 10", cap=4.0, memory=USUAL, top_k=10),
    Variant("fused, no pooled", cap=4.0, memory=MemoryConfig(pooled=0)),
    Variant("2,000 × 192", cap=4.0, memory=MemoryConfig(prototypes=2000)),
    Variant("2,000 × 128, no pooled", cap=4.0, memory=MemoryConfig(prototypes=2000, pooled=0, dim=128)),
    Variant("4,000 × 256, no pooled", cap=4.0, memory=MemoryConfig(pooled=0, dim=256)),
    Variant("8,000 × 128, no pooled", cap=4.0, memory=MemoryConfig(prototypes=8000, pooled=0, dim=128)),
)


class Study:
    """The maps of every product, kept on disk."""

    def __init__(self, products: Sequence[Product], start: Preset, out: Path, weights: Path | None, seed: int) -> None:
        self.products, self.start, self.out, self.seed = products, start, out, seed
        self.config, self._images = start.model, Images(start.model, out, weights)
        self._base = Base(self.config, seed=task_seed(seed, "", "base"))

    def learn(self) -> None:
        """Fit every product's flow and write its NLL maps, unless all are there."""
        wanted = [self._path(product, self._flow_name()) for product in self.products]
        if all(path.exists() for path in wanted):
            return
        for number, product in enumerate(self.products):
            trainer = self._images.trainer(product, self.start.training, self._base, first=number == 0)
            for result in trainer.epochs(self._images.embed(product.fit)):
                print(f"{trainer.name}: epoch {result.epoch}, NLL {result.nll:.1f}", flush=True)
            self._base.requires_grad_(False)
            scorer = ProductScorer(self._base, ProductParts(trainer.expert), matmul_dtype(self._images.precision))

            def nll(batch: PatchFeatures, scorer: ProductScorer = scorer) -> torch.Tensor:
                return scorer.raw_maps(batch)[0]

            self._write(product, self._flow_name(), nll)

    def nll(self, product: Product) -> Maps:
        """The flow's maps."""
        return self._read(product, self._flow_name())

    def distances(self, product: Product, memory: MemoryConfig) -> Maps:
        """The maps of a memory."""
        name = f"memory-{memory.prototypes}-{memory.pooled}-{memory.dim}-{self.seed}"
        if not self._path(product, name).exists():
            images = self._images.embed(product.fit)
            fitted = fit_bank(images, memory, task_seed(self.seed, product.category.name, "memory"))
            merged = MergedBank(fitted.bank).to(self._images.device)
            self._write(product, name, lambda batch: merged(batch.stages))
        return self._read(product, name)

    def _flow_name(self) -> str:
        """Names the schedule, and the first product, which the base was learned with."""
        training, first = self.start.training, self.products[0].category.name
        return f"flow-{training.epochs}-{training.max_steps}-{training.learning_rate:g}-{first}-{self.seed}"

    def _path(self, product: Product, name: str) -> Path:
        size = self.config.backbone.image_size
        return self.out / "maps" / f"{product.category.name}-{len(product.fit)}-{size}-{name}.npz"

    def _write(self, product: Product, name: str, maps: Callable[[PatchFeatures], torch.Tensor]) -> None:
        device = self._images.device
        self._images.write_maps(
            self._path(product, name), product, lambda store, rows: maps(store.features(rows, device)).float()
        )

    def _read(self, product: Product, name: str) -> Maps:
        with np.load(self._path(product, name)) as stored:
            return {kind: torch.from_numpy(stored[kind]) for kind in stored.files}


def fused(variant: Variant, dim: int, nll: Maps, distances: Maps | None) -> tuple[dict[str, PatchMaps], ScoringConfig]:
    """A variant's maps, standardised by those of the held-out good images."""
    if variant.cap is None and variant.flow:
        return {kind: PatchMaps(values, values) for kind, values in nll.items()}, ScoringConfig()
    scoring = ScoringConfig(
        cap=variant.cap or 1.0, memory=variant.memory, flow_weight=variant.weight if variant.flow else 0.0
    )
    fusion = Fusion.fit(scoring, dim, nll["good"], None if distances is None else distances["good"])
    if not variant.gated:
        fusion.gate = torch.tensor([1.0] + [0.0] * (len(fusion.gate) - 1))
    made = {}
    for kind, values in nll.items():
        made[kind] = PatchMaps(values, fusion(values, None if distances is None else distances[kind]))
    return made, scoring


def judge(
    variant: Variant, product: Product, maps: Mapping[str, PatchMaps], scoring: ScoringConfig, side: int
) -> dict[str, dict[str, float]]:
    """Figures in percent, by group (``sharp``, ``faint``, ``test``) and metric."""
    held_out = [Sample(path, None) for path in product.held_out]
    good, pseudo = maps["good"], maps["pseudo"]
    found = {}
    for group, kinds in (("sharp", SHARP), ("faint", FAINT)):
        rows = [row for row, sample in enumerate(product.pseudo) if sample.path.stem.split("_")[1] in kinds]
        both = PatchMaps(torch.cat((good.nll, pseudo.nll[rows])), torch.cat((good.anomaly, pseudo.anomaly[rows])))
        found[group] = _figures([*held_out, *(product.pseudo[row] for row in rows)], both, scoring, variant.top_k, side)
    found["test"] = _figures(product.category.test, maps["test"], scoring, variant.top_k, side)
    return found


def _figures(
    samples: Sequence[Sample], maps: PatchMaps, scoring: ScoringConfig, top_k: int, side: int
) -> dict[str, float]:
    pixels = PixelScores()
    for sample, grid_map in zip(samples, maps.anomaly.numpy(), strict=True):
        pixels.append(labelled_pixels(sample, anomaly_map(grid_map, side)))
    figures = category_figures(samples, image_scores(maps, scoring, top_k).tolist(), pixels)
    values = {column: getattr(figures, column) for column in COLUMNS}
    return {column: float("nan") if value is None else 100 * value for column, value in values.items()}


def agreement(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Spearman's rank correlation, over variants, of each group of pseudo-defects with the test images.

    ``found`` has the figures of each variant by group and metric; the order is that of the mean over the metrics.
    """
    order = {
        group: rankdata([np.nanmean(list(each[group].values())) for each in found.values()])
        for group in ("sharp", "faint", "test")
    }
    order["both"] = rankdata(order["sharp"] + order["faint"])
    with np.errstate(invalid="ignore"):  # NaN where an order is a single tie
        return {group: float(np.corrcoef(order[group], order["test"])[0, 1]) for group in ("sharp", "faint", "both")}


def run(study: Study, variants: Sequence[Variant]) -> str:
    """Judge all variants; returns the tables."""
    study.learn()
    dim, side = study.config.backbone.embedding_dim, study.config.backbone.image_size
    rows, means = [], {}
    for variant in variants:
        each = {}
        for product in study.products:
            distances = None if variant.memory is None else study.distances(product, variant.memory)
            each[product.category.name] = judge(
                variant, product, *fused(variant, dim, study.nll(product), distances), side
            )
        for name, groups in each.items():
            rows.append([name, variant.name, *_cells(groups)])
        means[variant.name] = {
            group: {
                column: float(np.nanmean([figures[group][column] for figures in each.values()])) for column in COLUMNS
            }
            for group in ("sharp", "faint", "test")
        }
        rows.append(["**mean**", variant.name, *_cells(means[variant.name])])
        print(variant.name, *_cells(means[variant.name]), sep=" | ", flush=True)
    rows.sort(key=lambda row: [*(product.category.name for product in study.products), "**mean**"].index(row[0]))
    table = markdown_table(["product", "scoring", "sharp", "faint", "test"], rows, right_from=2)
    text = f"Each cell: image AUROC / pixel AUROC / pixel AP / AUPRO.\n\n{table}"
    if len(means) < LEAST_VARIANTS:
        return text
    agreed = "\n".join(f"- {group}: {value:.2f}" for group, value in agreement(means).items())
    return f"{text}\n\nRank correlation over the variants, pseudo-defects with test images:\n\n{agreed}"


def _cells(groups: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [" / ".join(f"{value:.1f}" for value in groups[group].values()) for group in ("sharp", "faint", "test")]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("scoring", __doc__)
    add_arguments(parser, TASKS)
    parser.set_defaults(most=1000)
    parser.add_argument("--preset", choices=list(PRESETS), default="fast")
    parser.add_argument("--epochs", type=positive)
    parser.add_argument("--steps", type=positive, help="most steps of a fit; default: the preset's")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--image-size", type=positive)
    parser.add_argument("--variant", action="append", help="only these; default: all")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    options = parse(arguments)
    prepare(options.plugin)
    keep_freed_memory()
    backbone = {"name": options.backbone, "image_size": options.image_size}
    schedule = {"epochs": options.epochs, "max_steps": options.steps, "learning_rate": options.learning_rate}
    start = preset(options.preset).with_changes(
        backbone={key: value for key, value in backbone.items() if value},
        training={"folds": 1} | {key: value for key, value in schedule.items() if value},  # held-out images judge
    )
    names = options.task or TASKS
    products = [load_product(options.data, name, options.out, start, options.most, tuple(KINDS)) for name in names]
    study = Study(products, start, options.out, options.backbone_weights, (options.seed or [0])[0])
    chosen = [variant for variant in VARIANTS if not options.variant or variant.name in options.variant]
    print(run(study, chosen))
    return 0
