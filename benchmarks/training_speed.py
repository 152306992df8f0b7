"""How much faster is training as ``moleflow train`` does it than the plain way, and does it come to the same?

    python benchmarks/training_speed.py [--preset main] [--later] [--output FILE.json] [--rounds 5]

*Ours* embeds every image once, through the folded backbone, with products in bf16 where the hardware multiplies it
natively, and trains on the embeddings kept. *Plain* (``benchmarks/plain_training.py``) runs the backbone for every
batch of every epoch, every layer as the method writes it, in float32. Both take the same optimizer steps from the same
seed, in this one process in turn, round after round; a ratio is taken within a round, and shown is the median with the
least and the greatest. ``--later`` trains a product that meets a frozen base, else one that learns it.

Two gates: a whole training of the preset's epochs, embedding included, is four times as fast at least; and after a few
epochs on the same images both come to the same likelihood of held-out ones, within 1 %. These short trainings run in
processes of their own, whose greatest memory is told too. The exit status is 1 unless both gates hold.

WideResNet-50-2 has random weights, and images are made up: for time only sizes count. They are in memory, so that
what reading and decoding take, which the plain way pays in every epoch, does not count.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from plain_training import PlainFeatures, PlainTrainer
from random_checkpoint import random_backbone
from result_files import positive, ratios, spread, write_result
from scipy.ndimage import gaussian_filter

from moleflow.model.features.extractor import FeatureExtractor
from moleflow.model.flow.expert import Base
from moleflow.model.flow.merged import MergedExpert
from moleflow.model.runtime.device import autocast, matmul_dtype, resolve_precision
from moleflow.model.runtime.memory import keep_freed_memory
from moleflow.model.runtime.threads import available_processors, configure_threads, restart_prepared
from moleflow.training.config import PRESETS, Preset
from moleflow.training.embeddings.extraction import EmbeddingStore, extract
from moleflow.training.fit.trainer import TaskTrainer, task_seed

LEAST_RATIO = 4.0
"""Ours to plain, in images a second over a whole training."""

MOST_NLL_DIFFERENCE = 0.01
"""Of the likelihood of held-out images, as a share of the plain way's."""

HELD_OUT = 8
"""Images that the likelihood is measured on, of the same kind as those trained on."""

CPU = torch.device("cpu")

Times = dict[str, list[float]]
"""Milliseconds an image by subject, one a round."""


class Ways:
    """Ours and the plain way at the same training: features, and trainers of the same seed."""

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

    def embed(self, rgb_images: Sequence[np.ndarray]) -> EmbeddingStore:
        """What ours trains on; an image stands for its file."""
        given = [Path(str(number)) for number in range(len(rgb_images))]
        parts = extract(
            self.features["ours"], given, lambda path, side: rgb_images[int(path.name)], device=CPU,
            precision=self.precision,
        )  # fmt: skip
        return EmbeddingStore(torch.cat([values for _, values in parts]))


def made_up(count: int, side: int, seed: int = 0) -> list[np.ndarray]:
    """Cloudy RGB images ``(side, side, 3)`` uint8, of one kind."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        soft = gaussian_filter(rng.normal(size=(side, side, 3)), (side / 32, side / 32, 0), mode="wrap")
        found.append(np.clip(128 + 50 * soft / soft.std(), 0, 255).astype(np.uint8))
    return found


def time_training(preset: Preset, *, first: bool, rgb_images: int, rounds: int) -> Times:
    """Embedding once, and a training step of ours and of the plain way, in turn."""
    ways, images = Ways(preset, first=first), made_up(rgb_images, preset.model.backbone.image_size)
    everything, rate = torch.arange(rgb_images), preset.training.learning_rate
    store, plain = ways.embed(images), PlainFeatures(ways.features["plain"], images)
    for trainer in ways.trainers.values():
        trainer.expert.adapter.fit([store.batch(everything, CPU)])
    subjects = {
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
                times[name].append((time.perf_counter() - start) * 1e3 / rgb_images)
    return times


def short_training(preset: Preset, way: str, *, first: bool, rgb_images: int) -> dict[str, float]:
    """Train one way; mean NLL of held-out images a dimension, and the process's greatest memory in bytes."""
    ways, side = Ways(preset, first=first), preset.model.backbone.image_size
    images, others = made_up(rgb_images, side), made_up(HELD_OUT, side, seed=1)
    trainer = ways.trainers[way]
    store = ways.embed(images) if way == "ours" else PlainFeatures(ways.features["plain"], images)
    for _ in trainer.epochs(store):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    judged = ways.embed(others) if way == "ours" else PlainFeatures(ways.features["plain"], others)
    with torch.inference_mode(), autocast(CPU, trainer.precision):
        expert = MergedExpert(trainer.base, trainer.expert, matmul_dtype(trainer.precision))
        nll = expert(judged.batch(torch.arange(HELD_OUT), CPU)).mean()
    return {"nll": float(nll) / preset.model.backbone.embedding_dim, "peak_bytes": float(peak)}


