"""Which images of products that were never learned does the router alone refuse?

    python -m benchmarks unknown_products DATA --backbone resnet50_v1 [--plugin MODULE] [--descriptors DIR] [--thin 60]

Each category is left out of the router in turn, and its test images are shown: the fraction that is refused. With all
categories learned: the fractions of good and of defective test images that are wrongly refused, and of images that are
routed to their own product. It needs no expert, since refusing and routing take the descriptor alone.

Hyperparameters are chosen on good training images only, and printed first. For the number of axes and the relative
floor: the log-likelihood of held-out images. For the metric of distance ratios: held-out training images that were
altered as a defect, another light or another focus would alter them, against training images of a left-out category.
Shown is how many of these are refused at the limit that refuses 1 % of those, and the reverse. ``--descriptors`` keeps
the descriptors for the next run; ``--thin N`` takes about N images of each kind where a category has twice as many.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared.command import make_parser, prepare
from benchmarks.shared.statistics import interval
from moleflow.model.config import BackboneConfig, ModelConfig, RouterConfig
from moleflow.model.features.backbone import Backbone
from moleflow.model.features.extractor import FeatureExtractor, stack_images
from moleflow.model.routing.router import Prototype, Router, image_descriptor
from moleflow.model.routing.shortlist import effective_ratios
from moleflow.model.verdict.calibration import Calibration
from moleflow.training.data.datasets import discover, load_category, read_image
from moleflow.training.embeddings.augment import AUGMENTATIONS, augmented_indices, descriptor_changes
from moleflow.training.fit.cross_fitting import cross_fitted_distances
from moleflow.training.report.markdown import markdown_table

BATCH_SIZE, FOLDS = 16, 5
AXES, FLOORS = (0, 4, 8, 16, 32), (0.0003, 0.001, 0.003, 0.01, 0.03)
WEIGHTS, SPREAD_AXES = (0.0, 1.0, 2.0, 4.0, 8.0), (16, 32, 64)
LIMITS = (0.35, 0.4, 0.43, 0.45, 0.5, 0.55, 0.6)
SHOWN_LIMIT = 0.43
"""The limit of the table by category. It is one of distance ratios; the detector's is one of novelty scores
(``moleflow.model.routing.novelty``)."""
KINDS = ("train", "changes", "good", "defective")


@dataclass(frozen=True)
class Described:
    """One category's descriptors ``(n, D)`` of each kind; ``changes`` are the effects of altering training images."""

    train: torch.Tensor
    changes: torch.Tensor
    good: torch.Tensor
    defective: torch.Tensor

    @property
    def test(self) -> torch.Tensor:
        """Descriptors of all test images."""
        return torch.cat((self.good, self.defective))

    @property
    def altered_rows(self) -> torch.Tensor:
        """The training image that each of the ``changes`` belongs to."""
        return torch.tensor([*augmented_indices(len(self.train))] * len(AUGMENTATIONS))

    @property
    def altered(self) -> torch.Tensor:
        """Descriptors of the altered training images."""
        return self.train[self.altered_rows] + self.changes

    def prototype(self, config: RouterConfig, leave_out: int | None = None) -> Prototype:
        """Fitted to all training images, or to those of the other folds."""
        fitted = torch.arange(len(self.train)) % FOLDS != (-1 if leave_out is None else leave_out)
        return Prototype.fit(self.train[fitted], config, self.changes[fitted[self.altered_rows]])


