"""What half precision costs in accuracy: bf16 products, and experts stored in bf16, beside fp32 throughout.

    python benchmarks/precision.py CHECKPOINT DATA [--plugin MODULE] [--task NAME …] [--output FILE.json]

Every test image of the products is judged three times with its product named, by one checkpoint: with fp32 products,
with bf16 products, and with bf16 products by experts whose learned numbers were rounded to bfloat16, as a
checkpoint of ``expert_dtype: bfloat16`` stores them. The gates: bf16 products move no product's image AUROC by more
than 0.1 points and no pixel AP by more than 0.3. The exit status is 1 unless both hold.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from result_files import write_result

from moleflow.model.detector import Detector
from moleflow.model.features.backbone import import_plugin
from moleflow.model.flow.expert import Expert
from moleflow.model.runtime.threads import configure_threads, restart_prepared
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.training.data.datasets import Category, load_category, read_image
from moleflow.training.data.masks import read_mask
from moleflow.training.evaluation.metrics import EVALUATION_SIDE, PixelScores, image_ranking

MOST_IMAGE_AUROC, MOST_PIXEL_AP = 0.1, 0.3
"""Points that bf16 may move a product's figures by."""

BATCH_SIZE = 8
FIGURES = ("image AUROC", "pixel AUROC", "pixel AP", "AUPRO")
WAYS = ("fp32", "bf16", "bf16, experts stored in bf16")


class Rounded(Checkpoint):
    """A checkpoint whose experts come as one that stores them in bfloat16 would give them."""

    def expert(self, index: int) -> Expert:
        expert = super().expert(index)
        expert.round_to(torch.bfloat16)
        return expert


def judge(detector: Detector, category: Category) -> dict[str, float]:
    """The figures of a product's test images, in percent."""
    scores: list[float] = []
    pixels = PixelScores()
    for start in range(0, len(category.test), BATCH_SIZE):
        samples = category.test[start : start + BATCH_SIZE]
        images = [read_image(sample.path) for sample in samples]
        found = detector.predict(images, [category.name] * len(samples), refuse_unknown=False)
        for sample, result in zip(samples, found, strict=True):
            scores.append(result.score)
            if sample.is_anomalous and not sample.masks:
                continue  # its pixels have no labels
            mask = read_mask(sample.masks, EVALUATION_SIDE, EVALUATION_SIDE) if sample.masks else None
            pixels.add(result.pixel_map(EVALUATION_SIDE, EVALUATION_SIDE), mask)
    image, pixel = image_ranking(scores, [sample.is_anomalous for sample in category.test]), pixels.ranking()
    values = (image.auroc, pixel.auroc, pixel.average_precision, pixels.aupro())
    return {name: float("nan") if value is None else 100 * value for name, value in zip(FIGURES, values, strict=True)}


def measure(path: Path, data: Path, tasks: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by product and way."""
    kinds = {"fp32": (Checkpoint, "fp32"), "bf16": (Checkpoint, "bf16"), WAYS[2]: (Rounded, "bf16")}
    categories = [load_category(data, name) for name in tasks]
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in tasks}
    for way, (kind, precision) in kinds.items():
        detector = Detector(kind.open(path), precision=precision)
        for category in categories:
            found[category.name][way] = judge(detector, category)
    return found


def holds(found: dict[str, dict[str, dict[str, float]]]) -> bool:
    """Whether bf16 products move nothing by more than they may."""
    most = {"image AUROC": MOST_IMAGE_AUROC, "pixel AP": MOST_PIXEL_AP}
    return all(
        abs(ways["bf16"][name] - ways["fp32"][name]) <= limit for ways in found.values() for name, limit in most.items()
    )


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown, with differences to fp32 in brackets."""
    lines = ["| product | products in | " + " | ".join(FIGURES) + " |", "|---|---|" + "---|" * len(FIGURES)]
    for name, ways in found.items():
        for way, figures in ways.items():
            cells = [
                f"{figures[key]:.2f}" + ("" if way == "fp32" else f" ({figures[key] - ways['fp32'][key]:+.2f})")
                for key in FIGURES
            ]
            lines.append(f"| {name} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--plugin")
    parser.add_argument("--task", action="append", help="default: every product of the checkpoint")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    configure_threads()
    if options.plugin:
        import_plugin(options.plugin)
    tasks = options.task or [task.name for task in Checkpoint.open(options.checkpoint).header.tasks]
    found = measure(options.checkpoint, options.data, tasks)
    if options.output:
        write_result(options.output, found, table(found) + "\n")
    print(table(found))
    print(f"\nbf16 within {MOST_IMAGE_AUROC} and {MOST_PIXEL_AP} points: {'yes' if holds(found) else 'NO'}")
    return 0 if holds(found) else 1


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main())
