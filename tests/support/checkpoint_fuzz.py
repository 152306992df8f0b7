"""Damaged checkpoints and containers, and the invariants that must hold; for tests and a longer benchmark."""

import copy
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from moleflow.model.errors import BackboneError, CheckpointError, CheckpointFormatError
from moleflow.model.store.checkpoint import Checkpoint
from moleflow.model.store.tensor_file import TensorFile

__all__ = ["check_checkpoint", "check_container", "containers", "damaged"]

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, 2**64, -1, 10**400]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["F32", "F64", "I64", "U8", "BOOL", "\ud800", "a\nb", "x" * 5000]),
    st.lists(st.integers(-1, 5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just([]),
    st.just({}),
    st.just([[1]]),
).map(copy.deepcopy)
"""Replacement values for a field, each a fresh object: later changes to it must not reach the next example."""


@st.composite
def containers(draw: st.DrawFn) -> bytes:
    """A safetensors file, valid or with some damage to its table or bytes."""
    table: dict[str, Any] = {}
    position = 0
    names = draw(
        st.lists(st.text(max_size=4) | st.sampled_from(["base.a", "tasks.0.expert.b"]), unique=True, max_size=4)
    )
    for name in names:
        dtype, width = draw(st.sampled_from([("F32", 4), ("I64", 8), ("U8", 1), ("BF16", 2), ("F16", 2), ("BOOL", 1)]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        end = position + width * int(np.prod(shape, dtype=int))
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    if draw(st.booleans()):
        table["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2) | _ODD)
    for _ in range(draw(st.integers(0, 2))):
        _change(draw, table)
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    text += b" " * draw(st.integers(0, 3))
    content = struct.pack("<Q", len(text)) + text + bytes(position)
    return draw(_flipped(content)) if draw(st.booleans()) else content


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A checkpoint with some damage to its header, table or bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    table, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    document = json.loads(table["__metadata__"]["moleflow"])
    what = draw(st.sampled_from(["header", "table", "bytes"]))
    if what == "bytes":
        return draw(_flipped(content))
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, document if what == "header" else table)
    if what == "header":
        table["__metadata__"]["moleflow"] = json.dumps(document)
    text = json.dumps(table).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def _change(draw: st.DrawFn, value: Any) -> None:
    """Replace, remove or duplicate a random entry inside ``value``."""
    while isinstance(value, dict | list) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        if isinstance(value[key], dict | list) and value[key] and draw(st.integers(0, 4)):
            value = value[key]
            continue
        match draw(st.sampled_from(["other", "gone", "copied"])):
            case "other":
                value[key] = draw(_ODD)
            case "gone":
                del value[key]
            case _ if isinstance(value, dict):
                value[draw(st.text(max_size=3))] = copy.deepcopy(value[key])
            case _:
                value.append(copy.deepcopy(value[key]))
        return


@st.composite
def _flipped(draw: st.DrawFn, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(changed)))
        match draw(st.sampled_from(["other", "cut", "more"])):
            case "other":
                changed[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del changed[place : place + draw(st.sampled_from([1, 8, len(changed)]))]
            case _:
                changed[place:place] = draw(st.binary(max_size=8))
    return bytes(changed)


def check_container(content: bytes, path: Path) -> bool:
    """Whether ``content`` is accepted; if so, checks that safetensors accepts it and reads the same."""
    path.write_bytes(content)
    try:
        file = TensorFile.open(path)
    except CheckpointFormatError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return False
    theirs = dict(deserialize(content))  # raises if safetensors refuses it
    ours = {
        ".".join(filter(None, (section, key))): value
        for section in file.sections()
        for key, value in file.section(section).items()
    }
    assert len(ours) == len(theirs)
    for section in file.sections():
        for spec, begin, end in file.spans(section):
            name = f"{section}.{spec.key}" if section else spec.key
            found = theirs[name] if name in theirs else theirs[f".{spec.key}"]
            assert (found["dtype"], found["shape"], bytes(found["data"])) == (
                spec.dtype,
                list(spec.shape),
                content[begin:end],
            )
    return True


def check_checkpoint(content: bytes, path: Path) -> bool:
    """Whether every section of ``content`` is usable; refusals must be one line of bounded length."""
    path.write_bytes(content)
    try:
        checkpoint = Checkpoint.open(path)
        checkpoint.verify()
        checkpoint.backbone()
        for task in checkpoint.header.tasks:
            checkpoint.base(task.index)
            checkpoint.profile(task.index)
            checkpoint.product(task.index)
    except (CheckpointError, BackboneError) as error:
        assert "\n" not in str(error) and len(str(error)) < 3000
        return False
    try:
        deserialize(content)
    except SafetensorError as error:
        raise AssertionError("accepted, and the library refuses it") from error
    return True
