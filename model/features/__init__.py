"""From pixels to patch embeddings: frozen backbones and what is made of their feature maps."""

__all__ = ["backbone", "embedding", "extractor"]
