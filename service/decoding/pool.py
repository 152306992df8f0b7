"""A pool of decoder processes, each restarted when it dies.

The cost of decoding cannot be predicted for every image (``moleflow.model.images.limits`` rejects the known cases), and
a decoder in a thread can neither be killed nor limited in memory. A process can.
"""

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

import moleflow
from moleflow.model.errors import ImageError, ImageTooLargeError, UnsupportedImageError
from moleflow.model.images.bit_depth import FULL_SCALE
from moleflow.model.images.decode import DecodedImage
from moleflow.service.decoding.wire import read_array, receive, send, write_memory_file
from moleflow.service.errors import NotReadyError, OverloadedError

__all__ = ["DecoderPool"]

_MEMORY_BYTES, _MEMORY_PER_PIXEL = 120 * 10**6, 12
"""Memory limit of a decoder process: for Python, its libraries and the upload, plus bytes per pixel of the largest
image. 600 MB for 40 megapixels."""

_WALL_CLOCK_FACTOR = 10
"""Wall-clock limit relative to the CPU time limit; on a busy machine a process gets only part of a CPU."""

_START_SECONDS = 30.0
"""Extra time for the first response of a process, which takes half a second to start on an idle machine."""

_RETRY_SECONDS = 1.0
"""``Retry-After`` for errors that the image did not cause."""

_INSTRUMENTATION = "opentelemetry/instrumentation/auto_instrumentation"

_ERRORS: dict[str, type[ImageError]] = {kind.__name__: kind for kind in (UnsupportedImageError, ImageTooLargeError)}

_logger = logging.getLogger(__name__)


class DecoderPool:
    """Decoder processes. ``decode`` and ``open_rgb`` block and are thread-safe.

    Args:
        count: number of processes.
        seconds: CPU time limit for one image.
        max_pixels: maximum image size in pixels.
        on_restart: called whenever a process has to be replaced.
    """

    def __init__(
        self, count: int, *, seconds: float, max_pixels: int, on_restart: Callable[[], None] = lambda: None
    ) -> None:
        self._count, self._seconds, self._max_pixels, self._on_restart = count, seconds, max_pixels, on_restart
        self._memory = _MEMORY_BYTES + _MEMORY_PER_PIXEL * max_pixels
        self._idle: queue.LifoQueue[_DecoderProcess | None] = queue.LifoQueue()
        self._processes: set[_DecoderProcess] = set()
        self._closed = False
        for _ in range(count):
            self._idle.put(None)

    def start(self) -> None:
        """Start the processes without waiting for them, so that the first image need not wait for one."""
        for _ in range(self._count):
            self._idle.get()
        for _ in range(self._count):
            self._idle.put(self._start_process())

    def close(self) -> None:
        """Kill the processes. Callers that still wait for one get ``NotReadyError``."""
        self._closed = True
        for process in list(self._processes):
            self._kill(process)

    def decode(self, data: bytes, side: int) -> DecodedImage:
        """Calls ``moleflow.model.images.decode.open_for_model`` in a process.

        Raises its errors; ``ImageTooLargeError`` also when decoding exceeds its time or memory limit,
        ``UnsupportedImageError`` when it crashes the process, ``OverloadedError`` when the process does not respond.
        """
        response, pixels = self._request(data, side=side)
        return DecodedImage(pixels, response["width"], response["height"])

    def open_rgb(self, data: bytes, white_level: int = FULL_SCALE) -> np.ndarray:
        """Calls ``moleflow.model.images.decode.open_rgb``, ``(height, width, 3)`` uint8; raises as ``decode`` does."""
        return self._request(data, white_level=white_level)[1]

    def _request(self, data: bytes, **arguments: str | int) -> tuple[dict[str, Any], np.ndarray]:
        request = {**arguments, "max_pixels": self._max_pixels, "seconds": self._seconds}
        process = self._idle.get()
        try:
            for is_last in (False, True):
                process = process or self._start_process()
                try:
                    return process.request(request, data)
                except _ProcessDiedError as died:
                    self._kill(process)
                    process = None
                    self._on_restart()
                    _logger.warning("Restarting a decoder process: %s.", died)
                    # A process killed from outside, say by the OOM killer, says nothing about the image: retry once.
                    if is_last or died.is_caused_by_image:
                        raise self._error_for(died) from None
            raise AssertionError("the last attempt returns or raises")
        except OSError as error:
            raise OverloadedError(
                f"The image cannot be decoded now ({error.strerror}); try again.", _RETRY_SECONDS
            ) from error
        finally:
            with contextlib.suppress(OSError, NotReadyError):  # the next request tries again
                process = process or self._start_process()
            self._idle.put(process)

    def _error_for(self, died: "_ProcessDiedError") -> Exception:
        if died.status == -signal.SIGPROF:
            return ImageTooLargeError(
                f"Decoding the image takes more than {self._seconds:g} s of CPU time; send a smaller image, or save it "
                "as an ordinary JPEG or PNG."
            )
        if died.status is None:
            return OverloadedError("The machine is too busy to decode the image; try again.", _RETRY_SECONDS)
        return UnsupportedImageError(
            "The image crashes the decoder, so it is probably damaged; save it again as PNG or JPEG."
        )

    def _start_process(self) -> "_DecoderProcess":
        if self._closed:
            raise NotReadyError("The service is stopping; send the image to another instance.")
        process = _DecoderProcess.start(self._memory, self._seconds * _WALL_CLOCK_FACTOR)
        self._processes.add(process)
        return process

    def _kill(self, process: "_DecoderProcess") -> None:
        process.kill()
        self._processes.discard(process)


