"""Records that checkpoints and responses share, without PyTorch: what was learned, verdicts, and limits."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from moleflow.model.names import ProductName
from moleflow.model.verdict.area import Area

__all__ = [
    "MAX_CANDIDATES",
    "MAX_COPIES",
    "MAX_REGIONS",
    "MAX_TASKS",
    "CheckpointInfo",
    "Sha256",
    "TaskInfo",
    "Verdict",
]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest in hexadecimal."""

MAX_TASKS = 100_000
"""Most products in a checkpoint; the file's tensor table has room for about 6,000 of the ``main`` preset."""

_MAX_COUNT = 10**9
"""Upper limit of recorded counts of images, epochs and folds."""

_FIRST_DAY, _LAST_DAY = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Plausible training dates; a clock that was never set reads 1970."""

_Count = Annotated[int, Field(le=_MAX_COUNT)]

MAX_CANDIDATES = 5
"""Most candidate products reported per image."""

MAX_REGIONS = 20
"""Most regions reported per image, strongest first; keeps responses small."""

MAX_COPIES = 8
"""Most altered copies of a held-out image."""


class Verdict(StrEnum):
    """The verdict on an image."""

    GOOD = "good"
    ANOMALOUS = "anomalous"
    UNKNOWN_PRODUCT = "unknown_product"


class TaskInfo(BaseModel):
    """The record of one learned product (a *task*) in the checkpoint's header."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ProductName
    index: int = Field(
        ge=0, lt=MAX_TASKS, description="position in training order; task 0 also trained the shared base"
    )
    learned_at: AwareDatetime = Field(ge=_FIRST_DAY, le=_LAST_DAY, description="when training ended, UTC")
    train_images: _Count = Field(ge=1, description="good images that the expert was fitted to")
    held_out_images: _Count = Field(
        ge=2, description="good images used for calibration, each scored by an expert that was not fitted to it"
    )
    altered_copies: int = Field(
        default=0, ge=0, le=MAX_COPIES, description="altered copies of each held-out image that calibrate beside it"
    )
    folds: _Count = Field(
        ge=1, description="1: a held-out split; more: cross-fitting with one temporary expert per fold"
    )
    epochs: _Count = Field(ge=1)
    seed: int = Field(ge=-(2**63), lt=2**63)
    false_alarm_rate: float = Field(gt=0, lt=1, description="fraction of good images above each of the two thresholds")
    threshold: float = Field(description="images with a higher score are called anomalous")
    pixel_threshold: float = Field(description="pixels with a higher value form regions")
    parameters: int = Field(ge=0, lt=2**63, description="parameters that this product added to the checkpoint")
    profile_sha256: Sha256 = Field(description="digest of this product's prototype and held-out scores")
    white_level: int | None = Field(
        default=None,
        ge=255,
        le=65535,
        description="white level of its 16-bit images; null if it was learned from 8-bit images",
    )
    sha256: Sha256 = Field(description="digest of this product's expert")
    hidden: bool = Field(
        default=False,
        description="whether it takes no part in prediction, as a first product whose base the others need",
    )
    area: Area | None = Field(
        default=None, description="the part of its images that is inspected; null: all that was learned"
    )
    learned_area: Area | None = Field(
        default=None, description="the part of its images that it was learned from; null: the whole image"
    )

    @property
    def inspected_area(self) -> Area | None:
        """The area that is inspected; ``None`` for the whole image."""
        return self.area or self.learned_area


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint's file name, without its folder, and the digest of its contents."""

    name: str
    digest: str
