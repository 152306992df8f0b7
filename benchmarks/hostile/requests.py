"""Attacks with the request: forms, paths, headers and bytes that no good client sends."""

import asyncio
import random
import time

from benchmarks.hostile.client import LostError, ask, connect, form, send
from benchmarks.hostile.ledger import CLOSED, REFUSED, Ledger
from benchmarks.hostile.target import BYTES, MEGABYTE, Attack, Target, closes, post

__all__ = ["ATTACKS"]

ROUTES = ("/", "/predict", "/tasks", "/tasks/noise0", "/health/live", "/health/ready", "/metrics", "/docs")

PATHS = (
    "/nothing",
    "//",
    "/page/../../pyproject.toml",
    "/page/%2e%2e/%2e%2e/etc/passwd",
    "/page/",
    "/%00",
    "/tasks/%0a%00",
    "/tasks/" + "x" * 3000,
    "/predict/",
    "/" + "a/" * 2000,
    "/tasks/%ff%fe",
    "/?" + "a=1&" * 5000,
    "/health",
    "/docs/../docs",
    "/page/\\..\\..",
    "*",
    "http://example.org/",
)

QUERIES = (
    "task=bottle",
    "task=",
    "task=%0a%00",
    "task=" + "x" * 5000,
    "false_alarm_rate=nan",
    "false_alarm_rate=inf",
    "false_alarm_rate=1e-400",
    "false_alarm_rate=-1",
    "map=jpg",
    "map_size=0",
    "nonsense=1",
    "task=noise0&task=noise1",
    "map=png&map=npy",
    "%ff=%fe",
    "false_alarm_rate=" + "9" * 5000,
)

HEADERS = (
    {"X": "a" * MEGABYTE},
    {f"X-{n}": "a" for n in range(10_000)},
    {"Accept": "a/b;q=" + "9" * 30_000},
    {"Accept": "*/*;q=0"},
    {"Content-Type": "multipart/form-data; boundary=" + "b" * 5000},
    {"Content-Type": "multipart/form-data"},
    {"Content-Type": "text/html"},
    {"Content-Encoding": "gzip"},
    {"Content-Type": "a" * 10_000},
    {"Accept": ",".join(["a/b"] * 5000)},
    {"Host": "evil.example"},
    {"Content-Type": "multipart/form-data; boundary=" + '"' * 3000},
    {"Upgrade": "websocket", "Connection": "Upgrade"},
)

_POST = b"POST /predict HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n"

NO_REQUESTS = (
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\0" * 100_000,
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /\r\n\r\n",
    _POST + b"Content-Length: -1\r\n\r\n",
    random.Random(0).randbytes(2000),
    _POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    _POST + b"Content-Length: 1e9\r\n\r\n",
    _CHUNKED + b"\r\nnonsense\r\n",
    _CHUNKED + b"\r\n-1\r\n",
    _CHUNKED + b"\r\n" + b"f" * 100_000,
    _POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"\r\n" * 50_000,
    b"A" * 200_000,
    _CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    _POST + b"a b: 1\r\n\r\n",
    _CHUNKED + b"\r\n5;" + b"x" * 100_000 + b"\r\nhello\r\n0\r\n\r\n",
    _POST + b" folded: 1\r\n\r\n",
    _POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
)

METHODS = ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "GET", "POST", "BREW", "get")


async def tiny_parts(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """8 MB of empty parts."""
    body, headers = form([("a", b"")] * 1)
    part = body[: body.index(b"--limit--")]
    await post(target, ledger, "tiny_parts", part * (8 * MEGABYTE // len(part)) + b"--limit--\r\n", headers, right=())


async def tiny_parts_before_image(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Many small parts before the image."""
    body, headers = form([("map", b"none")] * chance.randint(2, 5000) + [("file", target.image)])
    await post(target, ledger, "tiny_parts_before_image", body, headers, right=())


async def part_headers(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """A part with a head of megabytes, in one line or in many."""
    line = b"X-" + b"a" * MEGABYTE + b": 1\r\n" if chance.random() < 0.5 else b"X-A: 1\r\n" * 100_000
    body = b"--limit\r\n" + line + b'Content-Disposition: form-data; name="file"\r\n\r\n' + target.image
    headers = {"Content-Type": "multipart/form-data; boundary=limit"}
    await post(target, ledger, "part_headers", body + b"\r\n--limit--\r\n", headers, right=())


async def broken_form(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Forms without an end or a beginning, or of nothing but boundaries or line breaks."""
    whole, headers = form([("file", target.image)])
    kinds = (
        whole[:-12],
        whole[30:],
        b"--limit\r\n" * 200_000,
        b"\r\n" * MEGABYTE,
        b"-" * MEGABYTE,
        b"\r\n--limi" * 200_000,
    )
    await post(target, ledger, "broken_form", chance.choice(kinds), headers, right=())


async def form_fields(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Fields that are unknown, contradict the query, or come twice."""
    fields = chance.choice(
        [
            [("nonsense", b"1")],
            [("map", b"none"), ("map", b"png")],
            [("map", b"\xff\xfe")],
            [("task", b"x" * 100_000)],
            [("file", target.image)],
        ]
    )
    body, headers = form([*fields, ("file", target.image)])
    await post(target, ledger, "form_fields", body, headers, "?map=png", right=())


async def methods(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Every method on every route."""
    method, route = chance.choice(METHODS), chance.choice(ROUTES)
    start = time.monotonic()
    reply = await ask(target.port, method, route)
    without_body = frozenset({400, 404, 405, 422})
    if method == "HEAD" and reply.status in without_body:
        ledger.count("methods", REFUSED)
    else:
        ledger.judge("methods", f"{method} {route}", reply, start, expected=without_body, right=(200, 204))


async def paths(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Paths that lead nowhere, or out of their folder."""
    path = chance.choice(PATHS)
    start = time.monotonic()
    reply = await ask(target.port, "GET", path)
    expected = frozenset({400, 404, 405, 414, 422, 431})
    ledger.judge("paths", path[:80], reply, start, expected=expected, right=(200, 307))


async def queries(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Invalid values of parameters."""
    query = chance.choice(QUERIES)
    await post(target, ledger, "queries", target.image, BYTES, "?" + query, right=(200,) if "&" in query else ())


async def headers(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Headers that are too many, too long, or wrong."""
    chosen = chance.choice(HEADERS)
    try:
        await post(target, ledger, "headers", target.image, BYTES | chosen)
    except LostError:
        if sum(map(len, chosen.values())) < 10_000 and len(chosen) < 100:
            raise
        ledger.count("headers", CLOSED)  # the HTTP layer may close the connection


async def not_http(target: Target, ledger: Ledger, chance: random.Random) -> None:
    """Bytes that are not a request, or two at once."""
    data = chance.choice(NO_REQUESTS)
    async with connect(target.port) as (reader, writer):
        sending = asyncio.create_task(send(writer, data))
        try:
            await closes(target, "not_http", reader, ledger)
        finally:
            sending.cancel()


ATTACKS: tuple[Attack, ...] = (
    tiny_parts,
    tiny_parts_before_image,
    part_headers,
    broken_form,
    form_fields,
    methods,
    methods,
    paths,
    paths,
    queries,
    queries,
    headers,
    headers,
    not_http,
    not_http,
)
"""Attacks with many variants come more often."""
