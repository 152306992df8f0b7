"""AUPRO is the area that its definition says, ties included; perfect is 1 and nothing is above; memory stays small."""

import itertools

import numpy as np
import pytest
from forked import Processes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from moleflow.training.evaluation import aupro as module
from moleflow.training.evaluation.aupro import FPR_LIMIT, aupro, region_scores
from moleflow.training.evaluation.metrics import PixelScores

SIDE = 6


def by_definition(maps: np.ndarray, masks: np.ndarray, limit: float = FPR_LIMIT) -> float:
    """Every distinct score as a threshold in turn, and trapezoids up to the limit; regions found by SciPy."""
    regions = []
    for scores, mask in zip(maps, masks, strict=True):
        numbers, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [scores[numbers == number] for number in range(1, count + 1)]
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        rates.append(float((maps[~masks] >= threshold).mean()))
        overlaps.append(float(np.mean([(region >= threshold).mean() for region in regions])))
    grid = np.unique([*(rate for rate in rates if rate < limit), limit])
    area = 0.0
    for low, high in itertools.pairwise(grid):
        # The curve jumps where several thresholds share a rate: it is followed from the upper end of each jump.
        start = max(overlap for rate, overlap in zip(rates, overlaps, strict=True) if rate == low)
        after = next(number for number, rate in enumerate(rates) if rate > low)
        slope = (overlaps[after] - start) / (rates[after] - low)
        area += (high - low) * (start + start + slope * (high - low)) / 2
    return area / limit


def collected(maps: np.ndarray, masks: np.ndarray) -> PixelScores:
    pixels = PixelScores(side=maps.shape[1])
    for scores, mask in zip(maps, masks, strict=True):
        pixels.add(scores, mask)
    return pixels


CASES = st.tuples(
    arrays.arrays(np.float32, (2, SIDE, SIDE), elements=st.integers(-3, 3).map(float)),
    arrays.arrays(bool, (2, SIDE, SIDE)).filter(lambda mask: mask.any() and not mask.all()),
)


@settings(max_examples=200, deadline=None)
@given(CASES, st.sampled_from([0.05, 0.3, 1.0]))
def test_with_many_ties_the_area_is_that_of_the_definition(case: tuple[np.ndarray, np.ndarray], limit: float) -> None:
    found = collected(*case).aupro(limit)
    assert found == pytest.approx(by_definition(*case, limit), abs=1e-12)
    assert found is not None
    assert 0 <= found <= 1


@pytest.mark.parametrize("seed", range(5))
def test_without_ties_the_area_is_that_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(rng.normal(size=(3, 20, 20)), (0, 2, 2)) > 0.15
    maps = (rng.normal(size=masks.shape) + masks).astype(np.float32)
    assert collected(maps, masks).aupro() == pytest.approx(by_definition(maps, masks), abs=1e-12)


@pytest.mark.parametrize("size", [1, 7, 1_000_003])
def test_perfect_is_exactly_1(size: int) -> None:
    regions = [np.full(size, 5.0), np.arange(5.0, 8.0)]
    assert aupro(np.arange(5.0), regions) == 1


def test_reversed_scores_are_0_and_equal_ones_are_chance() -> None:
    assert aupro(np.arange(10.0), [np.array([-1.0])]) == 0
    assert aupro(np.zeros(10), [np.zeros(3)]) == pytest.approx(FPR_LIMIT / 2)


def test_a_small_region_weighs_as_much_as_a_large_one() -> None:
    missed, found = np.full(1, -1.0), np.full(99, 1.0)
    assert aupro(np.zeros(10), [missed, found]) == pytest.approx(0.5)


def test_one_region_at_the_whole_range_is_the_auroc() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((16, 16), bool)
    mask[4:9, 3:12] = True
    pixels = collected(np.round(rng.normal(size=(1, 16, 16)) + mask, 1), mask[None])
    assert pixels.aupro(limit=1.0) == pytest.approx(pixels.ranking().auroc)


def test_diagonal_neighbours_are_one_region() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]], bool)
    scores = np.arange(12.0).reshape(3, 4)
    assert sorted(map(list, region_scores(scores, mask))) == [[0, 5], [3], [11]]


def test_a_mask_without_defect_has_no_region() -> None:
    assert region_scores(np.zeros((3, 3)), np.zeros((3, 3), bool)) == []


def test_work_in_groups_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    negatives = np.sort(rng.integers(0, 50, 400)).astype(float)
    regions = [np.sort(rng.integers(20, 70, size)).astype(float) for size in (1, 5, 30, 2, 9)]
    whole = aupro(negatives, regions)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert aupro(negatives, regions) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(("negatives", "regions"), [([], [np.ones(2)]), ([1.0], [])])
def test_without_both_kinds_of_pixels_nothing_is_defined(negatives: list[float], regions: list[np.ndarray]) -> None:
    assert aupro(np.array(negatives), regions) is None


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1])
def test_a_limit_that_is_no_rate_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="limit must be"):
        aupro(np.ones(1), [np.ones(1)], limit)


@pytest.mark.parametrize(("negatives", "region"), [([1.0, np.nan], [1.0]), ([1.0], [0.0, np.nan])])
def test_nan_scores_are_refused(negatives: list[float], region: list[float]) -> None:
    with pytest.raises(ValueError, match="a score is NaN"):
        aupro(np.array(negatives), [np.array(region)])


def test_all_figures_of_a_category_take_less_than_36_bytes_a_pixel(processes: Processes) -> None:
    # The largest category of the benchmarks, 578 images of 256² pixels, then stays well below 2 GB.
    done = processes.run(
        "import numpy as np\n"
        "from moleflow.training.evaluation.metrics import PixelScores\n"
        "def bytes_of(name):\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))\n"
        "before = bytes_of('VmRSS')\n"
        "rng, pixels = np.random.default_rng(0), PixelScores()\n"
        "mask = np.zeros((256, 256), bool); mask[:128] = True; mask[::2, 200] = True\n"
        "for number in range(90):\n"
        "    pixels.add(rng.random((256, 256), dtype=np.float32), mask if number % 3 else None)\n"
        "assert 0.14 < pixels.aupro() < 0.16\n"
        "assert 0.49 < pixels.ranking().auroc < 0.51\n"
        "assert pixels.pro() and pixels.roc()\n"
        "print((bytes_of('VmHWM') - before) / (90 * 256**2))\n"
    )
    assert done.status == 0, done.stderr
    assert 4 < float(done.stdout) < 36
