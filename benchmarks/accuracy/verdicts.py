"""Do verdicts keep the promised false-alarm rate, and how many defects do they find?

    python -m benchmarks verdicts CHECKPOINT DATA [--category NAME]… [--plugin MODULE] [--rate 0.01 --rate 0.05]

For every learned product: the fraction of its good test images that are called anomalous, with the 95 % confidence
interval of Clopper and Pearson, and the same fraction of its defective ones; with ``--altered`` also of altered copies
of the good ones (``moleflow.training.embeddings.alterations``). The product is named, so the router does not matter.
Thresholds of the same held-out good images are compared: the calibrated one for each wanted rate, the highest held-out
score, and 1.4 times the 95th percentile (measured from the median, since scores may be negative). Nothing is chosen on
the test images. Last, the fraction of images with a reported region by the calibrated pixel threshold, which promises
the first rate on good images.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.shared.command import make_parser, prepare
from benchmarks.shared.statistics import interval
from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.verdict.calibration import DEFAULT_FALSE_ALARM_RATE, Calibration
from moleflow.model.verdict.results import Prediction
from moleflow.training.data.datasets import Sample, load_category, read_image
from moleflow.training.embeddings.alterations import AlteredReader

BATCH_SIZE = 8
RIVAL_FACTOR, RIVAL_PERCENTILE = 1.4, 95
"""A rule of thumb that is used in practice."""


Counts = tuple[tuple[int, int], ...]
"""Alarms and images: of good images, of defective ones, and of altered good ones if wanted."""


def thresholds(calibration: Calibration, rates: Sequence[float]) -> dict[str, float]:
    """The threshold of each rule."""
    middle = calibration.median
    high = float(np.percentile(calibration.scores, RIVAL_PERCENTILE))
    return {f"calibrated {rate:g}": calibration.threshold(rate) for rate in rates} | {
        "highest held-out": float(calibration.scores[-1]),
        f"p{RIVAL_PERCENTILE} × {RIVAL_FACTOR}": middle + RIVAL_FACTOR * (high - middle),
    }


def predict(
    detector: Detector,
    samples: Sequence[Sample],
    name: str,
    read: Callable[[Path, int], np.ndarray] = read_image,
) -> list[Prediction]:
    """Predictions of the samples with the product named."""
    found: list[Prediction] = []
    for start in range(0, len(samples), BATCH_SIZE):
        images = [
            read(sample.path, detector.preprocessing.image_size) for sample in samples[start : start + BATCH_SIZE]
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
    parser.add_argument(
        "--rate", type=float, action="append", help="wanted rate of false alarms; default: 0.01 and 0.05"
    )
    parser.add_argument("--altered", action="store_true", help="show altered copies of the good images too")
    options = parser.parse_args(arguments)
    prepare(options.plugin)
    rates = options.rate or [DEFAULT_FALSE_ALARM_RATE, 0.05]
    detector = Detector(Checkpoint.open(options.checkpoint), false_alarm_rate=rates[0])
    names = options.category or [task.name for task in detector.tasks]
    totals: dict[str, list[Counts]] = {}
    for name in names:
        samples = load_category(options.data, name).test
        info = next(task for task in detector.tasks if task.name == name)
        how = f"{info.held_out_images} held out" if info.folds == 1 else f"{info.held_out_images} in {info.folds} folds"
        print(f"{name} (calibrated by {how})")
        good = [sample for sample in samples if not sample.is_anomalous]
        kinds = [
            predict(detector, good, name),
            predict(detector, [sample for sample in samples if sample.is_anomalous], name),
        ]
        if options.altered:
            kinds.append(predict(detector, good, name, AlteredReader(info.white_level, detector.preprocessing.resize)))
        rules: dict[str, Counts] = {
            rule: tuple((sum(each.score > threshold for each in kind), len(kind)) for kind in kinds)
            for rule, threshold in thresholds(kinds[0][0].calibration.scores, rates).items()
        }
        rules["any region"] = tuple((sum(bool(each.regions(1, 1)) for each in kind), len(kind)) for kind in kinds)
        for rule, counts in rules.items():
            totals.setdefault(rule, []).append(counts)
            report(rule, counts)
    print("all products together")
    for rule, rows in totals.items():
        report(rule, tuple((sum(n for n, _ in kind), sum(n for _, n in kind)) for kind in zip(*rows, strict=True)))
    return 0


def report(rule: str, counts: Counts) -> None:
    """Print one rule's line."""
    good, bad, *altered = (interval(*each, exact=True) for each in counts)
    more = f" altered {altered[0]}" if altered else ""
    print(f"  {rule:<18} false alarms {good:<24} defects found {bad:<24}{more}".rstrip())
