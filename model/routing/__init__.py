"""Which product an image shows, or that it shows none."""

__all__ = ["novelty", "router", "shortlist"]
