"""Encodings of anomaly maps, and overlays."""

import base64
import io

import numpy as np
import pytest
from dummy import calibration, encode_map
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from sample_images import sample_image

from moleflow.model.verdict.calibration import TaskCalibration
from moleflow.model.verdict.heatmap import ColourScale, overlay
from moleflow.model.verdict.results import Candidate, Prediction
from moleflow.service.responses.encode import MapEncoding, base64_pieces, map_to_png, npy_pieces, overlay_png
from moleflow.service.responses.schemas import AnomalyMap

MAPS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(-1e6, 1e6, width=32)
)


def real_values(encoded: AnomalyMap) -> np.ndarray:
    """Decode a map as a client does."""
    data = io.BytesIO(base64.b64decode(encoded.data))
    if encoded.encoding == "npy":
        return np.load(data)
    stored = np.asarray(Image.open(data)).astype(np.float64)
    return encoded.minimum + stored / 65535 * (encoded.maximum - encoded.minimum)


def prediction(grid: np.ndarray, threshold: float) -> Prediction:
    task = Candidate("red", 0, 1.0, 0.5, 0.1)
    score = float(np.sort(grid.ravel())[-3:].mean())
    scores = calibration(threshold)
    calibrated = TaskCalibration(scores=scores, peaks=scores, grounds=scores, distances=scores)
    return Prediction((task,), task, score, grid.astype(np.float32), 64, calibrated)


def grid_with_spot(level: float) -> np.ndarray:
    grid = np.random.default_rng(0).normal(-100, 5, (8, 8))
    grid[2:4, 2:4] = level
    return grid


@settings(max_examples=50, deadline=None)
@given(MAPS)
def test_a_png_map_preserves_values_within_half_a_step(values: np.ndarray) -> None:
    encoded = encode_map(values, "png")
    step = (encoded.maximum - encoded.minimum) / 65535
    assert np.abs(real_values(encoded) - values).max() <= step / 2 * 1.02


@settings(max_examples=50, deadline=None)
@given(MAPS)
def test_an_npy_map_preserves_values_exactly(values: np.ndarray) -> None:
    assert np.array_equal(real_values(encode_map(values, "npy")), values)


@pytest.mark.parametrize("encoding", ["png", "npy", "npy16"])
def test_the_range_of_a_map_is_that_of_its_values(encoding: MapEncoding) -> None:
    values = np.array([[-3.5, 2.0, 9.25]], np.float32)
    encoded = encode_map(values, encoding)
    assert (encoded.minimum, encoded.maximum, encoded.shape) == (-3.5, 9.25, (1, 3))


def test_a_png_map_is_16_bit_greyscale() -> None:
    image = Image.open(io.BytesIO(map_to_png(np.arange(12, dtype=np.float32).reshape(3, 4))))
    assert image.mode.startswith("I;16")
    assert image.size == (4, 3)


def test_a_constant_map_is_encoded_without_dividing_by_zero() -> None:
    encoded = encode_map(np.full((4, 5), 7.5, np.float32), "png")
    assert np.array_equal(real_values(encoded), np.full((4, 5), 7.5))


@pytest.mark.parametrize("half", [False, True])
def test_an_npy_map_is_a_plain_numpy_file(half: bool) -> None:
    loaded = np.load(io.BytesIO(b"".join(npy_pieces(np.ones((2, 3), np.float32), half=half))), allow_pickle=False)
    assert loaded.dtype == (np.float16 if half else np.float32)
    assert loaded.shape == (2, 3)


@settings(max_examples=50, deadline=None)
@given(MAPS)
def test_a_float16_map_preserves_values_within_one_part_in_2000(values: np.ndarray) -> None:
    encoded = encode_map(values, "npy16")
    within = np.clip(values, -65504, 65504)
    assert encoded.dtype == "float16"
    assert np.allclose(real_values(encoded), within, rtol=1 / 2000, atol=1e-6)


def test_base64_in_pieces_equals_base64_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moleflow.service.responses.encode._BASE64_STEP", 4)
    pieces = [b"", b"a", b"bcdefghij", b"kl", b"mnopqrs"]
    assert b"".join(base64_pieces(pieces)) == base64.b64encode(b"".join(pieces))


def test_an_overlay_has_the_size_of_the_image() -> None:
    data = overlay_png(sample_image(90, 60), prediction(grid_with_spot(500), threshold=50))
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (90, 60))


def test_an_overlay_barely_changes_normal_areas() -> None:
    shown = sample_image(90, 60)
    result = overlay(shown, prediction(grid_with_spot(500), threshold=50))
    ordinary = np.abs(result.astype(int) - shown)[45:, 60:]
    assert ordinary.max() <= 3


def test_an_overlay_marks_the_defect() -> None:
    shown = sample_image(90, 60)
    result = overlay(shown, prediction(grid_with_spot(500), threshold=50))
    change = np.abs(result.astype(int) - shown).sum(2)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert 10 < row < 35
    assert 15 < column < 50
    assert change.max() > 100


def test_an_overlay_does_not_modify_its_input() -> None:
    shown = sample_image()
    before = shown.copy()
    overlay(shown, prediction(grid_with_spot(500), threshold=50))
    assert np.array_equal(shown, before)


def test_an_overlay_made_in_bands_equals_one_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = prediction(grid_with_spot(500), threshold=50)
    at_once = overlay(sample_image(40, 300), found)
    monkeypatch.setattr("moleflow.model.verdict.heatmap._BAND", 7)
    assert np.array_equal(overlay(sample_image(40, 300), found), at_once)


@settings(max_examples=200, deadline=None)
@given(
    grid=arrays.arrays(np.float32, (8, 8), elements=st.floats(-1000, 1000, width=16)),
    threshold=st.integers(-1000, 1000),
)
def test_colours_pass_the_middle_exactly_when_the_verdict_is_anomalous(grid: np.ndarray, threshold: int) -> None:
    found = prediction(grid, threshold + 0.3)  # not so close to the score that rounding decides
    pixels = found.pixel_map(32, 32)
    levels = ColourScale.of(found, peak=float(pixels.max())).levels(pixels)
    assert (levels.max() > 127) == found.is_anomalous


def test_an_entirely_defective_image_is_coloured_all_over() -> None:
    found = prediction(np.full((8, 8), 900.0), threshold=50)
    pixels = found.pixel_map(32, 32)
    assert ColourScale.of(found, peak=float(pixels.max())).levels(pixels).min() > 127
