"""The table of a safetensors file: which tensors it has and where, in a form that stays small with many of them.

The format (https://github.com/huggingface/safetensors) is eight bytes with the length of a JSON table, the table, and
the tensors' bytes without a gap. A checkpoint of a thousand products has some 150,000 tensors. Sections of the same
kind share one layout here (names, types and shapes); beside it they need eight bytes a tensor.
"""

import gc
import json
import math
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import torch

__all__ = ["TYPES", "Section", "Spec", "format_table", "parse_table", "split_name", "table_length"]

TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
"""The element types by their names in the format."""

_NAMES = {dtype: name for name, dtype in TYPES.items()}

_WIDTHS = {name: dtype.itemsize for name, dtype in TYPES.items()}

MAX_TABLE_BYTES = 100_000_000
"""The longest table that the safetensors library reads."""


def split_name(name: str) -> tuple[str, str]:
    """A tensor's section and its name there: ``tasks.INDEX.PART`` and the rest, else the first part and the rest."""
    *section, key = name.split(".", 3 if name.startswith("tasks.") else 1)
    return ".".join(section), key


class Spec(NamedTuple):
    """One tensor of a section."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, key: str, value: torch.Tensor) -> Self:
        """That of a tensor in memory."""
        return cls(key, _NAMES[value.dtype], tuple(value.shape))

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numbers * _WIDTHS[self.dtype]


class Section(NamedTuple):
    """The tensors of a section, and where the bytes of each begin, counted from the end of the table."""

    layout: tuple[Spec, ...]
    begins: "array[int]"


def table_length(prefix: bytes, size: int) -> int:
    """Length of the table by the first eight bytes of a file of ``size`` bytes. ``ValueError`` where it cannot be."""
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_TABLE_BYTES, size - 8):
        raise ValueError(f"its table is said to have {length:,} bytes")
    return length


def parse_table(text: bytes, data_bytes: int) -> tuple[dict[str, str], dict[str, Section]]:
    """Metadata, and the sections by their names.

    Checked as the safetensors library does, against ``data_bytes``, the length of what follows. ``ValueError`` says
    what is wrong.
    """
    if not text.startswith(b"{"):
        raise ValueError("its table is no JSON object")
    metadata: dict[str, str] = {}
    parts: dict[str, tuple[list[Spec], array[int]]] = {}
    starts, sizes = array("q"), array("q")
    with _collection_paused():
        for name, value in json.loads(text, object_pairs_hook=_entry):
            if name == "__metadata__":
                metadata = _strings(value)
                continue
            if not isinstance(value, _Entry):
                raise ValueError(f"tensor {name!r} has no dtype, shape and data_offsets")
            section, key = split_name(name)
            spec = Spec(key, value.dtype, value.shape)
            if value.end - value.begin != spec.size:
                raise ValueError(f"tensor {name!r} does not have the bytes that its type and shape need")
            specs, begins = parts.setdefault(section, ([], array("Q")))
            specs.append(spec)
            begins.append(value.begin)
            starts.append(value.begin)
            sizes.append(value.end - value.begin)
        _check_cover(np.array(starts, np.int64), np.array(sizes, np.int64), data_bytes)
        layouts: dict[tuple[Spec, ...], tuple[Spec, ...]] = {}
        table: dict[str, Section] = {}
        for section, (specs, begins) in parts.items():
            layout = tuple(specs)
            if layout not in layouts and len({spec.key for spec in layout}) < len(layout):
                raise ValueError(f"section {section!r} has two tensors of one name")
            table[section] = Section(layouts.setdefault(layout, layout), begins)
        del parts
    return metadata, table


class _Entry(NamedTuple):
    """What the table says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _entry(pairs: list[tuple[str, Any]]) -> Any:
    """A tensor's entry as a record at once, so that the whole table never exists as dictionaries; else ``pairs``."""
    if len(pairs) != 3:
        return pairs
    match dict(pairs):
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            if dtype not in TYPES:
                raise ValueError(f"it has tensors of the type {dtype}, which this program does not know")
            if not all(isinstance(side, int) and side >= 0 for side in shape) or not 0 <= begin <= end < 2**63:
                raise ValueError("a tensor has sides or offsets that cannot be")
            return _Entry(dtype, tuple(shape), begin, end)
    return pairs


def _strings(pairs: Any) -> dict[str, str]:
    if not isinstance(pairs, list) or not all(isinstance(each, tuple) and isinstance(each[1], str) for each in pairs):
        raise ValueError("its metadata are no strings")
    return dict(pairs)


def _check_cover(begins: np.ndarray, sizes: np.ndarray, data_bytes: int) -> None:
    """Whether tensors fill ``data_bytes``, each byte once. ``ValueError`` otherwise."""
    order = np.lexsort((sizes, begins))  # empty tensors go before what begins at the same byte
    begins, ends = begins[order], (begins + sizes)[order]
    if (begins[:1] != 0).any() or (begins[1:] != ends[:-1]).any():
        raise ValueError("its tensors overlap or leave gaps")
    end = int(ends[-1]) if len(ends) else 0
    if end != data_bytes:
        raise ValueError(f"its tensors have {end:,} bytes, and {data_bytes:,} follow the table")


@contextmanager
def _collection_paused() -> Iterator[None]:
    """No garbage collection while many objects are made and none is garbage: it would look at all of them often."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def format_table(metadata: Mapping[str, str], sections: Mapping[str, Sequence[Spec]]) -> bytes:
    """The table, and before it its length, of ``sections`` that lie one after another in the order given.

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
    text += b" " * (-len(text) % 8)  # so that the tensors begin aligned
    if len(text) > MAX_TABLE_BYTES:
        raise ValueError(f"the table of its tensors would have {len(text):,} bytes, more than {MAX_TABLE_BYTES:,}")
    return struct.pack("<Q", len(text)) + text
