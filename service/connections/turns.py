"""Sharing the event loop's time among connections whose bytes take long to parse, however many there are."""

import asyncio
import time
from collections import deque
from typing import Protocol

__all__ = ["Turns"]

_TURN_SECONDS = 0.005
"""After this long in one turn of the event loop, parsing leaves it to others until the next."""


_REQUEST_SECONDS = 0.002
"""What a request that has begun takes of the next turn, until it waits for something: its route, checks and answer."""


class Parser(Protocol):
    """Something with bytes to parse."""

    def parse_some(self) -> bool:
        """Parse a small piece of what has come; whether there is more."""


class Turns:
    """Lets parsers go on in the order in which they came, a piece each, for a short time in each turn of the loop."""

    def __init__(self) -> None:
        self._waiting: deque[Parser] = deque()
        self._used = 0.0
        self._is_planned = False

    def parse(self, parser: Parser) -> None:
        """Let ``parser`` parse until nothing is left: at once if nobody waits and there is time, else in its turns."""
        self._waiting.append(parser)
        if len(self._waiting) == 1:
            self._go_on()

    def note_request(self) -> None:
        """A request has begun: few do in one turn, since each takes some of the next."""
        self._used += _REQUEST_SECONDS

    def _go_on(self) -> None:
        while self._waiting and self._used < _TURN_SECONDS:
            parser, started = self._waiting.popleft(), time.perf_counter()
            if parser.parse_some():
                self._waiting.append(parser)
            self._used += time.perf_counter() - started
        if not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._is_planned, self._used = False, 0.0
        if self._waiting:
            self._go_on()
