"""Warnings about usable but odd data: collected while loading, reported once, errors in strict mode."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from moleflow.model.files.file_names import as_line
from moleflow.training.errors import DatasetError
from moleflow.training.progress import Reporter

__all__ = ["Concern", "DataWarning", "WarningList", "report_warnings"]

Concern = Literal["training", "testing"]


class DataWarning(BaseModel):
    """One kind of problem in the data of one product."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    product: str
    concerns: Concern = Field(description="whether it is about training or test images")
    kind: str = Field(description="the files concerned, in the plural")
    count: int = Field(ge=1, description="number of files")
    example: str = Field(description="the first file, as a path relative to the data")
    meaning: str = Field(description="the effect, and what to do about it")

    def __str__(self) -> str:
        return f"{self.product}: {self.kind}: {self.count}, such as {self.example}. {self.meaning}"


class WarningList:
    """Collects the warnings about one product below ``root``."""

    def __init__(self, root: Path, product: str) -> None:
        self._root, self._product = root, product
        self.found: list[DataWarning] = []

    def add(self, concerns: Concern, kind: str, paths: Sequence[Path], meaning: str) -> None:
        """Add a warning about ``paths``, unless there are none."""
        if paths:
            first = paths[0]
            example = first.relative_to(self._root) if first.is_relative_to(self._root) else first
            self.found.append(
                DataWarning(
                    product=self._product,
                    concerns=concerns,
                    kind=kind,
                    count=len(paths),
                    example=as_line(example),
                    meaning=meaning,
                )
            )


def report_warnings(warnings: Iterable[DataWarning], reporter: Reporter | None, *, strict: bool = False) -> None:
    """Report each warning once; if ``strict`` and there are any, raise ``DatasetError`` with all of them."""
    listed = list(warnings)
    if strict and listed:
        raise DatasetError(
            f"the data have {len(listed)} warning(s), which --strict treats as errors: "
            f"{' '.join(f'({number}) {each}' for number, each in enumerate(listed, 1))}"
        )
    for each in listed:
        if reporter is not None:
            reporter.warn(str(each))
