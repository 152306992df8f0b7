"""A safetensors file with many sections: the table is read once, tensors are read per section.

The safetensors library parses the whole table on every open; with 150,000 tensors in two thousand sections that would
dominate everything else. Here it is parsed once and kept in compact form (``moleflow.model.store.tensor_table``).

Nothing is memory-mapped: touching a map of a truncated file kills the process. Sections are read into memory, verified
and used, whatever happens to the file meanwhile.

Writing streams: sections kept from another file are copied from file to file in bounded pieces, so adding a product to
a large checkpoint takes no more memory than the product and the table.
"""

import os
import weakref
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import numpy as np
import torch

from moleflow.model.errors import CheckpointFormatError, one_line
from moleflow.model.files.regular_file import open_regular_file
from moleflow.model.store.tensor_table import TYPES, Section, Spec, format_table, parse_table, table_length

__all__ = ["StoredSection", "TensorFile", "Tensors", "write_tensor_file"]

Tensors = Mapping[str, torch.Tensor]

_COPY_BYTES = 16 * 2**20
"""Buffer size for copying where ``copy_file_range`` does not work."""


class TensorFile:
    """An open safetensors file; it stays the same file if another one is renamed to its path."""

    def __init__(
        self, path: Path, handle: int, start: int, end: int, metadata: dict[str, str], table: dict[str, Section]
    ) -> None:
        self.path, self.metadata = path, metadata
        self._handle, self._start, self._end, self._table = handle, start, end, table
        weakref.finalize(self, os.close, handle)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read and check the table.

        Raises:
            CheckpointFormatError: not a whole safetensors file.
        """
        try:
            handle = open_regular_file(path)
            try:
                size = os.fstat(handle).st_size
                length = table_length(_read(handle, 8, 0), size)
                metadata, table = parse_table(_read(handle, length, 8), size - 8 - length)
            except BaseException:
                os.close(handle)
                raise
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointFormatError(
                f"{str(path)!r} is not a complete safetensors file ({one_line(error)}); it may be truncated: copy or "
                "train it again."
            ) from error
        return cls(path, handle, 8 + length, size, metadata, table)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Number of elements and bytes of each section; empty sections are left out."""
        # A thousand tasks share a few layouts.
        totals = {
            id(layout): (sum(spec.numbers for spec in layout), sum(spec.size for spec in layout))
            for layout in {id(section.layout): section.layout for section in self._table.values()}.values()
        }
        return {name: totals[id(section.layout)] for name, section in self._table.items()}

    def sections(self) -> Collection[str]:
        """The names of all sections that have tensors."""
        return self._table.keys()

    def layout(self, name: str) -> tuple[Spec, ...]:
        """Names, types and shapes of a section's tensors; identical layouts are one object."""
        return self._table[name].layout if name in self._table else ()

    def section(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a section by their names; empty if there is no such section.

        They are copies that share one buffer.

        Raises:
            CheckpointFormatError: the file was truncated since it was opened, or cannot be read.
        """
        spans = sorted(self.spans(name), key=lambda span: span[1:])
        buffer = np.empty(sum(spec.size for spec, _, _ in spans), np.uint8)
        tensors, position = {}, 0
        for spec, _, _ in spans:
            tensors[spec.key] = _view(buffer, spec, position)
            position += spec.size
        try:
            if os.fstat(self._handle).st_size < self._end:
                raise OSError("it is shorter than it was")
            position = 0
            for begin, end in _runs((first, last) for _, first, last in spans):
                _read_into(self._handle, buffer.data[position : position + end - begin], begin)
                position += end - begin
        except OSError as error:
            raise CheckpointFormatError(f"{str(self.path)!r} cannot be read ({one_line(error)}).") from error
        return tensors

    def spans(self, name: str) -> Iterator[tuple[Spec, int, int]]:
        """Each tensor of a section with the begin and end of its bytes in the file."""
        section = self._table.get(name, Section((), array("Q")))
        for spec, begin in zip(section.layout, section.begins, strict=True):
            yield spec, self._start + begin, self._start + begin + spec.size


class StoredSection(NamedTuple):
    """A section to be copied from another file."""

    file: TensorFile
    name: str


def write_tensor_file(path: Path, metadata: Mapping[str, str], sections: Mapping[str, Tensors | StoredSection]) -> None:
    """Write ``sections`` in the order given, one after another.

    Raises:
        OSError: the file cannot be written, as on a full disk.
        ValueError: more tensors than the format allows.
    """
    specs = {
        name: [spec for spec, _, _ in part.file.spans(part.name)]
        if isinstance(part, StoredSection)
        else [Spec.of(key, value) for key, value in _in_order(part)]
        for name, part in sections.items()
    }
    with path.open("wb") as target:
        target.write(format_table(metadata, specs))
        del specs
        source, begin, end = None, 0, 0
        for part in sections.values():
            if isinstance(part, StoredSection):
                for _, first, last in part.file.spans(part.name):
                    # Contiguous ranges of the old file are copied in one go.
                    if part.file is not source or first != end:
                        _copy(source, begin, end, target)
                        source, begin = part.file, first
                    end = last
                continue
            _copy(source, begin, end, target)
            source = None
            for _, value in _in_order(part):
                if value.numel():
                    target.write(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        _copy(source, begin, end, target)


def _in_order(tensors: Tensors) -> list[tuple[str, torch.Tensor]]:
    """Widest elements first, so that all are aligned if the section is."""
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))


def _copy(source: TensorFile | None, begin: int, end: int, target: BinaryIO) -> None:
    """Append the bytes from ``begin`` to ``end`` of a file, inside the kernel where possible."""
    if source is None:
        return
    target.flush()
    while begin < end and hasattr(os, "copy_file_range"):
        try:
            copied = os.copy_file_range(source._handle, target.fileno(), end - begin, begin)
        except OSError:
            break  # not supported between these file systems, or a real error that writing reports too
        if not copied:
            break
        begin += copied
    target.seek(0, os.SEEK_END)
    while begin < end:
        piece = _read(source._handle, min(_COPY_BYTES, end - begin), begin)
        target.write(piece)
        begin += len(piece)


def _read(handle: int, count: int, offset: int) -> bytes:
    """Exactly ``count`` bytes. ``OSError`` if the file ends earlier."""
    pieces = []
    while count:
        piece = os.pread(handle, count, offset)
        if not piece:
            raise OSError("it ends too early")
        pieces.append(piece)
        count, offset = count - len(piece), offset + len(piece)
    return b"".join(pieces)


def _read_into(handle: int, target: memoryview, offset: int) -> None:
    """Fill ``target`` from ``offset`` on. ``OSError`` if the file ends earlier."""
    while target:
        count = os.preadv(handle, [target], offset)
        if not count:
            raise OSError("it ends too early")
        target, offset = target[count:], offset + count


def _runs(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """``spans`` in order, with contiguous ones merged."""
    begin = end = 0
    for first, last in spans:
        if first != end:
            yield begin, end
            begin = first
        end = last
    yield begin, end


def _view(buffer: np.ndarray, spec: Spec, offset: int) -> torch.Tensor:
    dtype = TYPES[spec.dtype]
    if not spec.size:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=spec.numbers, offset=offset).view(spec.shape)
