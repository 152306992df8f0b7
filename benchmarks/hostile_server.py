"""The service for ``hostile_load.py``: the real one, whose model fails on demand and whose loop is watched.

    python benchmarks/hostile_server.py STALLS_FILE SETTING=VALUE …

An image of one of the ``MARKERS``' colours makes the model fail in that way. Whenever the event loop comes late by more
than ``LEAST_STALL_SECONDS``, a line of ``STALLS_FILE`` says when and by how much, on the monotonic clock.
"""

import asyncio
import json
import sys
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
"""Colours that no other image of the load consists of."""

HANG_SECONDS = 12.0
"""How long a prediction hangs that is told to."""

TICK_SECONDS = 0.005

LEAST_STALL_SECONDS = 0.02


def marker_of(image: np.ndarray) -> str | None:
    """Which failure an image ``(S, S, 3)`` asks for."""
    colour = tuple(int(value) for value in image[0, 0])
    name = next((name for name, marked in MARKERS.items() if marked == colour), None)
    return name if name is not None and (image == image[0, 0]).all() else None


class Failing:
    """A predictor that does what its images tell it to; all else is the real one's."""

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def predict(self, images: Sequence[np.ndarray], tasks: Sequence[str | None] | None = None) -> Any:
        """As the real one, or as the markers say."""
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


async def watch_loop(stalls: IO[str]) -> None:
    """Write down when this loop comes late."""
    while True:
        due, busy = time.monotonic() + TICK_SECONDS, time.thread_time()
        await asyncio.sleep(TICK_SECONDS)
        late = time.monotonic() - due
        if late > LEAST_STALL_SECONDS:
            stall = {"start": due, "seconds": late, "own_seconds": time.thread_time() - busy}
            stalls.write(json.dumps(stall) + "\n")
            stalls.flush()


def main(arguments: Sequence[str]) -> None:
    """Serve until told to stop."""
    from service import app
    from service.server import serve
    from service.settings import load_settings

    settings = load_settings(**dict(argument.split("=", 1) for argument in arguments[1:]))
    load = app.load_predictor
    app.load_predictor = lambda chosen: Failing(load(chosen))  # type: ignore[assignment, return-value]
    watching: list[asyncio.Task[None]] = []

    def on_ready(url: str, _: object) -> None:
        watching.append(asyncio.get_running_loop().create_task(watch_loop(stalls)))
        print(f"ready at {url}", flush=True)

    with Path(arguments[0]).open("a", encoding="utf-8") as stalls:
        serve(settings, on_ready=on_ready)


if __name__ == "__main__":
    from model.threads import restart_prepared

    restart_prepared()
    main(sys.argv[1:])
