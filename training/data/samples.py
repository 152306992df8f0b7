"""What a data set is made of: labelled images, and how they are laid out on disk."""

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
"""What data sets call good parts where they do not say ``good``; no defect is called so."""


class Layout(StrEnum):
    """How a product's images are laid out on disk."""

    MVTEC = "MVTec AD"
    VISA = "VisA"
    FOLDER = "plain folder"


@dataclass(frozen=True, slots=True)
class Sample:
    """One test image. ``defect`` names its defect, ``None`` on a good one; all ``masks`` together mark the defect."""

    path: Path
    defect: str | None
    masks: tuple[Path, ...] = ()

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect is not None


def is_good(name: str) -> bool:
    """Whether a folder or label of this name holds good parts."""
    return name.strip().casefold().replace("-", "_").replace(" ", "_") in _GOOD_NAMES
