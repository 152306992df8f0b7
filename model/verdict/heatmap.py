"""Heat map overlays, and the colour scale that the service's page shares with them.

Colours are relative to the product's threshold. That threshold applies to image scores (a mean of the highest raw
patches), while the pixel map is smoothed and has lower peaks. The map is therefore stretched, about its median,
until its peak equals the image score: the threshold is the middle of the colour scale, and colours beyond it appear
exactly if the verdict is *anomalous*.
"""

from dataclasses import dataclass

import numpy as np

from moleflow.model.verdict.masking import pixel_mask
from moleflow.model.verdict.results import Prediction

__all__ = ["ColourScale", "colour_table", "overlay"]

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
"""Evenly spaced colours of *inferno*, a perceptually uniform map (van der Walt and Smith, 2015; public domain)."""

_MIDDLE, _LAST = 127, 254
"""Levels of the threshold and of the upper end, symmetric about the threshold."""

_VISIBLE_FROM, _FULLY_VISIBLE_FROM = 0.2, 0.55
"""Positions on the scale where the overlay starts to show and where it reaches full opacity; 0.5 is the threshold."""

_MAX_OPACITY = 0.65
"""Full opacity, below 1 so that the defect itself stays visible."""

_DIMMED = 1
"""Bits that pixels lose where nothing is inspected: they have half their brightness."""

_BAND = 256
"""Rows blended at a time, to bound memory."""


def overlay(image: np.ndarray, prediction: Prediction) -> np.ndarray:
    """Blend the heat map over an RGB image, and dim what is not inspected: ``(height, width, 3)`` uint8 in and out."""
    height, width = image.shape[:2]
    pixel_map = prediction.pixel_map(height, width)
    scale = ColourScale.of(prediction, peak=float(pixel_map.max()))
    blended = np.empty_like(image)
    for start in range(0, height, _BAND):
        band = slice(start, start + _BAND)
        levels = scale.levels(pixel_map[band])
        blended[band] = (_COLOURS.take(levels, axis=0) + image[band] * _KEPT.take(levels)[..., None]) >> 8
    if prediction.inspected is not None:
        blended[~pixel_mask(prediction.inspected, height, width)] >>= _DIMMED
    return blended


@dataclass(frozen=True, slots=True)
class ColourScale:
    """Maps the values of a pixel map, in nats, to colours; see the module's docstring.

    ``low`` and ``top`` are the ends of the scale and ``threshold`` its middle, as image scores; ``gain`` stretches the
    pixel map about ``low`` to that scale, then ``offset`` is added.
    """

    low: float
    threshold: float
    top: float
    gain: float
    offset: float

    @classmethod
    def of(cls, prediction: Prediction, peak: float) -> "ColourScale":
        """The scale for one image, whose pixel map has the maximum ``peak``.

        It starts at the median of the inspected map at the model's size and ends as far above the threshold, or at the
        image score if that is higher.
        """
        score, threshold = prediction.score, prediction.threshold
        side, values = prediction.model_size, prediction.pixel_map()
        if prediction.inspected is not None:
            values = values[pixel_mask(prediction.inspected, side, side)]
        ordinary = float(np.median(values))
        # In an image that is defective all over, even the median is above the threshold: use a symmetric scale.
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


def colour_table() -> np.ndarray:
    """Colour and opacity of each level, ``(levels, 4)`` float64 over 0…255; the opacity is to be scaled down."""
    levels = np.linspace(0, 1, _LAST + 1)
    colours = [np.interp(levels, np.linspace(0, 1, len(_ANCHORS)), channel) for channel in _ANCHORS.T]
    rise = np.clip((levels - _VISIBLE_FROM) / (_FULLY_VISIBLE_FROM - _VISIBLE_FROM), 0, 1)
    return np.stack([*colours, 255 * rise * rise * (3 - 2 * rise)], axis=1)  # smoothstep: no visible edges


def _blending_table() -> tuple[np.ndarray, np.ndarray]:
    """For each level: the colour times its opacity ``(levels, 3)``, and the image's weight ``(levels,)``.

    Both in units of 1/256 as uint16; blended values never exceed 255.
    """
    table = colour_table()
    opacity = np.rint(256 * _MAX_OPACITY * (table[:, 3] / 255))
    return (table[:, :3] * opacity[:, None]).astype(np.uint16), (256 - opacity).astype(np.uint16)


_COLOURS, _KEPT = _blending_table()
