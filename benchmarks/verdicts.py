"""Do verdicts keep what the false-alarm rate promises, and what do they find?

    python benchmarks/verdicts.py CHECKPOINT DATA [--category NAME]… [--plugin MODULE] [--rate 0.01]

For every learned product: the share of its good test images that are called anomalous, with the 95 % confidence
interval of Clopper and Pearson, and the share of its defective ones that are. The product is named in each request, so
that the router has no say. Three thresholds are compared, all from the same held-out good images: ours for the wanted
rate, their highest score, and 1.4 times their 95th percentile (measured from their median, since scores may be
negative). Nothing is chosen on the test images. Also the share of images in which a region is reported, by
calibrated pixel threshold: of good ones, the promise is the same rate.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from moleflow.model.detector import Detector
from moleflow.model.features.backbone import import_plugin
from moleflow.model.runtime.threads import configure_threads, restart_prepared
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, Calibration
from moleflow.model.verdict.results import Prediction
from moleflow.training.data.datasets import Sample, load_category, read_image

BATCH_SIZE = 8
RIVAL_FACTOR, RIVAL_PERCENTILE = 1.4, 95
"""A rule of thumb that is met in practice."""


def thresholds(calibration: Calibration, rate: float) -> dict[str, float]:
    """The rules to compare: each one's threshold."""
    middle = calibration.median
    high = float(np.percentile(calibration.scores, RIVAL_PERCENTILE))
    return {
        f"calibrated {rate:g}": calibration.threshold(rate),
        "highest held-out": float(calibration.scores[-1]),
        f"p{RIVAL_PERCENTILE} × {RIVAL_FACTOR}": middle + RIVAL_FACTOR * (high - middle),
    }


def predict(detector: Detector, samples: Sequence[Sample], name: str) -> list[Prediction]:
    found: list[Prediction] = []
    for start in range(0, len(samples), BATCH_SIZE):
        images = [
            read_image(sample.path, detector.preprocessing.image_size) for sample in samples[start : start + BATCH_SIZE]
        ]
        found += detector.predict(images, [name] * len(images), refuse_unknown=False)
    return found


def interval(hits: int, count: int) -> str:
    """A share with its exact 95 % confidence interval (Clopper and Pearson 1934)."""
    if not count:
        return "–"
    low, high = binomtest(hits, count).proportion_ci(method="exact")
    return f"{hits / count:6.1%} [{low:.1%}, {high:.1%}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--category", action="append")
    parser.add_argument("--plugin")
    parser.add_argument("--rate", type=float, default=DEFAULT_FALSE_ALARM_RATE)
    options = parser.parse_args()
    configure_threads()
    if options.plugin:
        import_plugin(options.plugin)
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
    print(f"  {rule:<18} false alarms {interval(alarms, good):<24} defects found {interval(hits, bad)}")


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main())
