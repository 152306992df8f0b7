"""The router: low-rank Gaussian prototypes, distances and distance ratios."""

import pytest
import torch

from moleflow.model.config import RouterConfig
from moleflow.model.routing.router import Prototype, Router, image_descriptor

DIM = 12


def descriptors(count: int, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    """Descriptors that vary much along some directions and little along others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(DIM, DIM, generator=generator) * torch.linspace(2, 0.05, DIM)[:, None]
    return torch.randn(count, DIM, generator=generator) @ mixing + 3 + offset


def dense_distance(point: torch.Tensor, prototype: Prototype) -> torch.Tensor:
    """Mahalanobis distance with the full covariance matrix, in float64."""
    axes, difference = prototype.axes.double(), point.double() - prototype.mean.double()
    floor = prototype.floor.double()
    covariance = floor * (torch.eye(DIM, dtype=torch.float64) - axes @ axes.T)
    covariance += axes @ torch.diag(prototype.variances.double()) @ axes.T
    return (difference @ torch.linalg.solve(covariance, difference)).sqrt()


def test_the_descriptor_is_the_median_over_the_grid() -> None:
    embeddings = torch.randn(3, 3, 5, DIM)
    assert torch.equal(image_descriptor(embeddings), embeddings.flatten(1, 2).sort(1).values[:, 7])
    assert image_descriptor(embeddings.bfloat16()).dtype == torch.float32


def test_a_defect_in_a_quarter_of_the_image_hardly_moves_the_descriptor() -> None:
    embeddings = torch.randn(1, 8, 8, DIM, generator=torch.Generator().manual_seed(0))
    defective = embeddings.clone()
    defective[:, :4, :4] += 1000
    moved = (image_descriptor(defective) - image_descriptor(embeddings)).abs().max()
    assert moved < 1.0
    assert (defective - embeddings).mean((1, 2)).min() == 250


@pytest.mark.parametrize("axes", [0, 3, 8])
def test_distances_equal_the_dense_mahalanobis_distance(axes: int) -> None:
    prototype = Prototype.fit(descriptors(30), RouterConfig(axes=axes, relative_floor=0.001))
    points = descriptors(6, seed=1)
    expected = [dense_distance(point, prototype).item() for point in points]
    assert Router([prototype])(points)[0][:, 0].tolist() == pytest.approx(expected, rel=1e-4)


def test_prototypes_of_different_rank_share_one_router() -> None:
    config = RouterConfig(axes=8, relative_floor=0.001)
    prototypes = [Prototype.fit(descriptors(count, seed=count), config) for count in (30, 5, 1, 2)]
    assert [p.axes.shape[1] for p in prototypes] == [8, 3, 0, 0]
    points = descriptors(4, seed=9)
    distances, _ = Router(prototypes)(points)
    assert distances.shape == (4, 4)
    for index, prototype in enumerate(prototypes):
        expected = [dense_distance(point, prototype).item() for point in points]
        assert distances[:, index].tolist() == pytest.approx(expected, rel=1e-4)


def test_the_axes_are_the_principal_components() -> None:
    points = descriptors(40)
    prototype = Prototype.fit(points, RouterConfig(axes=3, relative_floor=0.0))
    values, vectors = torch.linalg.eigh(torch.cov(points.double().T))
    assert torch.allclose(prototype.mean, points.mean(0), atol=1e-5)
    assert torch.allclose(prototype.axes.T @ prototype.axes, torch.eye(3), atol=1e-5)
    assert prototype.variances.tolist() == pytest.approx(values.flip(0)[:3].tolist(), rel=1e-4)
    assert torch.allclose((prototype.axes * vectors.flip(1)[:, :3].float()).sum(0).abs(), torch.ones(3), atol=1e-4)
    # The floor is the mean variance of the remaining directions.
    assert prototype.floor.item() == pytest.approx(values.flip(0)[3:].mean().item(), rel=1e-4)


def test_no_variance_is_below_the_relative_floor() -> None:
    points = 5 + 1e-4 * torch.randn(20, DIM)
    prototype = Prototype.fit(points, RouterConfig(axes=4, relative_floor=0.03))
    assert prototype.floor.item() == pytest.approx(0.03 * 25, rel=1e-3)
    assert (prototype.variances >= prototype.floor).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_product_with_very_few_images_gets_a_usable_prototype(count: int) -> None:
    points = descriptors(count)
    router = Router([Prototype.fit(points, RouterConfig()), Prototype.fit(points + 20, RouterConfig())])
    distances, _ = router(points)
    assert torch.isfinite(distances).all()
    assert (distances.argmin(1) == 0).all()


def test_identical_black_images_give_a_finite_prototype() -> None:
    distances, _ = Router([Prototype.fit(torch.zeros(4, DIM), RouterConfig())])(torch.zeros(2, DIM))
    assert not distances.any()


def test_one_product_is_always_the_nearest() -> None:
    router = Router([Prototype.fit(descriptors(10), RouterConfig())])
    distances, ratios = router(descriptors(3, seed=4))
    assert distances.shape == (3, 1)
    assert not ratios.any()  # there is no other product


def test_unseen_images_of_separated_products_are_routed_correctly() -> None:
    centres = 3 * torch.randn(5, DIM, generator=torch.Generator().manual_seed(3))
    prototypes = [Prototype.fit(descriptors(12, seed=k) * 0.2 + c, RouterConfig()) for k, c in enumerate(centres)]
    for index, centre in enumerate(centres):
        unseen = descriptors(20, seed=50 + index) * 0.2 + centre
        assert (Router(prototypes)(unseen)[0].argmin(1) == index).all()


def test_fitting_is_deterministic() -> None:
    one, other = (Prototype.fit(descriptors(20), RouterConfig()).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_prototype_takes_less_than_160_kilobytes_at_full_width() -> None:
    prototype = Prototype.fit(torch.randn(30, 768), RouterConfig(), torch.randn(96, 768))
    assert sum(4 * value.numel() for value in prototype.state_dict().values()) < 160_000


def separated(count: int = 4, distance: float = 50.0) -> list[Prototype]:
    """Prototypes of products that are far apart."""
    centres = distance * torch.randn(count, DIM, generator=torch.Generator().manual_seed(7))
    return [Prototype.fit(descriptors(30, seed=k) + centre, RouterConfig()) for k, centre in enumerate(centres)]


def mahalanobis(prototype: Prototype, differences: torch.Tensor) -> torch.Tensor:
    """Lengths ``(n,)`` of differences from the mean, ``(n, D)``, in standard deviations."""
    along = differences @ prototype.axes
    across = differences - along @ prototype.axes.T
    return ((along.square() / prototype.variances).sum(1) + across.square().sum(1) / prototype.floor).sqrt()


def test_distances_are_mahalanobis_lengths() -> None:
    prototype = separated()[0]
    points = descriptors(5, seed=3)
    lengths = mahalanobis(prototype, points - prototype.mean)
    assert torch.allclose(lengths, Router([prototype])(points)[0][:, 0], rtol=1e-3)


def test_the_distance_ratio_is_0_at_a_product_and_1_at_the_nearest_other() -> None:
    prototypes = separated()
    _, ratios = Router(prototypes)(torch.stack([p.mean for p in prototypes]))
    assert torch.allclose(ratios.diagonal(), torch.zeros(4), atol=1e-5)
    for index in range(4):
        others = [ratios[row, index].item() for row in range(4) if row != index]
        assert min(others) == pytest.approx(1.0, rel=1e-4)


def test_a_shift_towards_no_other_product_changes_the_distance_but_not_the_ratio() -> None:
    prototypes = separated()
    first = prototypes[0]
    router = Router(prototypes)
    null = torch.linalg.svd(router.separating.T).Vh[-1]  # orthogonal to all discriminant directions
    distances, ratios = router((first.mean + 30 * null)[None])
    assert distances[0, 0].item() == pytest.approx(30 * mahalanobis(first, null[None]).item(), rel=1e-2)
    assert ratios[0, 0].item() < 1e-3


def test_a_thousand_products_need_little_more_memory_than_their_prototypes() -> None:
    dim, axes = 64, 4
    config = RouterConfig(axes=axes)
    for count in (dim // 2, dim, 1000):
        prototypes = [Prototype.fit(torch.randn(axes + 2, dim) + 9 * torch.randn(dim), config) for _ in range(count)]
        router = Router(prototypes)
        held, given = (
            sum(value.numel() for module in modules for value in module.buffers()) for modules in ([router], prototypes)
        )
        assert held < 2.5 * given
        distances, ratios = router(torch.randn(2, dim))
        assert distances.shape == ratios.shape == (2, count)
        assert torch.isfinite(ratios).all()


def test_two_names_for_one_product_do_not_make_its_images_unknown() -> None:
    points = descriptors(40)
    twins = [Prototype.fit(points, RouterConfig()), Prototype.fit(points, RouterConfig())]
    _, ratios = Router(twins)(points)
    assert ratios.max() < 1


def test_augmentations_of_one_product_lower_the_ratio_for_every_product() -> None:
    centres = torch.zeros(3, DIM)
    centres[1, 0], centres[2, 1] = 40, 40
    groups = [descriptors(30, seed=k) * 0.1 + centre for k, centre in enumerate(centres)]
    # Towards the second product, from the first; the third has no such changes.
    changes = 10 * torch.randn(40, 1, generator=torch.Generator().manual_seed(5)) * torch.eye(DIM)[0]
    ignorant = Router([Prototype.fit(group, RouterConfig()) for group in groups])
    informed = Router(
        [Prototype.fit(group, RouterConfig(), changes if not k else None) for k, group in enumerate(groups)]
    )
    # From the first and the third product: a third of the way along the change, and as far across it.
    for product in (0, 2):
        mean = groups[product].mean(0)
        along, across = mean + 13 * torch.eye(DIM)[0], mean + 13 * torch.eye(DIM)[1]
        before, after = (router(torch.stack((along, across)))[1][:, product] for router in (ignorant, informed))
        assert after[0] / after[1] < 0.5 * before[0] / before[1]


def test_the_discriminant_directions_maximise_between_over_within_variance() -> None:
    generator = torch.Generator().manual_seed(2)
    groups = [descriptors(60, seed=k) + 4 * torch.randn(DIM, generator=generator) for k in range(3)]
    config = RouterConfig(axes=0, spread_axes=DIM)
    prototypes = [Prototype.fit(group, config) for group in groups]
    router = Router(prototypes)
    within = torch.stack([torch.cov(group.double().T) for group in groups]).mean(0)
    within += torch.stack([p.floor for p in prototypes]).mean().double() * torch.eye(DIM, dtype=torch.float64)
    means = torch.stack([group.mean(0) for group in groups]).double()
    between = torch.cov(means.T, correction=0) * 3
    expected = torch.linalg.eigvals(torch.linalg.solve(within, between)).real.sort(descending=True).values[:2]
    directions = router.separating.double()
    assert torch.allclose(directions.T @ within @ directions, torch.eye(2, dtype=torch.float64), atol=1e-4)
    found = (directions.T @ between @ directions).diagonal().sort(descending=True).values
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-3)
