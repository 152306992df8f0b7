"""Fitting one product: its expert, and the thresholds of its verdicts."""

__all__ = ["cross_fitting", "loss", "resume", "trainer"]
