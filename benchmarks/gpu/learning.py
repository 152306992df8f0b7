"""What the stages that learn share: the data, the presets on a given backbone, and a reporter that watches the time."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from benchmarks.gpu.context import Context, OutOfTimeError
from benchmarks.gpu.models import chosen_preset
from benchmarks.shared.random_checkpoint import random_backbone
from moleflow.model.features.backbone import import_plugin
from moleflow.training.config import Preset
from moleflow.training.progress import Reporter

__all__ = ["Source", "Watch", "source"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where products are learned from, and the weights of the backbone; ``None`` if timm has them."""

    data: Path
    products: tuple[str, ...]
    weights: Path | None
    backbone: str | None

    def preset(self, context: Context, name: str, **training: Any) -> Preset:
        """A preset on this backbone, with changes of its schedule."""
        found = chosen_preset(context, name)
        backbone = {"name": self.backbone} if self.backbone else {}
        return found.with_changes(backbone=backbone, training=training)


def source(context: Context) -> Source:
    """The data that was given; where everything is reduced, synthetic data and random weights by default."""
    options = context.options
    if options.plugin:
        import_plugin(options.plugin)
    if options.data is not None:
        return Source(options.data, tuple(options.products), options.weights, options.backbone)
    data, weights = context.work / "synthetic", context.work / "random.safetensors"
    names = ("bolt", "nut")
    for seed, name in enumerate(names):
        _write_product(data / name, seed)
    network = random_backbone(chosen_preset(context, "main").model.backbone).net
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, weights)
    return Source(data, names, weights, None)


def _write_product(folder: Path, seed: int, side: int = 64) -> None:
    """Good images of noise around one colour; in each defective one a bright square, which its mask marks."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(60, 190, 3)
    for part, count in (("train/good", 16), ("test/good", 4), ("test/spot", 4)):
        for number in range(count):
            image = np.clip(colour + rng.normal(0, 8, (side, side, 3)), 0, 255).astype(np.uint8)
            if part == "test/spot":
                mask = np.zeros((side, side), np.uint8)
                mask[16:32, 8:40], image[16:32, 8:40] = 255, 255
                _save(folder / "ground_truth/spot" / f"{number}_mask.png", mask)
            _save(folder / part / f"{number}.png", image)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


class Watch(Reporter):
    """Writes to the stage's log, keeps what is recorded, and ends a training after an epoch when the time is up.

    The state of a training is saved before its epoch is recorded, so the next run continues there.
    """

    def __init__(self, context: Context, reserve: float, history: Path | None = None) -> None:
        super().__init__(history, Console(file=sys.stderr, force_terminal=False, width=150))
        self.context, self.reserve = context, reserve
        self.events: list[dict[str, Any]] = []

    def with_history(self, history: Path) -> Self:
        """The same with another history; what is recorded is kept here too."""
        other = type(self)(self.context, self.reserve, history)
        other.events = self.events
        return other

    def record(self, event: str, **values: object) -> None:
        super().record(event, **values)
        self.events.append({"event": event, **values})
        self.check()

    def check(self) -> None:
        """``OutOfTimeError`` when less than the reserve is left."""
        if self.context.left() < self.reserve:
            raise OutOfTimeError

    def found(self, event: str, product: str) -> Sequence[dict[str, Any]]:
        """What was recorded of a product."""
        return [each for each in self.events if each["event"] == event and str(each["name"]).startswith(product)]
