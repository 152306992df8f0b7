"""What all attacks of the hostile load share: their target, and how outcomes are counted."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.hostile.client import LostError, Reply, ask, read_reply
from benchmarks.hostile.ledger import CLOSED, HUNG, LOST, REFUSALS, Ledger

__all__ = ["BYTES", "MEGABYTE", "Attack", "Target", "attack", "closes", "post"]

MEGABYTE = 10**6

BYTES = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True, slots=True)
class Target:
    """The service under attack: its port, good images (the second is large), and its time limits.

    Args:
        patience: seconds within which every request must be answered.
        stall_seconds: how long a client reads nothing of its answer.
        closing_seconds: seconds within which a connection without a request must be closed.
    """

    port: int
    image: bytes
    large_image: bytes
    patience: float
    stall_seconds: float
    closing_seconds: float
    max_upload_bytes: int


Attack = Callable[[Target, Ledger, random.Random], Awaitable[None]]


async def attack(chosen: Attack, target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Run one attack: no answer in time is a hang, a connection that ends before the answer is a loss."""
    name, start = chosen.__name__, time.monotonic()
    try:
        async with asyncio.timeout(target.patience):
            await chosen(target, ledger, chance)
    except TimeoutError:
        ledger.trouble(name, name, HUNG, f"nothing after {target.patience:g} s", start)
    except (LostError, OSError) as error:
        ledger.trouble(name, name, LOST, str(error), start)


async def closes(
    target: Target,
    name: str,
    reader: asyncio.StreamReader,
    ledger: Ledger,
    *,
    right: tuple[int, ...] = (),
    sent: float | None = None,
) -> None:
    """The service must close this connection in time, with an answer or without.

    ``sent`` is when the request was sent, now by default: a disturbance since then explains the answer.
    """
    start = time.monotonic() if sent is None else sent
    try:
        async with asyncio.timeout(target.closing_seconds):
            reply = await read_reply(reader)
    except LostError:
        ledger.count(name, CLOSED)
    except TimeoutError:
        ledger.trouble(name, name, HUNG, f"open after {target.closing_seconds:g} s", start)
    else:
        ledger.judge(name, name, reply, start, right=right)


async def post(
    target: Target,
    ledger: Ledger,
    name: str,
    body: bytes,
    headers: dict[str, str],
    query: str = "",
    *,
    expected: frozenset[int] = REFUSALS,
    right: tuple[int, ...] = (200,),
) -> Reply:
    """Send one request to ``/predict``, which must be refused or answered."""
    start = time.monotonic()
    reply = await ask(target.port, "POST", "/predict" + query, body, headers)
    ledger.judge(name, name, reply, start, expected=expected, right=right)
    return reply
