"""The checkpoint's header: one JSON document in the file's metadata, validated before anything else is read.

The file may come from anyone. Every field is strictly typed (no text for a number, no 1.0 for 1) and bounded, numbers
are finite, keys are known and unique, and the parts are consistent. The bounds are defined with the fields, in
``moleflow.model.config``, ``moleflow.model.images.preprocessing``, ``moleflow.model.verdict.results`` and
``moleflow.model.names``.
"""

import json
from collections import Counter
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moleflow.model.config import ModelConfig
from moleflow.model.errors import one_line
from moleflow.model.images.preprocessing import Preprocessing
from moleflow.model.names import find_named
from moleflow.model.store.unique_keys import unique_keys
from moleflow.model.verdict.results import MAX_TASKS, Sha256, TaskInfo

__all__ = ["FORMAT_VERSION", "READABLE_VERSIONS", "Header", "UnknownVersionError", "parse_header"]

FORMAT_VERSION = 5
"""Incremented whenever older programs would misread new files, or this one older files."""

READABLE_VERSIONS = (4, FORMAT_VERSION)
"""Version 4 had no ``scoring`` in its configuration: its products were scored as the default scores."""


class UnknownVersionError(ValueError):
    """The document has another format version."""


class Header(BaseModel):
    """Everything about a checkpoint except its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    preset: str = Field(
        pattern=r"^[\w.+ -]+$",
        max_length=100,
        description="the training preset that the first task was learned with; later ones default to it",
    )
    config: ModelConfig
    preprocessing: Preprocessing
    backbone_sha256: Sha256
    base_sha256: Sha256
    tasks: tuple[TaskInfo, ...] = Field(min_length=1, max_length=MAX_TASKS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [task.index for task in self.tasks] != list(range(len(self.tasks))):
            raise ValueError("tasks must be numbered in order, from 0")
        name, count = Counter(task.name for task in self.tasks).most_common(1)[0]
        if count > 1:
            raise ValueError(f"tasks must be named once each; {count} are called {name!r}")
        if not self.visible:
            raise ValueError("every product is hidden")
        if self.preprocessing.image_size != self.config.backbone.image_size:
            raise ValueError(
                f"preprocessing.image_size {self.preprocessing.image_size} must be the backbone's, "
                f"{self.config.backbone.image_size}"
            )
        return self

    @property
    def visible(self) -> tuple[TaskInfo, ...]:
        """The products that take part in prediction."""
        return tuple(task for task in self.tasks if not task.hidden)

    def task(self, name: str) -> TaskInfo:
        """The record of the task called ``name``, in any Unicode normalisation; raises ``UnknownTaskError``."""
        return find_named(name, self.tasks)

    def document(self) -> str:
        """The JSON document in the file. Without a hidden product or an inspected area, older programs can read it."""
        unset = self.without_areas()
        for place, task in enumerate(self.tasks):
            if not task.hidden:
                unset.setdefault(place, set()).add("hidden")
        return self.model_dump_json(exclude={"tasks": unset})

    def without_areas(self) -> dict[int, set[str]]:
        """The fields for areas that a product does not have, by its position; to be left out of files."""
        unset: dict[int, set[str]] = {}
        for place, task in enumerate(self.tasks):
            names = {name for name in ("area", "learned_area") if getattr(task, name) is None}
            if names:
                unset[place] = names
        return unset

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each section, in file order."""
        found = {"backbone": self.backbone_sha256, "base": self.base_sha256}
        for task in self.tasks:
            found[f"tasks.{task.index}.profile"] = task.profile_sha256
            found[f"tasks.{task.index}.expert"] = task.sha256
        return found


def parse_header(document: str) -> Header:
    """Parse the header in a file's metadata.

    Raises:
        UnknownVersionError: it has another format version.
        ValueError: it is invalid; the message says why.
    """
    found = json.loads(document, object_pairs_hook=unique_keys, parse_constant=_no_constant)
    if not isinstance(found, dict) or "format_version" not in found:
        raise ValueError("it has no format_version")
    version = found["format_version"]
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise UnknownVersionError(f"format version {one_line(repr(version))}")
    try:
        return Header.model_validate_json(document, strict=True)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False)
        place = ".".join(map(str, first["loc"])) or "header"
        more = f" (and {len(others)} more)" if others else ""
        raise ValueError(f"{one_line(place)}: {first['msg'].removeprefix('Value error, ')}{more}") from error


def _no_constant(text: str) -> None:
    raise ValueError(f"it has {text}, which is not a number")
