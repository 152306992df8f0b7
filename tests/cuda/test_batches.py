"""An image's results do not depend on the images beside it, on repetition, or on other threads."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, cycle, islice

import numpy as np
import pytest
import torch
from agreement import as_batch, maps_of, moved, relative_error
from device_cases import Case, Load

from moleflow.model.detector import Detector
from moleflow.model.verdict.results import Prediction

SIZES = (1, 2, 3, 5, 8, 17, 64, 70)
BOUNDS = {"fp32": 1e-4, "bf16": 1e-2}
CAPPED_BOUNDS = {"fp32": 5e-3, "bf16": 1e-1}
"""Of maps that are capped, found from the image itself (see ``test_agreement``): the backbone's convolutions may add up
in another order for another number of images."""

PRECISIONS = pytest.mark.parametrize("precision", BOUNDS)


def skip_what_takes_a_cpu_minutes(case: Case, precision: str, size: int, device: torch.device) -> None:
    if device.type == "cpu" and case.is_wide and (precision != "fp32" or size > 3):
        pytest.skip("this takes a CPU minutes")


def rows_of(case: Case, size: int) -> list[int]:
    """The images of a batch: as many as wanted, again and again, not in the order of their products."""
    return list(islice(cycle(range(len(case.images))), size))


def same_bits(one: Prediction, other: Prediction) -> bool:
    return (
        one.candidates == other.candidates
        and one.score == other.score
        and one.novelty_score == other.novelty_score
        and np.array_equal(one.grid_map, other.grid_map)
    )


@pytest.fixture(scope="module")
def alone(load: Load) -> dict[tuple[str, str, int], tuple[torch.Tensor, torch.Tensor]]:
    """The maps of images alone, by case, precision and image; filled on demand."""
    return {}


@PRECISIONS
@pytest.mark.parametrize("size", SIZES)
def test_the_maps_of_an_image_are_those_that_it_has_alone(
    case: Case, size: int, precision: str, load: Load, device: torch.device, alone: dict
) -> None:
    skip_what_takes_a_cpu_minutes(case, precision, size, device)
    detector, rows = load(case.checkpoint, precision), rows_of(case, size)
    features = case.expected.features.rows(rows)
    # Where maps are capped, distances between almost equal vectors multiply what sums in another order differ by.
    bound = BOUNDS[precision] * (10 if case.checkpoint.header.config.scoring.cap is not None else 1)
    together = maps_of(detector, features, [case.kinds[row] for row in rows])
    for place, row in enumerate(rows):
        key = case.name, precision, row
        if key not in alone:
            alone[key] = maps_of(detector, case.expected.features.rows([row]), [case.kinds[row]])
        for found, expected in zip(together, alone[key], strict=True):
            assert relative_error(found[place], expected[0]) < bound, f"image {place}"


@PRECISIONS
@pytest.mark.parametrize("size", SIZES)
def test_the_prediction_for_an_image_is_that_which_it_gets_alone(
    tiny: Case, size: int, precision: str, load: Load
) -> None:
    detector, rows = load(tiny.checkpoint, precision), rows_of(tiny, size)
    is_capped = tiny.checkpoint.header.config.scoring.cap is not None
    bound = (CAPPED_BOUNDS if is_capped else BOUNDS)[precision]
    together = detector.predict([tiny.images[row] for row in rows], refuse_unknown=False)
    for row, found in zip(rows, together, strict=True):
        (expected,) = detector.predict([tiny.images[row]], refuse_unknown=False)
        assert found.task.name == expected.task.name == tiny.names[row]
        assert found.score == pytest.approx(expected.score, rel=bound)
        assert relative_error(found.grid_map, expected.grid_map) < bound
        assert found.task.distance == pytest.approx(expected.task.distance, rel=BOUNDS[precision])


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_a_batch_of_more_products_than_are_kept_gives_the_same(
    tiny: Case, limit: int, load: Load, device: torch.device
) -> None:
    small = Detector(tiny.checkpoint, device=str(device), precision="fp32", max_experts=limit)
    expected = load(tiny.checkpoint, "fp32").predict(tiny.images, refuse_unknown=False)
    for _ in range(2):
        for one, other in zip(small.predict(tiny.images, refuse_unknown=False), expected, strict=True):
            assert one.task.name == other.task.name
            assert relative_error(one.grid_map, other.grid_map) < BOUNDS["fp32"]
            assert one.score == pytest.approx(other.score, rel=BOUNDS["fp32"])


def test_a_wide_batch_of_more_products_than_are_kept_gives_the_same(wide: Case, device: torch.device) -> None:
    rows = [wide.kinds.index(kind) for kind in (2, 0, 1)]
    small = Detector(wide.checkpoint, device=str(device), precision="fp32", max_experts=1)
    nll, anomaly = maps_of(small, wide.expected.features.rows(rows), [2, 0, 1])
    assert relative_error(nll, wide.nll[rows]) < 1e-3
    assert relative_error(anomaly, wide.anomaly[rows]) < 1e-3


@PRECISIONS
def test_a_call_that_is_repeated_gives_the_same_bits(tiny: Case, precision: str, load: Load) -> None:
    detector = load(tiny.checkpoint, precision)
    first, *others = [detector.predict(tiny.images, refuse_unknown=False) for _ in range(4)]
    for again in others:
        assert all(same_bits(one, other) for one, other in zip(first, again, strict=True))


@PRECISIONS
@pytest.mark.parametrize("size", [1, 3])
def test_wide_maps_that_are_repeated_have_the_same_bits(
    wide: Case, size: int, precision: str, load: Load, device: torch.device
) -> None:
    skip_what_takes_a_cpu_minutes(wide, precision, size, device)
    features, kinds = wide.expected.features.rows(slice(size)), wide.kinds[:size]
    first, *others = [maps_of(load(wide.checkpoint, precision), features, kinds) for _ in range(4)]
    for again in others:
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@torch.inference_mode()
def test_the_maps_of_one_call_survive_the_next(tiny: Case, load: Load, device: torch.device) -> None:
    detector = load(tiny.checkpoint, "fp32")
    one, other = (moved(tiny.expected.features.rows(rows), device) for rows in (slice(3), slice(3, 6)))
    for _ in range(4):  # a call may be recorded only when it has been made a few times
        kept = detector.products.maps(one, tiny.kinds[:3])
        before = kept.nll.clone(), kept.anomaly.clone()
        detector.products.maps(other, tiny.kinds[3:6])
        assert torch.equal(kept.nll, before[0])
        assert torch.equal(kept.anomaly, before[1])


@torch.inference_mode()
def test_the_features_of_one_call_survive_the_next(tiny: Case, load: Load, device: torch.device) -> None:
    detector = load(tiny.checkpoint, "fp32")
    one, other = as_batch(tiny.images[:3], device), as_batch(tiny.images[3:6], device)
    for _ in range(4):
        features, distances, ratios = detector.embed_and_route(one)
        kept = [features.embeddings, *features.stages, distances, ratios]
        before = [each.clone() for each in kept]
        detector.embed_and_route(other)
        assert all(torch.equal(each, value) for each, value in zip(kept, before, strict=True))


def test_several_threads_at_once_get_what_one_gets(tiny: Case, load: Load, device: torch.device) -> None:
    jobs = [rows_of(tiny, 1 + number % 4) if number % 3 else [number % 9] for number in range(24)]

    def predictions(detector: Detector, rows: list[int]) -> list[Prediction]:
        return detector.predict([tiny.images[row] for row in rows], refuse_unknown=False)

    serial = load(tiny.checkpoint, "fp32")
    expected = [predictions(serial, rows) for rows in jobs]
    fresh = Detector(tiny.checkpoint, device=str(device), precision="fp32", max_experts=2)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda rows: predictions(fresh, rows), jobs))
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        assert one.task.name == other.task.name
        assert relative_error(one.grid_map, other.grid_map) < BOUNDS["fp32"]
        assert one.score == pytest.approx(other.score, rel=BOUNDS["fp32"])
        assert one.task.distance == pytest.approx(other.task.distance, rel=BOUNDS["fp32"])


def test_several_threads_at_once_get_the_right_wide_maps(wide: Case, load: Load) -> None:
    detector, rows = load(wide.checkpoint, "fp32"), [0, 1, 2, 2, 1, 0]
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(maps_of, detector, wide.expected.features.rows([row]), [wide.kinds[row]]) for row in rows]
        found = [job.result() for job in jobs]
    for row, (nll, anomaly) in zip(rows, found, strict=True):
        assert relative_error(nll[0], wide.nll[row]) < 1e-3
        assert relative_error(anomaly[0], wide.anomaly[row]) < 1e-3
