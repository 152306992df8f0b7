"""The shortlist: the nearest products of each image, in one device read; the same in NumPy."""

import math
from typing import Any

import pytest
import torch

from moleflow.model.routing.novelty import FAR_MULTIPLE
from moleflow.model.routing.routes import Route, Shortlist, nearest_products
from moleflow.model.routing.shortlist import effective_ratios, shortlist
from moleflow.model.verdict.results import MAX_CANDIDATES

PRODUCTS = 40


def found(distances: torch.Tensor, ratios: torch.Tensor, **options: Any) -> list[Shortlist]:
    given: dict[str, Any] = {
        "median_distances": torch.full((distances.shape[1],), 1.0),
        "named": [None] * len(distances),
    } | options
    lists = shortlist(distances, ratios, **given)
    medians = given["median_distances"].numpy()
    assert nearest_products(distances.numpy(), ratios.numpy(), medians, given["named"]) == lists
    return lists


@pytest.mark.parametrize(
    ("distance", "ratio", "counted"),
    [(1.0, 0.4, 0.4), (1.0, 1.6, 1.6), (FAR_MULTIPLE * 2 + 1, 0.1, 1.0), (FAR_MULTIPLE * 2 + 1, 1.6, 1.6)],
)
def test_the_effective_ratio_of_a_far_image_is_at_least_one(distance: float, ratio: float, counted: float) -> None:
    found = effective_ratios(torch.tensor([distance]), torch.tensor([ratio]), torch.tensor([2.0]))
    assert found.tolist() == pytest.approx([counted])


def test_the_nearest_products_are_listed_in_order_with_their_distances() -> None:
    distances, ratios = torch.rand(3, PRODUCTS), torch.rand(3, PRODUCTS)
    for row, each in enumerate(found(distances, ratios)):
        order = sorted(range(PRODUCTS), key=distances[row].tolist().__getitem__)[:MAX_CANDIDATES]
        expected = [Route(task, distances[row, task].item(), ratios[row, task].item()) for task in order]
        assert list(each.nearest) == expected
        assert each.named is None
        assert each.task == expected[0]


def test_ties_go_to_the_product_learned_first() -> None:
    (each,) = found(torch.ones(1, PRODUCTS), torch.zeros(1, PRODUCTS))
    assert [route.index for route in each.nearest] == list(range(MAX_CANDIDATES))


def test_with_few_products_all_are_listed() -> None:
    (each,) = found(torch.tensor([[3.0, 1.0]]), torch.zeros(1, 2))
    assert [route.index for route in each.nearest] == [1, 0]


def test_a_named_product_is_listed_even_if_it_is_far() -> None:
    distances = torch.arange(float(PRODUCTS)).expand(3, -1)
    each = found(distances, distances / 100, named=[None, 33, 0])
    assert [one.named and one.named.index for one in each] == [None, 33, 0]
    assert each[1].task == Route(33, 33.0, (distances / 100)[1, 33].item())
    assert [route.index for route in each[1].nearest] == [0, 1, 2, 3, 4]
    assert each[2].named is not None


def test_the_least_ratio_covers_all_products() -> None:
    distances = torch.arange(1.0, PRODUCTS + 1).repeat(2, 1)
    ratios = torch.full((2, PRODUCTS), 0.9)
    ratios[1, -1] = 0.1  # the farthest product: its own good images are as far
    medians = torch.full((PRODUCTS,), 1e-3)
    medians[-1] = PRODUCTS / FAR_MULTIPLE
    assert [each.least_ratio for each in found(distances, ratios, median_distances=medians)] == pytest.approx(
        [0.9, 0.1]
    )


def test_the_ratio_of_a_far_image_is_raised_to_one() -> None:
    distances = torch.tensor([[FAR_MULTIPLE * 2 - 0.1], [FAR_MULTIPLE * 2 + 0.1]])
    each = found(distances, torch.zeros(2, 1), median_distances=torch.tensor([2.0]))
    assert [one.least_ratio for one in each] == [0.0, 1.0]


def test_values_that_are_not_finite_are_passed_through() -> None:
    (each,) = found(torch.tensor([[math.inf, 1.0]]), torch.tensor([[0.0, math.inf]]))
    assert [(route.index, route.distance, route.ratio) for route in each.nearest] == [
        (1, 1.0, math.inf),
        (0, math.inf, 0),
    ]


def test_there_is_one_device_read_for_any_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    plain = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or plain(tensor))
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("a second read"))
    found(torch.rand(8, PRODUCTS), torch.rand(8, PRODUCTS), named=[None, 3] * 4)
    assert reads == [(8, 3 * (MAX_CANDIDATES + 1) + 1)]
