"""Whether the memory of a running service stays flat over thousands of requests."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.running_service import RunningService
from benchmarks.speed.wrk import drive

__all__ = ["flatness", "watch_memory"]

WARM_UP, LAST = 0.2, 0.1
"""Fractions of the requests: the memory of the last ones is compared with that of as many after the warm-up."""

CONCURRENCY = 8
"""Connections: enough for batches of every size."""

SAMPLING_SECONDS = 0.05


def watch_memory(
    service: RunningService, program: Sequence[str], path: str, images: Sequence[Path], requests: int, seconds: int
) -> dict[str, Any]:
    """Resident memory over at least ``requests`` answers, counted every ``seconds``; see ``flatness``."""
    counts, sizes = [0], [service.resident_bytes()]
    while counts[-1] < requests:
        print(f"memory: {counts[-1]:,} of {requests:,} requests …", file=sys.stderr)
        before = counts[-1]
        with _sampling(service) as samples:
            load = drive(program, service.url, path, images, CONCURRENCY, seconds)
        # Samples are evenly spaced in time, so nearly evenly in requests.
        counts += [before + len(load) * (number + 1) // len(samples) for number in range(len(samples))]
        sizes += samples
    return flatness(counts, sizes)


@contextmanager
def _sampling(service: RunningService) -> Iterator[list[int]]:
    """Sample the service's memory in a thread until the block ends."""
    samples, ended = [service.resident_bytes()], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLING_SECONDS):
            samples.append(service.resident_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def flatness(counts: Sequence[int], sizes: Sequence[int]) -> dict[str, Any]:
    """Memory after the warm-up and at the end: medians in bytes, and the growth as a fraction."""
    total = counts[-1]
    after = [size for count, size in zip(counts, sizes, strict=True) if WARM_UP <= count / total <= WARM_UP + LAST]
    end = [size for count, size in zip(counts, sizes, strict=True) if count / total >= 1 - LAST]
    if not after or not end:
        raise BenchmarkError(f"{total} requests are too few to watch memory; send more (--requests).")
    start, finish = median(after), median(end)
    return {
        "requests": total,
        "at_start": sizes[0],
        "after_warm_up": start,
        "at_end": finish,
        "highest": max(sizes),
        "growth": finish / start - 1,
    }
