"""What does a product's memory add to a prediction?

    python -m benchmarks memory_cost [--preset fast] [--precision bf16 …] [--batch 1 …] [--rounds 15]

Two checkpoints with random weights and the preset's shapes, one scored by its memory and one by likelihoods alone, as
before there were memories, predict the same images in turn. The gate: at most 1.15 times the time.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.shared.command import Gate, add_output, finish, make_parser, positive
from benchmarks.shared.machine import processor
from benchmarks.shared.statistics import ratios, spread
from benchmarks.shared.synthetic_checkpoint import write_synthetic_checkpoint
from benchmarks.speed.lower_bound import noise, time_in_turn
from moleflow.model.config import ScoringConfig
from moleflow.model.detector import Detector
from moleflow.model.runtime.memory import keep_freed_memory
from moleflow.model.runtime.threads import configure_threads
from moleflow.training.config import DEFAULT_PRESET, PRESETS, preset
from moleflow.training.report.markdown import markdown_table

MOST_OVER = 1.15
"""Time of a prediction with a memory, as a multiple of one without."""


def measure(name: str, precisions: Sequence[str], batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """Milliseconds per image by precision, batch size and scoring, one value per round."""
    chosen = preset(name)
    scorings = {"memory": chosen.model.scoring, "likelihoods": ScoringConfig()}
    times: dict[str, dict[str, dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"{kind}.safetensors" for kind in scorings}
        for kind, path in paths.items():
            write_synthetic_checkpoint(path, chosen.with_changes(model={"scoring": scorings[kind]}), 1)
        for precision in precisions:
            detectors = {kind: Detector.load(path, device="cpu", precision=precision) for kind, path in paths.items()}
            for batch in batches:
                images, names = noise(detectors["memory"], batch), ["product0000"] * batch
                subjects = {
                    kind: lambda detector=detector, images=images, names=names: [
                        each.pixel_map() for each in detector.predict(images, names, refuse_unknown=False)
                    ]
                    for kind, detector in detectors.items()
                }
                times.setdefault(precision, {})[str(batch)] = time_in_turn(subjects, rounds, batch)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "preset": name,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "ms_per_image": times,
    }


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("memory_cost", __doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default=DEFAULT_PRESET)
    parser.add_argument("--precision", action="append", help="default: auto, the faster one here")
    parser.add_argument("--batch", type=positive, action="append", help="default: 1 and 8")
    parser.add_argument("--rounds", type=positive, default=15)
    add_output(parser)
    options = parser.parse_args(arguments)
    configure_threads()
    keep_freed_memory()
    result = measure(options.preset, options.precision or ("auto",), options.batch or (1, 8), options.rounds)
    rows, gates = [], []
    for precision, batches in result["ms_per_image"].items():
        for batch, times in batches.items():
            found = ratios(times["memory"], times["likelihoods"])
            parts = [spread(times[kind], 1) for kind in ("likelihoods", "memory")]
            rows.append([precision, batch, *parts, spread(found, 2)])
            name, value = f"with / without memory, {precision}, batch {batch}", median(found)
            gates.append(Gate(name, f"{value:.2f}", f"≤ {MOST_OVER}", value <= MOST_OVER))
    table = markdown_table(["precision", "batch", "without", "with memory", "ratio"], rows)
    title = f"{result['date']}. {result['processor']}, {result['threads']} threads, preset {result['preset']}."
    return finish(options.output, result, f"{title} Milliseconds per image; median (range).\n\n{table}", gates)
