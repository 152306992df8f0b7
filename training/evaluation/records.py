"""The results of an evaluation: the JSON that `moleflow evaluate --json` writes and other commands read."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moleflow.model.errors import ConfigurationError, one_line
from moleflow.model.files.outputs import reason, write_text
from moleflow.model.files.regular_file import read_regular_file
from moleflow.model.names import ProductName, same_name
from moleflow.training.data.warnings import DataWarning

__all__ = [
    "METRICS",
    "CategoryFigures",
    "Confusion",
    "Continual",
    "Evaluation",
    "Figures",
    "OverSequence",
    "Protocol",
    "Record",
    "ServiceAnswers",
    "mean_of",
    "read_evaluation",
    "write_json",
]


class Record(BaseModel):
    """Base of all results; unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figures(Record):
    """The figures of one category, or their mean: fractions 0…1, ``None`` if there is nothing to measure."""

    image_auroc: float | None
    image_ap: float | None
    image_f1: float | None = Field(description="best F1 of any threshold, chosen on the labels: an upper bound")
    pixel_auroc: float | None
    pixel_ap: float | None
    aupro: float | None
    false_alarm_rate: float | None = Field(description="good images called anomalous at the stored threshold")
    defect_recall: float | None = Field(description="defective images called anomalous at the stored threshold")


_AnyFigures = TypeVar("_AnyFigures", "Figures", "ServiceAnswers")

METRICS = tuple(Figures.model_fields)
"""Names of the figures in display order."""


class ServiceAnswers(Record):
    """How the service would treat images that it does not score as their own product: fractions 0…1."""

    good_refused: float | None = Field(description="good images that get the verdict unknown_product")
    defective_refused: float | None = Field(description="defective images that get the verdict unknown_product")
    sent_elsewhere: float | None = Field(description="images that are not refused but scored as another product")


class CategoryFigures(Record):
    """One category. ``routed`` is what a user gets; ``named`` is with the true product given."""

    category: ProductName
    good: int = Field(ge=0, description="good test images")
    defective: int = Field(ge=0, description="defective test images; those without mask count for image figures only")
    masked: int = Field(ge=0, description="defective test images with a mask")
    seed: int = Field(description="of the training of this product")
    threshold: float = Field(description="stored with the product; found on good images held out of training")
    routing_accuracy: float = Field(ge=0, le=1)
    routed: Figures
    named: Figures
    service: ServiceAnswers = Field(description="with refusals, at the detector's unknown limit")


class Confusion(Record):
    """Number of images of each category (rows) that were routed to each learned product (columns)."""

    categories: tuple[ProductName, ...]
    products: tuple[ProductName, ...]
    counts: tuple[tuple[int, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        shape = [len(row) for row in self.counts]
        if shape != [len(self.products)] * len(self.categories):
            raise ValueError(f"counts must be {len(self.categories)} rows of {len(self.products)}; got {shape}")
        return self


class Protocol(Record):
    """How it was measured; figures are comparable only within one protocol."""

    evaluation_side: int = Field(ge=1, description="maps and masks are compared at this many pixels square")
    fpr_limit: float = Field(gt=0, le=1, description="upper end of AUPRO's false-positive rate")


class OverSequence(Record):
    """One figure over the states of a checkpoint (``moleflow.training.evaluation.forgetting``)."""

    after: tuple[tuple[float | None, ...], ...] = Field(
        description="rows: states, in order of learning; columns: categories; null where it was not learned yet"
    )
    forgetting: float | None = Field(description="FM: 0 is none, and negative where later products helped")
    backward_transfer: float | None = Field(description="BWT: 0 is none, and negative where later products harmed")


class Continual(Record):
    """The effect of later products on earlier ones; the last state is the checkpoint that was evaluated."""

    states: tuple[tuple[ProductName, ...], ...] = Field(description="the products that each state has learned")
    categories: tuple[ProductName, ...] = Field(description="those measured, in order of learning")
    routed: dict[str, OverSequence] = Field(description="by figure; the routing accuracy is one of them")
    named: dict[str, OverSequence]


class Evaluation(Record):
    """All figures of one checkpoint on the test images of some of its products."""

    created: datetime
    checkpoint: str = Field(description="the file's name")
    digest: str = Field(description="over the checkpoint's whole content")
    products: tuple[ProductName, ...] = Field(description="all that the checkpoint has learned, in order of learning")
    precision: str = Field(description="type of the matrix products")
    protocol: Protocol
    categories: tuple[CategoryFigures, ...] = Field(min_length=1)
    routing_accuracy: float = Field(ge=0, le=1, description="mean over categories")
    routed: Figures = Field(description="mean over those categories that have the figure")
    named: Figures
    service: ServiceAnswers = Field(description="mean over those categories that have the figure")
    confusion: Confusion
    continual: Continual | None = Field(None, description="where earlier states were given")
    warnings: tuple[DataWarning, ...] = Field((), description="what is odd about the images and masks")
    unmeasured: tuple[str, ...] = Field((), description="categories that were still to come when the evaluation ended")

    def category(self, name: str) -> CategoryFigures | None:
        """The category of that name, if it was measured."""
        return next((each for each in self.categories if same_name(each.category, name)), None)


def mean_of(figures: Sequence[_AnyFigures]) -> _AnyFigures:
    """The mean of each figure over the records that have it; at least one record."""
    kind = type(figures[0])
    values = {name: [getattr(each, name) for each in figures] for name in kind.model_fields}
    defined = {name: [value for value in column if value is not None] for name, column in values.items()}
    return kind(**{name: fmean(column) if column else None for name, column in defined.items()})


def read_evaluation(path: Path) -> Evaluation:
    """Read a file that ``moleflow evaluate --json`` wrote. ``ConfigurationError`` if it is not one."""
    try:
        return Evaluation.model_validate_json(read_regular_file(path))
    except OSError as error:
        raise ConfigurationError(
            f"{str(path)!r} cannot be read ({reason(error)}); give a file that `moleflow evaluate --json` wrote."
        ) from error
    except ValidationError as error:
        raise ConfigurationError(
            f"{str(path)!r} is not an evaluation ({one_line(error)[:200]}); give a file that `moleflow evaluate "
            "--json` of this version wrote."
        ) from error


def write_json(what: str, path: Path, record: BaseModel) -> None:
    """Write a record as indented JSON, atomically. ``ConfigurationError`` if it cannot be written."""
    write_text(what, path, record.model_dump_json(indent=2) + "\n")
