"""A product's images: those to train on, and labelled ones to test with."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from moleflow.model.verdict.area import Area
from moleflow.training.data.warnings import Concern, DataWarning

__all__ = ["Category", "Layout", "Sample", "is_good"]

_GOOD_NAMES = frozenset({
    "good", "ok", "okay", "normal", "nominal", "pass", "passed", "fine", "non_defective", "nondefective",
    "defect_free", "defectfree", "no_defect", "no_defects", "not_defective", "without_defect", "anomaly_free",
    "no_anomaly", "non_anomalous",
})  # fmt: skip
"""Synonyms of ``good`` in published data sets; none of them is the name of a defect."""


class Layout(StrEnum):
    """How a product's images are laid out on disk."""

    MVTEC = "MVTec AD"
    VISA = "VisA"
    FOLDER = "plain folder"


@dataclass(frozen=True, slots=True)
class Sample:
    """One test image. ``defect`` is ``None`` for a good one; the union of all ``masks`` marks the defect."""

    path: Path
    defect: str | None
    masks: tuple[Path, ...] = ()

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect is not None


@dataclass(frozen=True, slots=True)
class Category:
    """One product: good images for training, and labelled images for testing (none in a plain folder).

    ``good_masks`` are masks of good images, which should be empty. ``area`` is the part of the images to learn from.
    """

    name: str  # in Unicode normal form C, unlike its folder's name
    root: Path
    layout: Layout
    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    good_masks: tuple[Path, ...] = ()
    warnings: tuple[DataWarning, ...] = ()
    area: Area | None = None

    def warnings_on(self, concern: Concern) -> list[DataWarning]:
        """The warnings about training or testing data."""
        return [each for each in self.warnings if each.concerns == concern]


def is_good(name: str) -> bool:
    """Whether ``name`` is a folder or label of good images."""
    return name.strip().casefold().replace("-", "_").replace(" ", "_") in _GOOD_NAMES
