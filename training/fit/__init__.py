"""Fitting one product's expert, and the held-out scores that calibrate it."""

__all__ = ["cross_fitting", "loss", "resume", "trainer"]
