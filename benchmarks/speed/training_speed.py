"""How much faster is training as ``moleflow train`` does it than the plain way, and is the result the same?

    python -m benchmarks training_speed [--preset main] [--later] [--output FILE.json] [--rounds 5]

*Ours* embeds every image once with the folded backbone, multiplies in bf16 where the hardware does so natively, and
trains on the stored embeddings. *Plain* (``plain_training.py``) runs the backbone for every batch of every epoch,
every layer as the method writes it, in float32. Both take the same optimizer steps from the same seed, in turn in one
process. Ratios are taken within a round; the table shows the median with minimum and maximum. By default the product
is the first one, which learns the base; with ``--later`` the base is frozen.

Two gates: a whole training of the preset's epochs, embedding included, is at least four times as fast; and after a few
epochs on the same images, the mean NLL of held-out images is the same within 1 %. These short trainings run in
processes of their own, whose peak memory is shown too.

WideResNet-50-2 has random weights and the images are synthetic, since only sizes matter for time. The images are in
memory, so reading and decoding, which the plain way repeats in every epoch, does not count.
"""

import argparse
import json
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.shared.command import Gate, add_output, finish, make_parser, positive
from benchmarks.shared.random_checkpoint import random_backbone
from benchmarks.shared.statistics import ratios, spread
from benchmarks.shared.subprocesses import environment, module_command
from benchmarks.speed.plain_training import PlainFeatures, PlainTrainer
from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.features.patches import PatchFeatures
from moleflow.model.flow.expert import Base
from moleflow.model.flow.merged import MergedExpert
from moleflow.model.runtime.device import autocast, matmul_dtype, resolve_precision
from moleflow.model.runtime.memory import keep_freed_memory
from moleflow.model.runtime.threads import available_processors, configure_threads
from moleflow.training.config import PRESETS, Preset
from moleflow.training.embeddings.extraction import EmbeddingStore, extract
from moleflow.training.fit.trainer import TaskTrainer, task_seed
from moleflow.training.report.markdown import markdown_table

LEAST_RATIO = 4.0
"""Time of the plain training, as a multiple of ours."""

MOST_NLL_DIFFERENCE = 0.01
"""Difference of the held-out NLL, as a fraction of the plain training's."""

HELD_OUT = 8
"""Images that the NLL is measured on, of the same kind as the training images."""

CPU = torch.device("cpu")

Times = dict[str, list[float]]
"""Milliseconds per image by subject, one per round."""


class Ways:
    """Feature extractors and trainers of both ways for the same training, from the same seed."""

    def __init__(self, preset: Preset, *, first: bool) -> None:
        self.preset, config = preset, preset.model
        self.precision = resolve_precision("auto", CPU)
        backbone = random_backbone(config.backbone)
        self.features = {
            "ours": FeatureExtractor.for_prediction(config, backbone, self.precision),
            "plain": FeatureExtractor(config, backbone),
        }
        self.trainers: dict[str, TaskTrainer] = {}
        for way, kind, precision in (("ours", TaskTrainer, self.precision), ("plain", PlainTrainer, "fp32")):
            base = Base(config, seed=task_seed(preset.training.seed, "", "base"))
            self.trainers[way] = kind(
                "noise", config, preset.training, base, first=first, device=CPU, precision=precision
            )

    def embed(self, images: Sequence[np.ndarray]) -> EmbeddingStore:
        """The embeddings that our way trains on."""
        given = [Path(str(number)) for number in range(len(images))]  # an index in place of a file
        parts = extract(self.features["ours"], given, lambda path, side: images[int(path.name)])
        return EmbeddingStore(PatchFeatures(torch.cat([values.embeddings for _, values in parts])))


def synthetic_images(count: int, side: int, seed: int = 0) -> list[np.ndarray]:
    """Similar RGB images of clouds, ``(side, side, 3)`` uint8."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        soft = gaussian_filter(rng.normal(size=(side, side, 3)), (side / 32, side / 32, 0), mode="wrap")
        found.append(np.clip(128 + 50 * soft / soft.std(), 0, 255).astype(np.uint8))
    return found


def time_training(preset: Preset, *, first: bool, batch_size: int, rounds: int) -> Times:
    """Time the embedding, and one training step of each way, in turn."""
    ways, images = Ways(preset, first=first), synthetic_images(batch_size, preset.model.backbone.image_size)
    everything, rate = torch.arange(batch_size), preset.training.learning_rate
    store, plain = ways.embed(images), PlainFeatures(ways.features["plain"], images)
    for trainer in ways.trainers.values():
        trainer.expert.adapter.fit([store.batch(everything, CPU)])
    subjects: dict[str, Callable[[], object]] = {
        "embedding": lambda: ways.embed(images),
        "ours": lambda: ways.trainers["ours"].step(store.batch(everything, CPU), rate),
        "plain": lambda: ways.trainers["plain"].step(plain.batch(everything, CPU), rate),
    }
    times: Times = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name in list(subjects)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            subjects[name]()
            if number:  # the first round does not count
                times[name].append((time.perf_counter() - start) * 1e3 / batch_size)
    return times


def short_training(preset: Preset, way: str, *, first: bool, images: int) -> dict[str, float]:
    """Train one way on ``images`` images; held-out NLL per dimension, and the process's peak memory in bytes."""
    ways, side = Ways(preset, first=first), preset.model.backbone.image_size
    trained, held_out = synthetic_images(images, side), synthetic_images(HELD_OUT, side, seed=1)
    trainer = ways.trainers[way]
    store = ways.embed(trained) if way == "ours" else PlainFeatures(ways.features["plain"], trained)
    for _ in trainer.epochs(store):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    judged = ways.embed(held_out) if way == "ours" else PlainFeatures(ways.features["plain"], held_out)
    with torch.inference_mode(), autocast(CPU, trainer.precision):
        expert = MergedExpert(trainer.base, trainer.expert, matmul_dtype(trainer.precision))
        nll = expert(judged.batch(torch.arange(HELD_OUT), CPU)).mean()
    return {"nll": float(nll) / preset.model.backbone.embedding_dim, "peak_bytes": float(peak)}