def whole(times: Mapping[str, Sequence[float]], epochs: int) -> list[float]:
    """How many times as fast ours is over a training of ``epochs``, embedding included, in each round."""
    rounds = zip(times["embedding"], times["ours"], times["plain"], strict=True)
    return [plain * epochs / (embedding + ours * epochs) for embedding, ours, plain in rounds]


def markdown(result: Mapping[str, Any]) -> str:
    """The tables that ``docs/speed.md`` shows."""
    times, epochs = result["ms_per_image"], result["epochs"]
    ours, plain = (result["short"][way] for way in ("ours", "plain"))
    rate = {way: [1e3 / value for value in times[way]] for way in ("ours", "plain")}
    lines = [
        f"{result['preset']}, {'first' if result['first'] else 'later'} product, {result['batch_size']} images "
        f"a step, {result['threads']} threads, ours in {result['precision']}",
        "",
        "| | ours | plain | ratio |",
        "|---|---|---|---|",
        f"| embedding once, ms an image | {spread(times['embedding'], 1)} | – | |",
        f"| a step, ms an image | {spread(times['ours'], 1)} | {spread(times['plain'], 1)} | |",
        f"| images a second in an epoch | {spread(rate['ours'], 2)} | {spread(rate['plain'], 2)} "
        f"| {spread(ratios(times['plain'], times['ours']), 2)} |",
        f"| whole training, {epochs} epochs | | | {spread(whole(times, epochs), 2)} |",
        f"| held-out NLL / D after {result['short']['epochs']} epochs | {ours['nll']:.4f} | {plain['nll']:.4f} "
        f"| {ours['nll'] / plain['nll']:.4f} |",
        f"| greatest memory, MB | {ours['peak_bytes'] / 1e6:.0f} | {plain['peak_bytes'] / 1e6:.0f} "
        f"| {plain['peak_bytes'] / ours['peak_bytes']:.2f} |",
        "",
        "| gate | value | |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {value:.3g} | {'holds' if holds else '**fails**'} |" for name, value, holds in gates(result)]
    return "\n".join(lines) + "\n"


def gates(result: Mapping[str, Any]) -> list[tuple[str, float, bool]]:
    """Each gate with its value, and whether it holds."""
    speed = median(whole(result["ms_per_image"], result["epochs"]))
    ours, plain = (result["short"][way]["nll"] for way in ("ours", "plain"))
    apart = abs(ours - plain) / abs(plain)
    return [
        (f"a whole training at least {LEAST_RATIO:g} times as fast", speed, speed >= LEAST_RATIO),
        (f"held-out NLL at most {MOST_NLL_DIFFERENCE:.0%} apart", apart, apart <= MOST_NLL_DIFFERENCE),
    ]


def in_a_process(options: argparse.Namespace, way: str) -> dict[str, float]:
    """``short_training`` in a process of its own."""
    given = {"preset": options.preset, "way": way, "images": options.rgb_images, "epochs": options.epochs}
    words = [sys.executable, __file__, *(f"--{name}={value}" for name, value in given.items())]
    words += ["--later"] if options.later else []
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to the JSON file."""
    preset = PRESETS[options.preset]
    rgb_images = options.batch or preset.training.batch_size
    short = {way: in_a_process(options, way) for way in ("plain", "ours")}
    return {
        "preset": preset.name, "first": not options.later, "batch_size": rgb_images, "epochs": preset.training.epochs,
        "threads": torch.get_num_threads(), "processors": available_processors(),
        "precision": resolve_precision("auto", CPU),
        "ms_per_image": time_training(preset, first=not options.later, rgb_images=rgb_images, rounds=options.rounds),
        "short": short | {"epochs": options.epochs, "images": options.rgb_images},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from a command line; 1 unless every gate holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("main", "fast"), default="main")
    parser.add_argument("--later", action="store_true", help="a product after the first: the base is frozen")
    parser.add_argument("--batch", type=positive, help="images a step; default: the preset's")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--images", type=positive, default=16, help="of the short trainings; default: 16")
    parser.add_argument("--epochs", type=positive, default=4, help="of the short trainings; default: 4")
    parser.add_argument("--output", type=Path, help="JSON; the table goes beside it, with suffix .md")
    parser.add_argument("--way", choices=("ours", "plain"), help="one short training, and what it came to, as JSON")
    options = parser.parse_args(arguments)
    configure_threads()
    keep_freed_memory()  # for both sides: otherwise page faults are what is measured
    if options.way:
        preset = PRESETS[options.preset].with_changes(training={"epochs": options.epochs})
        print(json.dumps(short_training(preset, options.way, first=not options.later, rgb_images=options.rgb_images)))
        return 0
    result = measure(options)
    text = markdown(result)
    if options.output:
        write_result(options.output, result, text)
    print(text)
    return 0 if all(holds for *_, holds in gates(result)) else 1


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main())
