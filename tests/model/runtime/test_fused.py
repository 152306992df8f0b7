"""Fused layers and folded networks equal the plain ones up to rounding."""

from typing import Any

import pytest
import timm
import torch
from tiny_model import PLUGIN
from torch import nn

from moleflow.model.config import BackboneConfig
from moleflow.model.features.backbone import Backbone, import_plugin
from moleflow.model.features.batchnorm_folding import fold
from moleflow.model.runtime import fused
from moleflow.model.runtime.fused import Activation, FusedConv, FusedLinear

GENERATOR = torch.Generator().manual_seed(0)
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.03}
ACTIVATIONS: dict[Activation, nn.Module] = {"none": nn.Identity(), "relu": nn.ReLU(), "relu6": nn.ReLU6()}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


@pytest.fixture(params=[True, False], ids=["fused", "plain"])
def with_operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With oneDNN's operators if this machine has them, and without."""
    if not request.param:
        monkeypatch.setattr(fused, "_operators_agree", lambda dtype: False)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_fused_linear_layer_equals_the_plain_operators(
    with_operators: None, dtype: torch.dtype, activation: Activation
) -> None:
    weight, bias, x = noise(12, 20) / 4, noise(12), 3 * noise(2, 5, 7, 20)
    found = FusedLinear(weight, bias, dtype, activation)(x)
    expected = ACTIVATIONS[activation](torch.nn.functional.linear(x, weight, bias))
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, rtol=TOLERANCES[dtype], atol=4 * TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("added", [None, (2, 8, 4, 4), (2, 8, 1, 1)], ids=["alone", "residual", "one value a channel"])
def test_a_fused_convolution_equals_the_plain_operators(
    with_operators: None, dtype: torch.dtype, activation: Activation, added: tuple[int, ...] | None
) -> None:
    geometry: dict[str, Any] = {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 2}
    kernel, bias, x = noise(8, 3, 3, 3) / 5, noise(8), 2 * noise(2, 6, 7, 8)
    other = None if added is None else noise(*added)
    layer = FusedConv(kernel, bias, dtype, **geometry, activation=activation)
    expected = torch.nn.functional.conv2d(x, kernel, bias, **geometry)
    expected = ACTIVATIONS[activation](expected if other is None else expected + other)
    for _ in range(2):  # the first pass prepacks the kernel, the second reuses it
        found = layer(x, None if other is None else other.to(dtype))
        assert found.dtype == dtype
        assert torch.allclose(found.double(), expected, rtol=TOLERANCES[dtype], atol=4 * TOLERANCES[dtype])


def test_a_fused_convolution_accepts_any_image_and_batch_size() -> None:
    kernel = noise(8, 3, 3, 3)
    layer = FusedConv(kernel, None, torch.float32, padding=(1, 1))
    for shape in ((1, 3, 8, 8), (5, 3, 8, 8), (2, 3, 5, 11), (1, 3, 8, 8)):
        x = noise(*shape)
        expected = torch.nn.functional.conv2d(x, kernel, padding=1)
        assert torch.allclose(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


def with_statistics(net: nn.Module) -> nn.Module:
    """``net`` with random normalisation statistics, as after training."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.normal_(layer.bias, 0, 0.1)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "regnetx_002", "seresnet18", "convnext_atto"])
@torch.inference_mode()
def test_a_folded_network_has_the_same_features_and_leaves_the_original_unchanged(name: str) -> None:
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    getter: dict[str, Any] = {"feature_cls": "getter"} if "efficientnet" in name else {}
    net = with_statistics(timm.create_model(name, features_only=True, out_indices=(1, 2), **getter))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = noise(2, 3, 64, 64).float().contiguous(memory_format=torch.channels_last)
    expected = net(x)
    exact, halved = fold(net, torch.float32), fold(net, torch.bfloat16)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in exact.modules())
    with torch.autocast("cpu", torch.bfloat16):
        near = halved(x)
    for one, other, third in zip(exact(x), expected, near, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()
        assert (third - other).norm() < 0.02 * other.norm()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_folded_residual_block_is_three_convolutions() -> None:
    net = with_statistics(timm.create_model("resnet50", features_only=True, out_indices=(1,)))
    folded = fold(net, torch.float32)
    calls = [node for node in folded.graph.nodes if node.op.startswith("call")]
    assert len(calls) == 1 + 1 + 3 * 3 + 1  # stem, pooling, three blocks, and the first one's shortcut
    assert sum(len(node.args) == 2 for node in calls if node.op == "call_module") == 3  # each block ends in an addition


class Counting(nn.Module):
    """Cannot be traced, as its control flow depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.norm(self.conv(x)) if x.sum() > 0 else x]


def test_a_network_that_cannot_be_traced_is_unchanged() -> None:
    net = Counting().eval()
    assert fold(net, torch.bfloat16) is net


class Twice(nn.Module):
    """Uses a convolution's output before and after the normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        before = self.conv(x)
        after = self.norm(before)
        return [before, after, self.act(after)]


@torch.inference_mode()
def test_outputs_with_several_users_are_not_folded() -> None:
    net = with_statistics(Twice())
    x = noise(2, 3, 9, 9).float()
    for one, other in zip(fold(net, torch.float32)(x), net(x), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_folded_backbone_does_not_modify_the_original() -> None:
    import_plugin(str(PLUGIN))
    backbone = Backbone.pretrained(BackboneConfig(name="tiny_backbone", image_size=32))
    folded = backbone.folded(torch.float32)
    x = noise(2, 3, 32, 32).float()
    for one, other in zip(folded(x), backbone(x), strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()
    assert folded.net is not backbone.net
    assert folded.channels == backbone.channels
