"""Reading uploads: both kinds of body, and limits that hold whatever the headers say."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from fastapi import HTTPException
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ImageTooLargeError
from service.upload import FRAMING_BYTES, read_upload

BOUNDARY = "----frontier"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
RAW = {"content-type": "image/png"}


class Body:
    """A body in chunks that counts how many were asked for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks, self.taken = chunks, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.taken += 1
            yield chunk


def read(headers: dict[str, str], *chunks: bytes, max_bytes: int = 1000) -> bytes:
    return asyncio.run(read_upload(headers, aiter(Body(chunks)), max_bytes))


def part(name: str, content: bytes, filename: str | None = "a.png") -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    return b"--%s\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (BOUNDARY.encode(), disposition.encode(), content)


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--%s--\r\n" % BOUNDARY.encode()


def refused(headers: dict[str, str], *chunks: bytes) -> HTTPException:
    with pytest.raises(HTTPException) as caught:
        read(headers, *chunks)
    return caught.value


@pytest.mark.parametrize("content_type", ["image/png", "image/x-anything", "application/octet-stream", None])
def test_a_raw_body_is_the_picture(content_type: str | None) -> None:
    assert read({"content-type": content_type} if content_type else {}, b"ab", b"", b"cd") == b"abcd"


def test_the_field_file_of_a_form_is_the_picture() -> None:
    assert read(FORM, form(part("note", b"hello", None), part("file", b"abcd"), part("other", b"x"))) == b"abcd"


def test_a_field_without_a_file_name_will_do() -> None:
    assert read(FORM, form(part("file", b"abcd", None))) == b"abcd"


@settings(max_examples=50, deadline=None)
@given(content=st.binary(min_size=1, max_size=300), cut=st.integers(1, 50))
def test_a_form_may_be_cut_into_chunks_anywhere(content: bytes, cut: int) -> None:
    body = form(part("file", content))
    assert read(FORM, *(body[i : i + cut] for i in range(0, len(body), cut))) == content


def test_a_picture_at_the_limit_is_read() -> None:
    assert len(read(RAW, b"x" * 600, b"x" * 400)) == 1000


def test_a_form_with_a_picture_at_the_limit_is_read() -> None:
    assert len(read(FORM, form(part("file", b"x" * 1000)))) == 1000


@pytest.mark.parametrize(
    ("headers", "body"), [(RAW, b"x" * 1001), (FORM, form(part("file", b"x" * 1001)))], ids=["raw", "form"]
)
def test_one_byte_too_many_is_refused(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(ImageTooLargeError, match="1,000 bytes"):
        read(headers, body)


def test_a_declared_size_that_is_too_large_is_refused_before_anything_is_read() -> None:
    body = Body([b"x"])
    with pytest.raises(ImageTooLargeError):
        asyncio.run(read_upload(RAW | {"content-length": "1001"}, aiter(body), 1000))
    assert body.taken == 0


@pytest.mark.parametrize("declared", ["10", "nonsense", "-5", ""])
def test_a_declared_size_that_lies_does_not_lift_the_limit(declared: str) -> None:
    body = Body(b"x" * 500 for _ in range(1000))
    with pytest.raises(ImageTooLargeError):
        asyncio.run(read_upload(RAW | {"content-length": declared}, aiter(body), 1000))
    assert body.taken == 3


def test_an_endless_body_is_read_no_further_than_the_limit() -> None:
    body = Body(iter(lambda: b"x" * 100, None))
    with pytest.raises(ImageTooLargeError):
        asyncio.run(read_upload(RAW, aiter(body), 1000))
    assert body.taken == 11


def test_an_endless_picture_in_a_form_is_read_no_further_than_the_limit() -> None:
    head = part("file", b"")[:-2]

    def chunks() -> Iterable[bytes]:
        yield head
        while True:
            yield b"x" * 100

    body = Body(chunks())
    with pytest.raises(ImageTooLargeError):
        asyncio.run(read_upload(FORM, aiter(body), 1000))
    assert body.taken <= 13


def test_other_fields_cannot_make_a_form_endless() -> None:
    head = part("note", b"", None)[:-2]

    def chunks() -> Iterable[bytes]:
        yield head
        while True:
            yield b"x" * 1000

    body = Body(chunks())
    with pytest.raises(ImageTooLargeError):
        asyncio.run(read_upload(FORM, aiter(body), 1000))
    assert body.taken * 1000 < 2 * FRAMING_BYTES


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/x-www-form-urlencoded", "text/plain", "multipart/mixed; boundary=x"],
)
def test_another_kind_of_body_is_refused(content_type: str) -> None:
    error = refused({"content-type": content_type}, b"x")
    assert error.status_code == 415
    assert "multipart form with the field 'file'" in error.detail


def test_a_compressed_body_is_refused() -> None:
    error = refused(RAW | {"content-encoding": "gzip"}, b"x")
    assert error.status_code == 415
    assert "gzip" in error.detail


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        (RAW, b"", "body is empty"),
        (FORM, form(part("file", b"")), "'file' is empty"),
        (FORM, form(part("picture", b"abc")), "'file' is missing"),
        (FORM, form(), "'file' is missing"),
        (FORM, form(part("file", b"a"), part("file", b"b")), "one picture a request"),
        (FORM, part("file", b"abc"), "ends before its closing boundary"),
        (FORM, b"", "ends before its closing boundary"),
        (FORM, b"this is no form at all", "cannot be read"),
        ({"content-type": "multipart/form-data"}, form(part("file", b"abc")), "no boundary"),
        ({"content-type": "multipart/form-data; boundary=" + "x" * 300}, b"", "cannot be read"),
    ],
)
def test_a_body_without_exactly_one_picture_is_refused(headers: dict[str, str], body: bytes, said: str) -> None:
    error = refused(headers, body)
    assert error.status_code == 422
    assert said in error.detail


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_as_a_form_are_read_or_refused(junk: bytes) -> None:
    for body in (junk, b"--" + BOUNDARY.encode() + junk, part("file", junk)[: 80 + len(junk) // 2]):
        with pytest.raises((HTTPException, ImageTooLargeError)):
            read(FORM, body)
