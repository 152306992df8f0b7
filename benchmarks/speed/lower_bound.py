"""How close is a prediction to the least time that the hardware needs for it, and where does the rest go?

    python -m benchmarks lower_bound [--checkpoint FILE] [--precision bf16] [--batch 1] [--rounds 15]

The *lower bound* is the bare forward pass of the backbone, as PyTorch offers it, plus the bare matrix products of the
flow, with the same shapes and type (``bare_network.py``). Everything runs in turn in this process. Ratios are taken
within a round; the table shows the median with minimum and maximum.

Two gates: a prediction takes at most 1.25 times the lower bound, for one image and for eight; and eight different
products in one batch take at most 1.2 times as long as eight images of one product.

Without a checkpoint, one of the MAIN configuration with random weights is made. A given one must have at least eight
products; only its sizes matter.
"""

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
from torch import nn
from torch.utils.hooks import RemovableHandle

from benchmarks.shared.command import Gate, add_output, finish, make_parser, positive
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.machine import processor
from benchmarks.shared.random_checkpoint import write_random_checkpoint
from benchmarks.shared.statistics import ratios, spread
from benchmarks.speed.bare_network import PRECISIONS, BareBackbone, BareProducts
from moleflow.model.detector import Detector
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.memory.scorer import ProductScorer
from moleflow.model.runtime.memory import keep_freed_memory
from moleflow.model.runtime.threads import THREAD_POLICY, configure_threads
from moleflow.model.store.experts import MergedExperts
from moleflow.training.report.markdown import markdown_table

MOST_OVER_BOUND = 1.25
"""Time of a prediction, as a multiple of the lower bound."""

MOST_FOR_MIXING = 1.2
"""Time of a batch of different products, as a multiple of a batch of the same size with one product."""

MIXED_BATCH = 8
"""Size of the batch of different products."""

Times = dict[str, list[float]]
"""Milliseconds per image by subject, one per round."""


def time_in_turn(subjects: Mapping[str, Callable[[], Any]], rounds: int, images: int) -> Times:
    """Call each subject once per round, in alternating order, after one call that does not count."""
    times: Times = {name: [] for name in subjects}
    for call in subjects.values():
        call()
    for number in range(rounds):
        for name in list(subjects)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            subjects[name]()
            times[name].append((time.perf_counter() - start) * 1e3 / images)
    return times


