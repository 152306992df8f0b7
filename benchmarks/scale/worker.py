"""A fresh process that loads one checkpoint, predicts with it, or adds a product to it. Started by ``products.py``.

    python -m benchmarks.scale.worker FILE PRECISION

Requests and answers are JSON, one per line: ``load`` (time and memory), ``predict`` (times of single images),
``visit`` (memory while one product after another is used), ``add`` (write a product into the file).
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared.process_tree import Usage, reset_peaks, usage
from benchmarks.shared.synthetic_checkpoint import random_expert, synthetic_task
from moleflow.model.detector import Detector
from moleflow.model.routing.router import Router
from moleflow.model.runtime.threads import configure_threads
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.sections import digest_tensors
from moleflow.training.continual.save import LearnedProduct, save_task

SAMPLED = 16
"""Number of older products whose tensors are checked after one was added, evenly spaced."""


def resident_bytes() -> int:
    """Memory of this process now."""
    return _usage().resident


def peak_bytes() -> int:
    """Peak memory of this process."""
    return _usage().peak


def _usage() -> Usage:
    found = usage(os.getpid())
    assert found is not None  # this process runs
    return found


class Worker:
    """Answers requests about one checkpoint."""

    def __init__(self, path: Path, precision: str) -> None:
        self.path, self.precision = path, precision

    def load(self) -> dict[str, Any]:
        """Load as a service does; then once more the part that grows with the products, alone."""
        before = resident_bytes()
        started = time.perf_counter()
        self.detector = Detector.load(self.path, device="cpu", precision=self.precision)
        seconds = time.perf_counter() - started
        resident = resident_bytes() - before
        checkpoint = Checkpoint.open(self.path)
        started = time.perf_counter()
        router = Router([checkpoint.profile(task.index).prototype for task in checkpoint.header.tasks])
        return {
            "seconds": seconds,
            "resident_bytes": resident,
            "prototypes_seconds": time.perf_counter() - started,
            "router_bytes": sum(value.numel() * value.element_size() for value in router.buffers()),
        }

    def predict(self, count: int) -> dict[str, Any]:
        """Milliseconds of ``count`` single routed images; the very first one reads its expert."""
        size = self.detector.preprocessing.image_size
        image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        times = []
        for _ in range(count):
            started = time.perf_counter()
            self.detector.predict([image], refuse_unknown=False)
            times.append(1000 * (time.perf_counter() - started))
        return {"ms": times, "resident_bytes": resident_bytes()}

    def visit(self, products: list[int]) -> dict[str, Any]:
        """Resident bytes after an image of each of these products."""
        size = self.detector.preprocessing.image_size
        image = np.zeros((size, size, 3), dtype=np.uint8)
        resident = []
        for index in products:
            self.detector.predict([image], [self.detector.tasks[index].name])
            resident.append(resident_bytes())
        return {"resident_bytes": resident}

    def add(self) -> dict[str, Any]:
        """Write one more product, as the trainer does, and check that the older ones are unchanged."""
        before = Checkpoint.open(self.path)
        header, products = before.header, len(before.header.tasks)
        backbone, base = before.backbone(), before.base()
        expert = random_expert(header.config, products)
        info, profile = synthetic_task(header.config, products, expert, digest_tensors(expert))
        del before
        resident = resident_bytes()
        reset_peaks(os.getpid())
        started = time.perf_counter()
        old = Checkpoint.open(self.path)
        save_task(self.path, old, header.preset, header.config, backbone, base, LearnedProduct(info, profile, expert))
        seconds = time.perf_counter() - started
        peak = peak_bytes()
        after = Checkpoint.open(self.path)
        same = after.header.tasks == (*header.tasks, info)
        for index in {int(index) for index in np.linspace(0, products, SAMPLED)}:
            after.section(f"tasks.{index}.profile")
            after.section(f"tasks.{index}.expert")  # raises where the old digest does not match
        return {
            "seconds": seconds,
            "peak_bytes": peak - resident,
            "file_bytes": self.path.stat().st_size,
            "same": same,
        }


def main() -> None:
    """Answer until stdin ends."""
    configure_threads()
    worker = Worker(Path(sys.argv[1]), sys.argv[2])
    # Libraries that load on first use are not the checkpoint's cost.
    torch.linalg.svd(torch.eye(8))
    torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))
    print(json.dumps({"ok": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
