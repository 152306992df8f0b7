"""A fresh process that loads one checkpoint, predicts with it, or adds a product to it. Run by ``scale.py``.

    python benchmarks/scale_worker.py FILE PRECISION

One JSON request and one answer a line: ``load`` (how long, how much memory), ``predict`` (times of single images),
``visit`` (memory after each of many products was asked for), ``add`` (a product is written into the file).
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scale_checkpoint import random_expert, synthetic_task

from moleflow.model.detector import Detector
from moleflow.model.routing.router import Router
from moleflow.model.runtime.threads import configure_threads
from moleflow.model.store.checkpoint import Checkpoint, digest_tensors
from moleflow.training.continual.save import save_task

SAMPLED = 16
"""Older products whose tensors are checked after one was added, spread over all."""


def memory(field: str) -> int:
    """Bytes by the kernel's account of this process: ``VmRSS`` is what is resident, ``VmHWM`` the most that was."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


class Worker:
    """What is asked of one checkpoint."""

    def __init__(self, path: Path, precision: str) -> None:
        self.path, self.precision = path, precision

    def load(self) -> dict[str, Any]:
        """Open and make ready, as a service does; then once more the part that grows with the products, by itself."""
        before = memory("VmRSS")
        started = time.perf_counter()
        self.detector = Detector.load(self.path, device="cpu", precision=self.precision)
        seconds = time.perf_counter() - started
        resident = memory("VmRSS") - before
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
        """Milliseconds of ``count`` single images, routed; the first of all reads its expert."""
        size = self.detector.preprocessing.image_size
        image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        times = []
        for _ in range(count):
            started = time.perf_counter()
            self.detector.predict([image], refuse_unknown=False)
            times.append(1000 * (time.perf_counter() - started))
        return {"ms": times, "resident_bytes": memory("VmRSS")}

    def visit(self, products: list[int]) -> dict[str, Any]:
        """Resident bytes after an image of each of these products, one after another."""
        size = self.detector.preprocessing.image_size
        image = np.zeros((size, size, 3), dtype=np.uint8)
        resident = []
        for index in products:
            self.detector.predict([image], [self.detector.tasks[index].name])
            resident.append(memory("VmRSS"))
        return {"resident_bytes": resident}

    def add(self) -> dict[str, Any]:
        """Write one more product, as the trainer does, and look whether the older ones are what they were."""
        before = Checkpoint.open(self.path)
        header, products = before.header, len(before.header.tasks)
        backbone, base = before.backbone(), before.base()
        expert = random_expert(header.config, products)
        info, profile = synthetic_task(header.config, products, expert, digest_tensors(expert))
        del before
        resident = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts anew
        started = time.perf_counter()
        save_task(self.path, header.preset, header.config, backbone, base, info, profile, expert)
        seconds = time.perf_counter() - started
        peak = memory("VmHWM")
        after = Checkpoint.open(self.path)
        same = after.header.tasks == (*header.tasks, info)
        for index in {int(index) for index in np.linspace(0, products, SAMPLED)}:
            after.section(f"tasks.{index}.profile")
            after.section(f"tasks.{index}.expert")  # raises where the digest, which is the old one, does not fit
        return {
            "seconds": seconds, "peak_bytes": peak - resident, "file_bytes": self.path.stat().st_size, "same": same,
        }  # fmt: skip


def main() -> None:
    """Answer until stdin ends."""
    configure_threads()
    worker = Worker(Path(sys.argv[1]), sys.argv[2])
    # Whatever is loaded upon first use is not the checkpoint's cost.
    torch.linalg.svd(torch.eye(8))
    torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))
    print(json.dumps({"ok": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(worker, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
