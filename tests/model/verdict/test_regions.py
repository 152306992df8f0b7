"""Regions: connected components above a threshold, in pixels of the image."""

import numpy as np
import pytest

from moleflow.model.verdict.regions import MAX_REGIONS, find_regions


def spotted(*spots: tuple[slice, slice, float], shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    """A map of zeros with rectangles of other values."""
    values = np.zeros(shape, np.float32)
    for rows, columns, value in spots:
        values[rows, columns] = value
    return values


def test_a_rectangle_is_found_with_box_area_and_peak() -> None:
    values = spotted((slice(3, 7), slice(10, 15), 2.0))
    values[5, 12] = 9.0
    [region] = find_regions(values, 1.0, 20, 30)
    assert (region.x, region.y, region.width, region.height) == (10, 3, 5, 4)
    assert region.area_fraction == pytest.approx(20 / 600)
    assert (region.peak, region.peak_x, region.peak_y) == (9.0, 12, 5)


def test_without_pixels_above_the_threshold_there_are_no_regions() -> None:
    assert find_regions(spotted((slice(3, 7), slice(10, 15), 1.0)), 1.0, 20, 30) == ()


def test_negative_maps_have_regions_too() -> None:
    values = spotted((slice(3, 7), slice(10, 15), 50.0)) - 500
    assert len(find_regions(values, -480, 20, 30)) == 1


def test_regions_are_sorted_by_peak() -> None:
    values = spotted(
        (slice(0, 2), slice(0, 2), 2.0), (slice(10, 12), slice(0, 2), 5.0), (slice(0, 2), slice(20, 22), 3.0)
    )
    assert [region.peak for region in find_regions(values, 1.0, 20, 30)] == [5.0, 3.0, 2.0]


def test_regions_are_8_connected() -> None:
    values = spotted((slice(0, 3), slice(0, 3), 2.0), (slice(3, 6), slice(3, 6), 2.0))
    [region] = find_regions(values, 1.0, 20, 30)
    assert (region.width, region.height) == (6, 6)
    assert region.area_fraction == pytest.approx(18 / 600)


def test_the_peak_ignores_another_region_inside_the_box() -> None:
    values = spotted((slice(0, 9), slice(0, 1), 2.0), (slice(8, 9), slice(0, 9), 2.0), (slice(2, 4), slice(5, 7), 8.0))
    inner, outer = find_regions(values, 1.0, 20, 30)
    assert (inner.peak, outer.peak) == (8.0, 2.0)
    assert (outer.width, outer.height) == (9, 9)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (200, 300), (45, 61), (7, 11)])
def test_boxes_and_peaks_are_inside_images_of_any_size(height: int, width: int) -> None:
    values = spotted((slice(0, 3), slice(0, 4), 2.0), (slice(17, 20), slice(25, 30), 3.0))
    for region in find_regions(values, 1.0, height, width):
        assert 0 <= region.x <= region.peak_x < region.x + region.width <= width
        assert 0 <= region.y <= region.peak_y < region.y + region.height <= height
        assert region.width >= 1
        assert region.height >= 1


def test_a_larger_image_has_larger_boxes_and_the_same_area_fractions() -> None:
    values = spotted((slice(4, 8), slice(10, 16), 2.0))
    [small], [large] = find_regions(values, 1.0, 20, 30), find_regions(values, 1.0, 200, 300)
    assert (large.x, large.y, large.width, large.height) == (100, 40, 60, 40)
    assert small.area_fraction == large.area_fraction


def test_the_strongest_regions_are_kept_up_to_the_limit() -> None:
    values = np.zeros((100, 100), np.float32)
    values[::4, ::4] = np.arange(1, 626).reshape(25, 25)
    found = find_regions(values, 0.5, 100, 100)
    assert [region.peak for region in found] == list(range(625, 625 - MAX_REGIONS, -1))


def test_a_map_above_the_threshold_everywhere_is_one_region_of_the_whole_image() -> None:
    [region] = find_regions(np.ones((28, 28), np.float32), 0.0, 900, 1200)
    assert (region.x, region.y, region.width, region.height, region.area_fraction) == (0, 0, 1200, 900, 1.0)
