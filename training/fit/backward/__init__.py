"""The gradient of a training step, written out: the flow's blocks as single functions."""

__all__ = ["network"]
