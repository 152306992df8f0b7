"""Extraction and caching of patch embeddings, and augmentation of good images."""

__all__ = ["augment", "cache", "extraction"]
