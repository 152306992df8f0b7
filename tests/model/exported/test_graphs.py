"""Rounding to bfloat16 is PyTorch's."""

import numpy as np
import torch

from moleflow.model.exported.graphs import round_to_bfloat16


def test_values_are_rounded_to_bfloat16_with_ties_to_even() -> None:
    values = np.random.default_rng(0).normal(0, 100, 10_000).astype(np.float32)
    values[:4] = np.array([0x3F808000, 0x3F818000, 0x80000000, 0x7F800000], np.uint32).view(np.float32)
    expected = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    assert np.array_equal(round_to_bfloat16(values), expected)
