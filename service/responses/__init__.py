"""Encoding predictions as responses, in each response format."""

__all__ = ["encode", "render", "schemas", "teaching"]
