"""Truncated image files are found although they decode; complete ones are never reported."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moleflow.training.data.completeness import is_cut_off

END = b"\xff\xd9"


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (264, 200), **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    pixels = rng.normal(0, 20, (size[1], size[0], 3)) + np.linspace(60, 200, size[0])[None, :, None]
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def found(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return is_cut_off(data, np.asarray(image))


JPEG_KINDS: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 3},
    {"quality": 99},
]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", JPEG_KINDS, ids=str)
def test_a_truncated_jpeg_with_an_end_marker_is_found(options: dict[str, Any], mode: str) -> None:
    data = encoded("JPEG", mode, **options)
    for share in (0.3, 0.7, 0.97):
        assert found(data[: int(share * len(data))] + END), share


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", JPEG_KINDS, ids=str)
def test_a_complete_jpeg_is_not_reported(options: dict[str, Any], mode: str) -> None:
    data = encoded("JPEG", mode, **options)
    for padded in (data, data + b"maker's notes", data[:-2] + bytes(9) + END, data[:-2] + b"\xff" * 3 + END):
        assert not found(padded)


def test_a_jpeg_is_not_confused_with_its_thumbnail() -> None:
    data = encoded("JPEG")
    thumbnail = encoded("JPEG", size=(32, 24))
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    assert not found(data[:2] + segment + data[2:])
    assert found(data[:2] + segment + data[2:9000] + END)


@pytest.mark.parametrize("colour", [(128, 128, 128), (0, 0, 0), (255, 255, 255)])
def test_a_lower_part_of_a_single_colour_is_not_reported(colour: tuple[int, int, int]) -> None:
    pixels = np.full((200, 200, 3), colour, np.uint8)
    pixels[:50] = np.random.default_rng(0).integers(0, 256, (50, 200, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    assert not found(buffer.getvalue())


def test_a_png_without_its_end_is_found() -> None:
    data = encoded("PNG")
    assert not found(data)
    assert found(data[: len(data) // 2] + bytes(len(data) // 2))


def test_a_jpeg_without_its_end_is_found() -> None:
    data = encoded("JPEG")
    assert found(data[: len(data) // 2] + bytes(len(data)))
