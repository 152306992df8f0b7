"""From the bytes of an image to an array of pixels, in bounded time and memory and without PyTorch."""

__all__ = ["bit_depth", "decode", "preprocessing", "value_range"]
