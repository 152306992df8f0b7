"""The flow, in float64: inverses, log-determinants against autograd's Jacobian, and the method's formulas."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tiny_model import randomized, tiny_base, tiny_config, tiny_expert

from moleflow.model.config import FlowConfig
from moleflow.model.flow.blocks import Coupling, DIABlock, MoLEBase, MoLEDelta, mole_forward, mole_inverse
from moleflow.model.flow.expert import flow_forward, flow_inverse

DIM = 8
GRID = (2, 3)


@dataclass
class Transform:
    """An invertible map of ``(B, H, W, D)`` and its log-determinant per patch."""

    forward: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    inverse: Callable[[torch.Tensor], torch.Tensor]


def mole_parts() -> tuple[MoLEBase, MoLEDelta]:
    config = FlowConfig(lora_rank=2, scale_context_kernel=3)
    base = randomized(MoLEBase(DIM, config, torch.Generator().manual_seed(4)).double(), 5)
    return base, randomized(MoLEDelta(DIM, config).double(), 6)


def mole_block() -> Transform:
    base, delta = mole_parts()

    def subnet(x1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return delta.scale_and_shift(base, x1)

    return Transform(lambda x: mole_forward(x, base, subnet), lambda y: mole_inverse(y, base, subnet))


def dia_block(*, flip: bool) -> Transform:
    block = randomized(DIABlock(DIM, flip=flip).double(), 7)
    return Transform(block, block.inverse)


def whole_flow() -> Transform:
    config = tiny_config(dim=DIM, coupling_blocks=3, dia_blocks=3)
    base, expert = tiny_base(config).double(), tiny_expert(config).double()
    # Adapter and mixer prepare the flow's input and are no part of it: here they let it through.
    expert.adapter.forward = lambda x: x  # type: ignore[method-assign]
    base.mixer.forward = lambda x: x  # type: ignore[method-assign]
    return Transform(lambda x: flow_forward(base, expert, x), lambda z: flow_inverse(base, expert, z))


TRANSFORMS = [
    pytest.param(mole_block, id="MoLE"),
    pytest.param(lambda: dia_block(flip=False), id="DIA"),
    pytest.param(lambda: dia_block(flip=True), id="DIA flipped"),
    pytest.param(whole_flow, id="whole flow"),
]


def patches(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *GRID, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("make", TRANSFORMS)
def test_the_inverse_undoes_the_transform(make: Callable[[], Transform]) -> None:
    transform, x = make(), patches()
    y, _ = transform.forward(x)
    assert y.dtype == torch.float64
    assert (y - x).abs().max() > 0.1
    assert (transform.inverse(y) - x).abs().max() < 1e-12


@pytest.mark.parametrize("make", TRANSFORMS)
def test_the_log_determinant_is_that_of_autograds_jacobian(make: Callable[[], Transform]) -> None:
    # Neighbours enter the scale, so one patch's Jacobian says little; over the grid the terms of all patches add up.
    transform, x = make(), patches(1)
    _, log_det = transform.forward(x)
    assert log_det.shape == (1, *GRID)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform.forward(v)[0], x).reshape(x.numel(), x.numel())
    assert log_det.sum().item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-9)


@pytest.mark.parametrize("make", TRANSFORMS)
def test_images_of_a_batch_do_not_mix(make: Callable[[], Transform]) -> None:
    transform, x = make(), patches()
    together, alone = transform.forward(x), transform.forward(x[1:])
    assert torch.allclose(together[0][1:], alone[0], atol=1e-12)
    assert torch.allclose(together[1][1:], alone[1], atol=1e-12)


def test_a_mole_block_computes_the_methods_formula() -> None:
    base, delta = mole_parts()
    x = patches()
    x1, x2 = x[..., : DIM // 2], x[..., DIM // 2 :]
    s, t = delta.scale_and_shift(base, x1)
    log_scale = 1.9 * (0.1 * s).tanh()
    y = torch.cat((x1, x2 * log_scale.exp() + 0.1 * t), -1) * base.channel_scale
    found, log_det = mole_forward(x, base, lambda v: delta.scale_and_shift(base, v))
    assert torch.allclose(found, y[..., base.permutation], atol=1e-12)
    assert torch.allclose(log_det, log_scale.sum(-1) + base.channel_scale.log().sum(), atol=1e-12)


def test_the_shift_sees_the_patch_alone_and_the_scale_its_neighbours_too() -> None:
    base, delta = mole_parts()
    x1 = torch.randn(1, 3, 3, DIM // 2, dtype=torch.float64)
    changed = x1.clone()
    changed[0, 0, 0] += 1
    (s, t), (other_s, other_t) = delta.scale_and_shift(base, x1), delta.scale_and_shift(base, changed)
    assert torch.equal(t[0, 1, 1], other_t[0, 1, 1])
    assert not torch.allclose(s[0, 1, 1], other_s[0, 1, 1])
    assert torch.equal(s[0, 2, 2], other_s[0, 2, 2])


def test_a_dia_block_computes_the_methods_formula() -> None:
    block = randomized(DIABlock(DIM, flip=False).double(), 9)
    x = patches()
    kept, changed = x.chunk(2, -1)
    log_scale = 1.9 * (block.scale_net(kept) / 1.9).tanh()
    y, log_det = block(x)
    assert torch.allclose(y, torch.cat((kept, changed * log_scale.exp() + block.shift_net(kept)), -1), atol=1e-12)
    assert torch.allclose(log_det, log_scale.sum(-1), atol=1e-12)


@pytest.mark.parametrize("flip", [False, True])
def test_a_dia_block_changes_one_half_and_keeps_the_other(flip: bool) -> None:
    x = patches()
    y, _ = dia_block(flip=flip).forward(x)
    first, second = (y - x).abs().amax((0, 1, 2)).chunk(2)
    kept, changed = (second, first) if flip else (first, second)
    assert not kept.any()
    assert changed.all()


@pytest.mark.parametrize("flip", [False, True])
def test_a_new_dia_block_is_the_identity(flip: bool) -> None:
    x = patches().float()
    y, log_det = DIABlock(DIM, flip=flip)(x)
    assert torch.equal(y, x)
    assert not log_det.any()


@pytest.mark.parametrize("slope", [0.1, 1 / 1.9])
def test_the_log_scale_stays_within_the_clamp(slope: float) -> None:
    coupling = Coupling(1.9, slope, 1.0)
    assert coupling.log_scale(torch.tensor([-1e6, 1e6])).tolist() == pytest.approx([-1.9, 1.9])


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_is_widened_for_the_coupling_and_float64_is_kept(
    given: torch.dtype, computed: torch.dtype
) -> None:
    s = torch.ones(2, 4, dtype=given)
    y, log_det = Coupling(1.9, 0.1, 0.1).forward(torch.ones(2, 4, dtype=computed), s, s)
    assert y.dtype == computed
    assert log_det.dtype == computed


def test_the_fixed_scale_is_one_and_is_the_same_for_every_channel() -> None:
    base = MoLEBase(DIM, FlowConfig(), torch.Generator().manual_seed(0))
    assert torch.equal(base.channel_scale, torch.ones(DIM))
    assert not base.channel_scale.requires_grad


def test_loading_brings_the_permutation_and_its_inverse() -> None:
    config = FlowConfig(lora_rank=2, scale_context_kernel=3)
    one = MoLEBase(DIM, config, torch.Generator().manual_seed(1))
    other = MoLEBase(DIM, config, torch.Generator().manual_seed(2))
    assert not torch.equal(one.permutation, other.permutation)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.permutation, other.permutation)
    assert torch.equal(other.permutation[other.inverse_permutation], torch.arange(DIM))
    assert "inverse_permutation" not in one.state_dict()
