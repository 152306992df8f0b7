"""Whatever bytes come, the answer is an image's or a problem of the 4xx kind, never a failure of the service."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rgb_images import encoded, rgb_image
from running import Running

KINDS = [
    encoded(rgb_image(20, 16)),
    encoded(Image.fromarray(rgb_image(20, 16)).convert("P"), transparency=1),
    encoded(rgb_image(20, 16), "JPEG"),
    encoded(rgb_image(20, 16), "JPEG", progressive=True),
    encoded(rgb_image(20, 16), "WEBP"),
    encoded(rgb_image(20, 16), "BMP"),
    encoded(rgb_image(20, 16), "TIFF"),
    encoded(rgb_image(20, 16), "TIFF", compression="tiff_lzw"),
    encoded(rgb_image(20, 16), "GIF"),
]
MAGIC = [data[:12] for data in KINDS]

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def judged_or_refused(service: Running, data: bytes) -> bool:
    response = service.predict(data, map="none")
    if response.status_code == 200:
        return response.json()["image"]["width"] >= 1
    return response.status_code in {413, 415, 422} and response.json()["status"] == response.status_code


@few
@given(st.binary(max_size=200))
def test_random_bytes(service: Running, data: bytes) -> None:
    assert judged_or_refused(service, data)


@few
@given(st.sampled_from(MAGIC), st.binary(max_size=200))
def test_the_beginning_of_an_image_and_then_random_bytes(service: Running, magic: bytes, data: bytes) -> None:
    assert judged_or_refused(service, magic + data)


@few
@given(st.sampled_from(KINDS), st.floats(0, 1))
def test_images_cut_short(service: Running, data: bytes, share: float) -> None:
    assert judged_or_refused(service, data[: int(len(data) * share)])


@few
@given(st.sampled_from(KINDS), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=20))
def test_images_with_bytes_changed(service: Running, data: bytes, changes: list[tuple[float, int]]) -> None:
    changed = bytearray(data)
    for place, value in changes:
        changed[int(place * len(changed))] = value
    assert judged_or_refused(service, bytes(changed))


@few
@given(st.binary(max_size=200))
def test_random_bytes_as_a_form(service: Running, data: bytes) -> None:
    response = service.predict(b"--b" + data, {"content-type": "multipart/form-data; boundary=b"})
    assert response.status_code in {413, 415, 422}
