"""What the router alone can tell of images of products that were never learned.

    python benchmarks/unknown_products.py DATA --backbone resnet50_v1 [--plugin MODULE] [--descriptors DIR] [--thin 60]

Leaves each category out of the router in turn and shows it the category's test images: the distance ratio that is
refused. With all categories learned: the distance ratios of good and of defective test images that are wrongly refused,
and of images that are routed to their own product. Needs no expert: refusing and routing take the descriptor alone.

What is chosen, is chosen on good training images and printed first: the likelihood of held-out ones for the number of
axes and the relative floor; and for the metric of distance ratios what it does to good *training* images, altered as a
defect, another light or another focus would alter them, that were held out of the fit, against good training images of
a category that was left out: how many of these are refused at the limit that refuses 1 % of those, and the reverse.
``--descriptors`` keeps the descriptors for the next run; ``--thin N`` takes about N images of each kind where a
category has twice as many.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from moleflow.model.config import BackboneConfig, ModelConfig, RouterConfig
from moleflow.model.features.backbone import Backbone, import_plugin
from moleflow.model.features.extractor import FeatureExtractor, stack_images
from moleflow.model.routing.novelty import effective_ratios
from moleflow.model.routing.router import Prototype, Router, image_descriptor
from moleflow.model.runtime.threads import configure_threads, restart_prepared
from moleflow.model.verdict.calibration import Calibration
from moleflow.training.data.datasets import discover, load_category, read_image
from moleflow.training.embeddings.augment import ALTERATIONS, chosen_images, descriptor_changes
from moleflow.training.fit.cross_fitting import cross_fitted_distances

BATCH_SIZE, FOLDS = 16, 5
AXES, FLOORS = (0, 4, 8, 16, 32), (0.0003, 0.001, 0.003, 0.01, 0.03)
WEIGHTS, SPREAD_AXES = (0.0, 1.0, 2.0, 4.0, 8.0), (16, 32, 64)
LIMITS = (0.35, 0.4, 0.43, 0.45, 0.5, 0.55, 0.6)
SHOWN_LIMIT = 0.43
"""The limit that is shown by category. The detector's own is one of novelty scores
(``moleflow.model.routing.novelty``), not of ratios."""
KINDS = ("train", "changes", "good", "defective")


@dataclass(frozen=True)
class Described:
    """One category's descriptors ``(n, D)`` of each kind; ``changes`` are what altering training images does."""

    train: torch.Tensor
    changes: torch.Tensor
    good: torch.Tensor
    defective: torch.Tensor

    @property
    def test(self) -> torch.Tensor:
        return torch.cat((self.good, self.defective))

    @property
    def altered_rows(self) -> torch.Tensor:
        """Which training image each of the ``changes`` is one of."""
        return torch.tensor([*chosen_images(len(self.train))] * len(ALTERATIONS))

    @property
    def altered(self) -> torch.Tensor:
        """Descriptors of the altered training images."""
        return self.train[self.altered_rows] + self.changes

    def prototype(self, config: RouterConfig, leave_out: int | None = None) -> Prototype:
        """Fitted to all training images, or to those of the other folds."""
        fitted = torch.arange(len(self.train)) % FOLDS != (-1 if leave_out is None else leave_out)
        return Prototype.fit(self.train[fitted], config, self.changes[fitted[self.altered_rows]])


def describe(data: Path, name: str, features: FeatureExtractor, thin: int) -> dict[str, torch.Tensor]:
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
                parts.append(image_descriptor(features(batch)))
        found[kind] = torch.cat(parts)
        if kind == "train":
            found["changes"] = descriptor_changes(
                features, kept, found["train"], read_image, device=torch.device("cpu"), precision="fp32"
            )
    return found


def load(options: argparse.Namespace) -> dict[str, Described]:
    described, features = {}, None
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
                np.savez(kept, **{kind: values.numpy() for kind, values in found.items()})
        else:
            with np.load(kept) as stored:
                found = {kind: torch.from_numpy(stored[kind]) for kind in KINDS}
        described[name] = Described(**found)
    return described


def log_likelihood(prototype: Prototype, points: torch.Tensor) -> float:
    """Mean log-likelihood of ``points`` ``(n, D)`` under the prototype's Gaussian, in nats."""
    dim, rank = prototype.axes.shape
    squared = prototype.whiten(points - prototype.mean).double().square().sum(1)
    log_det = prototype.variances.double().log().sum() + (dim - rank) * prototype.floor.double().log()
    return float(-0.5 * (squared.mean() + log_det + dim * math.log(2 * math.pi)))


def held_out_likelihood(points: torch.Tensor, config: RouterConfig) -> float:
    fold = torch.arange(len(points)) % FOLDS
    parts = range(FOLDS)
    return float(np.mean([log_likelihood(Prototype.fit(points[fold != k], config), points[fold == k]) for k in parts]))


