"""An inspected area: what was drawn, its patches, and what they mean for scores, maps and regions."""

import numpy as np
import pytest
from dummy import CALIBRATION
from pydantic import ValidationError

from moleflow.model.errors import TaskError
from moleflow.model.verdict.area import MAX_POINTS, Area, Outlines
from moleflow.model.verdict.heatmap import overlay
from moleflow.model.verdict.masking import cut_grid, inspected_score
from moleflow.model.verdict.outlines import area_of
from moleflow.model.verdict.results import Candidate, Prediction

LEFT_HALF = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
RNG = np.random.default_rng(0)
GRID = RNG.normal(size=(8, 8)).astype(np.float32)
RIGHT = np.broadcast_to(np.arange(8) >= 4, (8, 8))


def drawn(**polygons: object) -> tuple[str, ...]:
    return area_of(Outlines.model_validate(polygons), (4, 4), 1).patches


def predicted(grid_map: np.ndarray, inspected: np.ndarray | None, side: int = 64) -> Prediction:
    """The prediction of an 8 × 8 patch map, as it is made for a product with that area."""
    task = Candidate("red", 0, 1.0, 0.5, 0.1)
    every = np.ones_like(grid_map, bool) if inspected is None else inspected
    score = inspected_score(grid_map, every, 3)
    cut = grid_map if inspected is None else cut_grid(grid_map, inspected)
    return Prediction((task,), task, score, cut, side, CALIBRATION, inspected=inspected)


def with_defect(rows: slice, columns: slice, height: float = 1000) -> np.ndarray:
    grid = GRID.copy()
    grid[rows, columns] = height
    return grid


def test_what_lies_in_an_ignored_polygon_is_not_inspected() -> None:
    assert drawn(ignore=[LEFT_HALF]) == ("0011",) * 4


def test_only_what_lies_in_an_inspected_polygon_is_inspected_less_what_is_ignored() -> None:
    upper_half = [(0, 0), (1, 0), (1, 0.5), (0, 0.5)]
    assert drawn(inspect=[LEFT_HALF]) == ("1100",) * 4
    assert drawn(inspect=[LEFT_HALF], ignore=[upper_half]) == ("0000", "0000", "1100", "1100")


def test_a_patch_is_inspected_if_at_least_half_of_it_is() -> None:
    for width, row in ((0.11, "1111"), (0.125, "1111"), (0.14, "0111")):
        polygon = [(0, 0), (width, 0), (width, 1), (0, 1)]
        patches = drawn(ignore=[polygon, [(0.8, 0.8), (1, 0.8), (1, 1), (0.8, 1)]])
        assert patches[0] == row


def test_a_diagonal_halves_the_patches_on_it() -> None:
    assert drawn(ignore=[[(0, 0), (1, 0), (1, 1)]]) == ("1000", "1100", "1110", "1111")


def test_a_polygon_that_crosses_itself_follows_the_even_odd_rule() -> None:
    twice = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0.5, 0), (0.5, 1), (0, 1)]  # its left half lies in it twice
    assert drawn(ignore=[twice]) == ("1100",) * 4


def test_a_mask_of_any_size_is_inspected_where_it_is_true() -> None:
    mask = np.zeros((30, 90), bool)
    mask[:, 40:] = True
    area = area_of(mask, (2, 3), 1)
    assert area.patches == ("011", "011")
    assert area_of(mask, (2, 3), 1, within=np.array([[1, 1, 1], [1, 0, 1]], bool)).patches == ("011", "001")
    assert (area.inspect, area.ignore) == ((), ())
    assert area.fraction == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("polygons", "says"),
    [
        ({"ignore": [[(0, 0), (1, 0), (1, 1), (0, 1)]]}, "inspects 0 of 4 × 4 patches, and a score needs 3"),
        ({"inspect": [[(0, 0), (0.3, 0), (0.3, 0.3), (0, 0.3)]]}, "inspects 1 of 4 × 4 patches"),
        (
            {"ignore": [[(0, 0), (0.1, 0), (0.1, 0.1)]]},
            "all 16 of 4 × 4 patches that were learned",
        ),
    ],
)
def test_an_area_with_too_few_patches_or_with_all_is_an_error(polygons: dict[str, object], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        area_of(Outlines.model_validate(polygons), (4, 4), 3)


@pytest.mark.parametrize(
    ("polygon", "says"),
    [
        ([(0, 0), (1, 1)], "at least 3 points; this one has 2"),
        ([(0, 0), (1, 0), (1, 1.01)], "less than or equal to 1"),
        ([(0, 0), (1, 0), (-0.01, 1)], "greater than or equal to 0"),
        ([(0, 0), (1, 0), (float("nan"), 1)], "finite number"),
        ([(0, 0), (1, 0), (1,)], "Field required"),
        ([(0.5, 0.5)] * (MAX_POINTS + 1), "2,001 points; at most 2,000"),
    ],
)
def test_a_polygon_that_is_none_is_an_error(polygon: object, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Outlines.model_validate({"ignore": [polygon]})


def test_rows_of_patches_are_equally_long_and_hold_nothing_else() -> None:
    for rows in (("01", "011"), ("0x",), ()):
        with pytest.raises(ValidationError):
            Area(patches=rows)


def test_a_defect_outside_the_area_raises_neither_score_nor_map_nor_regions() -> None:
    plain, defective = (predicted(grid, RIGHT) for grid in (GRID, with_defect(slice(0, 8), slice(0, 4))))
    assert defective.score == plain.score
    assert np.array_equal(defective.pixel_map(), plain.pixel_map())
    assert np.array_equal(defective.pixel_map(50, 70), plain.pixel_map(50, 70))
    assert defective.regions(100, 100) == plain.regions(100, 100) == ()
    assert predicted(with_defect(slice(0, 8), slice(0, 4)), None).regions(100, 100)


def test_a_defect_in_the_area_scores_the_same_with_and_without_it() -> None:
    grid = with_defect(slice(2, 4), slice(6, 8))
    with_area, without = predicted(grid, RIGHT), predicted(grid, None)
    assert with_area.score == without.score
    assert with_area.pixel_map()[:, 48:] == pytest.approx(without.pixel_map()[:, 48:])
    assert with_area.regions(64, 64) == without.regions(64, 64)


def test_a_score_in_the_area_is_never_above_that_of_the_whole_image() -> None:
    for seed in range(20):
        grid = np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32)
        assert predicted(grid, RIGHT).score <= predicted(grid, None).score


def test_outside_the_area_maps_have_the_lowest_value_inside_and_there_are_no_regions() -> None:
    found = predicted(np.full((8, 8), 500, np.float32) + GRID, RIGHT)
    pixels = found.pixel_map()
    assert (pixels[:, :32] == pixels.min()).all()
    assert pixels.min() == (500 + GRID[RIGHT]).min()
    [region] = found.regions(64, 64)  # all of the area is above the threshold, and it is cut at its edge
    assert (region.x, region.y, region.width, region.height) == (32, 0, 32, 64)


def test_the_overlay_is_dimmed_where_nothing_is_inspected() -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    shown = overlay(image, predicted(GRID, RIGHT))
    assert (shown[:, :32] == 100).all()
    assert (shown[:, 32:].max(2) > 100).all()
