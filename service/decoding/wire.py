"""The protocol between the service and its decoder processes: JSON messages on a socket, images in memory files.

A message is a four-byte length and a JSON object; the descriptor of a memory file with an upload or with pixels may
accompany it. Nothing is pickled, so even a decoder taken over by a hostile image can send the service only data.
"""

import json
import math
import os
import socket
import struct
import tempfile
from typing import Any

import numpy as np

__all__ = ["read_array", "receive", "send", "write_memory_file"]

_LENGTH = struct.Struct(">I")

_MAX_MESSAGE_BYTES = 64 * 1024
"""Error messages have a few hundred characters."""

_DTYPES = frozenset({"|u1", "<u2", "<f4"})
"""Allowed types of pixels, in NumPy's notation."""


def write_memory_file(data: bytes | memoryview) -> int:
    """The descriptor of a new anonymous file with these bytes. Raises ``OSError``, for example without descriptors."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("image")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    rest = memoryview(data).cast("B")
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_array(descriptor: int, shape: tuple[int, ...] | None = None, dtype: str = "|u1") -> np.ndarray:
    """The content of a file as an array, by default of bytes. Raises ``ValueError`` if its size does not match."""
    size = os.fstat(descriptor).st_size
    shape = (size,) if shape is None else shape
    if dtype not in _DTYPES or math.prod(shape) * np.dtype(dtype).itemsize != size:
        raise ValueError(f"{size} bytes do not match pixels of type {dtype} and shape {shape}")
    array = np.empty(shape, np.dtype(dtype))
    rest, offset = array.data.cast("B"), 0
    while rest:
        count = os.preadv(descriptor, [rest], offset)
        if not count:
            raise ValueError("the file is truncated")
        rest, offset = rest[count:], offset + count
    return array


def send(connection: socket.socket, message: dict[str, Any], attached: int | None = None) -> None:
    """Send a message and optionally a descriptor, which the caller still has to close. Raises ``OSError``."""
    text = json.dumps(message).encode()
    data = _LENGTH.pack(len(text)) + text
    sent = socket.send_fds(connection, [data], [] if attached is None else [attached])
    connection.sendall(data[sent:])


def receive(connection: socket.socket) -> tuple[dict[str, Any], int | None] | None:
    """The next message and its descriptor, which the caller has to close; ``None`` at the end of the stream.

    Raises ``ValueError`` for malformed messages, ``OSError`` for socket errors.
    """
    data, descriptors, _, _ = socket.recv_fds(connection, _MAX_MESSAGE_BYTES, 1)
    attached = descriptors[0] if descriptors else None
    try:
        while data and len(data) < _LENGTH.size + _declared_length(data):
            more = connection.recv(_MAX_MESSAGE_BYTES)
            if not more:
                raise ValueError("the message is truncated")
            data += more
        return (json.loads(data[_LENGTH.size :]), attached) if data else None
    except BaseException:
        if attached is not None:
            os.close(attached)
        raise


def _declared_length(data: bytes) -> int:
    """Length of the message according to its prefix; 1 while the prefix is incomplete."""
    (length,) = _LENGTH.unpack_from(data) if len(data) >= _LENGTH.size else (1,)
    if length > _MAX_MESSAGE_BYTES:
        raise ValueError(f"the message declares {length} bytes, more than {_MAX_MESSAGE_BYTES}")
    return length
