"""Decoding where it can be ended: in processes of their own, each replaced when an image ends it.

What an image costs cannot be told from its bytes for certain (``moleflow.model.images.limits`` refuses what is known),
and a decoder in a thread can neither be stopped nor kept from taking memory. The kernel can do both to a process.
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
from moleflow.model.errors import ImageError, ImageTooLargeError, OverloadedError, UnsupportedImageError
from moleflow.model.images.bit_depth import FULL_SCALE
from moleflow.model.images.decode import DecodedImage
from moleflow.service.decoding.wire import attach, read_array, receive, send
from moleflow.service.errors import NotReadyError

__all__ = ["Decoders"]

_MEMORY_BYTES, _MEMORY_PER_PIXEL = 120 * 10**6, 12
"""Memory that a decoding process may take for itself: for Python, its libraries and the upload, and for each pixel of
the largest image; 600 MB for 40 megapixels."""

_PATIENCE = 10
"""How many times its processor time an image may take on the clock: on a busy machine a process gets that share."""

_START_SECONDS = 30.0
"""What its first answer may take longer; it takes half a second on an idle machine."""

_RETRY_SECONDS = 1.0
"""What a client is told to wait when it was not its image that decoding failed on."""

_ERRORS: dict[str, type[ImageError]] = {kind.__name__: kind for kind in (UnsupportedImageError, ImageTooLargeError)}

_logger = logging.getLogger(__name__)


class Decoders:
    """A few processes that decode. ``decode`` and ``open_rgb`` block, and may be called by any number of threads.

    Args:
        count: how many images are decoded at a time.
        seconds: processor time that one image may take.
        max_pixels: largest image, in pixels.
        on_replaced: called whenever a process had to be replaced.
    """

    def __init__(
        self, count: int, *, seconds: float, max_pixels: int, on_replaced: Callable[[], None] = lambda: None
    ) -> None:
        self._count, self._seconds, self._max_pixels, self._on_replaced = count, seconds, max_pixels, on_replaced
        self._memory = _MEMORY_BYTES + _MEMORY_PER_PIXEL * max_pixels
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._workers: set[_Worker] = set()
        self._closed = False
        for _ in range(count):
            self._idle.put(None)

    def start(self) -> None:
        """Start the processes, so that the first image need not wait for one; they come up by themselves meanwhile."""
        for _ in range(self._count):
            self._idle.get()
        for _ in range(self._count):
            self._idle.put(self._start_one())

    def close(self) -> None:
        """End the processes. Whoever still waits for one gets ``NotReadyError``."""
        self._closed = True
        for worker in list(self._workers):
            self._end(worker)

    def decode(self, data: bytes, side: int) -> DecodedImage:
        """``open_for_model`` of ``moleflow.model.images.decode``, and its errors.

        Raises ``ImageTooLargeError`` also when decoding takes too much time or memory, ``UnsupportedImageError`` when
        it ends the process, ``OverloadedError`` when the machine gives it no time.
        """
        answer, pixels = self._ask(data, side=side)
        return DecodedImage(pixels, answer["width"], answer["height"])

    def open_rgb(self, data: bytes, white_level: int = FULL_SCALE) -> np.ndarray:
        """``moleflow.model.images.decode.open_rgb``, ``(height, width, 3)`` uint8; errors as ``decode``."""
        return self._ask(data, white_level=white_level)[1]

    def _ask(self, data: bytes, **wanted: str | int) -> tuple[dict[str, Any], np.ndarray]:
        request = {**wanted, "max_pixels": self._max_pixels, "seconds": self._seconds}
        worker = self._idle.get()
        try:
            for is_last in (False, True):
                worker = worker or self._start_one()
                try:
                    return worker.ask(request, data)
                except _EndedError as ending:
                    self._end(worker)
                    worker = None
                    self._on_replaced()
                    _logger.warning("A decoding process is replaced: %s.", ending)
                    # Ended from outside, as by an operator or for want of memory: that says nothing about the image.
                    if is_last or ending.is_images_fault:
                        raise self._blame(ending) from None
            raise AssertionError("the last try returns or raises")
        except OSError as error:
            raise OverloadedError(
                f"No image can be decoded now ({error.strerror}); try again.", _RETRY_SECONDS
            ) from error
        finally:
            with contextlib.suppress(OSError, NotReadyError):  # whoever comes next tries again
                worker = worker or self._start_one()
            self._idle.put(worker)

    def _blame(self, ending: "_EndedError") -> Exception:
        """What the client is told about an image that ended a process."""
        if ending.status == -signal.SIGPROF:
            return ImageTooLargeError(
                f"Decoding the image takes more than {self._seconds:g} s of processor time; send a smaller one, or "
                "save it again as an ordinary JPEG or PNG."
            )
        if ending.status is None:
            return OverloadedError("The machine is too busy to decode the image; try again.", _RETRY_SECONDS)
        return UnsupportedImageError(
            "The image cannot be decoded: it ends the decoder. It is damaged; save it again as PNG or JPEG."
        )

    def _start_one(self) -> "_Worker":
        if self._closed:
            raise NotReadyError("The service is stopping and takes no more images; send it to another instance.")
        worker = _Worker.start(self._memory, self._seconds * _PATIENCE)
        self._workers.add(worker)
        return worker

    def _end(self, worker: "_Worker") -> None:
        worker.end()
        self._workers.discard(worker)


class _EndedError(Exception):
    """A decoding process ended while it decoded: its exit ``status``, or ``None`` where it did not answer in time."""

    def __init__(self, status: int | None) -> None:
        self.status = status
        super().__init__("it does not answer" if status is None else f"it ended with status {status}")

    @property
    def is_images_fault(self) -> bool:
        """Whether another try would end alike."""
        return self.status not in (None, -signal.SIGKILL, -signal.SIGHUP)


class _Worker:
    """One process and this end of its socket; used by one thread at a time."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket, patience: float) -> None:
        self._process, self._connection, self._patience = process, connection, patience

    @classmethod
    def start(cls, memory: int, patience: float) -> Self:
        """Start a process that may take ``memory`` bytes, and be silent for ``patience`` seconds.

        Raises ``OSError`` where there can be none.
        """
        ours, theirs = socket.socketpair()
        try:
            ours.settimeout(patience + _START_SECONDS)
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
        return cls(process, ours, patience)

    def ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], np.ndarray]:
        """The answer about an upload and its pixels.

        Raises ``_EndedError``, after which this worker is of no use; the errors of decoding;
        ``OSError`` when no file can be made here.
        """
        upload = attach(data)
        try:
            send(self._connection, request, upload)
            message = receive(self._connection)
            self._connection.settimeout(self._patience)
        except TimeoutError:
            raise _EndedError(None) from None
        except (OSError, ValueError):
            message = None
        finally:
            os.close(upload)
        if message is None:
            self.end()
            raise _EndedError(self._process.returncode)
        answer, pixels = message
        if pixels is None:
            raise _ERRORS[answer["error"]](answer["message"])
        try:
            return answer, read_array(pixels, tuple(answer["shape"]), answer["dtype"])
        finally:
            os.close(pixels)

    def end(self) -> None:
        """End the process, if it has not ended by itself; its own return code stays."""
        self._connection.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """This process's, so that the same code is found. Threads of libraries would only take memory."""
    root = str(Path(moleflow.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