def describe(data: Path, name: str, features: FeatureExtractor, thin: int) -> dict[str, torch.Tensor]:
    """Descriptors of a category by kind."""
    category = load_category(data, name)
    paths = {
        "train": list(category.train),
        "good": [sample.path for sample in category.test if not sample.is_anomalous],
        "defective": [sample.path for sample in category.test if sample.is_anomalous],
    }
    found = {}
    for kind, every in paths.items():
        kept = every[:: len(every) // thin] if thin and len(every) > 2 * thin else every
        parts = []
        for start in range(0, len(kept), BATCH_SIZE):
            images = [read_image(path, features.preprocessing.image_size) for path in kept[start : start + BATCH_SIZE]]
            with torch.inference_mode():
                batch = stack_images(images, features.preprocessing.resize, torch.device("cpu"))
                parts.append(image_descriptor(features(batch).embeddings))
        found[kind] = torch.cat(parts)
        if kind == "train":
            found["changes"] = descriptor_changes(features, kept, found["train"], None)
    return found


def load(options: argparse.Namespace) -> dict[str, Described]:
    """Every category's descriptors, computed or read from ``--descriptors``."""
    described: dict[str, Described] = {}
    features: FeatureExtractor | None = None
    for name in discover(options.data):
        kept = options.descriptors / f"{name}.npz" if options.descriptors else None
        if kept is None or not kept.is_file():
            if features is None:
                config = ModelConfig(backbone=BackboneConfig(name=options.backbone, image_size=options.image_size))
                backbone = Backbone.pretrained(config.backbone, options.backbone_weights)
                features = FeatureExtractor.for_prediction(config, backbone, "fp32")
            found = describe(options.data, name, features, options.thin)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                arrays: dict[str, Any] = {kind: values.numpy() for kind, values in found.items()}
                np.savez(kept, **arrays)
        else:
            with np.load(kept) as stored:
                found = {kind: torch.from_numpy(stored[kind]) for kind in KINDS}
        described[name] = Described(**found)
    return described


def log_likelihood(prototype: Prototype, points: torch.Tensor) -> float:
    """Mean log-likelihood of ``points`` ``(n, D)`` under the prototype's Gaussian, in nats."""
    dim, rank = prototype.axes.shape
    squared = Router([prototype])(points)[0][:, 0].double().square()
    log_det = prototype.variances.double().log().sum() + (dim - rank) * prototype.floor.double().log()
    return float(-0.5 * (squared.mean() + log_det + dim * math.log(2 * math.pi)))


def held_out_likelihood(points: torch.Tensor, config: RouterConfig) -> float:
    """Mean log-likelihood of the points of each fold under a prototype of the others."""
    fold = torch.arange(len(points)) % FOLDS
    parts = range(FOLDS)
    return float(np.mean([log_likelihood(Prototype.fit(points[fold != k], config), points[fold == k]) for k in parts]))


class Learned:
    """A router of some categories, with the calibrations of their distances."""

    def __init__(
        self, prototypes: dict[str, Prototype], calibrations: dict[str, Calibration], names: list[str]
    ) -> None:
        self.names = names
        self.router = Router([prototypes[name] for name in names])
        self.calibrations = [calibrations[name] for name in names]

    def refused(self, points: torch.Tensor, limits: tuple[float, ...]) -> np.ndarray:
        """Which images are refused at each limit: ``(limits, n)`` bool."""
        distances, ratios = self.router(points)
        typical = torch.tensor([calibration.median for calibration in self.calibrations])
        least = effective_ratios(distances, ratios, typical).amin(1).numpy()
        return np.array([least > limit for limit in limits])

    def routed(self, points: torch.Tensor) -> list[str]:
        """The category of each image."""
        return [self.names[index] for index in self.router(points)[0].argmin(1).tolist()]


def choose_likelihood(described: Mapping[str, Described]) -> None:
    """Print the log-likelihoods that axes and relative floor are chosen by."""
    print("Mean log-likelihood of held-out good images, in nats, by axes (rows) and relative floor (columns):\n")
    rows = []
    for axes in AXES:
        row = [
            np.mean(
                [held_out_likelihood(d.train, RouterConfig(axes=axes, relative_floor=f)) for d in described.values()]
            )
            for f in FLOORS
        ]
        rows.append([axes, *(f"{value:.0f}" for value in row)])
    print(markdown_table(["axes", *(f"{floor:g}" for floor in FLOORS)], rows, right_from=0))


def training_ratios(described: Mapping[str, Described], config: RouterConfig) -> tuple[np.ndarray, ...]:
    """Smallest distance ratios of training images: held-out good ones, held-out altered ones, and those of left-out
    categories."""
    good, altered, foreign = [], [], []
    for fold in range(FOLDS):
        router = Router([d.prototype(config, fold) for d in described.values()])
        for d in described.values():
            good.append(router(d.train[torch.arange(len(d.train)) % FOLDS == fold])[1].min(1).values)
            altered.append(router(d.altered[d.altered_rows % FOLDS == fold])[1].min(1).values)
    prototypes = {name: d.prototype(config) for name, d in described.items()}
    for name, d in described.items():
        router = Router([prototype for other, prototype in prototypes.items() if other != name])
        foreign.append(router(d.train)[1].min(1).values)
    return tuple(torch.cat(ratios).numpy() for ratios in (good, altered, foreign))


def choose_spread(described: Mapping[str, Described]) -> None:
    """Print the fractions that weight and axes of the metric are chosen by."""
    print("\nTraining images: left-out ones refused where 1 % of the altered held-out ones are, and the reverse:\n")
    rows = []
    usual = RouterConfig()
    tried = [(weight, usual.spread_axes) for weight in WEIGHTS]
    tried += [(usual.change_weight, axes) for axes in SPREAD_AXES if axes != usual.spread_axes]
    for weight, axes in tried:
        config = RouterConfig(change_weight=weight, spread_axes=axes)
        good, altered, foreign = training_ratios(described, config)
        low, high = np.quantile(altered, 0.99), np.quantile(foreign, 0.05)
        rows.append(
            [
                f"{weight:g}",
                axes,
                f"{low:.3f}",
                f"{np.mean(foreign > low):.1%}",
                f"{np.mean(good > low):.1%}",
                f"{high:.3f}",
                f"{np.mean(altered > high):.1%}",
                f"{np.mean(good > high):.1%}",
            ]
        )
    headings = ["weight", "axes", "limit", "left out", "good", "limit", "altered", "good"]
    print(markdown_table(headings, rows, right_from=0))


def report(described: Mapping[str, Described], without: Mapping[str, Learned], everything: Learned) -> None:
    """Print the fractions of refused test images, by category and by limit."""
    foreign = {name: without[name].refused(d.test, LIMITS) for name, d in described.items()}
    good = {name: everything.refused(d.good, LIMITS) for name, d in described.items()}
    defective = {name: everything.refused(d.defective, LIMITS) for name, d in described.items()}
    shown, kinds = LIMITS.index(SHOWN_LIMIT), ("left out", "good", "defective")
    rows = []
    for name, d in described.items():
        home = np.mean([found == name for found in everything.routed(d.test)])
        rows.append([name, *(_interval(part[name][shown]) for part in (foreign, good, defective)), f"{home:.1%}"])
    print(f"\nTest images refused at a distance ratio of {SHOWN_LIMIT}, and routed to their own category:\n")
    print(markdown_table(["category", *kinds, "routed home"], rows))
    joined = [np.concatenate(list(part.values()), axis=1) for part in (foreign, good, defective)]
    print("\nAll test images together, refused by limit:\n")
    print(
        markdown_table(
            ["limit", *kinds],
            [[limit, *(_interval(part[index]) for part in joined)] for index, limit in enumerate(LIMITS)],
        )
    )


def alone(
    described: Mapping[str, Described], prototypes: dict[str, Prototype], calibrations: dict[str, Calibration]
) -> None:
    """Print the same for routers of one category, which can only refuse what is far away."""
    rows = []
    for name, d in described.items():
        single = Learned(prototypes, calibrations, [name])
        others = torch.cat([other.test for key, other in described.items() if key != name])
        cells = [_interval(single.refused(part, (SHOWN_LIMIT,))[0]) for part in (others, d.good, d.defective)]
        rows.append([name, *cells])
    print("\nRefused by a router of one category:\n")
    print(markdown_table(["category", "all other categories", "good", "defective"], rows))


def _interval(refused: np.ndarray) -> str:
    return interval(int(refused.sum()), len(refused))


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("unknown_products", __doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--backbone-weights", type=Path)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--plugin", help="module that registers the backbone with timm")
    parser.add_argument("--descriptors", type=Path, help="folder that keeps the descriptors")
    parser.add_argument("--thin", type=int, default=0, help="about so many images of each kind; 0: all")
    options = parser.parse_args(arguments)
    prepare(options.plugin)
    described = load(options)
    choose_likelihood(described)
    choose_spread(described)
    config = RouterConfig()
    prototypes = {name: d.prototype(config) for name, d in described.items()}
    calibrations = {
        name: Calibration.fit(cross_fitted_distances(d.train, config).tolist()) for name, d in described.items()
    }
    without = {
        name: Learned(prototypes, calibrations, [other for other in described if other != name]) for name in described
    }
    report(described, without, Learned(prototypes, calibrations, list(described)))
    alone(described, prototypes, calibrations)
    return 0
