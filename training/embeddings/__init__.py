"""Images to stored patch embeddings, extracted once, and alterations of normal images."""

__all__ = ["augment", "cache", "extraction"]
