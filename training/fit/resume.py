"""Run fits that continue after an interruption."""

import math
import time
from pathlib import Path

import torch

from moleflow.model.runtime.soundness import not_finite
from moleflow.training.embeddings.extraction import Embeddings
from moleflow.training.errors import DivergenceError
from moleflow.training.fit.trainer import TaskTrainer
from moleflow.training.progress import Reporter

__all__ = ["ResumableFit"]


SAVING_SHARE, FREE_SAVING_SECONDS = 0.1, 1.0
"""Saving takes at most this share of a fit, and a second. On a GPU an epoch of ``main`` takes an eighth of a second,
less than writing 200 MB may."""


class ResumableFit:
    """Runs one fit after another, and saves the state after every epoch to one file, or less often if that takes long
    (``SAVING_SHARE``); after the last epoch always."""

    def __init__(self, state_path: Path, reporter: Reporter) -> None:
        self.state_path, self.reporter = state_path, reporter

    def run(self, trainer: TaskTrainer, store: Embeddings, fingerprint: str) -> None:
        """Fit ``trainer`` to ``store``, continuing from the saved state if its ``fingerprint`` is the same.

        Raises:
            DivergenceError: loss or weights are not finite; the saved state is that of an epoch before.
        """
        length = trainer.length(len(store))
        epochs = math.ceil(length)
        try:
            if trainer.restore(self.state_path, fingerprint):
                self.reporter.line(f"{trainer.name}: continues after epoch {trainer.epoch} of {epochs}")
        except ValueError as error:
            self.reporter.line(f"{trainer.name}: starts over, because {error}")
        total = round(len(store) * length)
        with self.reporter.phase(trainer.name, total, done=len(store) * trainer.epoch, work="fit") as phase:

            def on_step(images: int, loss: torch.Tensor) -> None:
                # Reading the loss synchronises, so it is read only if it is shown.
                phase.advance(images, f"loss {loss.item():.1f}" if phase.shows_bar else "")

            saving, fit_started = 0.0, time.perf_counter()
            started = fit_started
            for result in trainer.epochs(store, on_step):
                now = time.perf_counter()
                seconds = now - started
                _check_finite(trainer, result.loss)
                if saving <= FREE_SAVING_SECONDS + SAVING_SHARE * (now - fit_started) or trainer.epoch >= length:
                    self.save(trainer, fingerprint)
                    saving += time.perf_counter() - now
                self.reporter.record(
                    "epoch",
                    name=trainer.name,
                    epoch=result.epoch,
                    epochs=epochs,
                    loss=result.loss,
                    nll=result.nll,
                    learning_rate=result.learning_rate,
                    images_per_second=round(phase.rate, 2),
                    seconds=round(seconds, 3),
                )
                if not phase.shows_bar:
                    self.reporter.line(
                        f"{trainer.name}: epoch {result.epoch}/{epochs}  loss {result.loss:.1f}  "
                        f"NLL {result.nll:.1f}  {phase.rate:.1f} images/s"
                    )
                started = time.perf_counter()
        trainer.finish()
        _check_finite(trainer)

    def save(self, trainer: TaskTrainer, fingerprint: str) -> None:
        """Save the state; to be extended where it is needed elsewhere too. Errors as ``TaskTrainer.save``."""
        trainer.save(self.state_path, fingerprint)

    def forget(self) -> None:
        """Remove the saved state; its result has been saved elsewhere."""
        self.state_path.unlink(missing_ok=True)


def _check_finite(trainer: TaskTrainer, loss: float = 0.0) -> None:
    """``DivergenceError`` unless the loss and all weights are finite."""
    weights = {
        f"{part}.{key}": value
        for part in ("base", "expert")
        for key, value in getattr(trainer, part).state_dict().items()
    }
    broken = not_finite(weights)
    if broken is None and math.isfinite(loss):
        return
    found = f"the loss is {loss}" if broken is None else f"{broken} is not finite"
    raise DivergenceError(
        f"the fit of {trainer.name!r} diverged in epoch {trainer.epoch} ({found}), and nothing of it is kept; look at "
        "its images, or train with a lower --learning-rate or --precision fp32."
    )