class _ProcessDiedError(Exception):
    """A decoder process died during a request: its exit ``status``, or ``None`` if it timed out."""

    def __init__(self, status: int | None) -> None:
        self.status = status
        super().__init__("it does not respond" if status is None else f"it exited with status {status}")

    @property
    def is_caused_by_image(self) -> bool:
        """Whether a retry would fail in the same way."""
        return self.status not in (None, -signal.SIGKILL, -signal.SIGHUP)


class _DecoderProcess:
    """A process and our end of its socket; used by one thread at a time."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket, timeout: float) -> None:
        self._process, self._connection, self._timeout = process, connection, timeout

    @classmethod
    def start(cls, memory: int, timeout: float) -> Self:
        """Start a process with a limit of ``memory`` bytes and ``timeout`` seconds per request.

        Raises ``OSError`` when that is impossible.
        """
        ours, theirs = socket.socketpair()
        try:
            ours.settimeout(timeout + _START_SECONDS)
            process = subprocess.Popen(
                [sys.executable, "-m", "moleflow.service.decoding.process", str(theirs.fileno()), str(memory)],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, ours, timeout)

    def request(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
        """Decode an upload: the response of the process, and the pixels.

        Raises ``_ProcessDiedError``, after which this process is unusable; the errors of decoding; ``OSError`` when
        the upload cannot be written to a file in memory.
        """
        upload = write_memory_file(data)
        try:
            send(self._connection, request, upload)
            message = receive(self._connection)
            self._connection.settimeout(self._timeout)
        except TimeoutError:
            raise _ProcessDiedError(None) from None
        except (OSError, ValueError):
            message = None
        finally:
            os.close(upload)
        if message is None:
            self.kill()
            raise _ProcessDiedError(self._process.returncode)
        response, pixels = message
        if pixels is None:
            raise _ERRORS[response["error"]](response["message"])
        try:
            return response, read_array(pixels, tuple(response["shape"]), response["dtype"])
        finally:
            os.close(pixels)

    def kill(self) -> None:
        """Kill the process; if it has already exited, its return code is kept."""
        self._connection.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """The environment of this process, with the path of this package, and without library threads to save memory.

    A decoder loads no instrumentation either: ``opentelemetry-instrument`` begins by that path in the variable.
    """
    paths = [str(Path(moleflow.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    kept = [path for path in paths if path and not path.rstrip("/").endswith(_INSTRUMENTATION)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(kept), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
