"""Predictions of one product, of eight products mixed, and routed: time, memory, and distance from the lower bound."""

import functools
import gc
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.bounds import Bounds
from benchmarks.gpu.context import Context
from benchmarks.gpu.models import checkpoint, chosen_preset
from benchmarks.gpu.timing import device_ms, profiled, synchronise, wall_ms
from benchmarks.speed.lower_bound import noise
from moleflow.model.detector import Detector
from moleflow.model.features.extractor import stack_images

__all__ = ["measure"]

BATCHES = (1, 8, 64)
ROUNDS = 20
WARM_ROUNDS = 5


def measure(context: Context) -> None:
    """Both presets at every batch size; everything that fails leaves the rest."""
    for name in ("main", "fast"):
        context.attempt(context.result, name, partial(_preset, context, name))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _preset(context: Context, name: str) -> dict[str, Any]:
    """Every figure of one preset."""
    batches, rounds = ((1, 2), 2) if context.reduced else (BATCHES, ROUNDS)
    path = checkpoint(context, name)
    detector = Detector.load(path, device="auto", precision="auto", unknown_limit=0)
    config, names = chosen_preset(context, name).model, [task.name for task in detector.tasks]
    bounds = functools.cache(partial(Bounds, config, detector.device, detector.precision))
    found: dict[str, Any] = {"device": str(detector.device), "precision": detector.precision, "batches": {}}
    context.result[name] = found  # what is kept while this runs
    for batch in batches:
        figures = found["batches"].setdefault(str(batch), {})
        context.attempt(figures, "warm_up", partial(detector.warm_up, batch))
        subjects: dict[str, Sequence[str | None]] = {
            "one": names[:1] * batch,
            "mixed": [names[number % len(names)] for number in range(batch)],
            "routed": [None] * batch,
        }
        if batch == 1:
            del subjects["mixed"]
        for subject, tasks in subjects.items():
            context.attempt(figures, subject, partial(_prediction, detector, tasks, rounds))
            if subject != "routed" and "ms" in figures[subject]:
                context.attempt(figures[subject], "device", partial(_device, detector, tasks, rounds))
                context.attempt(figures[subject], "kernels", partial(_kernels, detector, tasks, 5))
        context.attempt(figures, "bound", partial(_bound, bounds, batch, rounds))
    mixed = [names[number % len(names)] for number in range(max(batches))]
    context.attempt(found, "profile", partial(_kernels, detector, mixed, 25))
    return found


def _bound(bounds: Callable[[], Bounds], batch: int, rounds: int) -> dict[str, Any]:
    return bounds().measure(batch, rounds)


def _predicting(detector: Detector, tasks: Sequence[str | None]) -> Callable[[], Any]:
    images = noise(detector, len(tasks))
    return lambda: detector.predict(images, tasks)


def _prediction(detector: Detector, tasks: Sequence[str | None], rounds: int) -> dict[str, Any]:
    """Milliseconds per batch by the wall clock, images per second, and the peak of the device's memory."""
    predict, device = _predicting(detector, tasks), detector.device
    for _ in range(WARM_ROUNDS):
        predict()
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = wall_ms(predict, device, rounds)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    ms = median(times)
    return {
        "ms": ms,
        "least_ms": min(times),
        "most_ms": max(times),
        "rounds": len(times),
        "images_per_second": len(tasks) * 1e3 / ms,
        "peak_bytes": peak,
    }


def _device(detector: Detector, tasks: Sequence[str | None], rounds: int) -> dict[str, float]:
    """Milliseconds of both parts of a prediction between events of the device, without the host's work around them."""
    index = {task.name: task.index for task in detector.tasks}
    numbers = [index[name] for name in tasks if name is not None]
    images = noise(detector, len(tasks))
    with torch.inference_mode():
        batch = stack_images(images, detector.preprocessing.resize, detector.device)
        embedding = device_ms(lambda: detector.embed_and_route(batch), detector.device, rounds)
        features, *_ = detector.embed_and_route(batch)
        maps = device_ms(lambda: detector.products.maps(features, numbers), detector.device, rounds)
    return {"embed_and_route_ms": embedding, "maps_ms": maps, "ms": embedding + maps}


def _kernels(detector: Detector, tasks: Sequence[str | None], top: int) -> dict[str, Any]:
    """The kernels of one prediction."""
    return profiled(_predicting(detector, tasks), detector.device, top)
