"""The manifest of an exported folder: what it was made from, and the digest of every file."""

import json
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moleflow.model.errors import one_line
from moleflow.model.store.header import Header, parse_header
from moleflow.model.store.unique_keys import unique_keys
from moleflow.model.verdict.results import Sha256

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "FileEntry",
    "GraphFormat",
    "Manifest",
    "UnknownVersionError",
    "parse_manifest",
]

MANIFEST = "manifest.json"

FORMAT_VERSION = 1
"""Incremented whenever older programs would misread new folders, or this one older folders."""

GraphFormat = Literal["openvino", "onnx"]

_SUFFIXES: dict[GraphFormat, tuple[str, ...]] = {"openvino": (".xml", ".bin"), "onnx": (".onnx",)}
"""Of the files of one graph."""

CALIBRATIONS = "calibrations.safetensors"


class UnknownVersionError(ValueError):
    """The folder has another format version."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Record):
    """One file of the folder."""

    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: Sha256


class Source(_Record):
    """The checkpoint that was exported."""

    name: str
    digest: Sha256


class Manifest(_Record):
    """Everything about an exported folder except its arrays. ``header`` is the checkpoint's."""

    format_version: int = FORMAT_VERSION
    graphs: GraphFormat
    checkpoint: Source
    header: Header
    files: dict[str, FileEntry] = Field(description="by path relative to the folder")

    @model_validator(mode="after")
    def _check(self) -> Self:
        wanted = set(self.names(self.graphs, len(self.header.tasks)))
        if set(self.files) != wanted:
            different = min(set(self.files) ^ wanted)
            raise ValueError(f"files must be those that its graphs and products need; see {one_line(different)!r}")
        return self

    def document(self) -> str:
        """The manifest's text. Without an inspected area, older programs can read it."""
        return self.model_dump_json(indent=1, exclude={"header": {"tasks": self.header.without_areas()}})

    @staticmethod
    def names(graphs: GraphFormat, products: int) -> Iterator[str]:
        """The paths of all files but the manifest."""
        yield CALIBRATIONS
        for graph in ("features", "router", *map(expert_name, range(products))):
            yield from graph_files(graph, graphs)


def expert_name(product: int) -> str:
    """The graph of the product at that index."""
    return f"experts/{product}"


def graph_files(graph: str, graphs: GraphFormat) -> Iterator[str]:
    """The paths of the files of one graph."""
    for suffix in _SUFFIXES[graphs]:
        yield f"{graph}{suffix}"


def parse_manifest(document: str) -> Manifest:
    """Parse the manifest's text.

    Raises:
        UnknownVersionError: it, or the header in it, has another format version.
        ValueError: it is invalid; the message says why.
    """
    found = json.loads(document, object_pairs_hook=unique_keys)
    if not isinstance(found, dict) or "format_version" not in found or "header" not in found:
        raise ValueError("it has no format_version or no header")
    version = found["format_version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise UnknownVersionError(f"format version {one_line(repr(version))}; this program reads {FORMAT_VERSION}")
    parse_header(json.dumps(found["header"]))  # says more about what is wrong, also if it is another version
    try:
        return Manifest.model_validate_json(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "manifest"
        raise ValueError(f"{one_line(place)}: {first['msg'].removeprefix('Value error, ')}") from error
