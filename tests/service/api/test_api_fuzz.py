"""Arbitrary bytes yield a prediction or a 4xx error, never a failure of the service."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from running import Running
from sample_images import encoded, sample_image

KINDS = [
    encoded(sample_image(20, 16)),
    encoded(Image.fromarray(sample_image(20, 16)).convert("P"), transparency=1),
    encoded(sample_image(20, 16), "JPEG"),
    encoded(sample_image(20, 16), "JPEG", progressive=True),
    encoded(sample_image(20, 16), "WEBP"),
    encoded(sample_image(20, 16), "BMP"),
    encoded(sample_image(20, 16), "TIFF"),
    encoded(sample_image(20, 16), "TIFF", compression="tiff_lzw"),
    encoded(sample_image(20, 16), "GIF"),
]
MAGIC = [data[:12] for data in KINDS]

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def predicted_or_rejected(service: Running, data: bytes) -> bool:
    response = service.predict(data, map="none")
    if response.status_code == 200:
        return response.json()["image"]["width"] >= 1
    return response.status_code in {413, 415, 422} and response.json()["status"] == response.status_code


@few
@given(st.binary(max_size=200))
def test_random_bytes_are_handled(service: Running, data: bytes) -> None:
    assert predicted_or_rejected(service, data)


@few
@given(st.sampled_from(MAGIC), st.binary(max_size=200))
def test_an_image_signature_followed_by_random_bytes_is_handled(service: Running, magic: bytes, data: bytes) -> None:
    assert predicted_or_rejected(service, magic + data)


@few
@given(st.sampled_from(KINDS), st.floats(0, 1))
def test_truncated_images_are_handled(service: Running, data: bytes, fraction: float) -> None:
    assert predicted_or_rejected(service, data[: int(len(data) * fraction)])


@few
@given(st.sampled_from(KINDS), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=20))
def test_images_with_changed_bytes_are_handled(service: Running, data: bytes, changes: list[tuple[float, int]]) -> None:
    changed = bytearray(data)
    for place, value in changes:
        changed[int(place * len(changed))] = value
    assert predicted_or_rejected(service, bytes(changed))


@few
@given(st.binary(max_size=200))
def test_random_bytes_as_a_form_are_rejected(service: Running, data: bytes) -> None:
    response = service.predict(b"--b" + data, {"content-type": "multipart/form-data; boundary=b"})
    assert response.status_code in {413, 415, 422}
