"""Questions from one process of a service to another, over Unix sockets in a folder that only they may enter.

A question is a line of JSON: ``{"question": NAME, …}``. The answer is a line too: ``{"answer": TEXT}``, or ``{"error":
CLASS, "message": TEXT}``.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moleflow.model.errors import MoLEFlowError, describe
from moleflow.service.errors import FeedbackError, NotReadyError, ReloadError, UnknownAnswerError
from moleflow.service.exchange import random_id

__all__ = ["Answering", "Link"]

Answering = Callable[..., Awaitable[str]]
"""Answers one kind of question, whose other fields are its keyword arguments."""

_ERRORS: dict[str, type[MoLEFlowError]] = {
    each.__name__: each for each in (FeedbackError, NotReadyError, ReloadError, UnknownAnswerError)
}
"""Errors that the asking process raises as they are; others become ``NotReadyError``."""

_LIMIT = 64 * 1024**2
"""The longest line; the metrics of 1,000 products take 2 MB."""

_DIGITS = 2
"""Hexadecimal digits at the start of an answer's id that name the process that gave it."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Link:
    """One process among ``count``, with the number ``index``."""

    folder: Path
    index: int
    count: int
    _server: asyncio.Server | None = field(default=None, init=False)
    _tasks: "set[asyncio.Task[object]]" = field(default_factory=set, init=False)

    def new_identifier(self) -> str:
        """A new id of an answer, which tells the process that remembers its image."""
        return f"{self.index:0{_DIGITS}x}{random_id()[_DIGITS:]}"

    def owner(self, identifier: str) -> int:
        """The process that gave an answer; this one if the id is none of ours."""
        try:
            found = int(identifier[:_DIGITS], 16)
        except ValueError:
            return self.index
        return found if found < self.count else self.index

    async def start(self, answering: Mapping[str, Answering]) -> None:
        """Answer the questions of the others."""
        path = self._path(self.index)
        path.unlink(missing_ok=True)  # of a process that crashed

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                with contextlib.suppress(OSError, ValueError):
                    question = json.loads(await reader.readline())
                    writer.write(json.dumps(await _answer(answering, question)).encode() + b"\n")
                    await writer.drain()
            finally:
                self._tasks.discard(task)
                writer.close()

        self._server = await asyncio.start_unix_server(serve, path, limit=_LIMIT)

    async def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._path(self.index).unlink(missing_ok=True)

    async def ask(self, index: int, question: str, *, seconds: float, **arguments: object) -> str:
        """The answer of one process. Raises what it raised, and ``NotReadyError`` when it gives none in time."""
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_unix_connection(self._path(index), limit=_LIMIT)
                try:
                    writer.write(json.dumps({"question": question, **arguments}).encode() + b"\n")
                    said = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, ValueError, TimeoutError) as error:
            raise NotReadyError(
                f"Process {index} of the service does not answer ({describe(error)}); it may be starting again. "
                "Try again in a few seconds."
            ) from error
        if "error" in said:
            raise _ERRORS.get(said["error"], NotReadyError)(said["message"])
        return str(said["answer"])

    async def ask_others(self, question: str, *, seconds: float, **arguments: object) -> dict[int, str]:
        """The answers of all other processes that give one; failures are logged."""

        async def ask(index: int) -> tuple[int, str | None]:
            try:
                return index, await self.ask(index, question, seconds=seconds, **arguments)
            except MoLEFlowError as error:
                _logger.warning("Process %d was asked to %s: %s", index, question, error)
                return index, None

        found = await asyncio.gather(*(ask(index) for index in range(self.count) if index != self.index))
        return {index: answer for index, answer in found if answer is not None}

    def _path(self, index: int) -> Path:
        return self.folder / f"{index}.socket"


async def _answer(answering: Mapping[str, Answering], question: dict[str, object]) -> dict[str, str]:
    name = str(question.pop("question"))
    try:
        return {"answer": await answering[name](**question)}
    except Exception as error:
        if not isinstance(error, MoLEFlowError):
            _logger.exception("A question of another process failed: %s", name)
        return {"error": type(error).__name__, "message": str(error)}
