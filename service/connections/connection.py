"""A client connection: uvicorn's HTTP/1.1 protocol, with a limit on everything that a client can delay.

A request head must arrive before a deadline, whether the client is silent or sends a byte a second. Connections are
closed gracefully: data that the client is still sending is read and discarded, because closing a socket with unread
data resets the connection, and the client loses the response (RFC 9112, section 9.6). Connections are parsed in turns
(``moleflow.service.connections.turns``), so that bodies of tiny chunks do not block the event loop.
"""

import asyncio
import contextlib
import re
import time
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from moleflow.service.connections.registry import Connections, Phase
from moleflow.service.connections.transport import ClosingTransport
from moleflow.service.headers import SECURITY_HEADERS
from moleflow.service.problems import problem_response

__all__ = ["Connection"]

_SLICE_LINES, _SLICE_BYTES = 64, 64 * 1024
"""How much of a request head or chunked body is parsed at once. Every event there ends with a line, and parsing this
many lines takes a millisecond or two."""

_MAX_HEADERS = 100
"""Lines in a request head. Browsers behind proxies send some thirty; 16 kB could hold 4,000 short ones."""

_HEAD_END = re.compile(rb"\n\r?\n")

_MIN_SEND_RATE = 64 * 1024
"""Average bytes per second at which a client must read a response: half a megabit, less than any usable link has."""

_LATE_HEAD_GRACE_SECONDS = 1.0
"""Time for a client with a late request head to read the error response."""

_CHECKS_PER_TIMEOUT = 8
"""How often sending checks for progress within its timeout."""


