"""A GPU finds what a CPU finds: features, maps, scores and routing, in every precision.

In fp32 PyTorch multiplies matrices without rounding them, but lets cuDNN round what convolutions read to ten bits
(TF32). Nothing here changes either, so the bound of what passes the backbone is that of TF32.
"""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from agreement import Outputs, maps_of, relative_error
from device_cases import Case, Load

BOUNDS = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 5e-3}
"""Of ‖found − expected‖ / ‖expected‖, by the precision of the device; the CPU's is fp32."""

CAPPED_BOUNDS = {"fp32": 5e-3, "bf16": 2e-1, "fp16": 1e-1}
"""Likewise, of scores and maps that are capped, found from the image itself. Such a map says by how many deviations of
good patches a patch differs from their mean: a small difference of large values, which multiplies what the embeddings
are off by."""

PRECISIONS = pytest.mark.parametrize("precision", BOUNDS)

OutputsOf = Callable[[Case, str], Outputs]


def skip_what_a_cpu_cannot(case: Case, precision: str, device: torch.device) -> None:
    if device.type == "cpu" and (precision == "fp16" or (precision == "bf16" and case.is_wide)):
        pytest.skip("a CPU has no fp16, and takes minutes for this in bf16")


@pytest.fixture(scope="module")
def outputs(device: torch.device, load: Load) -> OutputsOf:
    """What the device makes of the images of a case, found once."""
    kept: dict[tuple[str, str], Outputs] = {}

    def found(case: Case, precision: str) -> Outputs:
        skip_what_a_cpu_cannot(case, precision, device)
        if (case.name, precision) not in kept:
            kept[case.name, precision] = Outputs.of(load(case.checkpoint, precision), case.images)
        return kept[case.name, precision]

    return found


def test_matrix_products_in_fp32_are_not_rounded_to_tf32(device: torch.device) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases have another name for it
        assert not torch.backends.cuda.matmul.allow_tf32
    one, other = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0))
    assert relative_error(one.to(device) @ other.to(device), one.double() @ other.double()) < 1e-5


def test_a_convolution_in_fp32_is_at_least_as_exact_as_tf32(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    images, kernel = torch.randn(2, 64, 28, 28, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    found = F.conv2d(images.to(device), kernel.to(device), padding=1)
    error = relative_error(found, F.conv2d(images.double(), kernel.double(), padding=1))
    print(f"error of a convolution: {error:.1e}")
    assert error < BOUNDS["fp32"]


def test_the_maps_of_another_product_are_far_outside_the_bounds(case: Case, load: Load) -> None:
    # Else an image that was scored by the wrong expert would pass.
    others = [(kind + 1) % len(case.checkpoint.header.tasks) for kind in case.kinds]
    nll, anomaly = maps_of(load(case.checkpoint, "fp32"), case.expected.features, others)
    assert relative_error(nll, case.nll) > 2 * BOUNDS["bf16"]
    assert relative_error(anomaly, case.anomaly) > 2 * BOUNDS["bf16"]


@PRECISIONS
def test_embeddings_agree(case: Case, precision: str, outputs: OutputsOf) -> None:
    found, expected = outputs(case, precision).features, case.expected.features
    assert found.embeddings.dtype == torch.float32
    error = relative_error(found.embeddings, expected.embeddings)
    print(f"error of embeddings: {error:.1e}")
    assert error < BOUNDS[precision]


@PRECISIONS
def test_pooled_stages_agree(precision: str, make_case: Callable[[str], Case], outputs: OutputsOf) -> None:
    # They are stored in bfloat16, which rounds by up to 2⁻⁸.
    for case in map(make_case, ("tiny fast", "wide fast")):
        found, expected = outputs(case, precision).features, case.expected.features
        for one, other in zip(found.stages, expected.stages, strict=True):
            assert one.dtype == torch.bfloat16
            assert relative_error(one, other) < BOUNDS["bf16"]


@PRECISIONS
def test_maps_of_the_same_features_agree(case: Case, precision: str, device: torch.device, load: Load) -> None:
    skip_what_a_cpu_cannot(case, precision, device)
    nll, anomaly = maps_of(load(case.checkpoint, precision), case.expected.features, case.kinds)
    assert nll.dtype == anomaly.dtype == torch.float32
    errors = relative_error(nll, case.nll), relative_error(anomaly, case.anomaly)
    print("errors of NLL and anomaly maps: {:.1e}, {:.1e}".format(*errors))
    assert max(errors) < BOUNDS[precision]


@pytest.mark.parametrize("count", [2, 5, 8])
def test_maps_of_a_smaller_batch_agree(case: Case, count: int, load: Load) -> None:
    features = case.expected.features.rows(slice(count))
    nll, anomaly = maps_of(load(case.checkpoint, "fp32"), features, case.kinds[:count])
    assert relative_error(nll, case.nll[:count]) < BOUNDS["fp32"]
    assert relative_error(anomaly, case.anomaly[:count]) < BOUNDS["fp32"]


@PRECISIONS
def test_every_image_is_routed_to_the_same_product(case: Case, precision: str, outputs: OutputsOf) -> None:
    assert case.expected.products == case.kinds
    assert outputs(case, precision).products == case.kinds


@PRECISIONS
def test_distances_and_ratios_agree(case: Case, precision: str, outputs: OutputsOf) -> None:
    found = outputs(case, precision)
    errors = (
        relative_error(found.distances, case.expected.distances),
        relative_error(found.ratios, case.expected.ratios),
    )
    print("errors of distances and ratios: {:.1e}, {:.1e}".format(*errors))
    assert max(errors) < BOUNDS[precision]


@PRECISIONS
def test_scores_and_anomaly_maps_of_images_agree(case: Case, precision: str, outputs: OutputsOf) -> None:
    found = outputs(case, precision)
    errors = relative_error(found.scores, case.expected.scores), relative_error(found.anomaly, case.expected.anomaly)
    print("errors of scores and anomaly maps: {:.1e}, {:.1e}".format(*errors))
    is_capped = case.checkpoint.header.config.scoring.cap is not None
    assert max(errors) < (CAPPED_BOUNDS if is_capped else BOUNDS)[precision]
