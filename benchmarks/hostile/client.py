"""An asyncio HTTP client that can misbehave: the caller controls every step of a request."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LostError", "Reply", "ask", "connect", "form", "head", "read_reply"]

PIECE = 64 * 1024


class LostError(Exception):
    """The connection ended before the answer did."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_problem(self) -> bool:
        """Whether the answer is a problem document with the answer's status."""
        if self.headers.get("content-type", "").split(";")[0] != "application/problem+json":
            return False
        with contextlib.suppress(ValueError):
            return json.loads(self.body).get("status") == self.status
        return False

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def head(method: str, target: str, headers: dict[str, str] | None = None, *, length: int | None = None) -> bytes:
    """The head of a request, with ``Content-Length`` where ``length`` is given."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def form(parts: Iterable[tuple[str, bytes]], boundary: str = "limit") -> tuple[bytes, dict[str, str]]:
    """A multipart body and its header. The parts have no headers but their names."""
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'.encode()
        + (b'; filename="image"' if name == "file" else b"")
        + b"\r\n\r\n"
        + data
        + b"\r\n"
        for name, data in parts
    )
    return body + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


@contextlib.asynccontextmanager
async def connect(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is aborted at the end of the block."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    except OSError as error:
        raise LostError(f"no connection: {error.strerror or error}") from error
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_reply(reader: asyncio.StreamReader, method: str = "POST") -> Reply:
    """The next answer on a connection. ``LostError`` when it is missing or incomplete."""
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(first.split(" ", 2)[1])
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if method == "HEAD" or status in (204, 304) or status < 200:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = await _chunks(reader)
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read()
    except (OSError, EOFError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError, ValueError) as error:
        raise LostError(f"{type(error).__name__}: {error}") from error
    return await read_reply(reader, method) if status < 200 else Reply(status, headers, body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body (RFC 9112, section 7.1)."""
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send everything, or as much as the server reads: it may answer and close early."""
    with contextlib.suppress(OSError):
        for start in range(0, len(data), PIECE):
            writer.write(data[start : start + PIECE])
            await writer.drain()


async def ask(
    port: int, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Reply:
    """One request on its own connection. The answer is read while the body is still being sent."""
    async with connect(port) as (reader, writer):
        length = None if body is None else len(body)
        sending = asyncio.create_task(send(writer, head(method, target, headers, length=length) + (body or b"")))
        try:
            return await read_reply(reader, method)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
