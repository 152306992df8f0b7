"""Checkpoints with images of their products and what a CPU makes of them, to compare a GPU with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from agreement import Outputs, maps_of, using_every_processor
from tiny_model import FUSED, TINY, product_image, tiny_checkpoint, tiny_config
from wide_model import FITTED, WIDE_FAST, WIDE_MAIN

from moleflow.model.detector import Detector
from moleflow.model.store.checkpoint import Checkpoint

__all__ = ["CONFIGS", "Case", "Load", "MakeCase", "write_case"]

CONFIGS = {
    "tiny main": tiny_config(),
    "tiny fast": tiny_config(adapter="zca", scoring=FUSED),
    "wide main": WIDE_MAIN,
    "wide fast": WIDE_FAST,
}
"""As the presets ``main`` and ``fast``: with a few channels, and at real width, where other kernels may be used."""

NAMES = ("bolt", "nut", "gear", "cap", "pin")
WIDE_NAMES = NAMES[:3]

KINDS = (2, 0, 1, 1, 4, 3, 0, 2, 3)
"""The product of each image; of three products, the remainder."""


@dataclass(frozen=True, eq=False)
class Case:
    """A checkpoint, nine images of its products, and what the CPU makes of them in fp32.

    ``nll`` and ``anomaly`` are their maps by the products in ``kinds``.
    """

    name: str
    checkpoint: Checkpoint
    images: list[np.ndarray]
    kinds: list[int]
    expected: Outputs
    nll: torch.Tensor
    anomaly: torch.Tensor

    @property
    def is_wide(self) -> bool:
        return self.name.startswith("wide")

    @property
    def names(self) -> list[str]:
        """The product of each image by its name."""
        return [self.checkpoint.header.tasks[kind].name for kind in self.kinds]


MakeCase = Callable[[str], Case]
"""A case by its name."""

Load = Callable[[Checkpoint, str], Detector]
"""A detector on the device under test, given a checkpoint and a precision."""


@using_every_processor()
def write_case(name: str, path: Path) -> Case:
    """The case called ``name``, its checkpoint written to ``path``."""
    config, is_wide = CONFIGS[name], name.startswith("wide")
    names = WIDE_NAMES if is_wide else NAMES
    checkpoint = tiny_checkpoint(path, names, config, networks=TINY if name == "tiny main" else FITTED)
    kinds = [kind % len(names) for kind in KINDS]
    images = [product_image(kind, 60 + at, config.backbone.image_size) for at, kind in enumerate(kinds)]
    on_cpu = Detector(checkpoint, device="cpu", precision="fp32")
    expected = Outputs.of(on_cpu, images)
    return Case(name, checkpoint, images, kinds, expected, *maps_of(on_cpu, expected.features, kinds))
