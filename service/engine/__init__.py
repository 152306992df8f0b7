"""Batching and predicting without HTTP: the queue, the model's thread and its health."""

__all__ = ["budget", "ending", "engine", "inference", "predictor"]
