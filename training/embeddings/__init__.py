"""Extraction and caching of patch features, and augmentation of good images."""

__all__ = ["augment", "cache", "extraction"]
