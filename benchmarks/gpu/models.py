"""The presets that are measured, tiny ones where everything is reduced, and checkpoints of them."""

import contextlib
import time

from benchmarks.gpu.context import Context
from benchmarks.shared.machine import code_digest
from benchmarks.shared.synthetic_checkpoint import write_synthetic_checkpoint
from moleflow.model.config import MemoryConfig, ScoringConfig
from moleflow.training.config import Preset, preset

__all__ = ["PRODUCTS", "checkpoint", "chosen_preset"]

PRODUCTS = 8
"""Products of a synthetic checkpoint."""

REDUCED_SIDE = 64
"""Pixels of a reduced model's input."""


def chosen_preset(context: Context, name: str) -> Preset:
    """The preset, or a tiny one of the same kind where everything is reduced."""
    found = preset(name)
    if not context.reduced:
        return found
    scoring = found.model.scoring
    if scoring.memory is not None:
        scoring = ScoringConfig(cap=scoring.cap, memory=MemoryConfig(prototypes=40, pooled=16, dim=8))
    return found.with_changes(
        backbone={"name": "resnet18", "image_size": REDUCED_SIDE, "embedding_dim": 32},
        flow={"coupling_blocks": 2, "dia_blocks": 1, "lora_rank": 4},
        model={"scoring": scoring.model_dump()},
        training={"epochs": 1, "folds": 1},
    )


def checkpoint(context: Context, name: str) -> str:
    """The path of a synthetic checkpoint with ``PRODUCTS`` products of a preset; written once for each state of the
    code."""
    size = "reduced" if context.reduced else "whole"
    path = context.work / f"{name}-{size}-{code_digest()[:12]}.safetensors"
    if not path.exists():
        for old in context.work.glob(f"{name}-{size}-*.safetensors"):
            with contextlib.suppress(OSError):
                old.unlink()
        started = time.monotonic()
        write_synthetic_checkpoint(path, chosen_preset(context, name), PRODUCTS)
        print(f"{path.name}: written in {time.monotonic() - started:.0f} s", flush=True)
    return str(path)
