"""How much faster is a prediction with OpenVINO as the engine?

    python -m benchmarks engines [--preset small] [--batch 1 …] [--rounds 9] [--output FILE.json]

The same checkpoint, with a preset's shapes and random weights, is predicted with the engines in turn, in float32. The
table shows medians, and the median of the ratios within a round with minimum and maximum. *First* is a prediction whose
expert is not in memory.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.shared.command import add_output, finish, make_parser, positive
from benchmarks.shared.machine import processor, versions
from benchmarks.shared.statistics import ratios, spread
from benchmarks.shared.synthetic_checkpoint import write_synthetic_checkpoint
from benchmarks.speed.lower_bound import noise, time_in_turn
from moleflow.model.detector import Detector
from moleflow.model.features.extractor import stack_images
from moleflow.model.runtime.memory import keep_freed_memory
from moleflow.model.runtime.threads import configure_threads
from moleflow.training.config import PRESETS, preset
from moleflow.training.report.markdown import markdown_table

ENGINES = ("torch", "auto", "openvino")
"""PyTorch; OpenVINO for the features; OpenVINO for everything."""


def parts(detector: Detector, images: list[np.ndarray]) -> dict[str, Callable[[], object]]:
    """What is timed: backbone, embedding and routing; flow and memory; all of a prediction; the first of a product."""
    batch = stack_images(images, detector.preprocessing.resize, detector.device)
    found = detector.embed_and_route(batch)[0]
    tasks = [detector.tasks[0].name] * len(images)

    def first() -> object:
        detector.products.experts.clear()
        return detector.predict(images, tasks)

    return {
        "features": partial(detector.embed_and_route, batch),
        "maps": partial(detector.products.maps, found, [0] * len(images)),
        "prediction": partial(detector.predict, images, tasks),
        "first": first,
    }


@torch.inference_mode()
def measure(names: Sequence[str], batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Milliseconds per image by preset, batch size, part and engine, one value per round."""
    times: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "random.safetensors"
            write_synthetic_checkpoint(path, preset(name), 1)
            load = partial(Detector.load, path, device="cpu", precision="fp32")
            detectors = {engine: load(engine=engine) for engine in ENGINES}
            for batch in batches:
                images = noise(detectors["torch"], batch)
                work = {engine: parts(detector, images) for engine, detector in detectors.items()}
                times.setdefault(name, {})[str(batch)] = {
                    part: time_in_turn({engine: work[engine][part] for engine in ENGINES}, rounds, batch)
                    for part in work["torch"]
                }
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "ms_per_image": times,
    }


def table(result: dict[str, Any]) -> str:
    """One row for each preset, batch size and part."""
    rows = [
        [
            name,
            batch,
            part,
            *(f"{median(found[engine]):.1f}" for engine in ENGINES),
            *(spread(ratios(found["torch"], found[engine]), 2) for engine in ENGINES[1:]),
        ]
        for name, batches in result["ms_per_image"].items()
        for batch, parts in batches.items()
        for part, found in parts.items()
    ]
    head = f"{result['processor']}; {result['threads']} threads, float32, milliseconds per image, {result['date']}\n\n"
    return head + markdown_table(
        ["preset", "batch", "part", *ENGINES, *(f"torch / {engine}" for engine in ENGINES[1:])], rows
    )


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("engines", __doc__)
    parser.add_argument("--preset", choices=list(PRESETS), action="append", help="default: small")
    parser.add_argument("--batch", type=positive, action="append", help="default: 1 and 8")
    parser.add_argument("--rounds", type=positive, default=9)
    add_output(parser)
    options = parser.parse_args(arguments)
    configure_threads()
    keep_freed_memory()
    result = measure(options.preset or ["small"], options.batch or (1, 8), options.rounds)
    return finish(options.output, result, table(result))
