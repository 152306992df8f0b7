"""From a prediction to the bytes of an answer, in each response format."""

__all__ = ["encode", "render", "schemas"]