class Connection(H11Protocol):
    """See the module. ``connections`` is the registry of all connections, with their limits."""

    transport: ClosingTransport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        connections: Connections,
    ) -> None:
        # The state is copied into the scope of each request, where the application finds its connection.
        super().__init__(config, server_state, app_state | {"connection": self})
        self.registry = connections
        self.framing_bytes = 0
        """Bytes of the current request's chunked body that are not payload."""
        self._received = 0
        self._since = time.monotonic()
        self._sent = 0
        self._sending_since = 0.0
        self._unparsed = memoryview(b"")
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def phase(self) -> Phase:
        if self.transport.is_closing():
            return Phase.CLOSING
        if self.conn.their_state is h11.IDLE:
            return Phase.NEW if self.cycle is None else Phase.IDLE
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.CLOSING if self.cycle.response_complete else Phase.UPLOADING
        return Phase.BUSY

    @property
    def since(self) -> float:
        return self._since

    @property
    def upload_rate(self) -> float:
        return self._received / max(time.monotonic() - self._since, 1e-3)

    def abort(self) -> None:
        self.transport.abort()

    # Callbacks of asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(
            ClosingTransport(transport, self.loop, self._is_client_sending, self.registry.limits.send_seconds)
        )
        # Each piece of a response waits until the kernel has taken the previous one, so none pile up in this process.
        transport.set_write_buffer_limits(high=0)
        self.registry.add(self)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.registry.discard(self)
        super().connection_lost(exc)
        self._cancel_head_timer()
        self._unset_keepalive_if_required()
        self.transport.stop_timers()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            self.transport.discard(len(data))
            return
        is_scheduled = bool(self._unparsed)
        self._unparsed = memoryview(bytes(self._unparsed) + data if is_scheduled else data)
        if not is_scheduled:
            self.registry.turns.parse(self)
        if self._unparsed:
            self.transport.hold_reading()

    # Parsing

    def parse_some(self) -> bool:
        """Parse a piece of the received data; returns whether there is more."""
        if not self.transport.is_closing():
            piece = bytes(self._unparsed if self._is_reading_known_length() else _first_slice(self._unparsed))
            if self._has_too_many_headers(piece):
                self._reject(431, f"The request has more than {_MAX_HEADERS} headers, which is the limit; send fewer.")
            else:
                self._unparsed = self._unparsed[len(piece) :]
                self._parse_piece(piece)
        if self._unparsed and not self.transport.is_closing():
            return True
        self._unparsed = memoryview(b"")
        self.transport.release_reading()
        self._watch_head()
        return False

    def _has_too_many_headers(self, piece: bytes) -> bool:
        """Whether the current request head has too many lines; thousands of short ones take long to parse."""
        if self.conn.their_state is not h11.IDLE:
            return False
        return _HEAD_END.split(self.conn.trailing_data[0] + piece, 1)[0].count(b"\n") > _MAX_HEADERS

    def _parse_piece(self, piece: bytes) -> None:
        request, is_body = self.cycle, self.conn.their_state is h11.SEND_BODY
        is_chunked = is_body and not self._is_reading_known_length()
        previous_length = len(request.body) if request is not None else 0
        super().data_received(piece)
        self._note_request(request)
        self._received += len(piece)
        if not is_body or request is None:
            return
        if request.response_complete:
            if self.conn.their_state is h11.SEND_BODY:
                self.transport.discard(len(piece))
            elif self.timeout_keep_alive_task is None:
                # uvicorn does not start its keep-alive timer when a body ends after the response.
                self.transport.stop_timers()
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif is_chunked:
            self.framing_bytes += len(piece) - (len(request.body) - previous_length)

    def _note_request(self, previous: RequestResponseCycle | None) -> None:
        if self.cycle is not previous:
            self.registry.turns.note_request()
            self._since = time.monotonic()
            self._received = self._sent = self.framing_bytes = 0

    def _is_client_sending(self) -> bool:
        """Whether there is unread data from the client, or more to come."""
        return (
            self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
            or self.flow.read_paused
            or bool(self._unparsed)
            or bool(self.conn.trailing_data[0])
        )

    def _is_reading_known_length(self) -> bool:
        """Whether a body with a Content-Length is being received, which is cheap to parse at once."""
        if self.conn.their_state is not h11.SEND_BODY:
            return False
        return not any(name == b"transfer-encoding" for name, _ in self.headers)

    # Request heads

    def _watch_head(self) -> None:
        """Run the deadline for the next request head. On an idle connection, uvicorn's keep-alive timer runs until
        the head starts."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._cancel_head_timer()
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._head_timer = self.loop.call_later(self.registry.limits.header_seconds, self._on_late_head)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_late_head(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if not self.conn.trailing_data[0]:  # nothing was received, so there is nothing to respond to
            self.registry.cut(self, "header")
            return
        seconds = self.registry.limits.header_seconds
        detail = f"The request line and headers were not complete after {seconds:g} s; send them at once."
        self._reject(408, detail, grace_seconds=_LATE_HEAD_GRACE_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's response to malformed HTTP, as a problem document."""
        what = msg.rstrip(".")
        self._reject(400, f"{what}; send HTTP/1.1 with at most 16 kB of request line and headers.")

    def _reject(self, status: int, detail: str, **grace: float) -> None:
        """Send an error response to malformed data and close. A request in progress ends as if the client had left."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # not in the middle of another response
            response = problem_response(status, detail)
            response.headers.update(SECURITY_HEADERS)
            headers = [*response.raw_headers, (b"connection", b"close")]
            start = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (start, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()
        self.transport.close(**grace)

    # Responses

    def on_response_complete(self) -> None:
        request, self._since = self.cycle, time.monotonic()
        if not self.transport.is_closing() and self.conn.their_state is h11.SEND_BODY:
            self.transport.discard(0)  # starts the timers for the rest of the body
        super().on_response_complete()
        self._note_request(request)
        self._watch_head()

    async def wait_writable(self, size: int) -> None:
        """Wait until ``size`` more bytes of the response can be written. A client that does not read is disconnected;
        further writes are then dropped."""
        last_progress = time.monotonic()
        if self._sent == 0:
            self._sending_since = last_progress
        self._sent += size
        timeout = self.registry.limits.send_seconds
        pending = self.transport.unacknowledged_bytes() if self.flow.write_paused else 0
        while self.flow.write_paused and not self.cycle.disconnected:
            now = time.monotonic()
            total = now - self._sending_since
            if now - last_progress > timeout or total > timeout + self._sent / _MIN_SEND_RATE:
                self.registry.cut(self, "send")
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout / _CHECKS_PER_TIMEOUT):
                    await self.flow.drain()
            before, pending = pending, self.transport.unacknowledged_bytes()
            if pending < before:
                last_progress = time.monotonic()


def _first_slice(data: memoryview) -> memoryview:
    """The beginning of ``data`` that may be parsed at once."""
    data = data[:_SLICE_BYTES]
    rest = bytes(data).split(b"\n", _SLICE_LINES)[_SLICE_LINES:]
    return data[: len(data) - len(rest[0])] if rest else data
