"""The checkpoint: one file for all tasks, checked before it is believed, and the experts read from it."""

__all__ = ["checkpoint", "experts", "tensor_file"]
