"""Fitting one product's expert and memory, and the held-out images that calibrate them."""

__all__ = ["coreset", "cross_fitting", "held_out", "loss", "memory", "resume", "trainer"]
