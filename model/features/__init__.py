"""From pixels to patch embeddings: frozen backbones and the embedding of their feature maps."""

__all__ = ["backbone", "compiled", "embedding", "extractor", "patches", "plain"]
