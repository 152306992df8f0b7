"""The socket's side of a connection, closed in order and in bounded time."""

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Any

__all__ = ["ClosingTransport"]

_THROW_AWAY_BYTES = 256 * 1024**2
"""Most that is read and thrown away after an answer: eight times the default limit of an upload."""

_THROW_AWAY_SECONDS = 30.0
"""Longest time for which it is; the default time for an upload."""

_SILENCE_SECONDS = 5.0
"""Longest time without a byte meanwhile: a client that has its answer and sends nothing is not waited for."""


class ClosingTransport(asyncio.Transport):
    """A transport around asyncio's, whose ``close`` lets a client that is still sending read its answer first.

    ``is_client_sending`` says whether more may come from the client; ``send_seconds`` bounds the time that what was
    written may take to leave after ``close``.
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
        self._thrown_away = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def close(self, patience: float | None = None) -> None:
        """Take no more to send, and close when all has been sent and the client has stopped sending, after ``patience``
        seconds at the latest, unless given the time of an upload."""
        if self._is_closing:
            return
        self._is_closing = True
        if not self._is_client_sending():
            self._start("send", self._send_seconds)
            self._transport.close()
            return
        self._start("total", _THROW_AWAY_SECONDS if patience is None else patience)
        self.throw_away(0)
        with contextlib.suppress(OSError):  # the client is gone, which the next read will tell
            self._transport.write_eof()
        self._is_paused = self._is_held = False
        self._transport.resume_reading()

    def abort(self) -> None:
        self._is_closing = True
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._transport.is_closing()

    def throw_away(self, size: int) -> None:
        """Count bytes that came after the answer, and go on to take them for a bounded time."""
        self._thrown_away += size
        if self._thrown_away > _THROW_AWAY_BYTES:
            self.abort()
            return
        if "total" not in self._timers:
            self._start("total", _THROW_AWAY_SECONDS)
        self._start("silence", _SILENCE_SECONDS)

    def stop_timers(self) -> None:
        """The connection is closed, or all that was to be thrown away has come."""
        self._thrown_away = 0
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _start(self, name: str, seconds: float) -> None:
        if (running := self._timers.get(name)) is not None:
            running.cancel()
        self._timers[name] = self._loop.call_later(seconds, self.abort)

    # Reading is paused by the protocol (the application is behind) and held by the parser (it is behind itself).

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
        """What was written and has not reached the client's system, be it here or in this system's socket."""
        waiting = struct.pack("i", 0)
        # A closed socket has nothing waiting, and systems that cannot tell show progress by this process's part alone.
        with contextlib.suppress(OSError, ValueError):
            waiting = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, waiting)
        return self._transport.get_write_buffer_size() + struct.unpack("i", waiting)[0]

    # The rest is asyncio's.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_closing():
            self._transport.write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