class Learned:
    """A router of some categories with the calibrations of their distances."""

    def __init__(
        self, prototypes: dict[str, Prototype], calibrations: dict[str, Calibration], names: list[str]
    ) -> None:
        self.names = names
        self.router = Router([prototypes[name] for name in names])
        self.calibrations = [calibrations[name] for name in names]

    def refused(self, points: torch.Tensor, limits: tuple[float, ...]) -> np.ndarray:
        """Distance ratios of the images refused at each limit."""
        distances, ratios = self.router(points)
        typical = torch.tensor([calibration.median for calibration in self.calibrations])
        least = effective_ratios(distances, ratios, typical).amin(1).numpy()
        return np.array([least > limit for limit in limits])

    def routed(self, points: torch.Tensor) -> list[str]:
        return [self.names[index] for index in self.router(points)[0].argmin(1).tolist()]


def interval(refused: np.ndarray) -> str:
    """A distance ratio with its 95 % confidence interval (Wilson)."""
    low, high = binomtest(int(refused.sum()), len(refused)).proportion_ci(method="wilson")
    return f"{refused.mean():6.1%} [{low:.1%}, {high:.1%}]"


def choose_likelihood(described: dict[str, Described]) -> None:
    print("Mean log-likelihood of held-out good images, in nats (rows: axes; columns: relative floor)")
    print("      " + "".join(f"{floor:>9g}" for floor in FLOORS))
    for axes in AXES:
        row = [
            np.mean(
                [held_out_likelihood(d.train, RouterConfig(axes=axes, relative_floor=f)) for d in described.values()]
            )
            for f in FLOORS
        ]
        print(f"{axes:>6}" + "".join(f"{value:>9.0f}" for value in row))


def training_shares(described: dict[str, Described], config: RouterConfig) -> tuple[np.ndarray, ...]:
    """Least distance ratios of training images: good and altered ones that were held out, and those of left-out
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


def choose_spread(described: dict[str, Described]) -> None:
    print("\nTraining images only: left-out ones refused where 1 % of the altered held-out ones are, and the reverse")
    print(f"{'weight':>7}{'axes':>6}{'limit':>8}{'left out':>10}{'good':>8}   {'limit':>8}{'altered':>9}{'good':>8}")
    usual = RouterConfig()
    tried = [(weight, usual.spread_axes) for weight in WEIGHTS]
    tried += [(usual.change_weight, axes) for axes in SPREAD_AXES if axes != usual.spread_axes]
    for weight, axes in tried:
        config = RouterConfig(change_weight=weight, spread_axes=axes)
        good, altered, foreign = training_shares(described, config)
        low, high = np.quantile(altered, 0.99), np.quantile(foreign, 0.05)
        print(
            f"{weight:>7g}{axes:>6}{low:>8.3f}{np.mean(foreign > low):>10.1%}{np.mean(good > low):>8.1%}   "
            f"{high:>8.3f}{np.mean(altered > high):>9.1%}{np.mean(good > high):>8.1%}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--backbone-weights", type=Path)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--plugin")
    parser.add_argument("--descriptors", type=Path)
    parser.add_argument("--thin", type=int, default=0)
    options = parser.parse_args()
    configure_threads()
    if options.plugin:
        import_plugin(options.plugin)
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


def report(described: dict[str, Described], without: dict[str, Learned], everything: Learned) -> None:
    limits, usual = LIMITS, LIMITS.index(SHOWN_LIMIT)
    foreign = {name: without[name].refused(d.test, limits) for name, d in described.items()}
    good = {name: everything.refused(d.good, limits) for name, d in described.items()}
    defective = {name: everything.refused(d.defective, limits) for name, d in described.items()}
    print(f"\nAt a distance ratio of {SHOWN_LIMIT}, test images:")
    print(f"{'category':<16}{'left out, refused':<24}{'known good, refused':<24}{'known defective, refused':<24}  home")
    for name, d in described.items():
        home = np.mean([found == name for found in everything.routed(d.test)])
        cells = [f"{interval(part[name][usual]):<24}" for part in (foreign, good, defective)]
        print(f"{name:<16}" + "".join(cells) + f"  {home:.1%}")
    joined = [np.concatenate(list(part.values()), axis=1) for part in (foreign, good, defective)]
    print("\nAll images together, by limit:")
    for index, limit in enumerate(limits):
        print(f"{limit:<16}" + "".join(f"{interval(part[index]):<24}" for part in joined))


def alone(
    described: dict[str, Described], prototypes: dict[str, Prototype], calibrations: dict[str, Calibration]
) -> None:
    """With a single learned product there is no other to measure by; only what is far is refused."""
    print("\nOne learned product: images of all other categories refused, and its own good and defective ones")
    for name, d in described.items():
        single = Learned(prototypes, calibrations, [name])
        others = torch.cat([other.test for key, other in described.items() if key != name])
        cells = [f"{interval(single.refused(part, (SHOWN_LIMIT,))[0]):<24}" for part in (others, d.good, d.defective)]
        print(f"{name:<16}" + "".join(cells))


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main())
