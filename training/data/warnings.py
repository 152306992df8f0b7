"""What is odd about the data, though it can be used: collected while it is read, told once, an error if strict."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from moleflow.model.errors import DatasetError
from moleflow.model.files.file_names import as_line
from moleflow.training.progress import Reporter

__all__ = ["Concern", "DataWarning", "WarningList", "tell"]

Concern = Literal["training", "testing"]


class DataWarning(BaseModel):
    """One kind of oddity in the data of one product."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    product: str
    concerns: Concern = Field(description="which half of the data: the images to learn from, or those to measure on")
    kind: str = Field(description="what is odd, as a plural")
    count: int = Field(ge=1, description="how many there are")
    example: str = Field(description="the first of them, as a path below the data")
    meaning: str = Field(description="what it does to the result, and what to do about it")

    def __str__(self) -> str:
        return f"{self.product}: {self.kind}: {self.count}, such as {self.example}. {self.meaning}"


class WarningList:
    """Collects the warnings about one product below ``root``."""

    def __init__(self, root: Path, product: str) -> None:
        self._root, self._product = root, product
        self.found: list[DataWarning] = []

    def add(self, concerns: Concern, kind: str, paths: Sequence[Path], meaning: str) -> None:
        """Note that ``paths`` are all of one ``kind``; nothing where there are none."""
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


def tell(warnings: Iterable[DataWarning], reporter: Reporter | None, *, strict: bool = False) -> None:
    """Write one line for each warning, once; ``DatasetError`` with all of them where ``strict`` and there are any."""
    listed = list(warnings)
    if strict and listed:
        raise DatasetError(
            f"the data give {len(listed)} warning(s), and --strict makes each an error: "
            f"{' '.join(f'({number}) {each}' for number, each in enumerate(listed, 1))}"
        )
    for each in listed:
        if reporter is not None:
            reporter.warn(str(each))
