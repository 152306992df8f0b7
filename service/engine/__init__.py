"""Batching and inference, independent of HTTP: the queue, the inference thread and its health."""

__all__ = ["budget", "deadline", "engine", "feedback", "inference", "predictor", "reloading", "termination"]
