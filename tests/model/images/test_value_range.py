"""16-bit images are scaled by each product's white level, and mismatches give warnings."""

import numpy as np
import pytest
from tiny_model import product_image, tiny_checkpoint

from moleflow.model.detector import Detector
from moleflow.model.images.value_range import Views, range_warnings, scale_values, white_level
from moleflow.model.verdict.results import Prediction

NAMES = ("bolt", "nut", "gear")
LEVELS = (1023, None, 4095)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path = tmp_path_factory.mktemp("ranges") / "tiny.safetensors"
    tiny_checkpoint(path, NAMES, white_levels=LEVELS)
    return Detector.load(path, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def without_levels(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path = tmp_path_factory.mktemp("plain") / "tiny.safetensors"
    tiny_checkpoint(path, NAMES)
    return Detector.load(path, device="cpu", precision="fp32")


def deep(kind: int, white: int) -> np.ndarray:
    """An image of a product from a sensor of higher bit depth."""
    return np.rint(product_image(kind, 50).astype(float) * white / 255).astype(np.uint16)


@pytest.mark.parametrize(
    ("peak", "expected"),
    [(0, 255), (255, 255), (256, 1023), (1023, 1023), (1024, 4095), (4095, 4095), (9000, 16383), (65535, 65535)],
)
def test_the_white_level_is_the_maximum_of_the_smallest_fitting_bit_depth(peak: int, expected: int) -> None:
    assert white_level(peak) == expected


def test_values_are_scaled_without_rounding_and_clipped_at_white() -> None:
    image = np.array([[[0, 1, 512], [1022, 1023, 5000]]], np.uint16)
    assert np.allclose(scale_values(image, 1023), image.clip(max=1023) * (255 / 1023), atol=1e-4)
    assert scale_values(image, 1023).dtype == np.float32


def test_without_a_white_level_the_full_16_bit_range_is_used() -> None:
    assert scale_values(np.full((1, 1, 3), 65_535, np.uint16), None).max() == pytest.approx(255)


def test_an_8_bit_image_is_unchanged() -> None:
    image = product_image(0, 1)
    assert scale_values(image, 1023) is image


def test_all_115_levels_of_a_10_bit_image_stay_distinct() -> None:
    values = np.broadcast_to(np.arange(200, 315, dtype=np.uint16)[:, None, None], (115, 1, 3))
    assert len(np.unique(scale_values(np.ascontiguousarray(values), white_level(int(values.max()))))) == 115


@pytest.mark.parametrize("product", [0, 2])
def test_a_product_scores_16_bit_images_like_8_bit_ones(detector: Detector, product: int) -> None:
    white = LEVELS[product]
    assert white
    (found,) = detector.predict([deep(product, white)], refuse_unknown=False)
    (expected,) = detector.predict([product_image(product, 50)], refuse_unknown=False)
    assert found.task.name == NAMES[product]
    assert found.score == pytest.approx(expected.score, rel=0.01)
    assert found.task.distance == pytest.approx(expected.task.distance, rel=0.05)
    assert (found.white_level, found.warnings) == (white, ())


def test_a_batch_of_mixed_ranges_gives_what_single_images_give(detector: Detector) -> None:
    images = [deep(0, 1023), product_image(1, 50), deep(2, 4095), deep(1, 65_535), product_image(0, 50)]
    together = detector.predict(images, refuse_unknown=False)
    assert [each.task.name for each in together] == ["bolt", "nut", "gear", "nut", "bolt"]
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.predict([image], refuse_unknown=False)
        assert found.score == pytest.approx(alone.score, rel=1e-4)
        assert found.warnings == alone.warnings


def test_8_bit_images_get_the_same_bits_with_and_without_white_levels(
    detector: Detector, without_levels: Detector
) -> None:
    images = [product_image(kind, 60) for kind in (0, 1, 2)]
    for found, expected in zip(
        detector.predict(images, refuse_unknown=False),
        without_levels.predict(images, refuse_unknown=False),
        strict=True,
    ):
        assert found.score == expected.score
        assert np.array_equal(found.grid_map, expected.grid_map)
        assert [each.name for each in found.candidates] == [each.name for each in expected.candidates]
        # Every product sees a view of its own, and a product of matrices may add in another order for a larger batch.
        distances = [[each.distance for each in one.candidates] for one in (found, expected)]
        assert distances[0] == pytest.approx(distances[1], rel=1e-5)


def test_a_named_product_uses_its_own_white_level(detector: Detector) -> None:
    (found,) = detector.predict([deep(0, 1023)], ["gear"], refuse_unknown=False)
    (expected,) = detector.predict([scaled_back(deep(0, 1023), 4095)], ["gear"], refuse_unknown=False)
    assert found.score == pytest.approx(expected.score, rel=0.02)


def scaled_back(image: np.ndarray, white: int) -> np.ndarray:
    return np.rint(scale_values(image, white)).astype(np.uint8)


def test_an_evaluation_sees_what_the_service_sees(detector: Detector) -> None:
    images = [deep(0, 1023), deep(2, 4095), product_image(1, 50)]
    for (routed, named), alone in zip(
        detector.predict_both(images, ["bolt", "bolt", "nut"]),
        [detector.predict([image], refuse_unknown=False)[0] for image in images],
        strict=True,
    ):
        assert routed.score == pytest.approx(alone.score, rel=1e-4)
        (forced,) = detector.predict([images[0]], ["bolt"], refuse_unknown=False)
        if named is not routed:
            (forced,) = detector.predict([images[1]], ["bolt"], refuse_unknown=False)
            assert named.score == pytest.approx(forced.score, rel=1e-4)


def test_a_refusal_has_warnings_too(detector: Detector) -> None:
    (found,) = detector.predict([np.full((32, 32, 3), 60_000, np.uint16)])
    assert not isinstance(found, Prediction)
    assert found.warnings


@pytest.mark.parametrize(
    ("image", "white", "warning"),
    [
        (np.full((2, 2, 3), 1000, np.uint16), 1023, None),
        (np.full((2, 2, 3), 1024, np.uint16), 1023, "100.0% of the image's values are above 1023"),
        (np.full((2, 2, 3), 1000, np.uint16), 4095, "largest value is 1000, far below 4095"),
        (np.full((2, 2, 3), 9, np.uint8), None, None),
        (np.full((2, 2, 3), 9, np.uint8), 4095, "has 8-bit values, but 'bolt' was learned from 16-bit images"),
        (np.full((2, 2, 3), 9, np.uint16), None, "has 16-bit values, but 'bolt' has no white level"),
    ],
)
def test_a_mismatched_value_range_gives_a_warning(image: np.ndarray, white: int | None, warning: str | None) -> None:
    found = range_warnings(image, white, "bolt")
    assert len(found) == (warning is not None)
    assert warning is None or warning in found[0]


def test_only_16_bit_images_have_more_than_one_view() -> None:
    plain, sixteen = product_image(0, 1), deep(0, 1023)
    assert Views.of([plain, plain], LEVELS, [None, None]).rows is None
    views = Views.of([plain, sixteen], LEVELS, [None, None])
    assert views.rows is not None
    assert views.rows.tolist() == [[0, 0, 0], [1, 3, 2]]
    assert len(Views.of([sixteen], LEVELS, [2]).levels) == 1
