"""Example images of a report: the hardest ones, and the clearest defects."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries

from moleflow.model.images.bit_depth import FULL_SCALE
from moleflow.model.verdict.heatmap import overlay
from moleflow.training.data.datasets import read_image
from moleflow.training.data.masks import read_mask
from moleflow.training.evaluation.evaluate import Outcome

__all__ = ["Case", "CaseGroup", "case_groups"]

_CASES = 3
"""Images per group."""

_SIDE = 256
"""Longer side of a thumbnail, in pixels."""

_OUTLINE = (0, 220, 255)
"""Colour of the mask's outline, which stands out from the heat map's."""

_QUALITY = 85
"""JPEG quality; without chroma subsampling, so that thin outlines stay sharp."""


@dataclass(frozen=True, slots=True)
class Case:
    """One example; ``image`` and ``heat_map`` are JPEGs as ``data:`` URLs."""

    name: str
    defect: str | None
    score: float
    is_anomalous: bool
    product: str
    image: str
    heat_map: str

    @property
    def is_right(self) -> bool:
        return self.is_anomalous == (self.defect is not None)


@dataclass(frozen=True, slots=True)
class CaseGroup:
    """A titled group of examples from one category."""

    title: str
    cases: tuple[Case, ...]


def case_groups(outcomes: Sequence[Outcome]) -> list[CaseGroup]:
    """The highest-scoring good images, and the lowest-scoring and highest-scoring defective ones (as routed).

    Groups are disjoint; empty groups are omitted. ``DatasetError`` if an image cannot be read.
    """
    ranked = sorted(outcomes, key=lambda each: each.routed.score)
    good = [each for each in reversed(ranked) if not each.sample.is_anomalous]
    bad = [each for each in ranked if each.sample.is_anomalous]
    missed, rest = bad[:_CASES], bad[_CASES:]
    chosen = {
        "Good, highest scores": good[:_CASES],
        "Defective, lowest scores": missed,
        "Defective, highest scores": rest[: -_CASES - 1 : -1],
    }
    return [CaseGroup(title, tuple(_case(each) for each in group)) for title, group in chosen.items() if group]


def _case(outcome: Outcome) -> Case:
    sample, found = outcome.sample, outcome.routed
    image = _thumbnail(read_image(sample.path, white_level=found.white_level or FULL_SCALE))
    shown = overlay(image, found)
    if sample.masks:
        shown[find_boundaries(read_mask(sample.masks, *image.shape[:2]), mode="outer")] = _OUTLINE
    return Case(
        name=sample.path.name,
        defect=sample.defect,
        score=found.score,
        is_anomalous=found.is_anomalous,
        product=found.task.name,
        image=_data_url(image),
        heat_map=_data_url(shown),
    )


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """At most ``_SIDE`` pixels wide and high, its proportions kept."""
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return np.array(thumbnail)


def _data_url(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
