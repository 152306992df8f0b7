"""How connections share the event loop for parsing."""

import asyncio
import itertools
import time

from moleflow.service.connections.turns import Turns


class Parser:
    """Takes some milliseconds per piece, and records its turns."""

    def __init__(self, name: str, pieces: int, turns: list[str], seconds: float = 0.004) -> None:
        self.name, self.pieces, self.turns, self.seconds = name, pieces, turns, seconds

    def parse_some(self) -> bool:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        self.turns.append(self.name)
        self.pieces -= 1
        return self.pieces > 0


def test_short_data_is_parsed_at_once() -> None:
    async def main() -> None:
        order: list[str] = []
        Turns().parse(Parser("a", 3, order, seconds=0))
        assert order == ["a", "a", "a"]

    asyncio.run(main())


def test_many_parsers_yield_to_the_event_loop_after_a_few_milliseconds() -> None:
    async def main() -> None:
        order: list[str] = []
        turns, parsed_in_a_turn = Turns(), []
        for name in "abcdef":
            turns.parse(Parser(name, 4, order))
        while len(order) < 24:
            before = len(order)
            await asyncio.sleep(0)
            parsed_in_a_turn.append(len(order) - before)
        assert max(parsed_in_a_turn) <= 2

    asyncio.run(main())


def test_parsers_take_turns() -> None:
    async def main() -> None:
        order: list[str] = []
        turns = Turns()
        for name, pieces in (("long", 9), ("short", 1), ("other", 2)):
            turns.parse(Parser(name, pieces, order))
        while len(order) < 12:
            await asyncio.sleep(0)
        assert order.index("short") <= 3
        assert sorted(order) == ["long"] * 9 + ["other"] * 2 + ["short"]

    asyncio.run(main())


def test_few_requests_start_per_iteration_of_the_event_loop() -> None:
    class Beginner:
        """Starts a request with each piece."""

        def __init__(self) -> None:
            self.begun = 0

        def parse_some(self) -> bool:
            self.begun += 1
            turns.note_request()
            return self.begun < 30

    async def main() -> None:
        beginner = Beginner()
        turns.parse(beginner)
        begun = [beginner.begun]
        while beginner.begun < 30:
            await asyncio.sleep(0)
            begun.append(beginner.begun)
        assert max(later - before for before, later in itertools.pairwise([0, *begun])) <= 5

    turns = Turns()
    asyncio.run(main())
