"""The table of a safetensors file, in a form that stays small with many tensors.

The format (https://github.com/huggingface/safetensors) is an eight-byte length of a JSON table, the table, and the
tensors' bytes without gaps. A checkpoint of a thousand products has some 150,000 tensors. Sections with the same names,
types and shapes share one layout here; beyond that, a tensor takes eight bytes.
"""

import gc
import json
import math
import re
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from moleflow.model.errors import one_line
from moleflow.model.store.unique_keys import unique_keys

__all__ = ["TYPES", "Section", "Spec", "format_table", "parse_table", "split_name", "table_length"]

TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Element types by their names in the format."""

_NAMES = {dtype: name for name, dtype in TYPES.items()}

_WIDTHS = {name: dtype.itemsize for name, dtype in TYPES.items()}

MAX_TABLE_BYTES = 100_000_000
"""The longest table that the safetensors library reads."""

MAX_DIMENSIONS = 8
"""Most dimensions of a tensor; no layer's weight has more than five."""

_MOST_NUMBERS = 2**60
"""Most elements of a tensor, so that its size in bytes fits into 64 bits."""


def split_name(name: str) -> tuple[str, str]:
    """Split a tensor's name into its section, ``tasks.INDEX.PART`` or the first part, and the rest."""
    *section, key = name.split(".", 3 if name.startswith("tasks.") else 1)
    return ".".join(section), key


class Spec(NamedTuple):
    """One tensor of a section."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, key: str, value: torch.Tensor) -> Self:
        """The spec of a tensor in memory."""
        return cls(key, _NAMES[value.dtype], tuple(value.shape))

    @property
    def numbers(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.numbers * _WIDTHS[self.dtype]


class Section(NamedTuple):
    """The tensors of a section, and the offset of each from the end of the table."""

    layout: tuple[Spec, ...]
    begins: "array[int]"


def table_length(prefix: bytes, size: int) -> int:
    """Length of the table from the first eight bytes of a file of ``size`` bytes. ``ValueError`` if impossible."""
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_TABLE_BYTES, size - 8):
        raise ValueError(f"its header claims a table of {length:,} bytes")
    return length


def parse_table(text: bytes, data_bytes: int) -> tuple[dict[str, str], dict[str, Section]]:
    """Metadata, and the sections by name.

    ``data_bytes`` is the length of the data that follows. Everything that the safetensors library rejects is rejected,
    and also what it ignores: duplicate and unknown keys. Parsing takes at most 40
    times the table's length of memory (an empty list is three bytes there and 64 here), about 10 times for a
    checkpoint's. ``ValueError`` says what is wrong.
    """
    if not text.startswith(b"{"):
        raise ValueError("its table is not a JSON object")
    written = text.decode()  # strict UTF-8; ``json`` would also accept UTF-16 and surrogates
    if _NEGATIVE_ZERO.search(written):
        raise ValueError("its table has a negative number")
    with _collection_paused():
        return _sections(
            json.loads(written, object_pairs_hook=_entry, parse_float=_no_number, parse_constant=_no_number), data_bytes
        )


_NEGATIVE_ZERO = re.compile(r"-0+\s*[,\]}]")
"""The one number that ``json`` reads as an integer and the library does not."""


def _no_number(text: str) -> None:
    raise ValueError(f"its table has {text!r} where a whole number belongs")


def _entry(pairs: list[tuple[str, Any]]) -> tuple[Any, ...] | dict[str, Any]:
    """One JSON object: a tensor's entry as a tuple (dtype, shape, data_offsets), any other one as a dictionary."""
    if [key for key, _ in pairs] == _ENTRY_KEYS:
        return tuple([value for _, value in pairs])
    return _in_entry_order(unique_keys(pairs))


_ENTRY_KEYS = ["dtype", "shape", "data_offsets"]
"""In the usual order; any other order is accepted."""


def _in_entry_order(found: dict[str, Any]) -> tuple[Any, ...] | dict[str, Any]:
    return tuple(found[key] for key in _ENTRY_KEYS) if found.keys() == {*_ENTRY_KEYS} else found


_WHOLE_NUMBERS = frozenset({int})
"""The type of dimensions and offsets; excludes ``bool``, which is a subclass of ``int``."""


