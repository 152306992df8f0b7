"""What must be decided before PyTorch is loaded: how its threads wait."""

import os

__all__ = ["prepare_environment"]

_OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Idle OpenMP threads sleep instead of spinning: with one busy process beside it, a spinning forward pass is slowed
many times over. Whoever sets these variables outside keeps his values."""


def prepare_environment() -> None:
    """Set the thread runtime's waiting policy unless the user has; call before anything imports torch."""
    for key, value in _OPENMP.items():
        os.environ.setdefault(key, value)
