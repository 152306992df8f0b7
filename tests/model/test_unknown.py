"""When a picture is of a product that was never learned."""

import numpy as np
import pytest
import torch

from model.unknown import FAR_MULTIPLE, GROUND_QUANTILE, counted_shares, ground_level, strangeness


@pytest.mark.parametrize(
    ("distance", "share", "counted"),
    [(1.0, 0.4, 0.4), (1.0, 1.6, 1.6), (FAR_MULTIPLE * 2 + 1, 0.1, 1.0), (FAR_MULTIPLE * 2 + 1, 1.6, 1.6)],
)
def test_a_share_counts_as_one_at_least_where_the_picture_is_far(distance: float, share: float, counted: float) -> None:
    found = counted_shares(torch.tensor([distance]), torch.tensor([share]), torch.tensor([2.0]))
    assert found.tolist() == pytest.approx([counted])


def test_the_ground_level_is_that_of_the_calmest_tenth_whatever_the_rest_is() -> None:
    values = np.random.default_rng(0).permutation(100).astype(np.float32)
    calm = ground_level(values.reshape(10, 10))
    assert (values < calm).mean() == pytest.approx(GROUND_QUANTILE)
    defect = np.where(values > 50, 1e6, values).reshape(10, 10)
    assert ground_level(defect) == calm


def test_what_its_expert_expects_everywhere_is_as_strange_as_the_router_finds_it() -> None:
    assert strangeness(0.4, ground=-3.0, typical_ground=-3.0, dim=160) == 0.4
    assert strangeness(0.4, ground=-90.0, typical_ground=-3.0, dim=160) == 0.4


def test_the_less_its_expert_expects_any_patch_the_stranger_a_picture_is() -> None:
    found = [strangeness(0.4, ground=10.0 + more, typical_ground=10.0, dim=160) for more in (0, 1, 10, 100)]
    assert found == sorted(set(found))


def test_the_excess_is_counted_for_each_dimension() -> None:
    assert strangeness(0.4, 100.0, 20.0, dim=160) == pytest.approx(strangeness(0.4, 400.0, 80.0, dim=640))


def test_with_a_single_product_nothing_but_distance_is_strange() -> None:
    assert strangeness(0.0, ground=1e4, typical_ground=0.0, dim=160) == 0.0