def _sections(entries: Any, data_bytes: int) -> tuple[dict[str, str], dict[str, Section]]:
    if not isinstance(entries, dict):
        raise ValueError("its table is that of one tensor")
    metadata = _strings(entries.pop("__metadata__", {}))
    "".join(entries).encode()  # lone surrogates raise
    begins, sizes = array("q"), array("q")
    widths = _Sizes()
    parts: dict[str, tuple[list[tuple[str, tuple[Any, ...]]], array[int]]] = {}
    prefix = ""
    for name, entry in entries.items():
        try:
            dtype, shape, (begin, end) = entry
            if type(dtype) is not str or type(shape) is not list or type(entry) is not tuple:
                raise TypeError
            if not _WHOLE_NUMBERS.issuperset(map(type, (begin, end, *shape))):
                raise TypeError
            kind = (dtype, *shape)
            begins.append(begin)
            sizes.append(end - begin)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"tensor {one_line(name)!r} has no dtype, shape and data_offsets that can be") from error
        if sizes[-1] != widths[kind]:
            raise ValueError(f"tensor {one_line(name)!r} does not have the bytes that its type and shape need")
        # Tensors of one section are usually adjacent.
        if not prefix or not name.startswith(prefix):
            section, key = split_name(name)
            prefix = f"{section}." if section else ""
            kinds, places = parts.setdefault(section, ([], array("q")))
        else:
            key = name[len(prefix) :]
        kinds.append((key, kind))
        places.append(begin)
    _check_cover(np.array(begins), np.array(sizes), data_bytes)
    layouts: dict[tuple[tuple[str, tuple[Any, ...]], ...], tuple[Spec, ...]] = {}
    table: dict[str, Section] = {}
    for section, (kinds, places) in parts.items():
        described = tuple(kinds)
        if described not in layouts:
            layouts[described] = tuple(Spec(key, dtype, tuple(shape)) for key, (dtype, *shape) in described)
        table[section] = Section(layouts[described], places)
    return metadata, table


class _Sizes(dict[tuple[Any, ...], int]):
    """Bytes of a tensor by type and shape, each validated once."""

    def __missing__(self, kind: tuple[Any, ...]) -> int:
        dtype, *shape = kind
        if dtype not in TYPES:
            raise ValueError(f"it has tensors of the type {one_line(dtype)!r}, which this program does not know")
        # A zero dimension does not excuse the others: they still could not be addressed.
        if (
            len(shape) > MAX_DIMENSIONS
            or min(shape, default=0) < 0
            or math.prod(max(side, 1) for side in shape) > _MOST_NUMBERS
        ):
            raise ValueError(f"it has a tensor of the shape {one_line(shape)}")
        self[kind] = Spec("", dtype, tuple(shape)).size
        return self[kind]


def _strings(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not strings")
    "".join((*metadata, *metadata.values())).encode()  # lone surrogates raise
    return metadata


def _check_cover(begins: np.ndarray, sizes: np.ndarray, data_bytes: int) -> None:
    """Check that the tensors cover ``data_bytes``, each byte once. ``ValueError`` otherwise."""
    order = np.lexsort((sizes, begins))  # empty tensors before others at the same offset
    begins, ends = begins[order], (begins + sizes)[order]
    if (begins[:1] != 0).any() or (begins[1:] != ends[:-1]).any():
        raise ValueError("its tensors overlap or leave gaps")
    end = int(ends[-1]) if len(ends) else 0
    if end != data_bytes:
        raise ValueError(f"its tensors have {end:,} bytes, and {data_bytes:,} follow the table")


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause garbage collection while many objects are created: it would scan all of them repeatedly."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def format_table(metadata: Mapping[str, str], sections: Mapping[str, Sequence[Spec]]) -> bytes:
    """The table of ``sections``, stored in the order given, preceded by its length.

    Raises:
        ValueError: more tensors than the format allows.
    """
    entries, position = [f'{{"__metadata__":{json.dumps(dict(metadata))}'], 0
    for name, specs in sections.items():
        for spec in specs:
            end = position + spec.size
            shape = ",".join(map(str, spec.shape))
            entries.append(
                f"{json.dumps(f'{name}.{spec.key}')}:"
                f'{{"dtype":"{spec.dtype}","shape":[{shape}],"data_offsets":[{position},{end}]}}'
            )
            position = end
    text = (",".join(entries) + "}").encode()
    text += b" " * (-len(text) % 8)  # align the tensors
    if len(text) > MAX_TABLE_BYTES:
        raise ValueError(f"the table of its tensors would have {len(text):,} bytes, more than {MAX_TABLE_BYTES:,}")
    return struct.pack("<Q", len(text)) + text
