"""Extraction and caching of patch features, and altered versions of good images."""

__all__ = ["alterations", "augment", "cache", "extraction"]
