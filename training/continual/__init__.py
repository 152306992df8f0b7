"""Continual learning: each product is added to the checkpoint without touching the others."""

__all__ = ["area", "good_images", "journal", "product", "recalibrate", "save", "sequence"]
