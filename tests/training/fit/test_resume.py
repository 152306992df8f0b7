"""How often a fit saves its state."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from moleflow.training.fit import resume
from moleflow.training.fit.resume import FREE_SAVING_SECONDS, SAVING_SHARE, ResumableFit
from moleflow.training.fit.trainer import EpochResult
from moleflow.training.progress import Reporter

EPOCHS = 60


class Fit:
    """A trainer whose epochs take a second, and whose saving takes ``saving`` seconds of a clock of its own."""

    name, epoch = "nut", 0
    base = expert = SimpleNamespace(state_dict=dict)

    def __init__(self, saving: float) -> None:
        self.now, self.saving, self.saved = 0.0, saving, list[int]()

    def length(self, images: int) -> float:
        return EPOCHS

    def restore(self, path: Path, fingerprint: str) -> bool:
        return False

    def save(self, path: Path, fingerprint: str) -> None:
        self.now += self.saving
        self.saved.append(self.epoch)

    def finish(self) -> None:
        pass

    def epochs(self, store: object, on_step: object) -> Iterator[EpochResult]:
        for number in range(1, EPOCHS + 1):
            self.now, self.epoch = self.now + 1, number
            yield EpochResult(number, 0.0, 0.0, 0.0)


def fitted(monkeypatch: pytest.MonkeyPatch, saving: float) -> Fit:
    fit = Fit(saving)
    monkeypatch.setattr(resume, "time", SimpleNamespace(perf_counter=lambda: fit.now))
    ResumableFit(Path("state"), Reporter()).run(fit, [0], "")  # type: ignore[arg-type]
    return fit


def test_a_state_that_is_saved_quickly_is_saved_after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted(monkeypatch, saving=0.1).saved == list(range(1, EPOCHS + 1))


def test_saving_slowly_takes_a_bounded_share_of_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fitted(monkeypatch, saving=5)
    assert 2 <= len(fit.saved) < EPOCHS / 10
    # One beyond the share, and the last one.
    assert 5 * len(fit.saved) <= FREE_SAVING_SECONDS + SAVING_SHARE * fit.now + 2 * 5


def test_the_last_epoch_is_saved_whatever_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted(monkeypatch, saving=100).saved[-1] == EPOCHS
