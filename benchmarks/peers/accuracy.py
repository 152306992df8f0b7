"""How well do neighbouring methods find defects? One model a category, measured by MoLE-Flow's own metrics.

    VENV/bin/python benchmarks/peers/accuracy.py DATA --category bottle --category grid --output rows.jsonl \\
        [--method patchcore --method padim] [--backbone NAME --plugin MODULE] [--checkpoint FILE]

VENV is what ``setup.sh`` made. Each pair of method and category is one row, appended to the output as soon as it is
measured; given again, only what is missing runs. With ``--checkpoint`` MoLE-Flow is measured beside them by the same
code: one continual model for all categories, its router choosing.

AUPRO is computed twice, by MoLE-Flow's metrics and by anomalib's, as a check of the one by the other.
"""

import argparse
import importlib.metadata
import importlib.util
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scorers import BATCH_SIZE, METHODS, Scored, Setting, make_scorer

from moleflow.model.detector import Detector
from moleflow.model.errors import ConfigurationError, DatasetError, MoLEFlowError
from moleflow.model.features.backbone import import_plugin
from moleflow.model.runtime.threads import configure_threads, restart_prepared
from moleflow.training.data.datasets import Category, load_category, read_image
from moleflow.training.data.masks import read_mask
from moleflow.training.evaluation.metrics import EVALUATION_SIDE, PixelScores, image_ranking

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of all benchmarks

from result_files import append_row, read_rows

OURS = "moleflow"
"""The name of MoLE-Flow's rows."""

FIGURES = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro", "aupro_by_anomalib")
"""What the table shows, in percent."""

VERSIONED = ("anomalib", "timm", "torch")
"""What a row's figures depend on beside MoLE-Flow."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One category's figures, each a share 0…1; ``None`` where there is nothing to measure it on."""

    good: int
    defective: int
    image_auroc: float | None
    image_ap: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    aupro: float | None
    aupro_by_anomalib: float | None


def measure(category: Category, found: Iterator[Scored]) -> Measured:
    """Figures of the scores and maps of the category's test images, in their order."""
    pixels, scores = PixelScores(), []
    maps: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for sample, (score, anomaly_map) in zip(category.test, found, strict=True):
        scores.append(score)
        if sample.is_anomalous and not sample.masks:
            continue  # a defect without mask says nothing of pixels
        mask = read_mask(sample.masks, *anomaly_map.shape) if sample.masks else None
        pixels.add(anomaly_map, mask)
        maps.append(_at_evaluation_size(anomaly_map, Image.Resampling.BILINEAR))
        marked = np.zeros(anomaly_map.shape, np.uint8) if mask is None else mask.astype(np.uint8)
        masks.append(_at_evaluation_size(marked, Image.Resampling.NEAREST))
    anomalous = [sample.is_anomalous for sample in category.test]
    image, pixel = image_ranking(scores, anomalous), pixels.ranking()
    return Measured(
        good=anomalous.count(False),
        defective=anomalous.count(True),
        image_auroc=image.auroc,
        image_ap=image.average_precision,
        pixel_auroc=pixel.auroc,
        pixel_ap=pixel.average_precision,
        aupro=pixels.aupro() if hasattr(pixels, "aupro") else None,
        aupro_by_anomalib=_aupro_by_anomalib(maps, masks),
    )


def _at_evaluation_size(values: np.ndarray, how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize((EVALUATION_SIDE, EVALUATION_SIDE), how))


def _aupro_by_anomalib(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float | None:
    """AUPRO up to a false-positive rate of 0.3 by an implementation that is not ours.

    ``None`` without a defect, and where anomalib is not installed, as when only MoLE-Flow is measured.
    """
    if not any(mask.any() for mask in masks) or importlib.util.find_spec("anomalib") is None:
        return None
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO()  # the public class wraps this one for anomalib's own batches
    metric.update(torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(masks)).int())
    return float(metric.compute())


def ours(detector: Detector, category: Category) -> Iterator[Scored]:
    """MoLE-Flow's scores and maps of the category's test images, the router choosing the product."""
    for start in range(0, len(category.test), BATCH_SIZE):
        images = [read_image(sample.path) for sample in category.test[start : start + BATCH_SIZE]]
        for rgb_image, prediction in zip(images, detector.predict(images), strict=True):
            yield prediction.score, prediction.pixel_map(*rgb_image.shape[:2])


def peer_row(method: str, category: Category, setting: Setting) -> dict[str, Any]:
    """Fit a peer to the good images and measure it on the test images."""
    scorer = make_scorer(method, setting)
    start = time.perf_counter()
    scorer.fit(category.train)
    fitted = time.perf_counter()
    measured = measure(category, scorer.score([sample.path for sample in category.test]))
    return asdict(measured) | {
        "fit_seconds": round(fitted - start, 1),
        "score_seconds": round(time.perf_counter() - fitted, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED if importlib.util.find_spec(name)},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table in percent, and each method's mean where it has several categories."""
    lines = [f"| method | category | {' | '.join(FIGURES)} |", f"|---|---|{'---|' * len(FIGURES)}"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        shown = own if len(own) < 2 else [*own, _mean(own)]
        for row in shown:
            cells = ("–" if row[name] is None else f"{100 * row[name]:.1f}" for name in FIGURES)
            lines.append(f"| {method} | {row['category']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = {name: [row[name] for row in rows if row[name] is not None] for name in FIGURES}
    return {"category": "mean"} | {name: sum(found) / len(found) if found else None for name, found in values.items()}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what the output lacks; the rows that were asked for, in order."""
    setting = Setting(options.backbone, tuple(options.layer or ("layer2", "layer3")), options.image_size, options.seed)
    detector = Detector.load(options.checkpoint) if options.checkpoint else None
    if OURS in (options.method or ()) and not detector:
        raise ConfigurationError(f"--method {OURS} needs --checkpoint FILE.")
    known = read_rows(options.output)
    rows = []
    for method, name in product(options.method or [*METHODS, *([OURS] if detector else [])], options.category):
        key: dict[str, Any] = {"method": method, "category": name}
        if detector and method == OURS:
            key |= {"checkpoint": detector.checkpoint.digest}
        else:
            key |= asdict(setting) | {"layers": list(setting.layers)}
        row = next((row for row in known if all(row.get(part) == value for part, value in key.items())), None)
        if row is None:
            print(f"{method} on {name} …", file=sys.stderr, flush=True)
            category = load_category(options.data, name)
            if not category.test:
                raise DatasetError(f"{name} holds no test images; leave it out.")
            if detector and method == OURS:
                row = key | asdict(measure(category, ours(detector, category)))
            else:
                row = key | peer_row(method, category, setting)
            append_row(options.output, row)
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line; 1 on an error that the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--category", action="append", required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; added to")
    parser.add_argument("--method", action="append", choices=[*METHODS, OURS], help="default: all that can be run")
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--layer", action="append", help="default: layer2 and layer3, strides 8 and 16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--plugin", help="a module or .py file that registers the backbone with timm")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint of MoLE-Flow, to be measured too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        configure_threads()
        if options.plugin:
            import_plugin(options.plugin)
        rows = run(options)
    except MoLEFlowError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    if any(row["aupro"] is None and row["aupro_by_anomalib"] is not None for row in rows):
        print("aupro: MoLE-Flow's metrics were not there when some rows were measured; see aupro_by_anomalib.")
    return 0


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main())
