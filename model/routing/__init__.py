"""Which product an image shows, or whether the product is unknown."""

__all__ = ["novelty", "router", "routes", "shortlist"]
