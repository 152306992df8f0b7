"""The heat map laid over the image, for people.

Colours say how a spot stands to the product's threshold. The threshold was set for image scores (a mean of the highest
raw patches), while the pixel map is smoothed and so lower at its peak. The map is therefore stretched, about the level
of the image's ordinary parts, until its peak equals the image score: the middle of the colour scale is the threshold,
and colours beyond it appear exactly when the verdict is *anomalous*.
"""

from dataclasses import dataclass

import numpy as np

from moleflow.model.verdict.results import Prediction

__all__ = ["ColourScale", "overlay"]

_ANCHORS = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ],
    np.float64,
)
"""Evenly spaced colours of *inferno*, whose lightness rises evenly (van der Walt and Smith, 2015; public domain)."""

_MIDDLE, _LAST = 127, 254
"""Levels of the threshold and of the upper end of the scale; an even count on both sides."""

_VISIBLE_FROM, _FULLY_VISIBLE_FROM = 0.2, 0.55
"""Where on the scale colours begin to cover the image, and where they cover it the most; 0.5 is the threshold."""

_MAX_OPACITY = 0.65
"""Share of the colour where it covers the image the most: the defect itself stays visible."""

_BAND = 256
"""Rows blended at a time, which bounds the memory for intermediate values."""


def overlay(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """Lay the heat map over an RGB image: ``(height, width, 3)`` uint8 in and out."""
    height, width = image.shape[:2]
    pixel_map = prediction.pixel_map(height, width)
    scale = ColourScale.of(prediction, peak=float(pixel_map.max()))
    blended = np.empty_like(image)
    for start in range(0, height, _BAND):
        band = slice(start, start + _BAND)
        levels = scale.levels(pixel_map[band])
        blended[band] = (_COLOURS.take(levels, axis=0) + image[band] * _KEPT.take(levels)[..., None]) >> 8
    return blended


@dataclass(frozen=True, slots=True)
class ColourScale:
    """Which values of a pixel map, in nats, get which colour; see the module's description.

    ``low`` and ``top`` are the values at the ends, ``threshold`` the one in the middle, all on the scale of image
    scores; ``gain`` stretches the pixel map about ``low`` to that scale, and ``offset`` is added after that.
    """

    low: float
    threshold: float
    top: float
    gain: float
    offset: float

    @classmethod
    def of(cls, prediction: Prediction, peak: float) -> "ColourScale":
        """The scale for one image, the highest value of whose pixel map is ``peak``.

        It begins at the image's ordinary level, the median of its patches, and ends as far above the threshold as
        that is below, or at the image score where that is higher.
        """
        score, threshold = prediction.score, prediction.threshold
        ordinary = float(np.median(prediction.grid_map))
        # An image that is defective all over has no ordinary part; then the scale reaches as far down as it does up.
        reach = threshold - ordinary if ordinary < threshold else max(score - threshold, 1.0)
        low, top = threshold - reach, max(score, threshold + reach)
        if peak > low and score > low:
            return cls(low, threshold, top, gain=(score - low) / (peak - low), offset=0.0)
        return cls(low, threshold, top, gain=1.0, offset=score - peak)

    def levels(self, pixel_map: np.ndarray) -> np.ndarray:
        """Positions on the scale: 0 for ``low``, 127 for the threshold, 254 for ``top``; float32 to uint8."""
        values = (pixel_map - self.low) * self.gain + (self.low + self.offset)
        below = np.clip((values - self.low) * (_MIDDLE / (self.threshold - self.low)), 0, _MIDDLE)
        above = np.clip((values - self.threshold) * (_MIDDLE / (self.top - self.threshold)), 0, _LAST - _MIDDLE)
        return np.ceil(below + above).astype(np.uint8)


def _colour_table() -> tuple[np.ndarray, np.ndarray]:
    """For each level: the colour times its opacity ``(levels, 3)``, and what is kept of the image ``(levels,)``.

    Both are in steps of 1/256, as uint16, so that a blended value never exceeds 255.
    """
    levels = np.linspace(0, 1, _LAST + 1)
    colours = np.stack([np.interp(levels, np.linspace(0, 1, len(_ANCHORS)), c) for c in _ANCHORS.T], axis=1)
    rise = np.clip((levels - _VISIBLE_FROM) / (_FULLY_VISIBLE_FROM - _VISIBLE_FROM), 0, 1)
    opacity = np.rint(256 * _MAX_OPACITY * rise * rise * (3 - 2 * rise))  # a smooth step, without visible edges
    return (colours * opacity[:, None]).astype(np.uint16), (256 - opacity).astype(np.uint16)


_COLOURS, _KEPT = _colour_table()
