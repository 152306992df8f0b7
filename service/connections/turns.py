"""Fair sharing of the event loop among connections with data to parse."""

import asyncio
import time
from collections import deque
from typing import Protocol

__all__ = ["Turns"]

_TURN_SECONDS = 0.005
"""Parsing time per iteration of the event loop."""

_REQUEST_SECONDS = 0.002
"""Time that a new request takes in the next iteration for routing, checks and perhaps its response."""


class Parser(Protocol):
    """Something with data to parse."""

    def parse_some(self) -> bool:
        """Parse a small piece of the received data; returns whether there is more."""


class Turns:
    """Round-robin over parsers, a piece each, for a limited time per iteration of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Parser] = deque()
        self._used = 0.0
        self._is_scheduled = False

    def parse(self, parser: Parser) -> None:
        """Let ``parser`` parse until nothing is left: at once if it is the only one and there is time, else in turn."""
        self._waiting.append(parser)
        if len(self._waiting) == 1:
            self._run()

    def note_request(self) -> None:
        """A request has started. This uses up parsing time, which limits the new requests per iteration."""
        self._used += _REQUEST_SECONDS

    def _run(self) -> None:
        while self._waiting and self._used < _TURN_SECONDS:
            parser, started = self._waiting.popleft(), time.perf_counter()
            if parser.parse_some():
                self._waiting.append(parser)
            self._used += time.perf_counter() - started
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._is_scheduled, self._used = False, 0.0
        if self._waiting:
            self._run()