def subjects(detector: Detector, batch: int, bound: Sequence[Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """What is timed at one batch size: both parts of the lower bound, and predictions of one and of many products."""
    names = [task.name for task in detector.tasks]
    images = noise(detector, batch)

    def predict(tasks: list[str]) -> Callable[[], Any]:
        return lambda: [found.pixel_map() for found in detector.predict(images, tasks, refuse_unknown=False)]

    found = {"backbone": bound[0], "products": bound[1], "prediction": predict([names[0]] * batch)}
    if batch == MIXED_BATCH:
        found["mixed"] = predict(names[:batch])
    return found


def noise(detector: Detector, count: int) -> list[np.ndarray]:
    """RGB images of noise at the model's size."""
    size = detector.preprocessing.image_size
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


class Stages:
    """Times of a detector's parts within its predictions, from hooks around its modules.

    Where images run on several threads at once, a part's time is divided by their number.
    """

    def __init__(self, detector: Detector) -> None:
        experts, features = detector.products.experts, detector._computes.features
        scorer = experts.get(0) if isinstance(experts, MergedExperts) else None
        if not (isinstance(scorer, ProductScorer) and isinstance(features, FeatureExtractor)):
            raise BenchmarkError("only PyTorch on a CPU has stages; for a GPU use python -m benchmarks gpu.")
        expert = scorer.flow
        parts: dict[str, Sequence[nn.Module | None]] = {
            "normalise": (features,),
            "backbone": (features.backbone,),
            "embedding": (features.embedder,),
            "router": (detector.products._router,),
            "flow, rest": (expert,),
            "adapter": (expert.adapter,),
            "mixer": (expert.mixer,),
            "coupling blocks": expert.blocks,
            "DIA blocks": expert.dia,
        }
        self.detector = detector
        self._spent: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._hooks: list[RemovableHandle] = []
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
        """Milliseconds per image of each part, and of the rest: descriptor, score, map, Python."""
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
        parts = BareBackbone(precision), BareProducts(precision)
        times[precision], stages[precision] = {}, {}
        for batch in batches:
            print(f"{precision}, batch {batch} …", file=sys.stderr, flush=True)
            bound = [part.call(batch) for part in parts]
            times[precision][str(batch)] = time_in_turn(subjects(detector, batch, bound), rounds, batch)
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


def over_bound(times: Times) -> list[float]:
    """Prediction / lower bound, one per round."""
    return ratios(times["prediction"], [a + b for a, b in zip(times["backbone"], times["products"], strict=True)])


def gates(result: Mapping[str, Any]) -> list[Gate]:
    """The gates on every precision and batch size; medians over the rounds."""
    found = []
    for precision, batches in result["ms_per_image"].items():
        for batch, times in batches.items():
            pairs = [(f"prediction / lower bound, {precision}, batch {batch}", over_bound(times), MOST_OVER_BOUND)]
            if "mixed" in times:
                mixing = ratios(times["mixed"], times["prediction"])
                pairs.append((f"{batch} products / one product, {precision}, batch {batch}", mixing, MOST_FOR_MIXING))
            found += [
                Gate(name, f"{median(values):.2f}", f"≤ {most:.2f}", median(values) <= most)
                for name, values, most in pairs
            ]
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Machine and settings, the table of ratios, and where the time goes."""
    headings = [
        "precision",
        "batch",
        "backbone",
        "products",
        "prediction",
        "/ lower bound",
        "products mixed",
        "/ one product",
    ]
    rows = []
    for precision, batches in result["ms_per_image"].items():
        for batch, times in batches.items():
            parts = [spread(times[name], 1) for name in ("backbone", "products", "prediction")]
            mixed = ["–", "–"]
            if "mixed" in times:
                mixed = [spread(times["mixed"], 1), spread(ratios(times["mixed"], times["prediction"]), 2)]
            rows.append([precision, batch, *parts, spread(over_bound(times), 2), *mixed])
    runs = [(p, b, found) for p, batches in result["stages_ms_per_image"].items() for b, found in batches.items()]
    stages = [[name, *(f"{found.get(name, 0):.1f}" for *_, found in runs)] for name in runs[0][2]]
    return "\n".join(
        [
            "# Prediction and its lower bound",
            "",
            f"{result['date']}. {result['machine']['processor']}, {result['threads']} threads, load "
            f"{result['machine']['load']}. PyTorch {result['torch']}. {result['rounds']} rounds; median "
            "(minimum–maximum); milliseconds per image; ratios within a round.",
            "",
            markdown_table(headings, rows),
            "",
            "Where the time goes, ms per image:",
            "",
            markdown_table(["", *(f"{precision}, batch {batch}" for precision, batch, _ in runs)], stages),
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("lower_bound", __doc__)
    parser.add_argument("--checkpoint", type=Path, help="of at least eight products; default: made with random weights")
    parser.add_argument("--precision", choices=list(PRECISIONS), action="append", help="default: bf16 and fp32")
    parser.add_argument("--batch", type=positive, action="append", help="default: 1 and 8")
    parser.add_argument("--rounds", type=positive, default=15)
    add_output(parser)
    options = parser.parse_args(arguments)
    configure_threads()
    keep_freed_memory()  # for all subjects; page faults would dominate otherwise
    with tempfile.TemporaryDirectory() as folder:
        path = options.checkpoint or write_random_checkpoint(Path(folder) / "random.safetensors", MIXED_BATCH)
        result = measure(path, options.precision or ("bf16", "fp32"), options.batch or (1, 8), options.rounds)
    return finish(options.output, result, markdown(result), gates(result))
