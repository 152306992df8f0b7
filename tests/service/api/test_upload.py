"""Reading uploads: raw bodies and forms, and limits that do not depend on the headers."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from fastapi import HTTPException
from hypothesis import given, settings
from hypothesis import strategies as st

from moleflow.model.errors import ImageTooLargeError
from moleflow.service.api.form import framing_bytes
from moleflow.service.api.upload import Upload, read_upload

BOUNDARY = "----frontier"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
RAW = {"content-type": "image/png"}


class Body:
    """A body in chunks that counts how many were read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks, self.taken = chunks, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.taken += 1
            yield chunk


def upload(headers: dict[str, str], *chunks: bytes, max_bytes: int = 1000) -> Upload:
    return asyncio.run(read_upload(headers, aiter(Body(chunks)), max_bytes))


def read(headers: dict[str, str], *chunks: bytes, max_bytes: int = 1000) -> bytes:
    return upload(headers, *chunks, max_bytes=max_bytes).data


def part(name: str, content: bytes, filename: str | None = "a.png") -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
    return b"--%s\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (BOUNDARY.encode(), disposition.encode(), content)


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--%s--\r\n" % BOUNDARY.encode()


def rejected(headers: dict[str, str], *chunks: bytes) -> HTTPException:
    with pytest.raises(HTTPException) as caught:
        read(headers, *chunks)
    return caught.value


@pytest.mark.parametrize("content_type", ["image/png", "image/x-anything", "application/octet-stream", None])
def test_a_raw_body_is_the_image(content_type: str | None) -> None:
    assert read({"content-type": content_type} if content_type else {}, b"ab", b"", b"cd") == b"abcd"


def test_the_form_field_file_is_the_image() -> None:
    assert read(FORM, form(part("note", b"hello", None), part("file", b"abcd"), part("other", b"x"))) == b"abcd"


def test_the_other_form_fields_are_returned_in_order() -> None:
    body = form(part("task", "Würfel".encode(), None), part("file", b"abcd"), part("map", b"none", None))
    assert upload(FORM, body).fields == (("task", "Würfel"), ("map", "none"))


def test_preamble_and_epilogue_are_ignored() -> None:
    assert read(FORM, b"\r\n" + form(part("file", b"abcd")) + b"the end") == b"abcd"


@pytest.mark.parametrize("length", [1, 70])
def test_a_boundary_may_have_up_to_seventy_bytes(length: int) -> None:
    body = form(part("file", b"abcd")).replace(BOUNDARY.encode(), b"b" * length)
    assert read({"content-type": f"multipart/form-data; boundary={'b' * length}"}, body) == b"abcd"


def test_the_file_needs_no_file_name() -> None:
    assert read(FORM, form(part("file", b"abcd", None))) == b"abcd"


@settings(max_examples=50, deadline=None)
@given(content=st.binary(min_size=1, max_size=300), cut=st.integers(1, 50))
def test_a_form_may_be_split_into_chunks_anywhere(content: bytes, cut: int) -> None:
    body = form(part("file", content))
    assert read(FORM, *(body[i : i + cut] for i in range(0, len(body), cut))) == content


def test_an_image_at_the_limit_is_read() -> None:
    assert len(read(RAW, b"x" * 600, b"x" * 400)) == 1000


def test_a_form_with_an_image_at_the_limit_is_read() -> None:
    assert len(read(FORM, form(part("file", b"x" * 1000)))) == 1000


