"""The checkpoint: one validated file for all tasks, and the experts loaded from it."""

__all__ = [
    "areas",
    "checkpoint",
    "editing",
    "experts",
    "header",
    "layout",
    "merging",
    "sections",
    "stacked_experts",
    "tensor_file",
    "unique_keys",
]
