"""Does the service refuse images of unknown products? Measures the router together with the nearest expert.

    python -m benchmarks unknown_verdicts CHECKPOINT [CHECKPOINT …] DATA [--plugin MODULE] [--thin 60]

Each product of a checkpoint is left out of the router in turn, and its test images are shown to the others. Images of
categories in DATA that were not learned are unknown to all products. With every product present: the fractions of good
and of defective test images that are wrongly refused. Several checkpoints, such as those of several seeds, are counted
together.

Hyperparameters are chosen on good training images only, and printed first. How fast the excess of the background NLL
raises the distance ratio (``moleflow.model.routing.novelty.EXCESS_POWER``) comes from a logistic regression that
separates left-out products from learned ones whose images were altered as a defect, another light or another focus
would alter them. The limit is what 1 % of the altered images exceed by distance ratio and excess alone. These are the
calibration images: their prototypes have seen them unaltered, and so have the experts of cross-fitted products; with
few images there are no others. ``--thin N`` takes at most N images of each kind and category.

``unknown_products`` measures the router alone and needs no expert.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.shared.command import make_parser, prepare
from benchmarks.shared.statistics import interval
from moleflow.model.config import DEFAULT_UNKNOWN_LIMIT
from moleflow.model.detector import Detector
from moleflow.model.features.extractor import stack_images
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.routing.novelty import EXCESS_POWER, EXCESS_UNIT, background_nll
from moleflow.model.routing.router import Prototype, Router, image_descriptor
from moleflow.model.routing.shortlist import effective_ratios
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.calibration import TaskCalibration
from moleflow.training.config import preset
from moleflow.training.data.datasets import discover, load_category, read_image
from moleflow.training.embeddings.augment import AUGMENTATIONS
from moleflow.training.fit.cross_fitting import split
from moleflow.training.report.markdown import markdown_table

BATCH_SIZE = 8
LIMITS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ALTERED_REFUSED = 0.01


@dataclass(frozen=True)
class Seen:
    """Images as some products see them: the smallest distance ratio, the same with far products counted, the excess."""

    ratios: np.ndarray
    counted: np.ndarray
    excesses: np.ndarray
    """Excess of the background NLL of the nearest product's expert, nats per dimension."""

    @classmethod
    def join(cls, parts: Iterable["Seen"]) -> "Seen":
        """All images of several parts."""
        several = list(parts)
        columns = ("ratios", "counted", "excesses")
        return cls(*(np.concatenate([getattr(each, name) for each in several]) for name in columns))

    def novelty_score(self, power: float = EXCESS_POWER) -> np.ndarray:
        """What the service compares with its limit."""
        return self.counted * self.raised(power)

    def raised(self, power: float) -> np.ndarray:
        """The factor of the distance ratio."""
        return (1 + self.excesses / EXCESS_UNIT) ** power

    def logs(self) -> np.ndarray:
        """The input of the logistic regression, ``(n, 2)``."""
        return np.stack((np.log(self.ratios + 1e-6), np.log1p(self.excesses / EXCESS_UNIT)), 1)


class Factory:
    """A checkpoint's products; any of them can be left out of the router."""

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
        """The images as all products except one see them, for each of ``without``; ``None`` leaves none out."""
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
                features = self.detector.embed_and_route(stack_images(batch, resize, device))[0]
                for (kept, router), found in zip(routers, parts, strict=True):
                    found.append(self._see(features, kept, router))
                batch = []
        return [Seen.join(found) for found in parts]

    def _see(self, features: PatchFeatures, kept: Sequence[int], router: Router) -> Seen:
        distances, ratios = router(image_descriptor(features.embeddings))
        nearest = [kept[row] for row in distances.argmin(1).tolist()]
        maps = self.detector.products.maps(features, nearest).nll.numpy()
        typical = torch.tensor([self.calibrations[index].distances.median for index in kept])
        levels = background_nll(maps)
        usual = [self.calibrations[index].grounds.median for index in nearest]
        return Seen(
            ratios.amin(1).numpy(),
            effective_ratios(distances, ratios, typical).amin(1).numpy(),
            np.maximum(0, np.subtract(levels, usual)) / self.dim,
        )


