"""From the bytes of an image file to an array of pixels, in bounded time and memory, without PyTorch."""

__all__ = ["bit_depth", "decode", "formats", "preprocessing", "value_range"]
