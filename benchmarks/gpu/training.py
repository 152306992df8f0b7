"""Products learned one after another, as ``moleflow train`` does it, and every test image as the router sends it.

First the preset fast, then main with its 60 epochs. A training that was stopped goes on in the next run.
"""

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.context import Context, OutOfTimeError
from benchmarks.gpu.learning import Source, Watch, source
from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.training.continual.sequence import train_tasks
from moleflow.training.data.selection import load_test_categories
from moleflow.training.evaluation.evaluate import Measured, evaluate
from moleflow.training.evaluation.records import Evaluation

__all__ = ["measure"]

RESERVE_SECONDS = 45
"""Time that is kept for evaluating what was learned."""

BATCH = 32
"""Images per batch of the evaluation."""

FIGURES = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro")


def measure(context: Context) -> None:
    """Learn and evaluate with both presets."""
    given, folder = source(context), context.work / "training"
    if context.options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    context.result.update(context.earlier)
    context.result["products"] = list(given.products)
    for name in ("fast", "main"):
        if not context.result.get(name, {}).get("whole"):
            context.attempt(context.result, name, partial(_preset, context, given, name, folder))


def _preset(context: Context, given: Source, name: str, folder: Path) -> dict[str, Any]:
    """Learn what is not yet learned, and evaluate all that is."""
    kept = context.earlier.get(name, {}).get("learned", {})
    found: dict[str, Any] = {"whole": False, "learned": dict(kept)}
    context.result[name] = found
    path, preset = folder / f"{name}.safetensors", given.preset(context, name)
    found["epochs"], found["backbone"] = preset.training.epochs, preset.model.backbone.name
    watch = Watch(context, 0 if context.reduced else RESERVE_SECONDS)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for product in given.products:
            if product not in _learned(path):
                watch.check()
                train_tasks(
                    given.data,
                    [product],
                    path,
                    preset=preset,
                    backbone_weights=given.weights,
                    cache=context.work / "embeddings",
                    reporter=watch,
                )
            _note(found, watch, product)
            context.keep()
    except OutOfTimeError:
        context.stopped = True
        learned = _learned(path)
        for product in learned:
            _note(found, watch, product)
        print(f"{name}: no time is left; {len(learned)} of {len(given.products)} products were learned", flush=True)
    learned = [product for product in given.products if product in _learned(path)]
    if learned:
        _evaluate(context, given, path, learned, found)
    found["whole"] = len(learned) == len(given.products) and "unmeasured" not in found
    return found


def _learned(path: Path) -> list[str]:
    return [task.name for task in Checkpoint.open(path).header.tasks] if path.exists() else []


def _note(found: dict[str, Any], watch: Watch, product: str) -> None:
    """What learning a product took, if this run learned it."""
    tasks, epochs = watch.found("task", product), watch.found("epoch", product)
    if tasks:
        kept = {key: tasks[-1][key] for key in ("seconds", "images", "epochs", "threshold")}
        rates = [each["images_per_second"] for each in epochs]
        found["learned"][product] = kept | {"images_per_second": median(rates) if rates else None}


def _evaluate(context: Context, given: Source, path: Path, learned: Sequence[str], found: dict[str, Any]) -> None:
    """All figures of the products learned so far; they are kept product by product."""
    watch = Watch(context, 0)
    detector = Detector.load(path)
    categories = load_test_categories(given.data, learned, learned, watch)
    started = time.perf_counter()

    def keep(evaluation: Evaluation, measured: list[Measured]) -> None:
        images, seconds = sum(len(each.outcomes) for each in measured), time.perf_counter() - started
        found["evaluation"] = _figures(evaluation) | {"images": images, "images_per_second": images / seconds}
        found.pop("unmeasured", None)
        if evaluation.unmeasured:
            found["unmeasured"] = list(evaluation.unmeasured)
        context.keep()
        if evaluation.unmeasured:
            watch.check()

    try:
        evaluate(detector, categories, batch_size=BATCH, reporter=watch, keep=keep)
    except OutOfTimeError:
        context.stopped = True


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    """The figures as routed, by product and their mean, and the routing accuracy."""
    products = {}
    for each in evaluation.categories:
        routed = each.routed.model_dump()
        counts = {"good": each.good, "defective": each.defective, "routing": each.routing_accuracy}
        products[each.category] = {key: routed[key] for key in FIGURES} | counts
        products[each.category] |= {key: routed[key] for key in ("false_alarm_rate", "defect_recall")}
    mean = evaluation.routed.model_dump()
    return {
        "precision": evaluation.precision,
        "products": products,
        "mean": {key: mean[key] for key in FIGURES} | {"routing": evaluation.routing_accuracy},
    }
