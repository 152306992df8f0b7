"""Checkpoints with up to 1,000 products."""
