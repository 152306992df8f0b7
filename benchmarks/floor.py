"""How near is a prediction to what the hardware needs at least, and where does the rest of its time go?

    python benchmarks/floor.py [--checkpoint FILE] [--output FILE.json] [--precision bf16] [--batch 1] [--rounds 15]

The *floor* is the bare forward pass of the backbone, as PyTorch offers it, plus the bare matrix products of the flow,
of the same shapes and type (``benchmarks/peers/own_worker.py``). Everything runs in this one process in turn, round
after round; a ratio is taken within a round, and shown is the median with the least and the greatest.

Two gates: a prediction takes at most 1.25 times the floor, for one image and for eight, and eight different products
in one batch take at most 1.2 times as long as eight images of one. The exit status is 1 unless all pass.

Without a checkpoint, one of the MAIN configuration with random weights is made; with one, of eight products or more,
only its sizes count.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import processor
from random_checkpoint import write_random_checkpoint
from result_files import positive, ratios, spread, write_result
from torch import nn

from moleflow.model.detector import Detector
from moleflow.model.runtime.memory import keep_freed_memory
from moleflow.model.runtime.threads import THREAD_POLICY, configure_threads, restart_prepared

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))  # its modules import each other as scripts do

from own_worker import PRECISIONS, BackboneFloor, ProductsFloor

MOST_OVER_FLOOR = 1.25
"""A prediction's time, of the floor's."""

MOST_FOR_MIXING = 1.2
"""The time of a batch of different products, of one of the same size with one product."""

MIXED_BATCH = 8
"""Images of the batch in which every one is of another product."""

Times = dict[str, list[float]]
"""Milliseconds an image by subject, one a round."""


def time_in_turn(subjects: Mapping[str, Callable[[], Any]], rounds: int, images: int) -> Times:
    """One call of each subject a round, forwards and backwards alternately, after one that does not count."""
    times: Times = {name: [] for name in subjects}
    for call in subjects.values():
        call()
    for number in range(rounds):
        for name in list(subjects)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            subjects[name]()
            times[name].append((time.perf_counter() - start) * 1e3 / images)
    return times


def subjects(detector: Detector, batch: int, floor: Sequence[Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """What is timed at one batch size: the floor's two parts, prediction of one product, and of as many as images."""
    names = [task.name for task in detector.tasks]
    images = noise(detector, batch)

    def predict(tasks: list[str]) -> Callable[[], Any]:
        return lambda: [found.pixel_map() for found in detector.predict(images, tasks, refuse_unknown=False)]

    found = {"backbone": floor[0], "products": floor[1], "prediction": predict([names[0]] * batch)}
    if batch == MIXED_BATCH:
        found["mixed"] = predict(names[:batch])
    return found


def noise(detector: Detector, count: int) -> list[np.ndarray]:
    """RGB images at the model's size; nothing depends on what they show."""
    size = detector.preprocessing.image_size
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


class Stages:
    """Times of a detector's parts within its predictions, taken by hooks around its modules.

    Where images go side by side, each on a thread of its own, what a part takes is divided by the threads.
    """

    def __init__(self, detector: Detector) -> None:
        expert = detector._experts.get(0)
        parts: dict[str, Sequence[nn.Module | None]] = {
            "normalise": (detector._features,),
            "backbone": (detector._features.backbone,),
            "embedding": (detector._features.embedder,),
            "router": (detector._router,),
            "flow, rest": (expert,),
            "adapter": (expert.adapter,),
            "mixer": (expert.mixer,),
            "coupling blocks": expert.blocks,
            "DIA blocks": expert.dia,
        }
        self.detector = detector
        self._spent: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._hooks = []
        for name, modules in parts.items():
            for module in modules:
                if module is not None:
                    self._watch(name, module)

    def _watch(self, name: str, module: nn.Module) -> None:
        starts, threads = threading.local(), torch.get_num_threads()

        def begin(*_: object) -> None:
            starts.last = time.perf_counter()

        def stop(*_: object) -> None:
            share = 1 if threading.current_thread() is threading.main_thread() else threads
            with self._lock:
                self._spent[name] += (time.perf_counter() - starts.last) * 1e3 / share

        self._hooks.append(module.register_forward_pre_hook(begin))
        self._hooks.append(module.register_forward_hook(stop))

    def measure(self, batch: int, rounds: int) -> dict[str, float]:
        """Milliseconds an image of each part, and of what is outside of them: descriptor, score, map, Python."""
        images, names = noise(self.detector, batch), [self.detector.tasks[0].name] * batch
        found: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds + 1):
            self._spent.clear()
            start = time.perf_counter()
            for each in self.detector.predict(images, names, refuse_unknown=False):
                each.pixel_map()
            whole = (time.perf_counter() - start) * 1e3
            if number:
                for name, value in self._exclusive(whole).items():
                    found[name].append(value / batch)
        for hook in self._hooks:
            hook.remove()
        return {name: median(values) for name, values in found.items()}

    def _exclusive(self, whole: float) -> dict[str, float]:
        spent = dict(self._spent)
        spent["descriptor, score, map, other"] = whole - sum(
            spent.get(name, 0) for name in ("normalise", "router", "flow, rest")
        )
        spent["normalise"] -= spent["backbone"] + spent["embedding"]
        spent["flow, rest"] -= sum(spent.get(name, 0) for name in ("adapter", "mixer", "coupling blocks", "DIA blocks"))
        return spent


