"""How many images all processors together can decode: the ceiling of a service on this machine.

Each process decodes with the service's own function. This module must stay light, since every process imports it.
"""

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from moleflow.model.images.decode import MAX_PIXELS, open_for_model

__all__ = ["decode_rate"]

PATIENCE_SECONDS = 60


def decode_rate(paths: Sequence[Path], side: int, processes: int, seconds: float) -> float:
    """Images per second of so many processes, over ``seconds``."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(processes), context.Queue()
    given = (list(paths), side, seconds, barrier, queue)
    workers = [context.Process(target=_decode, args=given, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    rates = [queue.get(timeout=PATIENCE_SECONDS + seconds) for _ in workers]
    for worker in workers:
        worker.join()
    return float(sum(rates))


def _decode(paths: Sequence[Path], side: int, seconds: float, barrier: Barrier, queue: Any) -> None:
    """One process: wait for the others, decode the files in turn, and report images per second."""
    files, count = [path.read_bytes() for path in paths], 0
    open_for_model(files[0], side, max_pixels=MAX_PIXELS)
    barrier.wait(PATIENCE_SECONDS)
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        open_for_model(files[count % len(files)], side, max_pixels=MAX_PIXELS)
        count += 1
    queue.put(count / (time.perf_counter() - started))
