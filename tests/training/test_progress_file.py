"""The progress that other programs read."""

from pathlib import Path

import pytest
from rich.console import Console

from moleflow.training import progress_file
from moleflow.training.progress import Reporter
from moleflow.training.progress_file import LearningProgress, ProgressFile


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress_file.time, "perf_counter", lambda: self.now)


def test_the_time_left_counts_every_kind_of_work_once_both_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, path = Clock(monkeypatch), tmp_path / "progress.json"
    reporter = Reporter(console=Console(quiet=True), progress=ProgressFile(path))

    def shown() -> LearningProgress:
        return LearningProgress.model_validate_json(path.read_bytes())

    reporter.plan("nut", embed=30, fit=100)
    with reporter.phase("nut: embeddings", 20, work="embed") as phase:
        clock.now += 10
        phase.advance(10)
        assert (shown().product, shown().done, shown().total) == ("nut", 10, 20)
        assert shown().seconds_left is None
        phase.advance(10)
    with reporter.phase("nut", 100, done=40, work="fit") as phase:  # continued after an interruption
        clock.now += 60
        phase.advance(30)
        reporter.record("epoch", name="nut", epoch=7, epochs=10, loss=float("nan"))
        clock.now += 2
        phase.advance(1)
    # Half a second for each of 10 images, and two for each of 29.
    assert shown().seconds_left == pytest.approx(5 + 29 * 2, abs=0.1)
    assert shown().fraction == pytest.approx(72 / (72 + 63), abs=0.01)
    assert (shown().done, shown().epoch, shown().epochs, shown().loss) == (71, 7, 10, None)


def test_the_file_is_written_about_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(monkeypatch), []
    monkeypatch.setattr(progress_file, "write_text", lambda what, path, text: written.append(text))
    file = ProgressFile(tmp_path / "progress.json")
    file.plan("nut", {"fit": 1000})
    file.begin("nut", "fit", 1000, 0)
    for _ in range(1000):
        clock.now += 0.01
        file.advance(1)
    assert len(written) in (10, 11)
