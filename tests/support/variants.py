"""The network variants of the ablation studies, as overrides of a tiny flow's configuration."""

from typing import Any

__all__ = ["VARIANTS"]

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no mixer": {"spatial_context_kernel": None},
    "SoftLN": {"adapter": "soft_ln"},
    "ZCA": {"adapter": "zca"},
    "no scale context": {"scale_context_kernel": None},
    "linear": {"subnet": "linear"},
    "linear, no scale context": {"subnet": "linear", "scale_context_kernel": None},
    "DIA only": {"coupling_blocks": 0, "dia_blocks": 4},
    "MoLE only": {"coupling_blocks": 3, "dia_blocks": 0},
    "more DIA than MoLE": {"coupling_blocks": 1, "dia_blocks": 3},
    "nothing shared but by name": {"coupling_blocks": 0, "spatial_context_kernel": None, "adapter": "soft_ln"},
    "sequential": {"sharing": "sequential"},
    "separated": {"sharing": "separated"},
}
