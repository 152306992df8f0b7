"""How well do other methods find defects? One model per category, measured with MoLE-Flow's own metrics.

    VENV/bin/python -m benchmarks baseline_accuracy DATA --category bottle --category grid --output rows.jsonl \\
        [--method patchcore --method padim] [--backbone NAME --plugin MODULE] [--checkpoint FILE]

VENV is what ``setup.sh`` made; run it in the repository. Each pair of method and category is one row, which is
appended to the output as soon as it is measured; a second run measures only what is missing. With ``--checkpoint``,
MoLE-Flow is measured by the same code: one continual model for all categories, with its router choosing.

AUPRO is computed twice, by MoLE-Flow's metrics and by anomalib's, to check one with the other.
"""

import argparse
import importlib.metadata
import importlib.util
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.baselines.scorers import BATCH_SIZE, METHODS, Scored, Setting, make_scorer
from benchmarks.shared.command import make_parser, prepare
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.rows import append_row, read_rows
from moleflow.model.detector import Detector
from moleflow.training.data.datasets import Category, load_category, read_image
from moleflow.training.data.masks import read_mask
from moleflow.training.evaluation.figures import category_figures, labelled_pixels
from moleflow.training.evaluation.metrics import EVALUATION_SIDE, PixelScores
from moleflow.training.report.markdown import markdown_table

OURS = "moleflow"
"""The name of MoLE-Flow's rows."""

FIGURES = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro", "aupro_by_anomalib")
"""Columns of the table, in percent."""

VERSIONED = ("anomalib", "timm", "torch")
"""Packages that a row's figures depend on."""


def measure(category: Category, found: Iterator[Scored]) -> dict[str, Any]:
    """The figures of the category's test images, from their scores and maps in the same order; fractions 0…1."""
    pixels, scores = PixelScores(), []
    maps: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for sample, (score, anomaly_map) in zip(category.test, found, strict=True):
        scores.append(score)
        labelled = labelled_pixels(sample, anomaly_map)
        if labelled is None:
            continue
        pixels.append(labelled)
        marked = read_mask(sample.masks, *anomaly_map.shape) if sample.masks else np.zeros(anomaly_map.shape, bool)
        maps.append(_at_evaluation_size(anomaly_map, Image.Resampling.BILINEAR))
        masks.append(_at_evaluation_size(marked.astype(np.uint8), Image.Resampling.NEAREST))
    labels = [sample.is_anomalous for sample in category.test]
    figures = category_figures(category.test, scores, pixels).model_dump(include=set(FIGURES))
    counts = {"good": labels.count(False), "defective": labels.count(True)}
    return counts | figures | {"aupro_by_anomalib": _aupro_by_anomalib(maps, masks)}


def _at_evaluation_size(values: np.ndarray, how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize((EVALUATION_SIDE, EVALUATION_SIDE), how))


def _aupro_by_anomalib(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float | None:
    """AUPRO up to a false-positive rate of 0.3 by anomalib's metric.

    ``None`` without a defect, and where anomalib is not installed, as when only MoLE-Flow is measured.
    """
    if not any(mask.any() for mask in masks) or importlib.util.find_spec("anomalib") is None:
        return None
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO()  # the public class wraps this one for anomalib's own batches
    metric.update(torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(masks)).int())
    return float(metric.compute())


def ours(detector: Detector, category: Category) -> Iterator[Scored]:
    """MoLE-Flow's scores and maps of the category's test images, with the router choosing the product."""
    for start in range(0, len(category.test), BATCH_SIZE):
        images = [read_image(sample.path) for sample in category.test[start : start + BATCH_SIZE]]
        for image, prediction in zip(images, detector.predict(images, refuse_unknown=False), strict=True):
            yield prediction.score, prediction.pixel_map(*image.shape[:2])


def baseline_row(method: str, category: Category, setting: Setting) -> dict[str, Any]:
    """Fit a baseline to the good images and measure it on the test images."""
    scorer = make_scorer(method, setting)
    start = time.perf_counter()
    scorer.fit(category.train)
    fitted = time.perf_counter()
    measured = measure(category, scorer.score([sample.path for sample in category.test]))
    return measured | {
        "fit_seconds": round(fitted - start, 1),
        "score_seconds": round(time.perf_counter() - fitted, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED if importlib.util.find_spec(name)},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table in percent, with the mean of each method that has several categories."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        for row in own if len(own) < 2 else [*own, _mean(own)]:
            figures = ("–" if row[name] is None else f"{100 * row[name]:.1f}" for name in FIGURES)
            lines.append([method, row["category"], *figures])
    return markdown_table(["method", "category", *FIGURES], lines, right_from=2)


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = {name: [row[name] for row in rows if row[name] is not None] for name in FIGURES}
    return {"category": "mean"} | {name: sum(found) / len(found) if found else None for name, found in values.items()}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what the output lacks; returns all requested rows in order."""
    setting = Setting(options.backbone, tuple(options.layer or ("layer2", "layer3")), options.image_size, options.seed)
    detector = Detector.load(options.checkpoint) if options.checkpoint else None
    if OURS in (options.method or ()) and not detector:
        raise BenchmarkError(f"--method {OURS} needs --checkpoint FILE.")
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
                raise BenchmarkError(f"{name} holds no test images; leave it out.")
            if detector and method == OURS:
                row = key | measure(category, ours(detector, category))
            else:
                row = key | baseline_row(method, category, setting)
            append_row(options.output, row)
        rows.append(row)
    return rows


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("baseline_accuracy", __doc__)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--category", action="append", required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; rows are appended")
    parser.add_argument("--method", action="append", choices=[*METHODS, OURS], help="default: all that can run")
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--layer", action="append", help="default: layer2 and layer3, strides 8 and 16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--plugin", help="a module or .py file that registers the backbone with timm")
    parser.add_argument("--checkpoint", type=Path, help="also measure this checkpoint of MoLE-Flow")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    prepare(options.plugin)
    print(table(run(options)))
    return 0
