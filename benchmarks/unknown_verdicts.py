"""Are images of unknown products refused, as the service refuses them: by the router and the nearest expert?

    python benchmarks/unknown_verdicts.py CHECKPOINT [CHECKPOINT …] DATA [--plugin MODULE] [--thin 60]

Leaves each product of a checkpoint out of its router in turn and shows the others the product's test images; all
images of categories in DATA that were not learned are unknown to all products. Beside that, with every product there:
the distance ratios of good and of defective test images that are wrongly refused. Several checkpoints, as of several
seeds, are counted together.

What is chosen, is chosen on good training images and printed first: how fast the excess raises the distance ratio
(``moleflow.model.routing.novelty.EXCESS_POWER``), by a logistic regression that tells products that were left out from
learned ones, whose images were altered as a defect, another light or another focus would alter them; and the limit
that 1 % of the altered ones exceed by distance ratios and excesses alone. They are images that calibrate. Their
prototypes have seen them unaltered, and so have the experts of products that are cross-fitted; with few images there
are no others. ``--thin N`` takes at most N images of each kind and category.

``benchmarks/unknown_products.py`` measures the router alone, and needs no expert.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.detector import Detector
from moleflow.model.features.extractor import stack_images
from moleflow.model.routing.novelty import EXCESS_POWER, EXCESS_UNIT, background_nll, effective_ratios
from moleflow.model.routing.router import Prototype, Router, image_descriptor
from moleflow.model.runtime.threads import configure_threads, restart_prepared
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.calibration import TaskCalibration
from moleflow.training.config import preset
from moleflow.training.data.datasets import discover, load_category, read_image
from moleflow.training.embeddings.augment import ALTERATIONS
from moleflow.training.fit.cross_fitting import split

BATCH_SIZE = 8
LIMITS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ALTERED_REFUSED = 0.01


@dataclass(frozen=True)
class Seen:
    """Images as some products see them: the least ratio, that as it counts where products are far, and the excess."""

    ratios: np.ndarray
    counted: np.ndarray
    excesses: np.ndarray
    """In nats a dimension, of the nearest product's expert."""

    @classmethod
    def join(cls, parts: Iterable["Seen"]) -> "Seen":
        several = list(parts)
        columns = ("ratios", "counted", "excesses")
        return cls(*(np.concatenate([getattr(each, name) for each in several]) for name in columns))

    def novelty_score(self, power: float = EXCESS_POWER) -> np.ndarray:
        return self.counted * self.raised(power)

    def raised(self, power: float) -> np.ndarray:
        """What the distance ratio is multiplied by."""
        return (1 + self.excesses / EXCESS_UNIT) ** power

    def logs(self) -> np.ndarray:
        """``(n, 2)``: what the logistic regression is given."""
        return np.stack((np.log(self.ratios + 1e-6), np.log1p(self.excesses / EXCESS_UNIT)), 1)


class Factory:
    """A checkpoint's products, any of which can be left out of the router."""

    def __init__(self, path: Path, plugin: str | None) -> None:
        self.detector = Detector.load(path, plugin=plugin)
        checkpoint = Checkpoint.open(path)
        tasks = checkpoint.header.tasks
        self.names = [task.name for task in tasks]
        self.seeds = {task.name: task.seed for task in tasks}
        self.dim = checkpoint.header.config.backbone.embedding_dim
        profiles = [checkpoint.profile(task.index) for task in tasks]
        self.prototypes: list[Prototype] = [each.prototype for each in profiles]
        self.calibrations: list[TaskCalibration] = [each.calibration for each in profiles]

    @torch.inference_mode()
    def look(self, images: Iterator[np.ndarray], *without: str | None) -> list[Seen]:
        """The images as the products but one see them, for each of ``without``; ``None`` leaves none out."""
        routers = [
            (kept, Router([self.prototypes[index] for index in kept]))
            for kept in ([i for i, name in enumerate(self.names) if name != one] for one in without)
        ]
        parts: list[list[Seen]] = [[] for _ in without]
        resize, device = self.detector.preprocessing.resize, self.detector.device
        batch: list[np.ndarray] = []
        for image in (*images, None):
            if image is not None:
                batch.append(resize(image))
            if batch and (image is None or len(batch) == BATCH_SIZE):
                embeddings = self.detector.embed_and_route(stack_images(batch, resize, device))[0]
                for (kept, router), found in zip(routers, parts, strict=True):
                    found.append(self._see(embeddings, kept, router))
                batch = []
        return [Seen.join(found) for found in parts]

    def _see(self, embeddings: torch.Tensor, kept: Sequence[int], router: Router) -> Seen:
        distances, ratios = router(image_descriptor(embeddings))
        nearest = [kept[row] for row in distances.argmin(1).tolist()]
        maps = self.detector.score(embeddings, nearest)[0].numpy()
        typical = torch.tensor([self.calibrations[index].distances.median for index in kept])
        levels = [background_nll(each) for each in maps]
        usual = [self.calibrations[index].grounds.median for index in nearest]
        return Seen(
            ratios.amin(1).numpy(),
            effective_ratios(distances, ratios, typical).amin(1).numpy(),
            np.maximum(0, np.subtract(levels, usual)) / self.dim,
        )


