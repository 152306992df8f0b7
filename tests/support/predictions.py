"""Images of three tiny products, and whether two predictions are the same."""

import math

import numpy as np
from tiny_model import product_image

from moleflow.model.verdict.results import Failure, Finding, Prediction

IMAGES = [product_image(kind, seed) for kind, seed in ((2, 60), (0, 61), (1, 62), (0, 63), (2, 64))]


def alike(one: Finding | Failure, other: Finding | Failure) -> bool:
    """Whether two predictions are equal up to rounding, which depends on the batch size."""
    assert isinstance(one, Prediction) and isinstance(other, Prediction)
    return (
        one.task.name == other.task.name
        and [c.name for c in one.candidates] == [c.name for c in other.candidates]
        and np.allclose([c.distance for c in one.candidates], [c.distance for c in other.candidates], rtol=1e-4)
        and np.allclose(one.grid_map, other.grid_map, rtol=1e-4, atol=1e-3)
        and math.isclose(one.score, other.score, rel_tol=1e-4)
    )


def same_bits(one: Finding | Failure, other: Finding | Failure) -> bool:
    assert isinstance(one, Prediction) and isinstance(other, Prediction)
    return one.candidates == other.candidates and one.score == other.score and (one.grid_map == other.grid_map).all()
