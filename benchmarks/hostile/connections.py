"""Attacks on the connection: clients that send slowly, read nothing, leave, or change the order of steps."""

import asyncio
import random
import time

from benchmarks.hostile.client import LostError, Reply, connect, head, read_reply, send
from benchmarks.hostile.ledger import ABORTED, OVERLOADED, REFUSED, RIGHT, Ledger
from benchmarks.hostile.target import BYTES, Attack, Target, closes

__all__ = ["ATTACKS"]

CROWD = 150
"""Number of connections that are opened and left alone."""


async def leave(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Leave at some point of a request, from before its first byte to the start of the answer."""
    whole = head("POST", "/predict?map=npy", BYTES, length=len(target.large_image)) + target.large_image
    async with connect(target.port) as (reader, writer):
        await send(writer, whole[: chance.choice((0, 5, 40, 100, len(whole) // 2, len(whole) - 1, len(whole)))])
        await asyncio.sleep(chance.choice((0, 0.01, 0.1, 0.5)))
        if chance.random() < 0.3:
            with_answer = asyncio.create_task(reader.read(100))
            await asyncio.wait({with_answer}, timeout=1)
            with_answer.cancel()
    ledger.count("leave", ABORTED)


async def half_head(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Send part of a request's head, and nothing more."""
    whole = head("POST", "/predict", BYTES, length=1000)
    async with connect(target.port) as (reader, writer):
        await send(writer, whole[: chance.randrange(1, len(whole) - 2)])
        await closes(target, "half_head", reader, ledger)


async def dripping_head(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Send a head forever, header by header."""
    async with connect(target.port) as (reader, writer):
        await send(writer, b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n")

        async def drip() -> None:
            while True:
                await send(writer, b"X: 1\r\n")
                await asyncio.sleep(0.3)

        dripping = asyncio.create_task(drip())
        try:
            await closes(target, "dripping_head", reader, ledger)
        finally:
            dripping.cancel()


async def silence(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Send nothing at all."""
    async with connect(target.port) as (reader, _):
        await closes(target, "silence", reader, ledger)


async def dripping_body(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Send a body byte by byte, slowly."""
    async with connect(target.port) as (reader, writer):
        await send(writer, head("POST", "/predict", BYTES, length=len(target.image)))

        async def drip() -> None:
            for byte in target.image:
                await send(writer, bytes([byte]))
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        try:
            await closes(target, "dripping_body", reader, ledger)
        finally:
            dripping.cancel()


async def crowd(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Open many connections that wait, half of them within a head."""
    async with asyncio.timeout(target.patience):
        connections = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", target.port) for _ in range(CROWD)), return_exceptions=True
        )
    opened = [pair for pair in connections if not isinstance(pair, BaseException)]
    for _, writer in opened[::2]:
        await send(writer, b"POST /predict HTTP/1.1\r\nHost: 127")
    await asyncio.sleep(chance.uniform(0.5, 3))
    for _, writer in opened:
        writer.transport.abort()
        ledger.count("crowd", ABORTED)


async def reads_nothing(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Request a large map and read none of it: the connection is cut, unless the kernel buffered everything."""
    async with connect(target.port) as (reader, writer):
        sent = time.monotonic()
        await send(writer, head("POST", "/predict?map=npy", BYTES, length=len(target.large_image)) + target.large_image)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(target.stall_seconds)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        await closes(target, "reads_nothing", reader, ledger, right=(200,), sent=sent)


async def reads_slowly(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Read a large map piece by piece: slow but steady, so it must arrive whole."""
    start = time.monotonic()
    async with connect(target.port) as (reader, writer):
        request = head("POST", "/predict?map=npy", BYTES, length=len(target.large_image)) + target.large_image
        await send(writer, request)
        try:
            first = await reader.readuntil(b"\r\n\r\n")
            length = int(first.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            left = length
            while left:
                piece = await reader.read(1 << 18)
                if not piece:
                    raise LostError(f"{left:,} of {length:,} bytes were missing")
                left -= len(piece)
                await asyncio.sleep(0.02)
        except (OSError, EOFError, IndexError) as error:
            raise LostError(f"{type(error).__name__}: {error}") from error
    status = int(first.split(b" ")[1])
    outcome = RIGHT if status == 200 else REFUSED
    if status in (200, OVERLOADED):
        ledger.count("reads_slowly", outcome)
    else:
        ledger.judge("reads_slowly", "map=npy", Reply(status), start, right=())


async def pipelining(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Send many requests at once: as many answers in order, unless one of them says that it is the last."""
    count = chance.choice((2, 10, 30))
    request = (
        head("GET", "/health/live") + head("POST", "/predict?map=none", BYTES, length=len(target.image)) + target.image
    )
    async with connect(target.port) as (reader, writer):
        sending = asyncio.create_task(send(writer, request * count))
        try:
            for number in range(2 * count):
                start = time.monotonic()
                reply = await read_reply(reader)
                ledger.judge("pipelining", f"{number}", reply, start, expected=frozenset({OVERLOADED}))
                if reply.headers.get("connection") == "close":
                    break
        finally:
            sending.cancel()


async def tiny_chunks(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Upload in chunks of one byte."""
    body = b"".join(b"1\r\n" + bytes([value]) + b"\r\n" for value in (target.image * 40)[:300_000]) + b"0\r\n\r\n"
    request = head("POST", "/predict?map=none", BYTES | {"Transfer-Encoding": "chunked"}) + body
    start = time.monotonic()
    async with connect(target.port) as (reader, writer):
        sending = asyncio.create_task(send(writer, request))
        try:
            ledger.judge("tiny_chunks", "300,000 chunks", await read_reply(reader), start)
        finally:
            sending.cancel()


async def continues(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Wait for ``100 Continue`` before the body."""
    start = time.monotonic()
    async with connect(target.port) as (reader, writer):
        await send(
            writer, head("POST", "/predict?map=none", BYTES | {"Expect": "100-continue"}, length=len(target.image))
        )
        first = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        await asyncio.wait({first}, timeout=5)
        await send(writer, target.image)
        try:
            said = await first
        except (OSError, asyncio.IncompleteReadError) as error:
            raise LostError(str(error)) from error
        if b" 100 " in said.split(b"\r\n")[0]:
            ledger.judge("continues", "Expect: 100-continue", await read_reply(reader), start, expected={OVERLOADED})
        else:
            ledger.count("continues", REFUSED)


async def old_client(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Use HTTP/1.0, as some proxies do."""
    start = time.monotonic()
    async with connect(target.port) as (reader, writer):
        request = head("POST", "/predict?map=none", BYTES, length=len(target.image)).replace(
            b"HTTP/1.1", b"HTTP/1.0", 1
        )
        await send(writer, request + target.image)
        ledger.judge("old_client", "HTTP/1.0", await read_reply(reader), start, expected={OVERLOADED})


async def sends_first(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Send the whole body of a refused request before reading the answer, which must be there."""
    start = time.monotonic()
    query, size = chance.choice(
        (("?task=bottle", 7_700_000), ("?nonsense=1", 7_700_000), ("", target.max_upload_bytes + 1000))
    )
    async with connect(target.port) as (reader, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        request = head("POST", "/predict" + query, BYTES | {"Connection": "close"}, length=size)
        await send(writer, request + bytes(size))
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        ledger.judge("sends_first", f"{query} {size:,}", await read_reply(reader), start, right=())


ATTACKS: tuple[Attack, ...] = (
    leave,
    leave,
    leave,
    half_head,
    dripping_head,
    silence,
    dripping_body,
    crowd,
    reads_nothing,
    reads_slowly,
    pipelining,
    tiny_chunks,
    continues,
    old_client,
    sends_first,
)
"""Attacks with many variants come more often."""
