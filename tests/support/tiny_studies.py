"""Studies of two tiny products."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_model import tiny_config

from moleflow.training.ablation.runner import Ablation
from moleflow.training.ablation.studies import Row, Study
from moleflow.training.config import Preset, TrainingConfig
from moleflow.training.fit.trainer import EpochResult, TaskTrainer
from moleflow.training.progress import Reporter

TASKS = ("bolt", "nut")

PRESET = Preset(
    name="tiny",
    description="for tests",
    model=tiny_config(),
    training=TrainingConfig(epochs=2, batch_size=4, learning_rate=1e-3, min_held_out=2, folds=1),
)

PAIR = Study("pair", "Two rows", (Row("full"), Row("w/o mixer", flow={"spatial_context_kernel": None}, note="a note")))

ALONE = Study("alone", "The first of them", PAIR.rows[:1])

SCORING = Study("scoring", "Scoring", (Row("3", score_top_k=3), Row("1", score_top_k=1)))

SHARING = Study(
    "sharing", "Sharing", tuple(Row(name, flow={"sharing": name}) for name in ("frozen", "sequential")), forgetting=True
)


def ablation(data: Path, out: Path, preset: Preset = PRESET, **options: Any) -> Ablation:
    reporter = Reporter(console=Console(quiet=True))
    return Ablation(data, TASKS, out, preset, device="cpu", precision="fp32", reporter=reporter, **options)


class Counter:
    """Counts the fits that are started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fits: list[str] = []
        plain = TaskTrainer.epochs

        def epochs(trainer: TaskTrainer, *arguments: Any) -> Iterator[EpochResult]:
            self.fits.append(trainer.name)
            return plain(trainer, *arguments)

        monkeypatch.setattr(TaskTrainer, "epochs", epochs)


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("runs/*/factory.safetensors"))