def thinned(paths: Sequence[Path], most: int) -> list[Path]:
    """At most ``most`` of the paths, evenly spaced; all where ``most`` is 0."""
    return list(paths[:: -(-len(paths) // most)] if most and len(paths) > most else paths)


def altered(paths: Sequence[Path], side: int, resize: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    """Each image with each augmentation, with random numbers by kind and name that differ from the router's."""
    for kind, augmentation in AUGMENTATIONS.items():
        for path in paths:
            seed = hashlib.sha256(f"judge|{kind}|{path.name}".encode()).digest()
            yield augmentation(resize(read_image(path, side)), np.random.default_rng(list(seed)))


def gather(factory: Factory, data: Path, most: int) -> dict[str, dict[str, Seen]]:
    """Images by kind and category: ``altered``, ``calibrating``, ``good`` and ``defective`` of learned products, and
    ``left out training`` and ``left out`` as the other products see them."""
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
    """All images of a kind, of one category or of all, from all checkpoints."""
    return Seen.join(
        seen for each in found for category, seen in each.get(kind, {}).items() if name in (None, category)
    )


def choose(found: Sequence[dict[str, dict[str, Seen]]]) -> None:
    """Print the power and the limit that training images suggest."""
    known = Seen.join((joined(found, "altered"), joined(found, "calibrating")))
    foreign = joined(found, "left out training")
    logs = np.concatenate((known.logs(), foreign.logs()))
    labels = np.repeat((0, 1), (len(known.ratios), len(foreign.ratios)))
    weights = LogisticRegression(class_weight="balanced", max_iter=1000).fit(logs, labels).coef_[0]
    fitted = float(weights[1] / weights[0])
    print(f"Training images: the excess raises the distance ratio by a power of {fitted:.3f}; in use: {EXCESS_POWER}\n")
    rows = []
    for power in (0.0, EXCESS_POWER, fitted):
        altered = joined(found, "altered")
        limit = float(np.quantile(altered.ratios * altered.raised(power), 1 - ALTERED_REFUSED))
        cells = [(part.novelty_score(power) > limit).mean() for part in (foreign, joined(found, "calibrating"))]
        rows.append([f"{power:.3f}", f"{limit:.3f}", *(f"{cell:.1%}" for cell in cells)])
    print(markdown_table(["power", "limit that refuses 1 % of the altered", "left out", "calibrating good"], rows))


def report(found: Sequence[dict[str, dict[str, Seen]]]) -> None:
    """Print the fractions of refused test images: at the default limit by category, and by limit."""
    kinds = ("left out", "good", "defective")

    def cell(seen: Seen, limit: float, power: float = EXCESS_POWER) -> str:
        refused = seen.novelty_score(power) > limit
        return interval(int(refused.sum()), len(refused))

    rows = [
        [
            name,
            *(
                cell(joined(found, kind, name), DEFAULT_UNKNOWN_LIMIT) if name in found[0][kind] else "–"
                for kind in kinds
            ),
        ]
        for name in dict.fromkeys(name for each in found for name in each["left out"])
    ]
    print(f"\nRefused test images at the default limit of {DEFAULT_UNKNOWN_LIMIT}:\n")
    print(markdown_table(["category", *kinds], rows))
    print("\nRefused test images of all categories by limit; in the lower half by the distance ratio alone:\n")
    limits = [
        [limit, *(cell(joined(found, kind), limit, power) for kind in kinds)]
        for power in (EXCESS_POWER, 0.0)
        for limit in sorted({*LIMITS, DEFAULT_UNKNOWN_LIMIT})
    ]
    print(markdown_table(["limit", *kinds], limits))


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("unknown_verdicts", __doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--plugin", help="module that registers the checkpoint's backbone with timm")
    parser.add_argument("--thin", type=int, default=0, help="images of each kind and category, at most; 0: all")
    options = parser.parse_args(arguments)
    prepare(options.plugin)
    found = [gather(Factory(path, options.plugin), options.data, options.thin) for path in options.checkpoints]
    choose(found)
    report(found)
    return 0