def whole(times: Mapping[str, Sequence[float]], epochs: int) -> list[float]:
    """Speed-up of a training of ``epochs``, embedding included, in each round."""
    rounds = zip(times["embedding"], times["ours"], times["plain"], strict=True)
    return [plain * epochs / (embedding + ours * epochs) for embedding, ours, plain in rounds]


def markdown(result: Mapping[str, Any]) -> str:
    """The settings, and the table of both ways and their ratios."""
    times, epochs = result["ms_per_image"], result["epochs"]
    ours, plain = (result["short"][way] for way in ("ours", "plain"))
    rate = {way: [1e3 / value for value in times[way]] for way in ("ours", "plain")}
    memory = ours["peak_bytes"], plain["peak_bytes"]
    rows = [
        ["embedding once, ms per image", spread(times["embedding"], 1), "–", ""],
        ["a step, ms per image", spread(times["ours"], 1), spread(times["plain"], 1), ""],
        [
            "images per second in an epoch",
            spread(rate["ours"], 2),
            spread(rate["plain"], 2),
            spread(ratios(times["plain"], times["ours"]), 2),
        ],
        [f"whole training, {epochs} epochs", "", "", spread(whole(times, epochs), 2)],
        [
            f"held-out NLL / D after {result['short']['epochs']} epochs",
            f"{ours['nll']:.4f}",
            f"{plain['nll']:.4f}",
            f"{ours['nll'] / plain['nll']:.4f}",
        ],
        ["peak memory, MB", f"{memory[0] / 1e6:.0f}", f"{memory[1] / 1e6:.0f}", f"{memory[1] / memory[0]:.2f}"],
    ]
    settings = (
        f"{result['preset']}, {'first' if result['first'] else 'later'} product, {result['batch_size']} images "
        f"per step, {result['threads']} threads, ours in {result['precision']}"
    )
    return f"{settings}\n\n{markdown_table(['', 'ours', 'plain', 'ratio'], rows)}"


def gates(result: Mapping[str, Any]) -> list[Gate]:
    """The gates on speed and on the result."""
    speed = median(whole(result["ms_per_image"], result["epochs"]))
    ours, plain = (result["short"][way]["nll"] for way in ("ours", "plain"))
    difference = abs(ours - plain) / abs(plain)
    return [
        Gate("speed-up of a whole training", f"{speed:.2f}", f"≥ {LEAST_RATIO:g}", speed >= LEAST_RATIO),
        Gate(
            "difference of the held-out NLL",
            f"{difference:.2%}",
            f"≤ {MOST_NLL_DIFFERENCE:.0%}",
            difference <= MOST_NLL_DIFFERENCE,
        ),
    ]


def in_a_process(options: argparse.Namespace, way: str) -> dict[str, float]:
    """``short_training`` in a process of its own."""
    given = {"preset": options.preset, "way": way, "images": options.images, "epochs": options.epochs}
    words = module_command("benchmarks", "training_speed", *(f"--{name}={value}" for name, value in given.items()))
    words += ["--later"] if options.later else []
    done = subprocess.run(words, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    preset = PRESETS[options.preset]
    batch_size = options.batch or preset.training.batch_size
    short: dict[str, Any] = {way: in_a_process(options, way) for way in ("plain", "ours")}
    return {
        "preset": preset.name,
        "first": not options.later,
        "batch_size": batch_size,
        "epochs": preset.training.epochs,
        "threads": torch.get_num_threads(),
        "processors": available_processors(),
        "precision": resolve_precision("auto", CPU),
        "ms_per_image": time_training(preset, first=not options.later, batch_size=batch_size, rounds=options.rounds),
        "short": short | {"epochs": options.epochs, "images": options.images},
    }


def main(arguments: Sequence[str]) -> int:
    """Run from a command line; returns the exit status."""
    parser = make_parser("training_speed", __doc__)
    parser.add_argument("--preset", choices=("main", "fast"), default="main")
    parser.add_argument("--later", action="store_true", help="a product after the first: the base is frozen")
    parser.add_argument("--batch", type=positive, help="images per step; default: the preset's")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--images", type=positive, default=16, help="of the short trainings; default: 16")
    parser.add_argument("--epochs", type=positive, default=4, help="of the short trainings; default: 4")
    add_output(parser)
    parser.add_argument("--way", choices=("ours", "plain"), help="run one short training and print its result as JSON")
    options = parser.parse_args(arguments)
    configure_threads()
    keep_freed_memory()  # for both ways; page faults would dominate otherwise
    if options.way:
        preset = PRESETS[options.preset].with_changes(training={"epochs": options.epochs})
        print(json.dumps(short_training(preset, options.way, first=not options.later, images=options.images)))
        return 0
    result = measure(options)
    return finish(options.output, result, markdown(result), gates(result))
