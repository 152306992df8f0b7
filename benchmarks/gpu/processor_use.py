"""Which processes and threads of a service are busy under load (Linux)."""

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.shared.process_tree import tree

__all__ = ["ProcessorUse"]

_TICKS = os.sysconf("SC_CLK_TCK")

MOST_THREADS = 4


class ProcessorUse:
    """Processors that a service takes from now on, and that our own ended children take, such as a load generator."""

    def __init__(self, pid: int) -> None:
        self.pid, self._started = pid, time.monotonic()
        self._processes, self._threads, self._children = self._seconds(), _threads(pid), _ended_children()

    def found(self) -> dict[str, Any]:
        """Busy processors: of the service's main process, its busiest threads, its other processes, and the load."""
        passed = time.monotonic() - self._started
        now = {pid: (seconds - self._processes.get(pid, 0)) / passed for pid, seconds in self._seconds().items()}
        threads = {
            number: (name, (seconds - self._threads.get(number, ("", 0.0))[1]) / passed)
            for number, (name, seconds) in _threads(self.pid).items()
        }
        busiest = sorted(threads.values(), key=lambda each: -each[1])
        others = sorted((share for pid, share in now.items() if pid != self.pid), reverse=True)
        return {
            "main": round(now.get(self.pid, 0), 2),
            "threads": [f"{name} {share:.2f}" for name, share in busiest[:MOST_THREADS]],
            "others": [round(share, 2) for share in others],
            "together": round(sum(now.values()), 2),
            "load": round((_ended_children() - self._children) / passed, 2),
        }

    def _seconds(self) -> dict[int, float]:
        return {pid: each.seconds for pid, each in tree(self.pid).items()}


def _threads(pid: int) -> dict[int, tuple[str, float]]:
    """Name and processor seconds of each thread."""
    found: dict[int, tuple[str, float]] = defaultdict(lambda: ("", 0.0))
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended
            continue
        found[int(path.parent.name)] = (name, sum(map(int, rest.split()[11:13])) / _TICKS)
    return found


def _ended_children() -> float:
    times = os.times()
    return times.children_user + times.children_system
