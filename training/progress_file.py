"""The progress of learning a product, for other programs: a small JSON document that is replaced about once a second.

Learning is two kinds of work, of images each: computing embeddings, and fitting. How many images there will be of each
is known at the start, and how long one takes from those that are done.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from pydantic import BaseModel, Field

from moleflow.model.files.outputs import write_text

__all__ = ["LearningProgress", "ProgressFile", "Work"]

Work = Literal["embed", "fit"]

_INTERVAL_SECONDS = 1.0


class LearningProgress(BaseModel):
    """The content of the file."""

    product: str
    phase: str = Field(description="what is being done")
    done: int = Field(ge=0, description="images of the phase that are done")
    total: int = Field(ge=0, description="images of the phase")
    fraction: float | None = Field(None, ge=0, le=1, description="of the time that the product takes; null at first")
    seconds_left: float | None = Field(None, ge=0, description="for the product, estimated; null at first")
    epoch: int | None = Field(None, description="last complete epoch of the current fit, or of the last one")
    epochs: int | None = Field(None, description="epochs of that fit")
    loss: float | None = Field(None, description="mean loss of that epoch; null if it is not finite")


class ProgressFile:
    """Keeps the file at ``path``. Every method may raise ``ConfigurationError``: the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path, self._written = path, 0.0
        self._shown = LearningProgress(product="", phase="", done=0, total=0)
        self._work: Work = "embed"
        self._left: dict[Work, int] = {}
        self._done: dict[Work, int] = {}
        self._seconds: dict[Work, float] = {}
        self._since = time.perf_counter()

    def plan(self, product: str, images: Mapping[str, int]) -> None:
        """Begin ``product``, for which so many ``images`` will be embedded and fitted to."""
        self._left = {cast(Work, work): count for work, count in images.items()}
        self._done, self._seconds = dict.fromkeys(self._left, 0), dict.fromkeys(self._left, 0.0)
        self._shown = LearningProgress(product=product, phase="", done=0, total=0)

    def begin(self, phase: str, work: Work, total: int, done: int) -> None:
        """A phase of ``total`` images begins, of which ``done`` were done before an interruption."""
        self._work, self._since = work, time.perf_counter()
        self._left[work] = max(0, self._left.get(work, total) - done)
        self._show(phase=phase, done=done, total=total)
        self._write()

    def advance(self, images: int) -> None:
        """``images`` more of the phase are done."""
        now, work = time.perf_counter(), self._work
        self._seconds[work] = self._seconds.get(work, 0.0) + now - self._since
        self._done[work] = self._done.get(work, 0) + images
        self._left[work] = max(0, self._left[work] - images)
        self._since = now
        self._show(done=min(self._shown.total, self._shown.done + images), **self._estimate())
        if now - self._written >= _INTERVAL_SECONDS:
            self._write()

    def epoch(self, values: Mapping[str, object]) -> None:
        """An epoch of the current fit is complete."""
        given = {key: values.get(key) for key in ("epoch", "epochs", "loss")}
        self._show(**given)

    def _estimate(self) -> dict[str, float | None]:
        """Seconds left and the fraction of time, unless some kind of work has not been measured."""
        if any(left and not self._done.get(work) for work, left in self._left.items()):
            return {"seconds_left": None, "fraction": None}
        left = sum(count * self._seconds[work] / self._done[work] for work, count in self._left.items() if count)
        spent = sum(self._seconds.values())
        return {"seconds_left": round(left, 1), "fraction": round(spent / max(spent + left, 1e-9), 4)}

    def _show(self, **values: object) -> None:
        self._shown = self._shown.model_copy(update=values)

    def _write(self) -> None:
        self._written = time.perf_counter()
        write_text("the progress of training", self._path, self._shown.model_dump_json())
