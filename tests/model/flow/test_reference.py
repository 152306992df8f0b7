"""The reference flow, in float64: its inverse, its log-determinant against autograd's Jacobian, and the formulas."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiny_model import randomized, tiny_base, tiny_config, tiny_expert

from benchmarks.shared.reference_flow import dia_block, flow_forward, mole_block, scale_and_shift
from moleflow.model.config import FlowConfig
from moleflow.model.flow.blocks import DIABlock, MoLEBase, MoLEDelta
from moleflow.model.flow.expert import Base, Expert

DIM = 8
GRID = (2, 3)

Transform = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def mole_parts() -> tuple[MoLEBase, MoLEDelta]:
    config = FlowConfig(lora_rank=2, scale_context_kernel=3)
    base = randomized(MoLEBase(DIM, config, torch.Generator().manual_seed(4)).double(), 5)
    return base, randomized(MoLEDelta(DIM, config).double(), 6)


def dia_part(*, flip: bool) -> DIABlock:
    return randomized(DIABlock(DIM, flip=flip).double(), 7)


def whole_parts() -> tuple[Base, Expert]:
    """A flow whose input neither adapter nor mixer prepares: they are no part of it."""
    config = tiny_config(dim=DIM, coupling_blocks=3, dia_blocks=3)
    base, expert = tiny_base(config).double(), tiny_expert(config).double()
    base.mixer, expert.adapter = None, torch.nn.Identity()  # type: ignore[assignment]
    return base, expert


TRANSFORMS = [
    pytest.param(lambda: partial(mole_block, *mole_parts()), id="MoLE block"),
    pytest.param(lambda: partial(dia_block, dia_part(flip=False)), id="DIA block"),
    pytest.param(lambda: partial(dia_block, dia_part(flip=True)), id="DIA block, flipped"),
    pytest.param(lambda: partial(flow_forward, *whole_parts()), id="whole flow"),
]


def patches(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *GRID, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def inverse(base: Base, expert: Expert, z: torch.Tensor) -> torch.Tensor:
    """What goes into the blocks for ``z`` to come out."""
    for block in reversed(expert.dia):
        kept, changed = z.chunk(2, -1)[:: -1 if block.flip else 1]
        log_scale = 1.9 * (block.scale_net(kept) / 1.9).tanh()
        changed = (changed - block.shift_net(kept)) * (-log_scale).exp()
        z = torch.cat((changed, kept) if block.flip else (kept, changed), -1)
    for shared, subnet in zip(reversed(base.blocks), reversed(expert.deltas), strict=True):
        x1, y2 = (z[..., shared.permutation.argsort()] / shared.channel_scale).chunk(2, -1)
        s, t = scale_and_shift(shared, subnet, x1)
        z = torch.cat((x1, (y2 - 0.1 * t) * (-1.9 * (0.1 * s).tanh()).exp()), -1)
    return z


def test_the_flow_has_an_exact_inverse() -> None:
    (base, expert), x = whole_parts(), patches()
    z, _ = flow_forward(base, expert, x)
    assert z.dtype == torch.float64
    assert (z - x).abs().max() > 0.1
    assert (inverse(base, expert, z) - x).abs().max() < 1e-12


@pytest.mark.parametrize("make", TRANSFORMS)
def test_the_log_determinant_is_that_of_autograds_jacobian(make: Callable[[], Transform]) -> None:
    # Neighbours enter the scale, so one patch's Jacobian says little; over the grid the terms of all patches add up.
    transform, x = make(), patches(1)
    _, log_det = transform(x)
    assert log_det.shape == (1, *GRID)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[0], x).reshape(x.numel(), x.numel())
    assert log_det.sum().item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-9)


@pytest.mark.parametrize("make", TRANSFORMS)
def test_images_of_a_batch_do_not_mix(make: Callable[[], Transform]) -> None:
    transform, x = make(), patches()
    together, alone = transform(x), transform(x[1:])
    assert torch.allclose(together[0][1:], alone[0], atol=1e-12)
    assert torch.allclose(together[1][1:], alone[1], atol=1e-12)


def test_a_mole_block_computes_the_methods_formula() -> None:
    base, delta = mole_parts()
    x = patches()
    x1, x2 = x[..., : DIM // 2], x[..., DIM // 2 :]
    s, t = scale_and_shift(base, delta, x1)
    log_scale = 1.9 * (0.1 * s).tanh()
    y = torch.cat((x1, x2 * log_scale.exp() + 0.1 * t), -1) * base.channel_scale
    found, log_det = mole_block(base, delta, x)
    assert torch.allclose(found, y[..., base.permutation], atol=1e-12)
    assert torch.allclose(log_det, log_scale.sum(-1) + base.channel_scale.log().sum(), atol=1e-12)


def test_the_shift_sees_the_patch_alone_and_the_scale_its_neighbours_too() -> None:
    base, delta = mole_parts()
    x1 = torch.randn(1, 3, 3, DIM // 2, dtype=torch.float64)
    changed = x1.clone()
    changed[0, 0, 0] += 1
    (s, t), (other_s, other_t) = scale_and_shift(base, delta, x1), scale_and_shift(base, delta, changed)
    assert torch.equal(t[0, 1, 1], other_t[0, 1, 1])
    assert not torch.allclose(s[0, 1, 1], other_s[0, 1, 1])
    assert torch.equal(s[0, 2, 2], other_s[0, 2, 2])


def test_a_dia_block_computes_the_methods_formula() -> None:
    block, x = dia_part(flip=False), patches()
    kept, changed = x.chunk(2, -1)
    log_scale = 1.9 * (block.scale_net(kept) / 1.9).tanh()
    y, log_det = dia_block(block, x)
    assert torch.allclose(y, torch.cat((kept, changed * log_scale.exp() + block.shift_net(kept)), -1), atol=1e-12)
    assert torch.allclose(log_det, log_scale.sum(-1), atol=1e-12)


@pytest.mark.parametrize("flip", [False, True])
def test_a_dia_block_changes_one_half_and_keeps_the_other(flip: bool) -> None:
    x = patches()
    y, _ = dia_block(dia_part(flip=flip), x)
    first, second = (y - x).abs().amax((0, 1, 2)).chunk(2)
    kept, changed = (second, first) if flip else (first, second)
    assert not kept.any()
    assert changed.all()


@pytest.mark.parametrize("flip", [False, True])
def test_a_new_dia_block_is_the_identity(flip: bool) -> None:
    x = patches().float()
    y, log_det = dia_block(DIABlock(DIM, flip=flip), x)
    assert torch.equal(y, x)
    assert not log_det.any()


@pytest.mark.parametrize("size", [-1e6, 1e6])
def test_the_log_scale_stays_within_the_clamp(size: float) -> None:
    block, x = dia_part(flip=False), patches()
    with torch.no_grad():
        block.get_parameter("scale_net.4.bias").fill_(size)
    _, log_det = dia_block(block, x)
    assert log_det.flatten().tolist() == pytest.approx([DIM / 2 * 1.9 * size / 1e6] * log_det.numel())


def test_the_fixed_scale_is_one_and_is_the_same_for_every_channel() -> None:
    base = MoLEBase(DIM, FlowConfig(), torch.Generator().manual_seed(0))
    assert torch.equal(base.channel_scale, torch.ones(DIM))
    assert not base.channel_scale.requires_grad


def test_loading_brings_the_permutation() -> None:
    config = FlowConfig(lora_rank=2, scale_context_kernel=3)
    one = MoLEBase(DIM, config, torch.Generator().manual_seed(1))
    other = MoLEBase(DIM, config, torch.Generator().manual_seed(2))
    assert not torch.equal(one.permutation, other.permutation)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.permutation, other.permutation)