def measure(checkpoint: Path, precisions: Sequence[str], batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Times and stages of every precision and batch size."""
    times: dict[str, dict[str, Times]] = {}
    stages: dict[str, dict[str, dict[str, float]]] = {}
    for precision in precisions:
        detector = Detector.load(checkpoint, device="cpu", precision=precision)
        detector.warm_up()
        parts = BackboneFloor(precision), ProductsFloor(precision)
        times[precision], stages[precision] = {}, {}
        for batch in batches:
            print(f"{precision}, batch {batch} …", file=sys.stderr, flush=True)
            floor = [part.call(batch) for part in parts]
            times[precision][str(batch)] = time_in_turn(subjects(detector, batch, floor), rounds, batch)
            stages[precision][str(batch)] = Stages(detector).measure(batch, rounds)
    return {
        "machine": {"processor": processor(), "load": round(os.getloadavg()[0], 2)},
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ.get(name, "") for name in THREAD_POLICY},
        "rounds": rounds,
        "ms_per_image": times,
        "stages_ms_per_image": stages,
    }


def over_floor(times: Times) -> list[float]:
    """Prediction by floor, one a round."""
    return ratios(times["prediction"], [a + b for a, b in zip(times["backbone"], times["products"], strict=True)])


def gates(result: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Every gate: what it is about, the measured median, and the most that it may be."""
    found = []
    for precision, batches in result["ms_per_image"].items():
        for batch, times in batches.items():
            found.append(
                (f"prediction by floor, {precision}, batch {batch}", median(over_floor(times)), MOST_OVER_FLOOR)
            )
            if "mixed" in times:
                mixing = median(ratios(times["mixed"], times["prediction"]))
                found.append((f"{batch} products by one, {precision}, batch {batch}", mixing, MOST_FOR_MIXING))
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Machine and settings, the floor's table, the gates, and where the time goes."""
    lines = [
        "# Prediction, beside its floor",
        "",
        f"{result['date']}. {result['machine']['processor']}, {result['threads']} threads, load "
        f"{result['machine']['load']}. PyTorch {result['torch']}. {result['rounds']} rounds; median (least–greatest); "
        "milliseconds an image; ratios within a round.",
        "",
        "| precision | batch | backbone | products | prediction | × floor | products mixed | × one product |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for precision, batches in result["ms_per_image"].items():
        for batch, times in batches.items():
            parts = " | ".join(spread(times[name], 1) for name in ("backbone", "products", "prediction"))
            mixed = " – | – |"
            if "mixed" in times:
                mixed = f" {spread(times['mixed'], 1)} | {spread(ratios(times['mixed'], times['prediction']), 2)} |"
            lines.append(f"| {precision} | {batch} | {parts} | {spread(over_floor(times), 2)} |{mixed}")
    lines += ["", "| gate | median | at most | |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {value:.2f} | {most:.2f} | {'holds' if value <= most else '**fails**'} |"
        for name, value, most in gates(result)
    ]
    runs = [(p, b, found) for p, batches in result["stages_ms_per_image"].items() for b, found in batches.items()]
    lines += ["", "Where the time goes, ms an image:", ""]
    lines += ["| |" + "".join(f" {p}, batch {b} |" for p, b, _ in runs), "|---|" + "---|" * len(runs)]
    for name in runs[0][2]:
        lines.append(f"| {name} |" + "".join(f" {found.get(name, 0):.1f} |" for _, _, found in runs))
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line; 1 unless every gate holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="of eight products or more; default: made with random weights")
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it, with suffix .md")
    parser.add_argument("--precision", choices=list(PRECISIONS), action="append", help="default: bf16 and fp32")
    parser.add_argument("--batch", type=positive, action="append", help="default: 1 and 8")
    parser.add_argument("--rounds", type=positive, default=15)
    options = parser.parse_args(arguments)
    configure_threads()
    keep_freed_memory()  # for both sides: otherwise page faults are what is measured
    with tempfile.TemporaryDirectory() as folder:
        path = options.checkpoint or write_random_checkpoint(Path(folder) / "random.safetensors", MIXED_BATCH)
        result = measure(path, options.precision or ("bf16", "fp32"), options.batch or (1, 8), options.rounds)
    text = markdown(result)
    if options.output:
        write_result(options.output, result, text)
    print(text)
    return 0 if all(value <= most for _, value, most in gates(result)) else 1


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main())
