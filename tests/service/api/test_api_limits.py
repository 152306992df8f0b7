"""Size and time limits over real connections, whatever the headers declare."""

from collections.abc import Iterator

import pytest
from running import Running, eventually, request_head, run_server
from sample_images import encoded, png_of_declared_size, sample_image

from moleflow.service.api.form import framing_bytes

LIMIT = 100_000


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    with run_server(max_upload_bytes=LIMIT, max_pixels=10_000, upload_timeout_seconds=0.5) as running:
        yield running


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_too_many_bytes_are_rejected(small: Running) -> None:
    response = small.predict(b"x" * (LIMIT + 1))
    assert response.status_code == 413
    assert "100,000 bytes" in response.json()["detail"]


def test_too_many_bytes_in_a_form_are_rejected(small: Running) -> None:
    response = small.client.post("/predict", files={"file": ("a.png", b"x" * (LIMIT + 1), "image/png")})
    assert response.status_code == 413


def test_a_chunked_upload_that_is_too_large_is_rejected(small: Running) -> None:
    chunks = (b"x" * 50_000 for _ in range(100))
    response = small.client.post("/predict", content=chunks, headers={"content-type": "image/png"})
    assert response.status_code == 413


def test_an_excessive_content_length_is_rejected_before_the_body_arrives(small: Running) -> None:
    with small.connect() as connection:
        connection.sendall(request_head(10**12))
        assert status_of(connection.recv(1000)) == 413


def test_a_short_content_length_yields_a_damaged_image(small: Running) -> None:
    with small.connect() as connection:
        connection.sendall(request_head(50) + encoded(sample_image()))
        assert status_of(connection.recv(1000)) == 415


def test_a_connection_can_be_reused_after_an_error(small: Running) -> None:
    assert small.predict(b"x" * (LIMIT + framing_bytes(1))).status_code == 413
    assert small.predict(encoded(sample_image())).status_code == 200


def test_a_stalled_upload_times_out(small: Running) -> None:
    with small.connect() as connection:
        connection.sendall(request_head(1000) + b"x")
        assert status_of(connection.recv(1000)) == 408
    assert eventually(lambda: small.metric("moleflow_uploads_in_progress") == 0)


def test_an_image_of_too_many_pixels_is_rejected(small: Running) -> None:
    response = small.predict(encoded(sample_image(101, 100)))
    assert response.status_code == 413
    assert "at most 10,000" in response.json()["detail"]


def test_a_decompression_bomb_is_rejected(service: Running) -> None:
    response = service.predict(png_of_declared_size(60_000, 60_000))
    assert response.status_code == 413
    assert response.json()["type"] == "urn:moleflow:problem:image-too-large"
