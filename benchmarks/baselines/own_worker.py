"""MoLE-Flow's worker: its detector as it serves, and the lower bound. Started by ``speed.py``."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.baselines.protocol import Subject, serve
from benchmarks.shared.random_checkpoint import write_random_checkpoint
from benchmarks.speed.bare_network import CONFIG, PRECISIONS, BareBackbone, BareProducts
from moleflow.model.detector import Detector
from moleflow.model.runtime.device import resolve_precision
from moleflow.model.runtime.threads import configure_threads


class OwnSubject:
    """``Detector.predict`` on images in memory, routing included, and each answer's pixel map at 224 × 224."""

    def __init__(self, checkpoint: Path, precision: str) -> None:
        self.detector = Detector.load(checkpoint, device="cpu", precision=precision)
        self.facts = {"form": "PyTorch", "precision": precision, "pixels": CONFIG.backbone.image_size}

    def call(self, batch: int) -> Callable[[], Any]:
        """Predict ``batch`` images of noise."""
        size = CONFIG.backbone.image_size
        images = list(np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8))

        def predict() -> list[np.ndarray]:
            return [found.pixel_map() for found in self.detector.predict(images, refuse_unknown=False)]

        return predict


def builders(folder: Path) -> dict[str, Callable[[], Subject]]:
    """MoLE-Flow and both parts of the lower bound, each in fp32 and bf16; ``folder`` takes the checkpoint."""

    @functools.cache
    def checkpoint() -> Path:
        return write_random_checkpoint(folder / "own.safetensors")

    found: dict[str, Callable[[], Subject]] = {}
    for precision in PRECISIONS:
        found[f"moleflow-{precision}"] = functools.partial(lambda chosen: OwnSubject(checkpoint(), chosen), precision)
        found[f"backbone-{precision}"] = functools.partial(BareBackbone, precision)
        found[f"products-{precision}"] = functools.partial(BareProducts, precision)
    return found


def main() -> None:
    """Answer requests until stdin ends."""
    threads, auto = configure_threads(), resolve_precision("auto", torch.device("cpu"))
    versions = {"torch": torch.__version__, "threads": threads, "auto_precision": auto}
    with tempfile.TemporaryDirectory() as folder:
        serve(builders(Path(folder)), versions)


if __name__ == "__main__":
    main()