@pytest.mark.parametrize(
    ("headers", "body"), [(RAW, b"x" * 1001), (FORM, form(part("file", b"x" * 1001)))], ids=["raw", "form"]
)
def test_one_byte_too_many_is_rejected(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(ImageTooLargeError, match="1,000 bytes"):
        read(headers, body)


def test_an_excessive_declared_size_is_rejected_before_reading() -> None:
    body = Body([b"x"])
    with pytest.raises(ImageTooLargeError):
        asyncio.run(read_upload(RAW | {"content-length": "1001"}, aiter(body), 1000))
    assert body.taken == 0


def test_a_declared_size_of_thousands_of_digits_is_rejected() -> None:
    with pytest.raises(ImageTooLargeError):
        read(RAW | {"content-length": "9" * 5000}, b"x")


@pytest.mark.parametrize("declared", ["10", "nonsense", "-5", ""])
def test_a_wrong_declared_size_does_not_bypass_the_limit(declared: str) -> None:
    body = Body(b"x" * 500 for _ in range(1000))
    with pytest.raises(ImageTooLargeError):
        asyncio.run(read_upload(RAW | {"content-length": declared}, aiter(body), 1000))
    assert body.taken == 3


def test_an_endless_body_is_read_only_up_to_the_limit() -> None:
    body = Body(iter(lambda: b"x" * 100, None))
    with pytest.raises(ImageTooLargeError):
        asyncio.run(read_upload(RAW, aiter(body), 1000))
    assert body.taken == 11


def test_an_endless_image_in_a_form_is_read_only_up_to_the_limit() -> None:
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
    assert body.taken * 1000 < 2 * framing_bytes(1)


@pytest.mark.parametrize("junk", [b"\n" * 1000, b"\r\n" * 1000, b"\r\n--" * 1000, b"\r" * 1000])
def test_bytes_before_the_first_boundary_cannot_make_a_form_endless(junk: bytes) -> None:
    body = Body([b"\r\n"] + [junk] * 1000)
    with pytest.raises((ImageTooLargeError, HTTPException)):
        asyncio.run(read_upload(FORM, aiter(body), 10_000_000))
    assert body.taken * len(junk) < 2 * framing_bytes(1)


def test_bytes_after_the_last_boundary_cannot_make_a_form_endless() -> None:
    body = Body([form(part("file", b"abcd"))] + [b"x" * 1000] * 1000)
    with pytest.raises(ImageTooLargeError):
        asyncio.run(read_upload(FORM, aiter(body), 10_000_000))
    assert body.taken * 1000 < 2 * framing_bytes(1)


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data; " + ";" * 2000, "image/" + "x" * 2000, 'multipart/form-data; boundary="' + '\\"' * 800],
)
def test_a_content_type_of_thousands_of_characters_is_rejected(content_type: str) -> None:
    assert rejected({"content-type": content_type}, b"x").status_code == 415


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/x-www-form-urlencoded", "text/plain", "multipart/mixed; boundary=x"],
)
def test_an_unsupported_content_type_is_rejected(content_type: str) -> None:
    error = rejected({"content-type": content_type}, b"x")
    assert error.status_code == 415
    assert "multipart form with the field 'file'" in error.detail


def test_a_compressed_body_is_rejected() -> None:
    error = rejected(RAW | {"content-encoding": "gzip"}, b"x")
    assert error.status_code == 415
    assert "gzip" in error.detail


@pytest.mark.parametrize(
    ("headers", "body", "hint"),
    [
        (RAW, b"", "body is empty"),
        (FORM, form(part("file", b"")), "'file' is empty"),
        (FORM, form(part("image", b"abc")), "'file' is missing"),
        (FORM, form(), "'file' is missing"),
        (FORM, form(part("file", b"a"), part("file", b"b")), "one image per request"),
        (FORM, part("file", b"abc"), "ends before the closing boundary"),
        (FORM, b"", "ends before the closing boundary"),
        (FORM, b"this is no form at all", "cannot be read"),
        ({"content-type": "multipart/form-data"}, form(part("file", b"abc")), "no boundary"),
        ({"content-type": "multipart/form-data; boundary=" + "x" * 71}, b"", "71 bytes"),
        (FORM, form(*[part("note", b"", None)] * 16, part("file", b"abcd")), "more than 16 parts"),
        (FORM, form(part("file", (b"\r\n--" + BOUNDARY.encode() + b"x") * 17)), "more than 16 parts"),
        (FORM, form(part("file", b"a")).replace(b"\r\n\r\n", b"\r\nA: b" * 8 + b"\r\n\r\n", 1), "header count"),
        (FORM, form(part("file", b"a")).replace(b"\r\n\r\n", b"\r\nA: " + b"b" * 5000 + b"\r\n\r\n", 1), "header"),
        (FORM, form(b"--" + BOUNDARY.encode() + b"\r\n\r\na\r\n"), "has no name"),
    ],
)
def test_a_body_without_exactly_one_image_is_rejected(headers: dict[str, str], body: bytes, hint: str) -> None:
    error = rejected(headers, body)
    assert error.status_code == 422
    assert hint in error.detail


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_as_a_form_are_read_or_rejected(junk: bytes) -> None:
    for body in (junk, b"--" + BOUNDARY.encode() + junk, part("file", junk)[: 80 + len(junk) // 2]):
        with pytest.raises((HTTPException, ImageTooLargeError)):
            read(FORM, body)
