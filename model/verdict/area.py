"""The inspected area of a product: the part of its images that is looked at. Kept in the checkpoint's header.

It is drawn as polygons or given as a mask image, and kept as the grid of patches that it amounts to, because a patch is
the smallest part of an image that has a score. Everything follows from that grid: patches outside neither score nor
appear in maps, and their anomaly is never smoothed into the rest.
"""

from typing import Annotated, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

__all__ = ["MAX_POINTS", "Area", "Outlines", "Polygon", "rows_of"]

MAX_POINTS = 2000
"""Most points of all polygons of a product, so that they stay small beside its other records; a person draws dozens."""

_MIN_POINTS = 3
"""Fewer points have no inside."""

_MAX_SIDE = 4096
"""Most rows and columns of patches: those of the largest image at stride 1."""

_MAX_IMAGES = 10**9

_Fraction = Annotated[float, Field(ge=0, le=1)]


def _check_polygon(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    if len(points) < _MIN_POINTS:
        raise ValueError(f"a polygon needs at least {_MIN_POINTS} points; this one has {len(points)}")
    return points


Polygon = Annotated[tuple[tuple[_Fraction, _Fraction], ...], AfterValidator(_check_polygon)]
"""Corners (x, y) as fractions of the image's width and height from its upper left corner, closed by itself; what is
inside follows the even-odd rule."""


class Outlines(BaseModel):
    """What was drawn: inspected is what lies in a polygon of ``inspect``, or anything if there are none, and in no
    polygon of ``ignore``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    inspect: tuple[Polygon, ...] = Field(default=(), description="polygons to inspect; everything if there are none")
    ignore: tuple[Polygon, ...] = Field(default=(), description="polygons to ignore")

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        count = sum(map(len, self.inspect + self.ignore))
        if count > MAX_POINTS:
            raise ValueError(f"the polygons have {count:,} points; at most {MAX_POINTS:,} are allowed")
        return self


class Area(Outlines):
    """An inspected area as it is kept: its patches, and the polygons that it was drawn with, if it was."""

    patches: tuple[Annotated[str, Field(pattern=r"^[01]+$", max_length=_MAX_SIDE)], ...] = Field(
        min_length=1, max_length=_MAX_SIDE, description="rows of patches from the top: 1 is inspected, 0 is not"
    )
    calibration_images: int | None = Field(
        default=None,
        ge=2,
        le=_MAX_IMAGES,
        description="good images that calibrate this area; null: the thresholds are those of the larger area before, "
        "which good images exceed less often",
    )

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if len({len(row) for row in self.patches}) > 1:
            raise ValueError("all rows of patches must be equally long")
        return self

    @classmethod
    def of(cls, mask: np.ndarray, outlines: Outlines | None = None) -> Self:
        """The area of the patches where ``mask`` ``(H, W)`` is true, drawn with ``outlines``."""
        drawn = outlines or Outlines()
        return cls(inspect=drawn.inspect, ignore=drawn.ignore, patches=rows_of(mask))

    @property
    def mask(self) -> np.ndarray:
        """Which patches are inspected, ``(H, W)`` bool."""
        return np.array([[each == "1" for each in row] for row in self.patches])

    @property
    def fraction(self) -> float:
        """The fraction of the image that is inspected."""
        return float(self.mask.mean())


def rows_of(mask: np.ndarray) -> tuple[str, ...]:
    """The rows of a mask ``(H, W)`` bool, as ``Area.patches`` has them."""
    return tuple("".join("1" if each else "0" for each in row) for row in mask)
