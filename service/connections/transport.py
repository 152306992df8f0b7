"""The transport of a connection, closed gracefully and within bounded time."""

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Any

__all__ = ["ClosingTransport"]

_DISCARD_BYTES = 256 * 1024**2
"""How much is read and discarded after a response: eight times the default upload limit."""

_DISCARD_SECONDS = 30.0
"""How long data is discarded; the default upload timeout."""

_SILENCE_SECONDS = 5.0
"""Timeout without any data meanwhile."""


class ClosingTransport(asyncio.Transport):
    """Wraps asyncio's transport; ``close`` lets a client that is still sending read its response first.

    ``is_client_sending`` says whether more data may arrive from the client; ``send_seconds`` limits the time for
    flushing written data after ``close``.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        is_client_sending: Callable[[], bool],
        send_seconds: float,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._is_client_sending = is_client_sending
        self._send_seconds = send_seconds
        self._is_closing = False
        self._is_paused = self._is_held = False
        self._discarded = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def close(self, grace_seconds: float | None = None) -> None:
        """Accept no more writes, and close once everything is sent and the client has stopped sending, or after
        ``grace_seconds``, by default those of an upload."""
        if self._is_closing:
            return
        self._is_closing = True
        if not self._is_client_sending():
            self._start("send", self._send_seconds)
            self._transport.close()
            return
        self._start("total", _DISCARD_SECONDS if grace_seconds is None else grace_seconds)
        self.discard(0)
        with contextlib.suppress(OSError):  # the client is gone, as the next read will report
            self._transport.write_eof()
        self._is_paused = self._is_held = False
        self._transport.resume_reading()

    def abort(self) -> None:
        self._is_closing = True
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._transport.is_closing()

    def discard(self, size: int) -> None:
        """Count ``size`` bytes received after the response, and keep receiving for a bounded time."""
        self._discarded += size
        if self._discarded > _DISCARD_BYTES:
            self.abort()
            return
        if "total" not in self._timers:
            self._start("total", _DISCARD_SECONDS)
        self._start("silence", _SILENCE_SECONDS)

    def stop_timers(self) -> None:
        """To be called when the connection is closed, or when there is nothing left to discard."""
        self._discarded = 0
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _start(self, name: str, seconds: float) -> None:
        if (running := self._timers.get(name)) is not None:
            running.cancel()
        self._timers[name] = self._loop.call_later(seconds, self.abort)

    # The protocol pauses reading while the application is behind; the parser holds it while parsing is behind.

    def pause_reading(self) -> None:
        self._is_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        self._set_reading()

    def hold_reading(self) -> None:
        self._is_held = True
        self._transport.pause_reading()

    def release_reading(self) -> None:
        if self._is_held:
            self._is_held = False
            self._set_reading()

    def _set_reading(self) -> None:
        if not (self._is_paused or self._is_held):
            self._transport.resume_reading()

    def unacknowledged_bytes(self) -> int:
        """Bytes that were written but not acknowledged, in this process and in the kernel's send buffer."""
        queued = struct.pack("i", 0)
        # Without TIOCOUTQ, or on a closed socket, only this process's buffer counts.
        with contextlib.suppress(OSError, ValueError):
            queued = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return self._transport.get_write_buffer_size() + struct.unpack("i", queued)[0]

    # Delegated to asyncio's transport.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_closing():
            self._transport.write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
