"""The spatial mixer and the scale context: depthwise looks at a patch's neighbours."""

import torch

from moleflow.model.flow.context import ScaleContext, SpatialContextMixer, depthwise


def neighbours_weighed(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Depthwise convolution, one neighbour after another, zero outside the grid."""
    reach = kernel.shape[-1] // 2
    height, width = x.shape[1:3]
    y = torch.zeros_like(x)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            for row in range(max(0, -dy), min(height, height - dy)):
                for column in range(max(0, -dx), min(width, width - dx)):
                    y[:, row, column] += kernel[:, 0, dy + reach, dx + reach] * x[:, row + dy, column + dx]
    return y


def test_depthwise_weighs_each_channels_own_neighbours() -> None:
    x, kernel = torch.randn(2, 4, 3, 6, dtype=torch.float64), torch.randn(6, 1, 5, 5, dtype=torch.float64)
    assert torch.allclose(depthwise(x, kernel), neighbours_weighed(x, kernel), atol=1e-12)


def test_the_mixer_blends_each_patch_with_its_neighbours_by_its_gate() -> None:
    mixer = SpatialContextMixer(4, 3).double()
    with torch.no_grad():
        mixer.kernel.normal_()
        mixer.gate.fill_(-0.8)
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    gate = torch.tensor(-0.8, dtype=torch.float64).sigmoid()
    expected = (1 - gate) * x + gate * neighbours_weighed(x, mixer.kernel.detach())
    assert torch.allclose(mixer(x), expected, atol=1e-12)


def test_the_mixer_starts_as_a_mean_filter_with_the_gate_at_one_half_before_the_sigmoid() -> None:
    mixer = SpatialContextMixer(2, 3)
    assert torch.allclose(mixer.kernel, torch.full((2, 1, 3, 3), 1 / 9))
    assert mixer.gate.item() == 0.5


def test_the_scale_context_starts_at_zero_with_a_gain_of_one_tenth() -> None:
    context = ScaleContext(3, 5)
    assert not context.folded_kernel().any()
    with torch.no_grad():
        context.kernel.fill_(1.0)
    assert torch.allclose(context.folded_kernel(), torch.full((3, 1, 5, 5), 0.1))


def test_the_scale_contexts_gain_stays_below_one_fifth() -> None:
    context = ScaleContext(1, 3)
    with torch.no_grad():
        context.kernel.fill_(1.0)
        context.gain.fill_(40.0)
    assert context.folded_kernel().max().item() <= 0.2 + 1e-7


def test_half_precision_leaves_the_mixer_as_float32_and_float64_as_float64() -> None:
    mixer = SpatialContextMixer(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert mixer(torch.randn(1, 2, 2, 2)).dtype == torch.float32
    assert mixer.double()(torch.randn(1, 2, 2, 2, dtype=torch.float64)).dtype == torch.float64
