"""A decoder process: decodes uploads one by one (see ``moleflow.service.decoding.pool``).

Its memory is limited, and the kernel kills it when one image exceeds the CPU time limit. It exits when the service
closes the socket.
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
from moleflow.service.decoding.wire import read_array, receive, send, write_memory_file

__all__ = ["main"]


def main() -> None:
    """Serve requests. Arguments: the descriptor of the socket, and the memory limit in bytes."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    _restrict(int(sys.argv[2]))
    while (message := receive(connection)) is not None:
        request, upload = message
        # SIGPROF has no handler, so the kernel kills the process whatever code is running.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        response, pixels = _respond(request, upload)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(connection, response, pixels)
        if pixels is not None:
            os.close(pixels)


def _restrict(memory: int) -> None:
    """Limit what an image can do here, and ignore signals meant for the service, which closes the socket to stop."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Image libraries also write to descriptor 2, thousands of lines for one damaged upload. Python's own messages still
    # go to standard error.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with Path(os.devnull).open("w") as devnull:
        os.dup2(devnull.fileno(), 2)


def _respond(request: dict[str, Any], upload: int | None) -> tuple[dict[str, Any], int | None]:
    """The response to a request, and a file with the pixels."""
    assert upload is not None
    try:
        data = read_array(upload).tobytes()
        decoded = _decode(request, data)
        pixels = write_memory_file(np.ascontiguousarray(decoded.pixels).data)
    except ImageError as error:
        return {"error": type(error).__name__, "message": str(error)}, None
    except MemoryError:
        message = "Decoding the image takes too much memory; send a smaller one."
        return {"error": ImageTooLargeError.__name__, "message": message}, None
    finally:
        os.close(upload)
    size = {"width": decoded.width, "height": decoded.height}
    return size | {"shape": decoded.pixels.shape, "dtype": decoded.pixels.dtype.str}, pixels


def _decode(request: dict[str, Any], data: bytes) -> DecodedImage:
    """The image at the model's size, or at full size if the request has no ``side``."""
    if "side" in request:
        return open_for_model(data, request["side"], max_pixels=request["max_pixels"])
    rgb = open_rgb(data, max_pixels=request["max_pixels"], white_level=request["white_level"])
    return DecodedImage(rgb, rgb.shape[1], rgb.shape[0])


if __name__ == "__main__":
    main()
