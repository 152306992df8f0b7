"""The fixed convolutions equal the definition of the embedding, and the position code its formula."""

import math

import pytest
import torch
import torch.nn.functional as F

from moleflow.model.features.embedding import PatchEmbedder, position_code


def gathered(stages: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Direct implementation of the definition: ``(B, H, W, D)``."""
    size = stages[0].shape[-2:]
    parts = []
    for stage in stages:
        height, width = stage.shape[-2:]
        padded = F.pad(stage, (1, 1, 1, 1))
        shifted = [padded[:, :, dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
        values = torch.stack(shifted, 2).flatten(1, 2)  # channel-major: (B, C·9, h, w)
        pooled = F.adaptive_avg_pool1d(values.permute(0, 2, 3, 1).flatten(1, 2), dim)
        pooled = pooled.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        parts.append(F.interpolate(pooled, size=size, mode="bilinear", align_corners=False))
    return torch.stack(parts).mean(0).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("channels", "dim", "sides"),
    [
        pytest.param((512, 1024), 768, (6, 3), id="wide-resnet"),
        pytest.param((40, 112), 160, (8, 4), id="lite0"),
        pytest.param((24, 40, 112), 160, (8, 4, 2), id="three stages"),
        pytest.param((17,), 64, (5,), id="one stage"),
        pytest.param((7, 13), 20, (7, 4), id="no common factor, odd sides"),
        pytest.param((6, 10), 8, (4, 2), id="some common factor"),
        pytest.param((1, 2), 64, (4, 2), id="more outputs than gathered values"),
        pytest.param((4, 4), 36, (4, 2), id="one output a gathered value"),
    ],
)
def test_embeddings_equal_a_direct_implementation_of_the_definition(
    channels: tuple[int, ...], dim: int, sides: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    stages = [torch.randn(2, c, side, side, generator=generator) for c, side in zip(channels, sides, strict=True)]
    embeddings = PatchEmbedder(channels, dim)(stages)
    assert embeddings.shape == (2, sides[0], sides[0], dim)
    assert (embeddings - gathered(stages, dim)).abs().max() < 1e-5


def test_a_non_square_grid_is_embedded_as_defined() -> None:
    stages = [torch.randn(1, 6, 4, 6), torch.randn(1, 10, 2, 3)]
    assert (PatchEmbedder((6, 10), 12)(stages) - gathered(stages, 12)).abs().max() < 1e-5


def test_the_convolutions_are_grouped() -> None:
    embedder = PatchEmbedder((512, 1024), 768)
    assert embedder.get_buffer("kernel_0").shape == (768, 2, 3, 3)
    assert embedder.get_buffer("kernel_1").shape == (768, 4, 3, 3)


def test_an_empty_list_of_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="stages must not be empty"):
        PatchEmbedder((), 8)([])


@pytest.mark.parametrize("dim", [8, 160, 768])
def test_the_position_code_is_sinusoidal_in_x_then_y(dim: int) -> None:
    code = position_code(3, 5, dim)
    assert code.shape == (3, 5, dim)
    assert code.dtype == torch.float32
    half = dim // 2
    for y, x in [(0, 0), (2, 0), (0, 4), (1, 3)]:
        expected = []
        for position in (x, y):
            for i in range(0, half, 2):
                angle = position / 10_000 ** (i / half)
                expected += [math.sin(angle), math.cos(angle)]
        assert torch.allclose(code[y, x], torch.tensor(expected), atol=1e-6)


def test_every_position_has_a_unique_code() -> None:
    code = position_code(28, 28, 160).flatten(0, 1)
    assert torch.cdist(code, code).fill_diagonal_(1).min() > 1e-2
