"""The hand-written backward pass of a training step."""

__all__ = ["accelerated", "network"]
