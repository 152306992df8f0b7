"""Labelled test images, and the names of layouts."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = ["Layout", "Sample", "is_good"]

_GOOD_NAMES = frozenset(
    {
        "good",
        "ok",
        "okay",
        "normal",
        "nominal",
        "pass",
        "passed",
        "fine",
        "non_defective",
        "nondefective",
        "defect_free",
        "defectfree",
        "no_defect",
        "no_defects",
        "not_defective",
        "without_defect",
        "anomaly_free",
        "no_anomaly",
        "non_anomalous",
    }
)
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


def is_good(name: str) -> bool:
    """Whether ``name`` is a folder or label of good images."""
    return name.strip().casefold().replace("-", "_").replace(" ", "_") in _GOOD_NAMES
