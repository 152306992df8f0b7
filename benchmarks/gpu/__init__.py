"""``python -m benchmarks gpu``: everything that is worth knowing about one GPU, in stages, and what to carry to it."""
