"""One client's connection: uvicorn's HTTP/1.1 protocol, with a bound on everything that a client may leave undone.

A request head must come in time, whether the client is silent or sends a byte a second. Connections are closed in
order: while the client is still sending, what it sends is read and thrown away, since closing a socket with unread
bytes makes the client's system drop the answer too ("connection reset"; RFC 9112, section 9.6). Connections are parsed
in turns (``moleflow.service.connections.turns``), so that bodies of tiny chunks leave the event loop free.
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
"""What is parsed at once where a few bytes may be one event: request heads and chunked bodies. Each event ends with a
line; as many lines take a millisecond or two."""

_MOST_HEADERS = 100
"""Lines of a request's head. Browsers behind proxies send some thirty; 16 kB of the shortest would be 4,000."""

_HEAD_END = re.compile(rb"\n\r?\n")

_SLOWEST_ANSWER = 64 * 1024
"""Bytes a second at which an answer must be read on the whole: half a megabit, which the poorest of links has."""

_LATE_HEAD_PATIENCE = 1.0
"""Seconds in which a client that was too slow with its request's head may notice the refusal."""

_CHECKS = 8
"""How often progress is looked for within the time that a client may make none."""


class Connection(H11Protocol):
    """See the module. ``connections`` knows the limits, and all other connections."""

    transport: ClosingTransport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        connections: Connections,
    ) -> None:
        # Each request's scope gets a copy of this state: so the application finds its connection.
        super().__init__(config, server_state, app_state | {"connection": self})
        self.all = connections
        self.framing_bytes = 0
        """Bytes of the current request's chunked body that are no payload."""
        self._received = 0
        self._since = time.monotonic()
        self._handed = 0
        self._answering_since = 0.0
        self._unparsed = memoryview(b"")
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def phase(self) -> Phase:
        if self.transport.is_closing():
            return Phase.LEAVING
        if self.conn.their_state is h11.IDLE:
            return Phase.FRESH if self.cycle is None else Phase.IDLE
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.LEAVING if self.cycle.response_complete else Phase.UPLOADING
        return Phase.BUSY

    @property
    def since(self) -> float:
        return self._since

    @property
    def upload_rate(self) -> float:
        return self._received / max(time.monotonic() - self._since, 1e-3)

    def abort(self) -> None:
        self.transport.abort()

    # What asyncio tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(
            ClosingTransport(transport, self.loop, self._is_client_sending, self.all.limits.send_seconds)
        )
        # Each piece of an answer waits until the system has taken the one before: nothing piles up in this process.
        transport.set_write_buffer_limits(high=0)
        self.all.add(self)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.discard(self)
        super().connection_lost(exc)
        self._cancel_head_timer()
        self._unset_keepalive_if_required()
        self.transport.stop_timers()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            self.transport.throw_away(len(data))
            return
        is_waiting = bool(self._unparsed)
        self._unparsed = memoryview(bytes(self._unparsed) + data if is_waiting else data)
        if not is_waiting:
            self.all.turns.parse(self)
        if self._unparsed:
            self.transport.hold_reading()

    # Parsing

    def parse_some(self) -> bool:
        """Parse a piece of what has come; whether there is more."""
        if not self.transport.is_closing():
            piece = bytes(self._unparsed if self._is_of_declared_length() else _few_lines(self._unparsed))
            if self._has_too_many_headers(piece):
                self._refuse(431, f"The request has more than {_MOST_HEADERS} header lines; send fewer.")
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
        """Whether the head that is awaited is one of thousands of short lines, which take long to parse."""
        if self.conn.their_state is not h11.IDLE:
            return False
        return _HEAD_END.split(self.conn.trailing_data[0] + piece, 1)[0].count(b"\n") > _MOST_HEADERS

    def _parse_piece(self, piece: bytes) -> None:
        request, is_body = self.cycle, self.conn.their_state is h11.SEND_BODY
        is_chunked = is_body and not self._is_of_declared_length()
        had = len(request.body) if request is not None else 0
        super().data_received(piece)
        self._note_request(request)
        self._received += len(piece)
        if not is_body or request is None:
            return
        if request.response_complete:
            if self.conn.their_state is h11.SEND_BODY:
                self.transport.throw_away(len(piece))
            elif self.timeout_keep_alive_task is None:
                # uvicorn forgets to wait no longer than this when the rest of a body has come after its answer.
                self.transport.stop_timers()
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif is_chunked:
            self.framing_bytes += len(piece) - (len(request.body) - had)

    def _note_request(self, previous: RequestResponseCycle | None) -> None:
        """Begin to count anew when a request has begun."""
        if self.cycle is not previous:
            self.all.turns.note_request()
            self._since = time.monotonic()
            self._received = self._handed = self.framing_bytes = 0

    def _is_client_sending(self) -> bool:
        """Whether there are bytes from the client that nobody has read, or more of them on their way."""
        return (
            self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
            or self.flow.read_paused
            or bool(self._unparsed)
            or bool(self.conn.trailing_data[0])
        )

    def _is_of_declared_length(self) -> bool:
        """Whether the rest of a body is awaited whose length is known, which is parsed in one go."""
        if self.conn.their_state is not h11.SEND_BODY:
            return False
        return not any(name == b"transfer-encoding" for name, _ in self.headers)

    # Request heads

    def _watch_head(self) -> None:
        """While a head is awaited, see that it comes in time. A connection that is kept for the next request and has
        not begun with it is watched by uvicorn's keep-alive timer instead."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._cancel_head_timer()
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._head_timer = self.loop.call_later(self.all.limits.header_seconds, self._on_late_head)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_late_head(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if not self.conn.trailing_data[0]:  # nothing was sent, so nothing is answered
            self.all.cut(self, "header")
            return
        seconds = self.all.limits.header_seconds
        detail = f"The request's head was not complete after {seconds:g} s; send it at once."
        self._refuse(408, detail, patience=_LATE_HEAD_PATIENCE)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, as a problem document."""
        what = msg.rstrip(".")
        self._refuse(400, f"{what}: the service speaks HTTP/1.1, with at most 16 kB of request line and headers.")

    def _refuse(self, status: int, detail: str, **patience: float) -> None:
        """Answer what is no request, and close. Whoever works on what it seemed to be is told that the client left."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of an answer nothing can be said
            answer = problem_response(status, detail)
            answer.headers.update(SECURITY_HEADERS)
            headers = [*answer.raw_headers, (b"connection", b"close")]
            start = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (start, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()
        self.transport.close(**patience)

    # Answers

    def on_response_complete(self) -> None:
        request, self._since = self.cycle, time.monotonic()
        if not self.transport.is_closing() and self.conn.their_state is h11.SEND_BODY:
            self.transport.throw_away(0)  # the time in which the rest must come begins
        super().on_response_complete()
        self._note_request(request)
        self._watch_head()

    async def hand_over(self, size: int) -> None:
        """Wait until ``size`` more bytes of the answer may be sent. A client that does not take what was sent loses
        its connection, and what is sent then is dropped."""
        progressed = time.monotonic()
        if self._handed == 0:
            self._answering_since = progressed
        self._handed += size
        allowed = self.all.limits.send_seconds
        left = self.transport.unacknowledged_bytes() if self.flow.write_paused else 0
        while self.flow.write_paused and not self.cycle.disconnected:
            now = time.monotonic()
            in_all = now - self._answering_since
            if now - progressed > allowed or in_all > allowed + self._handed / _SLOWEST_ANSWER:
                self.all.cut(self, "send")
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(allowed / _CHECKS):
                    await self.flow.drain()
            before, left = left, self.transport.unacknowledged_bytes()
            if left < before:
                progressed = time.monotonic()


def _few_lines(data: memoryview) -> memoryview:
    """The beginning of ``data`` that may be parsed at once."""
    data = data[:_SLICE_BYTES]
    rest = bytes(data).split(b"\n", _SLICE_LINES)[_SLICE_LINES:]
    return data[: len(data) - len(rest[0])] if rest else data
