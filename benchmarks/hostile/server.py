"""The service of the hostile load: the real one, whose model fails on demand and whose event loop is watched.

    python -m benchmarks.hostile.server STALLS_FILE SETTING=VALUE …

An image in one of the ``MARKERS``' colours makes the model fail in that way. Whenever the event loop is late by more
than ``LEAST_STALL_SECONDS``, a line of ``STALLS_FILE`` says when and by how much, on the monotonic clock.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["HANG_SECONDS", "MARKERS", "marker_of"]

MARKERS = {
    "fail": (255, 0, 1),
    "out of memory": (255, 0, 2),
    "not finite": (255, 0, 3),
    "hang": (255, 0, 4),
    "exit": (255, 0, 5),
}
"""Colours of images that make the model fail; no other image of the load has a single colour like these."""

HANG_SECONDS = 9.0
"""How long a prediction hangs: longer than the limit of a batch, but not twice as long."""

TICK_SECONDS = 0.005

MOST_PLACES, DEPTH = 5, 6
"""How many stacks of a late loop are recorded, and how many frames of each."""

LEAST_STALL_SECONDS = 0.02


def marker_of(image: np.ndarray) -> str | None:
    """The failure that an image ``(S, S, 3)`` asks for."""
    colour = tuple(int(value) for value in image[0, 0])
    name = next((name for name, marked in MARKERS.items() if marked == colour), None)
    return name if name is not None and (image == image[0, 0]).all() else None


def queued_seconds() -> float:
    """How long this thread has been ready but without a processor so far, by the kernel's count; 0 where unknown."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


class Failing:
    """A predictor that fails as its images ask; everything else is the real one's."""

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> Any:
        """Predict, or fail as the markers say."""
        wanted = {marker_of(image) for image in images}
        if "exit" in wanted:
            raise SystemExit("the load told the model to exit")
        if "fail" in wanted:
            raise ArithmeticError("the load told the model to fail")
        if "hang" in wanted:
            time.sleep(HANG_SECONDS)
        if "out of memory" in wanted and len(images) > 1:
            import torch

            raise torch.OutOfMemoryError("the load told the model that there is no memory for a batch")
        found = self._predictor.predict(images, tasks)
        for row, image in enumerate(images):
            if marker_of(image) == "not finite":
                found[row].grid_map[:] = np.nan
        return found


class Heartbeat:
    """Records when this thread's event loop is late, and what it did meanwhile."""

    def __init__(self, stalls: IO[str]) -> None:
        self._stalls, self._loop_thread = stalls, threading.get_ident()
        self._due, self._seen = time.monotonic(), list[str]()
        threading.Thread(target=self._look, daemon=True).start()

    async def beat(self) -> None:
        """Write a line per delay: start, length, the loop's own processor time and its waiting for a processor in it,
        and stacks. The rest of the length was waiting for the interpreter's lock."""
        while True:
            busy, queued, self._seen = time.thread_time(), queued_seconds(), []
            self._due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            late = time.monotonic() - self._due
            if late > LEAST_STALL_SECONDS:
                own, waited = time.thread_time() - busy, queued_seconds() - queued
                stall = {"start": self._due, "seconds": late, "own_seconds": own, "queued_seconds": waited}
                self._stalls.write(json.dumps(stall | {"at": self._seen[:MOST_PLACES]}) + "\n")
                self._stalls.flush()

    def _look(self) -> None:
        """Sample the loop's stack while it is late."""
        while True:
            time.sleep(2 * TICK_SECONDS)
            frame = sys._current_frames().get(self._loop_thread)
            if frame is not None and time.monotonic() - self._due > LEAST_STALL_SECONDS:
                places = list[str]()
                while frame is not None and len(places) < DEPTH:
                    places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                    frame = frame.f_back
                self._seen.append(" < ".join(places))


def main(arguments: Sequence[str]) -> None:
    """Serve until shut down."""
    from moleflow.service.api import app
    from moleflow.service.server import serve
    from moleflow.service.settings import load_settings

    settings = load_settings(**dict(argument.split("=", 1) for argument in arguments[1:]))
    load = app.load_predictor
    app.load_predictor = lambda chosen: Failing(load(chosen))  # type: ignore[assignment]
    watching: list[asyncio.Task[None]] = []

    def on_ready(url: str, _: object) -> None:
        watching.append(asyncio.get_running_loop().create_task(Heartbeat(stalls).beat()))
        print(f"ready at {url}", flush=True)

    with Path(arguments[0]).open("a", encoding="utf-8") as stalls:
        serve(settings, on_ready=on_ready)


if __name__ == "__main__":
    main(sys.argv[1:])
