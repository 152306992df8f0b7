"""Deadlines of single pieces of work."""

import asyncio

import pytest

from moleflow.service.engine.deadline import NO_DEADLINE, Deadline
from moleflow.service.errors import DeadlineError


def test_work_is_cancelled_when_the_time_is_over() -> None:
    expired: list[None] = []

    async def work() -> None:
        async with Deadline(0.01, "SOURCE", lambda: expired.append(None)).enforced():
            await asyncio.sleep(3600)

    with pytest.raises(DeadlineError, match=r"within 0.01 s \(SOURCE\)"):
        asyncio.run(work())
    assert len(expired) == 1


def test_work_does_not_begin_after_the_deadline() -> None:
    begun: list[None] = []

    async def work() -> None:
        deadline = Deadline(0.001, "SOURCE")
        await asyncio.sleep(0.01)
        async with deadline.enforced():
            begun.append(None)

    with pytest.raises(DeadlineError):
        asyncio.run(work())
    assert not begun


def test_a_timeout_of_the_work_itself_is_no_deadline() -> None:
    async def work() -> None:
        async with Deadline(3600, "SOURCE").enforced():
            raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        asyncio.run(work())


def test_without_a_deadline_nothing_is_late() -> None:
    async def work() -> str:
        async with NO_DEADLINE.enforced():
            NO_DEADLINE.check()
            return "done"

    assert asyncio.run(work()) == "done"
