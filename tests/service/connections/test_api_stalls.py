"""No request blocks the event loop for long."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

import pytest
from running import Running, request_head

LONGEST_STALL_SECONDS = 0.5
"""Without limits these block the loop for seconds; with them for milliseconds, and longer on busy machines."""

BOUNDARY = b"b"
MEBIBYTE = 2**20


ATTEMPTS = 5
"""A delay caused by a busy machine does not occur every time; one caused by the request does."""


class Watchdog:
    """A task on the server's event loop that measures the longest delay."""

    longest = 0.0

    async def watch(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            self.longest, last = max(self.longest, now - last), now


@contextlib.contextmanager
def watched(service: Running) -> Iterator[Watchdog]:
    watchdog = Watchdog()
    watching = asyncio.run_coroutine_threadsafe(watchdog.watch(), service.loops[0])
    try:
        yield watchdog
    finally:
        watching.cancel()


def exchange(service: Running, *data: bytes) -> bytes:
    """The beginning of the response to these bytes; empty if the server closes without one."""
    with service.connect() as connection:
        with contextlib.suppress(OSError):  # the server may reject it early
            for piece in data:
                connection.sendall(piece)
        try:
            return connection.recv(MEBIBYTE)
        except OSError:
            return b""


def stalls(service: Running, *data: bytes) -> bool:
    """Whether these bytes block the event loop every time they are sent."""
    for _ in range(ATTEMPTS):
        with watched(service) as watchdog:
            exchange(service, *data)
        if watchdog.longest < LONGEST_STALL_SECONDS:
            return False
    return True


def form(body: bytes, boundary: bytes = BOUNDARY) -> tuple[bytes, bytes]:
    return request_head(len(body), f"multipart/form-data; boundary={boundary.decode()}"), body


def file_of(content: bytes) -> bytes:
    """A form with this file content."""
    head = b'--%s\r\nContent-Disposition: form-data; name="file"\r\n\r\n' % BOUNDARY
    return head + content + b"\r\n--%s--\r\n" % BOUNDARY


def repeated(piece: bytes, size: int) -> bytes:
    return piece * (size // len(piece))


FORMS = {
    "tiny parts": repeated(b"--b\r\n\r\n\r\n", 8 * MEBIBYTE),
    "named tiny parts": repeated(b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n', 8 * MEBIBYTE),
    "headers of one part": b"--b\r\n" + repeated(b"A: b\r\n", 8 * MEBIBYTE),
    "a header without end": b"--b\r\nA: " + b"x" * 8 * MEBIBYTE,
    "a header name without end": b"--b\r\n" + b"x" * 8 * MEBIBYTE,
    "quotes in a disposition": b"--b\r\nContent-Disposition: form-data" + b'; a="\\' * MEBIBYTE,
    "a preamble of line breaks": b"\r\n" * 4 * MEBIBYTE,
    "a preamble of near boundaries": b"\r\n" + repeated(b"\r\n--a", 8 * MEBIBYTE),
    "an epilogue": file_of(b"x") + b"--b\r\n" * MEBIBYTE,
    "a file of false boundaries": file_of(repeated(b"\r\n--bx", 8 * MEBIBYTE)),
    "a file of near boundaries": file_of(repeated(b"\r\n--", 8 * MEBIBYTE)),
    "a file of line breaks": file_of(repeated(b"\r", 8 * MEBIBYTE)),
    "a field of megabytes": b'--b\r\nContent-Disposition: form-data; name="task"\r\n\r\n' + b"x" * 8 * MEBIBYTE,
}


@pytest.mark.parametrize("kind", FORMS)
def test_a_hostile_form_is_rejected_without_blocking_the_event_loop(service: Running, kind: str) -> None:
    answer = exchange(service, *form(FORMS[kind]))
    assert answer.split()[1] in {b"413", b"415", b"422"}
    assert not stalls(service, *form(FORMS[kind]))


def test_a_large_upload_does_not_block_the_event_loop(service: Running) -> None:
    data = b"x" * 32 * MEBIBYTE
    assert exchange(service, request_head(len(data)), data).split()[1] == b"415"
    assert not stalls(service, request_head(len(data)), data)


@pytest.mark.parametrize("size", [1, 2])
def test_a_body_of_tiny_chunks_does_not_block_the_event_loop(service: Running, size: int) -> None:
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    head = b"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert not stalls(service, head, repeated(chunk, MEBIBYTE // 4), b"0\r\n\r\n")


LINES = {
    "query parameters": (b"POST /predict?" + b"a&" * 500_000, []),
    "one query parameter": (b"POST /predict?task=" + b"x" * MEBIBYTE, []),
    "percent signs": (b"GET /tasks/" + b"%41" * 300_000, []),
    "slashes": (b"GET " + b"/" * MEBIBYTE, []),
    "accept": (b"POST /predict", [b"Accept: " + b"a/b;q=0.1," * 100_000]),
    "commas in accept": (b"POST /predict", [b"Accept: " + b"," * MEBIBYTE]),
    "accept many times": (b"POST /predict", [b"Accept: a/b"] * 70_000),
    "cookies": (b"GET /tasks", [b"Cookie: a=b"] * 70_000),
    "header lines": (b"GET /tasks", [b"a:"] * 200_000),
    "content type": (b"POST /predict", [b"Content-Type: multipart/form-data" + b'; a="\\' * 150_000]),
    "content length": (b"POST /predict", [b"Content-Length: " + b"9" * MEBIBYTE]),
    "origin": (b"POST /predict", [b"Origin: http://" + b"[" * MEBIBYTE]),
    "forwarded hosts": (b"POST /predict", [b"Origin: http://a", b"X-Forwarded-Host: " + b"a," * 500_000]),
}


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("bytes_sent", [15_000, MEBIBYTE])
def test_a_request_head_of_any_size_does_not_block_the_event_loop(service: Running, kind: str, bytes_sent: int) -> None:
    request, headers = LINES[kind]
    head = b"\r\n".join([request[:bytes_sent] + b" HTTP/1.1", b"Host: localhost", *headers])[:bytes_sent]
    assert not stalls(service, head + b"\r\nContent-Length: 0\r\n\r\n")
