"""Times on a GPU: by the wall clock, by the device's own events, and kernel by kernel."""

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType

from benchmarks.gpu.context import NotMeasuredError

__all__ = ["device_ms", "graphed", "needs_cuda", "profiled", "synchronise", "wall_ms"]

LONGEST_NAME = 70
"""Characters of a kernel's name in the table."""

MOST_ROUNDS = 200


def needs_cuda(device: torch.device) -> None:
    """Raise ``NotMeasuredError`` without a CUDA device."""
    if device.type != "cuda":
        raise NotMeasuredError("no CUDA device")


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_ms(call: Callable[[], Any], device: torch.device, least: int, seconds: float = 0.5) -> list[float]:
    """Milliseconds of each call including its work on the device: at least ``least`` calls, and for ``seconds``."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < least or (len(times) < MOST_ROUNDS and time.perf_counter() - begun < seconds):
        synchronise(device)
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append((time.perf_counter() - start) * 1e3)
    return times


def device_ms(call: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Milliseconds between an event before the call and one after it, the median.

    If the device waits for the host within the call, that counts.
    """
    needs_cuda(device)
    call()
    times = []
    for _ in range(rounds):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        before.record()
        call()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return median(times)


def graphed(call: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """The kernels of a call as one CUDA graph; each call of the result launches them again."""
    needs_cuda(device)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose algorithms and allocate, which a capture forbids
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay(_memory: Any = kept) -> None:  # holds the outputs, whose memory the graph writes
        graph.replay()

    return replay


def profiled(call: Callable[[], Any], device: torch.device, top: int = 25) -> dict[str, Any]:
    """The kernels of one call: their time together, their number, and the ``top`` longest as a table."""
    needs_cuda(device)
    call()
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize(device)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in profile.events() or ():
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            sums[event.name][0] += event.time_range.elapsed_us() / 1e3
            sums[event.name][1] += 1
    ranked = sorted(sums.items(), key=lambda each: -each[1][0])
    total = sum(spent for spent, _ in sums.values())
    lines = [f"{'ms':>9} {'share':>6} {'calls':>6}  kernel"]
    lines += [
        f"{spent:9.3f} {spent / total:6.1%} {count:6.0f}  {name[:LONGEST_NAME]}"
        for name, (spent, count) in ranked[:top]
        if total
    ]
    calls = round(sum(count for _, count in sums.values()))
    return {"kernel_ms": total, "kernels": calls, "table": "\n".join(lines)}
