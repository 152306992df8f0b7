"""What ``test_kernels`` has Triton's interpreter run."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from moleflow.model.config import BackboneConfig, FlowConfig, MemoryConfig, ModelConfig, ScoringConfig
from moleflow.model.errors import ExpertError
from moleflow.model.features.embedding import NEIGHBOURHOOD, PatchEmbedder
from moleflow.model.features.kernels import pool_windows
from moleflow.model.features.patches import STAGE_TYPE, PatchFeatures
from moleflow.model.flow.expert import Base, Expert
from moleflow.model.flow.kernels import LARGE, SMALL, Tile, depthwise, linear  # noqa: F401
from moleflow.model.flow.merged import MergedExpert
from moleflow.model.flow.stacked import StackedFlow
from moleflow.model.memory.bank import MemoryBank
from moleflow.model.memory.fusion import Fusion
from moleflow.model.memory.scorer import PatchMaps, ProductParts, ProductScorer
from moleflow.model.routing.kernels import lower_median
from moleflow.model.store.stacked_experts import StackedExperts

GRID = (2, 33)
"""Two images have 132 patches: of three tiles of 64 rows, the second holds both, and the last one is nearly empty."""

PLAIN = ScoringConfig()
CAPPED = ScoringConfig(cap=4.0)
FUSED = ScoringConfig(cap=4.0, memory=MemoryConfig(prototypes=20, pooled=8, dim=6))

DAMAGED = 3
"""The product whose expert is damaged, of four."""

M = TypeVar("M", bound=nn.Module)


def check(found: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-5) -> None:
    assert found.shape == expected.shape
    difference = (found.float() - expected.float()).abs().max().item()
    assert difference <= rtol * expected.abs().max().item(), difference


def linear_layers(inputs: int, tile: Tile, *, relu: bool) -> None:
    total, outputs, which = 132, 70, (2, 0)
    x = torch.randn(total, inputs + 3).half()[:, :inputs]
    weights, biases = torch.randn(3, outputs, inputs).half(), torch.randn(3, outputs).half()
    around = torch.full((total, outputs + 5), torch.nan).half()
    linear(x, weights, biases, torch.tensor(which, dtype=torch.int32), around[:, :outputs], relu=relu, tile=tile)
    parts = zip(x.float().chunk(2), which, strict=True)
    expected = torch.cat([F.linear(part, weights[k].float(), biases[k].float()) for part, k in parts])
    check(around[:, :outputs], expected.relu() if relu else expected, 1e-3)
    assert around[:, outputs:].isnan().all()


def depthwise_convolutions() -> None:
    height, width, channels, copied = 2, 3, 66, 40
    x, kernel = torch.randn(height * width, channels + 2)[:, :channels], torch.randn(9, channels)
    found, around = torch.empty(height * width, channels), torch.full((height * width, copied + 5), torch.nan).half()
    depthwise(x, kernel, (height, width), found, around[:, :copied])
    grid = x.T.reshape(1, channels, height, width)
    expected = F.conv2d(grid, kernel.T.reshape(channels, 1, 3, 3), padding=1, groups=channels).flatten(2)[0].T
    check(found, expected)
    check(around[:, :copied], expected[:, :copied], 1e-3)
    assert around[:, copied:].isnan().all()


def moved(module: M) -> M:
    """``module`` with noise on every parameter, and on what its adapter was fitted to."""
    with torch.no_grad():
        for value in [*module.parameters(), *(b for name, b in module.named_buffers() if name.endswith("matrix"))]:
            value.add_(0.1 * torch.randn(value.shape))
    return module


def model_config(scoring: ScoringConfig = PLAIN, **flow: Any) -> ModelConfig:
    usual = {"coupling_blocks": 1, "dia_blocks": 0, "lora_rank": 2}
    bare = {"spatial_context_kernel": None, "scale_context_kernel": None}
    flow_config = FlowConfig(**(usual | bare | flow))
    return ModelConfig(backbone=BackboneConfig(embedding_dim=24), flow=flow_config, scoring=scoring)


def stacked_flow(slots: Sequence[int], **flow: Any) -> tuple[StackedFlow, list[MergedExpert]]:
    """Experts alone, and together in ``slots``; the latter have room for one more."""
    config = model_config(**flow)
    base = moved(Base(config))
    merged = [MergedExpert(base, moved(Expert(config, first=k == 0, seed=k)), torch.float16) for k in range(len(slots))]
    stacked = StackedFlow(merged[0], len(slots) + 1)
    for slot, expert in zip(slots, merged, strict=True):
        stacked.put(slot, expert)
    return stacked, merged


def flows(**flow: Any) -> None:
    stacked, merged = stacked_flow((2, 0), **flow)
    x = torch.randn(2, *GRID, 24)
    found = stacked(x, torch.tensor([2, 0], dtype=torch.int32))
    expected, other = (torch.cat([merged[k](x[i : i + 1]) for i, k in enumerate(order)]) for order in ((0, 1), (1, 0)))
    check(found, expected, 2e-3)
    assert ((found - other).abs().amax((1, 2)) > 0.05 * expected.abs().max()).all()


def flows_of_other_batches() -> None:
    stacked, _ = stacked_flow((2, 0))
    x, slots = torch.randn(2, *GRID, 24), torch.tensor([2, 0], dtype=torch.int32)
    assert torch.equal(stacked(x[1:], slots[1:]), stacked(x, slots)[1:])


class Products:
    """Three products, the last with a smaller memory and no pooled patches, and images of them.

    Prototypes are far from the centre, where room for more of them would be the nearest.
    """

    def __init__(self, scoring: ScoringConfig, tasks: Sequence[int]) -> None:
        self.config, self.tasks = model_config(scoring, adapter="zca"), tasks
        self.merged: list[int] = []
        base = moved(Base(self.config))
        self.scorers = [ProductScorer(base, self.parts(index)) for index in range(3)]
        stages = [torch.randn(len(tasks), side, side, channels).to(STAGE_TYPE) for side, channels in ((8, 5), (4, 7))]
        self.features = PatchFeatures(torch.randn(len(tasks), 8, 8, 24), tuple(stages) if scoring.memory else ())
        self.experts = StackedExperts(self.merge, self.config, torch.device("cpu"), 2)

    def parts(self, index: int) -> ProductParts:
        expert, scoring = moved(Expert(self.config, first=index == 0, seed=index)), self.config.scoring
        if scoring.cap is None:
            return ProductParts(expert)
        fusion = Fusion(scoring, 24, kinds=2)
        for value in fusion.buffers():
            value.copy_(0.5 + torch.rand(value.shape))
        if scoring.memory is None:
            return ProductParts(expert, None, fusion)
        fewer = index == 2
        sizes = (12, 0) if fewer else (scoring.memory.prototypes, scoring.memory.pooled)
        mean, axes, *prototypes = (torch.randn(size) for size in (12, (12, 6), (sizes[0], 6), (sizes[1], 6)))
        bank = MemoryBank.of(mean, axes, *(6 * each for each in prototypes))
        return ProductParts(expert, bank, fusion.without_pooled() if fewer else fusion)

    def merge(self, index: int) -> ProductScorer:
        self.merged.append(index)
        if index == DAMAGED:
            raise ExpertError("gear", "its digest is wrong.")
        return self.scorers[index]

    def check(self, found: PatchMaps) -> None:
        for row, task in enumerate(self.tasks):
            if task != DAMAGED:
                expected = self.scorers[task](self.features.rows(slice(row, row + 1)))
                check(found.nll[row : row + 1], expected.nll)
                check(found.anomaly[row : row + 1], expected.anomaly, 1e-4)


def exchanged_experts() -> None:
    products = Products(FUSED, (2, 0, 2, 1))
    found, failed = products.experts.maps(products.features, products.tasks)
    assert failed == {}
    products.check(found)


def damaged_experts() -> None:
    products = Products(PLAIN, (DAMAGED, 0))
    found, failed = products.experts.maps(products.features, products.tasks)
    assert list(failed) == [DAMAGED]
    assert found.nll[0].isnan().all()
    products.check(found)


def cleared_experts() -> None:
    products = Products(CAPPED, (1,))
    first, _ = products.experts.maps(products.features, products.tasks)
    products.experts.clear()
    again, _ = products.experts.maps(products.features, products.tasks)
    assert products.merged == [1, 1]
    products.check(first)
    assert torch.equal(first.anomaly, again.anomaly)


def pooled_windows(channels: int, dim: int, dtype: str, height: int = 3) -> None:
    embedder = PatchEmbedder((channels, 1), dim)
    stage = torch.randn(2, channels, height, 7).to(getattr(torch, dtype)).contiguous(memory_format=torch.channels_last)
    starts, ends = embedder.get_buffer("windows_0")
    found = pool_windows(stage, starts, ends, NEIGHBOURHOOD, 1 / 2)
    assert found.dtype == stage.dtype
    expected = F.conv2d(stage.float(), embedder.get_buffer("kernel_0"), padding=1, groups=embedder.groups[0])
    check(found, expected.permute(0, 2, 3, 1), 1e-6 if dtype == "float32" else 1e-3)


def medians(rows: int) -> None:
    """Many are equal, and some are negative zeros; infinities are in some columns, or most of them."""
    values = torch.randn(2, rows, 12).round()
    assert (values.signbit() & (values == 0)).any()
    values[0, 0, :2], values[1, 1:, 2], values[1, 1:, 3] = torch.inf, torch.inf, -torch.inf
    assert torch.equal(lower_median(values), values.median(1).values)


def medians_with_nan() -> None:
    """In each column, of six rows, the third lowest is found."""
    values = torch.randn(1, 6, 5)
    values[0, 1, 0], values[0, 1:4, 1], values[0, :4, 2] = torch.nan, torch.nan, torch.nan
    values[0, :2, 3], values[0, 2:5, 4] = -torch.nan, -torch.nan
    found = lower_median(values)[0]
    ordered = values[0].sort(0).values  # NaN last
    assert torch.equal(found[:2], ordered[2, :2])
    assert found[2].isnan()
    assert found[3] == ordered[0, 3]
    assert found[4].isnan()
