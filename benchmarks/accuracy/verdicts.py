"""Do verdicts keep the promised false-alarm rate, and how many defects do they find?

    python -m benchmarks verdicts CHECKPOINT DATA [--category NAME]… [--plugin MODULE] [--rate 0.01]

For every learned product: the fraction of its good test images that are called anomalous, with the 95 % confidence
interval of Clopper and Pearson, and the same fraction of its defective ones. The product is named, so the router does
not matter. Three thresholds are compared, all from the same held-out good images: the calibrated one for the wanted
rate, the highest held-out score, and 1.4 times the 95th percentile (measured from the median, since scores may be
negative). Nothing is chosen on the test images. Last, the fraction of images with a reported region by the calibrated
pixel threshold, which promises the same rate on good images.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.shared.command import make_parser, prepare
from benchmarks.shared.statistics import interval
from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, Calibration
from moleflow.model.verdict.results import Prediction
from moleflow.training.data.datasets import Sample, load_category, read_image

BATCH_SIZE = 8
RIVAL_FACTOR, RIVAL_PERCENTILE = 1.4, 95
"""A rule of thumb that is used in practice."""


def thresholds(calibration: Calibration, rate: float) -> dict[str, float]:
    """The threshold of each rule."""
    middle = calibration.median
    high = float(np.percentile(calibration.scores, RIVAL_PERCENTILE))
    return {
        f"calibrated {rate:g}": calibration.threshold(rate),
        "highest held-out": float(calibration.scores[-1]),
        f"p{RIVAL_PERCENTILE} × {RIVAL_FACTOR}": middle + RIVAL_FACTOR * (high - middle),
    }


def predict(detector: Detector, samples: Sequence[Sample], name: str) -> list[Prediction]:
    """Predictions of the samples with the product named."""
    found: list[Prediction] = []
    for start in range(0, len(samples), BATCH_SIZE):
        images = [
            read_image(sample.path, detector.preprocessing.image_size) for sample in samples[start : start + BATCH_SIZE]
        ]
        found += detector.predict(images, [name] * len(images), refuse_unknown=False)
    return found


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("verdicts", __doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--category", action="append")
    parser.add_argument("--plugin")
    parser.add_argument("--rate", type=float, default=DEFAULT_FALSE_ALARM_RATE)
    options = parser.parse_args(arguments)
    prepare(options.plugin)
    detector = Detector(Checkpoint.open(options.checkpoint), false_alarm_rate=options.rate)
    names = options.category or [task.name for task in detector.tasks]
    totals: dict[str, list[tuple[int, int, int, int]]] = {}
    for name in names:
        samples = load_category(options.data, name).test
        found = predict(detector, samples, name)
        info = next(task for task in detector.tasks if task.name == name)
        how = f"{info.held_out_images} held out" if info.folds == 1 else f"{info.held_out_images} in {info.folds} folds"
        print(f"{name} (calibrated by {how})")
        good = [each for each, sample in zip(found, samples, strict=True) if not sample.is_anomalous]
        bad = [each for each, sample in zip(found, samples, strict=True) if sample.is_anomalous]
        rules = {
            rule: tuple(sum(each.score > threshold for each in part) for part in (good, bad))
            for rule, threshold in thresholds(found[0].calibration.scores, options.rate).items()
        }
        rules["any region"] = tuple(sum(bool(each.regions(1, 1)) for each in part) for part in (good, bad))
        for rule, (alarms, hits) in rules.items():
            totals.setdefault(rule, []).append((alarms, len(good), hits, len(bad)))
            report(rule, alarms, len(good), hits, len(bad))
    print("all products together")
    for rule, rows in totals.items():
        report(rule, *(sum(column) for column in zip(*rows, strict=True)))
    return 0


def report(rule: str, alarms: int, good: int, hits: int, bad: int) -> None:
    """Print one rule's line."""
    found = interval(hits, bad, exact=True)
    print(f"  {rule:<18} false alarms {interval(alarms, good, exact=True):<24} defects found {found}")