def thinned(paths: Sequence[Path], most: int) -> list[Path]:
    return list(paths[:: -(-len(paths) // most)] if most and len(paths) > most else paths)


def altered(paths: Sequence[Path], side: int, resize: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    """Each image with each alteration, drawn by kind and name; other draws than the router's own."""
    for kind, alteration in ALTERATIONS.items():
        for path in paths:
            seed = hashlib.sha256(f"judge|{kind}|{path.name}".encode()).digest()
            yield alteration(resize(read_image(path, side)), np.random.default_rng(list(seed)))


def gather(factory: Factory, data: Path, most: int) -> dict[str, dict[str, Seen]]:
    """By kind and category: ``altered``, ``calibrating``, ``good`` and ``defective`` of learned products; ``left out
    training`` and ``left out`` as the other products see them."""
    found: dict[str, dict[str, Seen]] = {}
    resize, side = factory.detector.preprocessing.resize, factory.detector.preprocessing.image_size
    training = preset("main").training

    def read(paths: Sequence[Path]) -> Iterator[np.ndarray]:
        return (read_image(path, side) for path in paths)

    for name in discover(data):
        print(f"{name} …", file=sys.stderr, flush=True)
        category, learned = load_category(data, name), name in factory.names
        tests = {
            kind: thinned([sample.path for sample in category.test if sample.is_anomalous is anomalous], most)
            for kind, anomalous in (("good", False), ("defective", True))
        }
        if not learned:
            (seen,) = factory.look(read([*tests["good"], *tests["defective"]]), None)
            found.setdefault("left out", {})[name] = seen
            continue
        outside = []
        for kind, paths in tests.items():
            found.setdefault(kind, {})[name], other = factory.look(read(paths), None, name)
            outside.append(other)
        found.setdefault("left out", {})[name] = Seen.join(outside)
        parts = split(name, len(category.train), training.model_copy(update={"seed": factory.seeds[name]}))
        kept = thinned([category.train[row] for fold in parts.folds for row in fold], most)
        inside, outside_training = factory.look(read(kept), None, name)
        found.setdefault("calibrating", {})[name] = inside
        found.setdefault("left out training", {})[name] = outside_training
        (found.setdefault("altered", {})[name],) = factory.look(altered(kept, side, resize), None)
    return found


def joined(found: Sequence[dict[str, dict[str, Seen]]], kind: str, name: str | None = None) -> Seen:
    """Images of a kind, of one category or of all, from all checkpoints."""
    return Seen.join(
        seen for each in found for category, seen in each.get(kind, {}).items() if name in (None, category)
    )


def choose(found: Sequence[dict[str, dict[str, Seen]]]) -> None:
    """Print what training images say of power and limit."""
    known = Seen.join((joined(found, "altered"), joined(found, "calibrating")))
    foreign = joined(found, "left out training")
    logs = np.concatenate((known.logs(), foreign.logs()))
    labels = np.repeat((0, 1), (len(known.ratios), len(foreign.ratios)))
    weights = LogisticRegression(class_weight="balanced", max_iter=1000).fit(logs, labels).coef_[0]
    fitted = float(weights[1] / weights[0])
    print(f"Training images: the excess raises the distance ratio by a power of {fitted:.3f}; in use: {EXCESS_POWER}\n")
    print("| power | limit that refuses 1 % of the altered | left out: refused | good that calibrate: refused |")
    print("|---|---|---|---|")
    for power in (0.0, EXCESS_POWER, fitted):
        altered = joined(found, "altered")
        limit = float(np.quantile(altered.ratios * altered.raised(power), 1 - ALTERED_REFUSED))
        cells = [(part.novelty_score(power) > limit).mean() for part in (foreign, joined(found, "calibrating"))]
        print(f"| {power:.3f} | {limit:.3f} | " + " | ".join(f"{100 * cell:.1f} %" for cell in cells) + " |")


def interval(refused: np.ndarray) -> str:
    """A distance ratio with its 95 % confidence interval (Wilson), in percent."""
    low, high = binomtest(int(refused.sum()), len(refused)).proportion_ci(method="wilson")
    return f"{100 * refused.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def report(found: Sequence[dict[str, dict[str, Seen]]]) -> None:
    """Print what happens to test images, at the default limit by category, and by limit."""
    kinds = ("left out", "good", "defective")
    head = "left out: refused | good: refused | defective: refused |\n|---|---|---|---|"
    print(f"\nTest images at the default limit of {DEFAULT_UNKNOWN_LIMIT}:\n\n| category | {head}")
    for name in dict.fromkeys(name for each in found for name in each["left out"]):
        cells = [
            interval(joined(found, kind, name).novelty_score() > DEFAULT_UNKNOWN_LIMIT)
            if name in found[0][kind]
            else "–"
            for kind in kinds
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\nAll together, by limit (by the router's distance ratio alone in the lower half):\n\n| limit | {head}")
    for power in (EXCESS_POWER, 0.0):
        for limit in sorted({*LIMITS, DEFAULT_UNKNOWN_LIMIT}):
            cells = [interval(joined(found, kind).novelty_score(power) > limit) for kind in kinds]
            print(f"| {limit} | " + " | ".join(cells) + " |")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--plugin")
    parser.add_argument("--thin", type=int, default=0)
    options = parser.parse_args(argv)
    configure_threads()
    found = [gather(Factory(path, options.plugin), options.data, options.thin) for path in options.checkpoints]
    choose(found)
    report(found)
    return 0


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main())
