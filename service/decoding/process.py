"""The process that decodes uploads, one after another, at the other end of a socket (see
``moleflow.service.decoding.pool``).

It holds no model, cannot take more memory than it is given, and is ended by the kernel when one image takes more
processor time than it may. It ends by itself when the service does.
"""

import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

from moleflow.model.errors import ImageError, ImageTooLargeError
from moleflow.model.images.decode import DecodedImage, open_for_model, open_rgb
from moleflow.service.decoding.wire import attach, read_array, receive, send

__all__ = ["main"]


def main() -> None:
    """Serve the socket whose descriptor is the first argument; the second is the most memory, in bytes."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    _confine(int(sys.argv[2]))
    while (message := receive(connection)) is not None:
        request, upload = message
        # Its signal has no handler: the kernel ends the process, whatever code runs.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        answer, pixels = _answer(request, upload)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(connection, answer, pixels)
        if pixels is not None:
            os.close(pixels)


def _confine(memory: int) -> None:
    """Bound what an image can do here. The service ends this process by closing the socket, whoever else signals."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What is wrong with an image is told to its sender. Libraries write it to descriptor 2 as well, a line for each
    # damaged row: thousands from one upload. Python's own messages go on to where they went.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _answer(request: dict[str, Any], upload: int | None) -> tuple[dict[str, Any], int | None]:
    """The answer to a request, and a file with the pixels."""
    assert upload is not None
    try:
        data = read_array(upload).tobytes()
        decoded = _decode(request, data)
        pixels = attach(np.ascontiguousarray(decoded.pixels).data)
    except ImageError as error:
        return {"error": type(error).__name__, "message": str(error)}, None
    except MemoryError:
        message = "The image takes too much memory to decode; send a smaller one."
        return {"error": ImageTooLargeError.__name__, "message": message}, None
    finally:
        os.close(upload)
    size = {"width": decoded.width, "height": decoded.height}
    return size | {"shape": decoded.pixels.shape, "dtype": decoded.pixels.dtype.str}, pixels


def _decode(request: dict[str, Any], data: bytes) -> DecodedImage:
    """At the model's size, or whole where the request names none."""
    if "side" in request:
        return open_for_model(data, request["side"], max_pixels=request["max_pixels"])
    rgb = open_rgb(data, max_pixels=request["max_pixels"], white_level=request["white_level"])
    return DecodedImage(rgb, rgb.shape[1], rgb.shape[0])


if __name__ == "__main__":
    main()
