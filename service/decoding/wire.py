"""How the service and its decoding processes talk: small JSON messages on a socket, images in anonymous files.

A message is four bytes of length and a JSON object; the descriptor of a file in memory with an upload or with pixels
may travel with it. Nothing is pickled: whatever a hostile image makes of a decoder, the service reads numbers from it.
"""

import json
import math
import os
import socket
import struct
import tempfile
from typing import Any

import numpy as np

__all__ = ["attach", "read_array", "receive", "send"]

_LENGTH = struct.Struct(">I")

_MOST_BYTES = 64 * 1024
"""Longest message; an error has a few hundred letters."""

_TYPES = frozenset({"|u1", "<u2", "<f4"})
"""Types that pixels may have, as NumPy writes them."""


def attach(data: bytes | memoryview) -> int:
    """The descriptor of a new anonymous file with these bytes. Raises ``OSError``, as when there are too many."""
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
    """The whole file of a descriptor as an array, by default of its bytes. ``ValueError`` where it has not as many."""
    size = os.fstat(descriptor).st_size
    shape = (size,) if shape is None else shape
    if dtype not in _TYPES or math.prod(shape) * np.dtype(dtype).itemsize != size:
        raise ValueError(f"{size} bytes came for pixels of type {dtype} and shape {shape}")
    array = np.empty(shape, np.dtype(dtype))
    rest, offset = array.data.cast("B"), 0
    while rest:
        count = os.preadv(descriptor, [rest], offset)
        if not count:
            raise ValueError("the pixels end too early")
        rest, offset = rest[count:], offset + count
    return array


def send(connection: socket.socket, message: dict[str, Any], attached: int | None = None) -> None:
    """Send a message, and with it a file's descriptor, which stays the caller's to close. ``OSError`` as of sockets."""
    text = json.dumps(message).encode()
    whole = _LENGTH.pack(len(text)) + text
    sent = socket.send_fds(connection, [whole], [] if attached is None else [attached])
    connection.sendall(whole[sent:])


def receive(connection: socket.socket) -> tuple[dict[str, Any], int | None] | None:
    """The next message and the descriptor that came with it, which is the caller's to close; ``None`` at the end.

    Raises ``ValueError`` on what is no message, ``OSError`` as sockets do.
    """
    text, descriptors, _, _ = socket.recv_fds(connection, _MOST_BYTES, 1)
    attached = descriptors[0] if descriptors else None
    try:
        while text and len(text) < _LENGTH.size + _announced(text):
            more = connection.recv(_MOST_BYTES)
            if not more:
                raise ValueError("the message ends too early")
            text += more
        return (json.loads(text[_LENGTH.size :]), attached) if text else None
    except BaseException:
        if attached is not None:
            os.close(attached)
        raise


def _announced(text: bytes) -> int:
    """Length of the message by its first bytes; 1 while they have not all come."""
    (length,) = _LENGTH.unpack_from(text) if len(text) >= _LENGTH.size else (1,)
    if length > _MOST_BYTES:
        raise ValueError(f"a message of {length} bytes is announced")
    return length
