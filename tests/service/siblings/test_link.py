"""The processes of a service ask each other questions."""

import asyncio
from pathlib import Path

import pytest

from moleflow.service.errors import FeedbackError, NotReadyError
from moleflow.service.siblings.link import Answering, Link

SECONDS = 20.0


async def doubled(number: int) -> str:
    return str(2 * number)


async def full() -> str:
    raise FeedbackError("The folder is full.")


async def broken() -> str:
    raise ZeroDivisionError("secret")


async def slow() -> str:
    await asyncio.sleep(10 * SECONDS)
    return "late"


ANSWERING: dict[str, Answering] = {"doubled": doubled, "full": full, "broken": broken, "slow": slow}


def asked(folder: Path, question: str, seconds: float = SECONDS, **arguments: object) -> str:
    """What process 0 is told by process 1."""

    async def ask() -> str:
        one, other = Link(folder, 0, 3), Link(folder, 1, 3)
        await other.start(ANSWERING)
        try:
            return await one.ask(1, question, seconds=seconds, **arguments)
        finally:
            await other.stop()

    return asyncio.run(ask())


def test_a_question_gets_its_answer(tmp_path: Path) -> None:
    assert asked(tmp_path, "doubled", number=21) == "42"


def test_an_error_of_the_service_is_raised_where_it_was_asked(tmp_path: Path) -> None:
    with pytest.raises(FeedbackError, match="full"):
        asked(tmp_path, "full")


def test_any_other_error_is_one_of_the_process_that_answers(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError):
        asked(tmp_path, "broken")


def test_a_process_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="Process 1 of the service does not answer"):
        asked(tmp_path, "slow", seconds=0.05)


def test_all_others_are_asked_and_those_that_are_gone_left_out(tmp_path: Path) -> None:
    async def ask() -> dict[int, str]:
        one, other = Link(tmp_path, 0, 3), Link(tmp_path, 1, 3)
        await other.start(ANSWERING)
        try:
            return await one.ask_others("doubled", seconds=SECONDS, number=4)
        finally:
            await other.stop()

    assert asyncio.run(ask()) == {1: "8"}


def test_an_id_tells_which_process_gave_the_answer(tmp_path: Path) -> None:
    links = [Link(tmp_path, index, 40) for index in range(40)]
    identifiers = [link.new_identifier() for link in links]
    assert [links[0].owner(identifier) for identifier in identifiers] == list(range(40))
    assert {len(identifier) for identifier in identifiers} == {32}


@pytest.mark.parametrize("identifier", ["", "zz", "ff" + 30 * "0"])
def test_an_id_of_nobody_is_looked_for_here(tmp_path: Path, identifier: str) -> None:
    assert Link(tmp_path, 2, 3).owner(identifier) == 2
